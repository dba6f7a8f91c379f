"""Where a run's final BPB comes from: raw weights -> EMA -> int6 -> sliding windows -> test-time training.

Each effect is the difference of two neighbouring stages of one run on the same validation blocks (blocks.py),
so text that is hard for both cancels from its error. Columns that were not measured one at a time are
differences of several effects, and are named so.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from analysis.effects.averages import Arrival, arrivals, average_sentences
from analysis.effects.repair import Repair, repair_sentences, repairs
from analysis.effects.slopes import Estimate, fit_linear
from analysis.runs.blocks import Effect, paired_effect, read_blocks
from analysis.runs.settings import by_setting
from analysis.runs.table import Run, Table
from analysis.runs.units import STAGES, counted, span

EFFECTS = {
    ("float_bpb", "ema_bpb"): "EMA",
    ("ema_bpb", "int6_bpb"): "int6",
    ("int6_bpb", "int6_sliding_bpb"): "sliding windows",
    ("int6_sliding_bpb", "ttt_bpb"): "test-time training",
}
_PARTS = {"ema_bpb": "EMA", "int6_bpb": "int6", "int6_sliding_bpb": "sliding windows", "ttt_bpb": "TTT"}


@dataclass(frozen=True)
class Step:
    """From one measured stage to the next measured one."""

    before: str
    after: str
    effect: Effect

    @property
    def name(self) -> str:
        """The effect's name; several effects joined by + where stages between them were not measured."""
        alone = EFFECTS.get((self.before, self.after))
        if alone:
            return alone
        first, last = STAGES.index(self.before), STAGES.index(self.after)
        return " + ".join(_PARTS[stage] for stage in STAGES[first + 1 : last + 1])

    @property
    def mixed(self) -> bool:
        return (self.before, self.after) not in EFFECTS


@dataclass(frozen=True)
class RunStages:
    """A run's stage effects in order."""

    run: Run
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Trend:
    """A straight line over runs with seeds averaged: its slope with interval, and how many points it has."""

    what: str
    slope: Estimate
    points: int


@dataclass(frozen=True)
class Decomposition:
    """Stage effects of all runs, and what they and the artifact's size go with."""

    runs: tuple[RunStages, ...]
    ttt_on_base: tuple[
        Trend, ...
    ]  # TTT effect (or the mixed one that ends in it) on the mean BPB before and after it, by setting
    bytes_on_steps: tuple[Trend, ...]  # artifact bytes on ln(steps), by setting
    notes: tuple[str, ...]
    sentences: tuple[str, ...]
    repairs: tuple[Repair, ...] = ()  # what TTT gains on float and mends of int6
    arrivals: tuple[Arrival, ...] = ()  # warmdown, averages and merges at equal steps

    def effect_names(self) -> list[str]:
        return list(dict.fromkeys(step.name for run in self.runs for step in run.steps))


def decompose(table: Table, level: float = 0.9) -> Decomposition:
    """Effects of every run of which two stages are known."""
    runs, notes = [], []
    unpaired: list[str] = []
    for run in table.runs:
        steps = _steps(run, table)
        if not steps:
            continue
        runs.append(RunStages(run, steps))
        if any(step.effect.error is None for step in steps):
            unpaired.append(run.run_id)
    if unpaired and table.folder is not None:
        those = counted(len(unpaired), "run")
        notes.append(f"No blocks, or too few, for paired errors of the stage effects of {those}.")
    elif unpaired:
        notes.append("Stage effects carry no errors: a CSV has no per-block figures.")
    mixed = list(dict.fromkeys(step.name for r in runs for step in r.steps if step.mixed))
    notes += [
        f"Effects mixed in one difference, as the stages between were not measured: {m}." for m in mixed
    ]
    ttt: list[Trend] = []
    size: list[Trend] = []
    sentences = _effect_sentences(runs)
    for name, part in by_setting(table).items():
        prefix = f"{name}: " if name else ""
        inside = {run.run_id for run in part.runs}
        if on_base := _ttt_trend([r for r in runs if r.run.run_id in inside], prefix, level):
            ttt.append(on_base)
            sentences.append(_ttt_sentence(on_base))
        if on_steps := _size_trend(part, prefix, level):
            size.append(on_steps)
            sentences.append(prefix + size_verdict(part, on_steps))
    mended = repairs(table)
    sentences += repair_sentences(mended)
    ways = arrivals(table)
    sentences += average_sentences(table, ways)
    said = tuple(sentence for sentence in sentences if sentence)
    return Decomposition(tuple(runs), tuple(ttt), tuple(size), tuple(notes), said, mended, ways)


def _steps(run: Run, table: Table) -> tuple[Step, ...]:
    known = [stage for stage in STAGES if stage in run.metrics]
    blocks = read_blocks(table.folder, run.run_id) if table.folder is not None and len(known) > 1 else {}
    steps = []
    for before, after in pairwise(known):
        a, b = blocks.get(before.removesuffix("_bpb")), blocks.get(after.removesuffix("_bpb"))
        paired = None if a is None or b is None else paired_effect(a, b)
        value = run.metrics[after] - run.metrics[before]
        # The value is the table's, as counting modes may differ from the blocks' in the last digits.
        steps.append(Step(before, after, Effect(value, paired.error if paired else None)))
    return tuple(steps)


def seed_means(values: list[tuple[Run, float, float]]) -> tuple[list[float], list[float]]:
    """Average (x, y) over runs that differ in nothing but the seed: seeds are aggregated, not pooled."""
    cells: dict[tuple[object, ...], list[tuple[float, float]]] = {}
    for run, x, y in values:
        key = (run.group, run.steps, run.warmdown_steps, run.schedule, run.final_lr_fraction)
        cells.setdefault(key, []).append((x, y))
    means = [np.mean(cell, axis=0) for cell in cells.values()]
    return [float(m[0]) for m in means], [float(m[1]) for m in means]


def _trend(what: str, values: list[tuple[Run, float, float]], level: float) -> Trend | None:
    x, y = seed_means(values)
    if len(x) < 3 or len(set(x)) < 3:
        return None
    order = np.argsort(x)
    design = np.stack([np.ones(len(x)), np.array(x)[order]], axis=1)
    fit = fit_linear(design, np.array(y)[order])
    return Trend(what, fit.combination(np.array([0.0, 1.0]), level), len(x))


def _ttt_trend(runs: list[RunStages], prefix: str, level: float) -> Trend | None:
    last = [(r.run, r.steps[-1]) for r in runs if r.steps[-1].after == "ttt_bpb"]
    if not last:
        return None
    name = last[0][1].name
    # On the mean of both: a difference regressed on its own start has a slope by the start's noise alone
    # (Oldham 1962).
    rows = [
        (run, (run.metrics[s.before] + run.metrics[s.after]) / 2, s.effect.value)
        for run, s in last
        if s.name == name
    ]
    return _trend(f"{prefix}{name} on the mean BPB before and after", rows, level)


def _size_trend(table: Table, prefix: str, level: float) -> Trend | None:
    rows = [
        (run, float(np.log(run.steps)), run.metrics["artifact_bytes"])
        for run in table.runs
        if "artifact_bytes" in run.metrics
    ]
    return _trend(f"{prefix}artifact_bytes on ln(steps)", rows, level)


def _effect_sentences(runs: list[RunStages]) -> list[str]:
    sentences = []
    for name in dict.fromkeys(step.name for r in runs for step in r.steps):
        values = [step.effect.value for r in runs for step in r.steps if step.name == name]
        errors = [
            step.effect.error
            for r in runs
            for step in r.steps
            if step.name == name and step.effect.error is not None
        ]
        clear = f", paired standard error {max(errors):.4f} at most" if errors else ""
        sentences.append(
            f"{name}: {np.mean(values):+.4f} BPB on average over {counted(len(values), 'run')} "
            f"({min(values):+.4f} to {max(values):+.4f}{clear})."
        )
    return sentences


def _ttt_sentence(trend: Trend) -> str:
    if trend.slope.low is None:
        return ""
    s = trend.slope
    if s.above(0) or s.below(0):
        word = "more" if s.value < 0 else "less"
        text = f"{trend.what}: runs of higher BPB gain {word} from it"
    else:
        text = f"{trend.what}: no clear dependence"
    text += f" (slope {s} over {trend.points} points, BPB gained for each BPB higher)"
    if "+" in trend.what:
        text += "; as it mixes effects, this says nothing of test-time training alone"
    return text + "."


_HARDLY_ANY = 5.0  # percent of the rows


def size_verdict(table: Table, trend: Trend) -> str:
    """Whether artifacts shrink with steps, and whether the quantizer's floor may be the reason."""
    doubling = trend.slope.scaled(float(np.log(2))).text("+,.0f")
    text = f"Artifact size changes by {doubling} bytes per doubling of the steps"
    if not (trend.slope.above(0) or trend.slope.below(0)):
        return f"{text}: no trend beyond what {trend.points} points scatter."
    floors = [
        (run.metrics["quant_rows_at_floor"], run.metrics.get("quant_rows"))
        for run in table.runs
        if "quant_rows_at_floor" in run.metrics
    ]
    if not floors:
        return (
            f"{text}; whether by training or by the quantizer's scale floor cannot be told, "
            "as rows at the floor were not recorded."
        )
    if max(count for count, _ in floors) == 0:
        return f"{text}; no row is at the quantizer's floor, so it is not the floor."
    share = [100 * count / rows for count, rows in floors if rows]
    if len(share) == len(floors) and max(share) < _HARDLY_ANY:
        return (
            f"{text}; hardly any row is at the quantizer's floor ({max(share):.1f} % at most), "
            "so it is not the floor."
        )
    counts = [count for count, _ in floors]
    how_many = f"{span(share, '.0f')} % of the quantized rows" if share else f"{span(counts, ',.0f')} rows"
    return (
        f"{text}; {how_many} have the smallest scale that the quantizer allows, so that the size also "
        "follows how small the weights are: whether training or this floor changes it cannot be told."
    )
