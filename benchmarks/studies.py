"""Public studies, each as splits of runs to train on and runs to predict: what constants are judged by.

A study is one recipe: its splits share runs, so a constant is chosen on the other studies whole. Every split
is scored on final values, by |ln(predicted / measured)|.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from analysis.forecast.folds import cut_to
from analysis.runs.load import load
from analysis.runs.table import Run, Table


@dataclass(frozen=True)
class Split:
    """Runs to learn from and runs to predict; `kind` names the question."""

    study: str
    name: str
    kind: str  # "lengths": two or more known; "one length"; "ratios"; "shapes"
    train: Table
    test: tuple[Run, ...]
    metric: str


def splits(reference: Path) -> list[Split]:
    """Every split of every study under reference/."""
    return [split for study in (_grids, _horizon, _openwebtext, _cosine, _golf, _shapes, _published)
            for split in study(reference)]  # fmt: skip


def studies(reference: Path) -> dict[str, list[Split]]:
    """The same by study."""
    found: dict[str, list[Split]] = {}
    for split in splits(reference):
        found.setdefault(split.study, []).append(split)
    return found


def _curves(reference: Path, name: str) -> Table:
    return load(reference / "curves" / name / "runs.csv", reference / "curves" / name / "trajectories.csv")


def _plans(lengths: str, ratios: str, shape: str = "linear") -> Callable[[Run], bool]:
    """Runs of these thousands of steps and tenths of warmdown; repeats are left out."""
    steps = {1000 * int(n) for n in lengths.split()}
    tenths = {int(r) for r in ratios.split()}
    return lambda run: (
        run.steps in steps
        and round(10 * run.warmdown_ratio) in tenths
        and run.schedule == shape
        and not run.run_id.endswith("-r1")
    )


def _grids(reference: Path) -> Iterator[Split]:
    """Steps x ratio at 124M parameters, at two peak rates; the trunk is known to 25,000 steps or less."""
    asked = {
        "longer, ratios 0.2 0.4": ("lengths", ("15 25", "2 4"), ("35 50", "1 2 4 6 8")),
        "longer, ratios 0.2 0.6": ("lengths", ("15 25", "2 6"), ("35 50", "1 2 4 6 8")),
        "longer, ratios 0.1 0.8": ("lengths", ("15 25", "1 8"), ("35 50", "1 2 4 6 8")),
        "longer, ratios 0.4 0.6": ("lengths", ("15 25", "4 6"), ("35 50", "2 4 6")),
        "longer, ratio 0.2": ("lengths", ("15 25", "2"), ("35 50", "2")),
        "longer, three lengths": ("lengths", ("15 25 35", "2 4"), ("50", "1 2 4 6 8")),
        "ratios 0.4 0.6 0.8 of three lengths": ("ratios", ("15 25 35", "1 2"), ("15 25 35", "4 6 8")),
        "ratios 0.1 0.2 0.4 from 0.6 0.8": ("ratios", ("15 25", "6 8"), ("15 25", "1 2 4")),
        "one length, 25k": ("one length", ("25", "2"), ("35 50", "2")),
        "one length, 15k": ("one length", ("15", "2"), ("25 35", "2")),
        "one length, 25k at 0.4": ("one length", ("25", "4"), ("35 50", "4")),
        "one length, three ratios": ("one length", ("25", "1 2 4"), ("35 50", "1 2 4")),
        "one length, other ratio": ("one length", ("25", "2"), ("50", "6")),
    }  # fmt: skip
    for name in ("wsd_124m_lr1e-3", "wsd_124m_lr5e-4"):
        table = _curves(reference, name)
        trunk = next(run for run in table.runs if run.steps == 25000 and run.is_constant)
        for column, kind in (("split_length", "lengths"), ("split_ratio", "ratios")):
            test = table.split(column, "test").runs
            yield Split(name, column, kind, table.split(column, "train"), test, "val_loss")
        for question, (kind, trained, tested) in asked.items():
            chosen = table.where(_plans(*trained)).runs
            known = cut_to(trunk, min(25000, max(run.steps for run in chosen)))
            assert known is not None
            training = replace(table, runs=(*chosen, known))
            yield Split(name, question, kind, training, table.where(_plans(*tested)).runs, "val_loss")
        training = replace(table, runs=(*table.where(_plans("15 25", "1 2")).runs, trunk))
        test = table.where(_plans("25 50", "2", "1-sqrt")).runs
        yield Split(name, "1-sqrt from linear", "shapes", training, test, "val_loss")


def _by_id(table: Table, *names: str) -> tuple[Run, ...]:
    return tuple(table.run(name) for name in names)


def _horizon(reference: Path) -> Iterator[Split]:
    """210M parameters at 50k, 100k and 200k steps, ratio 0.2, and one 100k run at 0.6."""
    table = _curves(reference, "wsd_210m_horizon")
    short, middle, long, other = _by_id(
        table, "50k-linear-0.2", "100k-linear-0.2", "200k-linear-0.2", "100k-linear-0.6"
    )
    for name, kind, training, test in (
        ("50k", "one length", (short,), (middle, long)),
        ("50k, another ratio", "one length", (short,), (other,)),
        ("100k", "one length", (middle,), (long,)),
        ("50k and 100k", "lengths", (short, middle), (long,)),
    ):
        yield Split("wsd_210m_horizon", name, kind, replace(table, runs=training), test, "val_loss")


def _lengths(study: str, table: Table) -> Iterator[Split]:
    """Groups of three lengths: the longest from two; from one, the middle and the longest from the first."""
    for group, members in table.groups().items():
        size = f"{round(float(str(dict(group)['params'])) / 1e6)}M"
        runs = sorted((run for run in members.runs if not run.is_constant), key=lambda run: run.steps)
        trunks = [run for run in members.runs if run.is_constant]
        for name, kind, known, test in (
            (f"{size}, two lengths", "lengths", runs[:2], runs[2:]),
            (f"{size}, the shortest", "one length", runs[:1], runs[1:]),
            (f"{size}, the middle one", "one length", runs[1:2], runs[2:]),
        ):
            cut = [part for trunk in trunks if (part := cut_to(trunk, known[-1].steps)) is not None]
            yield Split(study, name, kind, replace(table, runs=(*known, *cut)), tuple(test), "val_loss")


def _openwebtext(reference: Path) -> Iterator[Split]:
    return _lengths("wsd_openwebtext_lengths", _curves(reference, "wsd_openwebtext_lengths"))


def _cosine(reference: Path) -> Iterator[Split]:
    return _lengths("cosine_openwebtext_lengths", _curves(reference, "cosine_openwebtext_lengths"))


def _golf(reference: Path) -> Iterator[Split]:
    """A challenge entry at 7k and 20k steps, three seeds each, few evaluations."""
    table = _curves(reference, "golf_pr549")
    short = table.where(lambda run: run.steps < 8000)
    long = tuple(run for run in table.runs if run.steps == 20000)
    for metric in ("float_bpb", "int6_sliding_bpb", "ttt_bpb"):
        yield Split("golf_pr549", f"20k from 7k, {metric}", "one length", short, long, metric)


def _shapes(reference: Path) -> Iterator[Split]:
    """Constant, cosine and two-stage runs of Luo et al. 2025 to six others, up to three times as long."""
    for name in ("mpl_25m", "mpl_100m"):
        table = _curves(reference, name)
        yield Split(
            name, "other schedules", "shapes", table.split("split", "train"),
            table.split("split", "test").runs, "val_loss",
        )  # fmt: skip


def _published(reference: Path) -> Iterator[Split]:
    """The published study's 20k and 25k runs from those up to 15k, and 20k from one."""
    table = load(reference / "gepa_runs.csv", reference / "gepa_trajectories.csv")
    short = table.where(lambda run: run.steps <= 15000)
    longer = tuple(run for run in table.runs if run.steps > 15000)
    one = table.where(lambda run: run.steps == 12000)
    for metric in ("float_bpb", "ttt_bpb"):
        yield Split("published", f"20k, 25k from <= 15k, {metric}", "lengths", short, longer, metric)
        yield Split("published", f"20k, 25k from 12k, {metric}", "one length", one, longer, metric)
