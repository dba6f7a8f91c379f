"""Warmdowns, averages and merges at equal steps, on planted differences."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.effects.averages import arrivals, average_sentences
from analysis.report.plots import averages as averages_figure
from analysis.report.plots import quantizers as quantizers_figure
from analysis.report.plots.errors import UnavailableError
from analysis.report.plots.style import told_apart
from analysis.report.study import study
from analysis.report.tables import averages as averages_table
from analysis.runs.load import load
from analysis.runs.table import Run, Table

LEVELS = {"float": 1.300, "ema": 1.270, "merged": 1.275}
BLOCKS = 40


def _folder(folder: Path, warmdown_bpb: float, seeds: tuple[int, ...] = (1,), blocks: bool = True) -> Path:
    """Per seed a run of 1,000 steps without a warmdown with two EMA horizons, and one with a warmdown."""
    (folder / "blocks").mkdir(parents=True)
    difficulty = np.random.default_rng(3).normal(0, 0.05, BLOCKS)
    rows = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        for decay, better in ((0.9, 0.01), (0.99, 0.0)):
            stages = LEVELS | {"ema": LEVELS["ema"] + better}
            rows.append(_row(folder, f"flat-{decay}-{seed}", 0, seed, decay, stages, difficulty, rng))
        rows.append(_row(folder, f"down-{seed}", 400, seed, 0.99, {"float": warmdown_bpb}, difficulty, rng))
    pd.DataFrame(rows).to_parquet(folder / "runs.parquet")
    if not blocks:
        for path in (folder / "blocks").iterdir():
            path.unlink()
    return folder


def _row(
    folder: Path,
    run_id: str,
    down: int,
    seed: int,
    decay: float,
    stages: dict[str, float],
    difficulty: np.ndarray,
    rng: np.random.Generator,
) -> dict[str, object]:
    rows, finals = [], {}
    for stage, level in stages.items():
        own = level + difficulty - difficulty.mean() + rng.normal(0, 0.002, BLOCKS)
        finals[f"{stage}_bpb"] = float(own.mean())
        rows += [
            {"stage": stage, "block": i, "tokens": 100, "bytes": 1000, "nll": value * np.log(2) * 1000}
            for i, value in enumerate(own)
        ]
    pd.DataFrame(rows).to_parquet(folder / "blocks" / f"{run_id}.parquet")
    plan = {"steps": 1000, "peak_steps": 1000 - down, "warmdown_steps": down, "schedule": "linear"}
    config = f'{{"ema_decay": {decay}}}'
    return {"run_id": run_id, "status": "done", "seed": seed, "config_json": config, **plan, **finals}


def test_every_way_stands_beside_no_warmdown_with_its_paired_error(tmp_path: Path) -> None:
    table = load(_folder(tmp_path / "sweep", 1.260))
    found = {a.way: a for a in arrivals(table)}
    assert list(found) == ["no warmdown", "EMA 0.9", "merged", "EMA 0.99", "warmdown 0.40"]
    for way, planted in (
        ("EMA 0.9", -0.02),
        ("EMA 0.99", -0.03),
        ("merged", -0.025),
        ("warmdown 0.40", -0.04),
    ):
        gain = found[way].gain
        assert gain.error is not None and gain.error < 0.001
        assert abs(gain.value - planted) < 4 * gain.error


@pytest.mark.parametrize(
    ("warmdown", "said"),
    [
        (1.260, "EMA 0.99 does not stand in for the warmdown: it ends 0.0"),
        (1.280, "EMA 0.99 ends below the warmdown, -0.0"),
        (1.270, "are not told apart"),
    ],
)
def test_the_sentence_follows_the_planted_difference(tmp_path: Path, warmdown: float, said: str) -> None:
    table = load(_folder(tmp_path / "sweep", warmdown, seeds=(1, 2)))
    (sentence,) = average_sentences(table, arrivals(table))
    assert sentence.startswith("Against the raw weights after 1,000 steps without a warmdown")
    assert "EMA 0.99 -0.03" in sentence and "merged -0.02" in sentence and said in sentence


def test_without_blocks_one_seed_leaves_it_undetermined(tmp_path: Path) -> None:
    table = load(_folder(tmp_path / "sweep", 1.260, blocks=False))
    (sentence,) = average_sentences(table, arrivals(table))
    assert "undetermined" in sentence


def test_runs_that_differ_in_more_than_observers_are_not_set_side_by_side(tmp_path: Path) -> None:
    table = load(_folder(tmp_path / "sweep", 1.260))

    def moved(run: Run) -> Run:
        return replace(run, group=(("peak_lr", 0.1),)) if run.warmdown_steps else run

    apart = replace(table, runs=tuple(moved(run) for run in table.runs))
    assert {a.kind for a in arrivals(apart)} == {"constant", "EMA", "merged"}
    assert arrivals(table.where(lambda run: run.warmdown_steps > 0)) == ()


def test_table_and_figure_show_the_ways(tmp_path: Path) -> None:
    found = study(load(_folder(tmp_path / "sweep", 1.260)))
    table = averages_table(found)
    assert table is not None and next(iter(table.frame["way"])) == "no warmdown"
    frame = averages_figure.data(found)
    assert set(frame["kind"]) == {"EMA", "merged", "warmdown"}
    labels = averages_figure.draw(frame, found).legends[0].get_texts()
    assert [label.get_text() for label in labels] == list(frame["way"].unique())


def _quantized(table: Table) -> Table:
    def quantized(run: Run, method: str, tax: float) -> Run:
        metrics = run.metrics | {"ema_bpb": 1.26, "int6_bpb": 1.26 + tax, "artifact_bytes": 1e6}
        return replace(
            run, run_id=f"{run.run_id}-{method}", metrics=metrics, group=(("quant.method", method),)
        )

    warmed = [run for run in table.runs if run.warmdown_steps]
    return replace(
        table, runs=tuple(quantized(r, m, t) for r in warmed for m, t in (("reference", 0.02), ("rd", 0.001)))
    )


def test_quantizers_are_drawn_where_there_are_several(tmp_path: Path) -> None:
    table = load(_folder(tmp_path / "sweep", 1.260))
    frame = quantizers_figure.data(study(_quantized(table)))
    assert dict(zip(frame["quantizer"], frame["tax_bpb"].round(4), strict=True)) == {
        "rd": 0.001,
        "reference": 0.02,
    }
    quantizers_figure.draw(frame, study(_quantized(table)))
    with pytest.raises(UnavailableError):
        quantizers_figure.data(study(table))


def test_more_settings_than_looks_repeat_them() -> None:
    looks = told_apart([f"setting {i % 40}" for i in range(80)], ("o", "s", "^"))
    assert len(looks) == 40 and set(looks.values()) == {"o", "s", "^"}
