"""Stage effects and their paired errors; what the artifact's size follows; confounds and comparisons."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.effects.compare import compare
from analysis.effects.confounds import confounds, replicate_sd
from analysis.effects.stages import decompose
from analysis.runs.blocks import StageBlocks, bpb_error, paired_effect, read_blocks
from analysis.runs.errors import AnalysisError
from analysis.runs.load import load
from analysis.runs.parquet import read_parquet
from analysis.runs.table import Run, Table
from tests.synthetic_results import EFFECTS, write_sweep

NAMES = {"EMA": "ema", "int6": "int6", "sliding windows": "int6_sliding", "test-time training": "ttt"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("stages"), seeds=(42, 43))


@pytest.fixture(scope="module")
def table(folder: Path) -> Table:
    return load(folder)


def _blocks(rng: np.random.Generator, n: int, effect: float, shared: np.ndarray) -> StageBlocks:
    size = 1000.0 + 100 * rng.random(n)
    own = 1.2 + effect + shared + 0.001 * rng.normal(size=n)
    return StageBlocks(np.arange(n), size, own * np.log(2) * size)


def test_paired_standard_error_is_the_spread_of_repeated_estimates() -> None:
    """400 draws of noise over fixed text: SE as estimated against SD of the estimates; text cancels."""
    rng = np.random.default_rng(5)
    shared = 0.05 * rng.normal(size=60)
    size = 1000.0 + 400 * rng.random(60)
    values, errors = [], []
    for _ in range(400):
        noise = 0.001 * rng.normal(size=(2, 60))
        before, after = (
            StageBlocks(np.arange(60), size, (1.2 + shared + effect + noise[i]) * np.log(2) * size)
            for i, effect in enumerate((0.0, -0.02))
        )
        effect = paired_effect(before, after)
        assert effect is not None and effect.error is not None
        values.append(effect.value)
        errors.append(effect.error)
    assert np.mean(values) == pytest.approx(-0.02, abs=3e-5)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.1)
    alone = bpb_error(before)
    assert alone is not None and alone > 20 * np.mean(errors)


def test_blocks_that_differ_are_not_paired() -> None:
    rng = np.random.default_rng(0)
    a, b = _blocks(rng, 8, 0, np.zeros(8)), _blocks(rng, 9, 0, np.zeros(9))
    assert paired_effect(a, b) is None


def test_few_blocks_carry_no_error() -> None:
    rng = np.random.default_rng(0)
    effect = paired_effect(_blocks(rng, 3, 0, np.zeros(3)), _blocks(rng, 3, 0.1, np.zeros(3)))
    assert effect is not None and effect.error is None and effect.value == pytest.approx(0.1, abs=0.01)


def test_planted_effects_come_back_within_their_errors(table: Table) -> None:
    result = decompose(table)
    assert len(result.runs) == 18
    deviations = []
    for run in result.runs:
        assert [step.name for step in run.steps] == list(NAMES)
        for step in run.steps:
            assert not step.mixed and step.effect.error is not None
            deviations.append((step.effect.value - EFFECTS[NAMES[step.name]]) / step.effect.error)
    assert 0.8 < np.std(deviations) < 1.25
    assert result.notes == ()


def test_a_csv_has_effects_without_errors_and_mixed_ones_are_named(shared: Path) -> None:
    reference = shared / "reference"
    result = decompose(load(reference / "gepa_runs.csv", reference / "gepa_trajectories.csv"))
    assert {step.name for run in result.runs for step in run.steps} == {"EMA + int6 + sliding windows + TTT"}
    assert all(step.mixed and step.effect.error is None for run in result.runs for step in run.steps)
    text = " ".join(result.notes + result.sentences)
    assert "carry no errors" in text and "mixed" in text
    assert "nothing of test-time training alone" in text


def _with_sizes(table: Table, slope: float, floor: float | None, rows: float | None = None) -> Table:
    def sized(run: Run) -> Run:
        metrics = {k: v for k, v in run.metrics.items() if k != "quant_rows_at_floor"}
        metrics["artifact_bytes"] = (
            3e5 + slope * np.log(run.steps) + 20 * np.sin(run.steps * run.warmdown_steps)
        )
        if floor is not None:
            metrics["quant_rows_at_floor"] = floor
        if rows is not None:
            metrics["quant_rows"] = rows
        return replace(run, metrics=metrics)

    return replace(table, runs=tuple(sized(run) for run in table.runs))


@pytest.mark.parametrize(
    ("slope", "floor", "rows", "said"),
    [
        (0.0, 900.0, None, "no trend beyond"),
        (-9000.0, None, None, "cannot be told"),
        (-9000.0, 0.0, None, "it is not the floor"),
        (-9000.0, 900.0, None, "900 rows have the smallest scale"),
        (-9000.0, 9.0, 1000.0, "hardly any row is at the quantizer's floor (0.9 % at most), so it is not"),
        (-9000.0, 900.0, 1000.0, "90 % of the quantized rows have the smallest scale"),
    ],
)
def test_size_against_steps_names_the_floor(
    table: Table, slope: float, floor: float | None, rows: float | None, said: str
) -> None:
    sentences = decompose(_with_sizes(table, slope, floor, rows)).sentences
    assert any("Artifact size" in s and said in s for s in sentences), sentences


def test_settings_are_not_pooled(table: Table) -> None:
    """Two quantizers, one whose artifacts shrink and one whose do not: two trends, each named."""
    shrinking, flat = _with_sizes(table, -9000.0, 900.0), _with_sizes(table, 0.0, 0.0)
    runs = [replace(r, group=(("quant.method", "reference"),)) for r in shrinking.runs]
    runs += [replace(r, run_id=f"{r.run_id}-p", group=(("quant.method", "per_row"),)) for r in flat.runs]
    found = decompose(replace(table, runs=tuple(runs)))
    slopes = {trend.what.split(":")[0]: trend.slope for trend in found.bytes_on_steps}
    assert slopes["method=reference"].value == pytest.approx(-9000, rel=0.05)
    assert abs(slopes["method=per_row"].value) < 200
    assert any(s.startswith("method=per_row: Artifact size") and "no trend" in s for s in found.sentences)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda frame: frame.drop(columns="nll"), "column nll is missing"),
        (lambda frame: pd.concat([frame, frame.head(1)]), "holds a block twice"),
        (lambda frame: frame.assign(nll=np.nan), "non-finite nll"),
        (lambda frame: frame.assign(bytes=0), "no text"),
    ],
)
def test_damaged_blocks_are_one_clear_error(tmp_path: Path, folder: Path, damage: object, said: str) -> None:
    good = next((folder / "blocks").glob("*.parquet"))
    (tmp_path / "blocks").mkdir()
    damage(read_parquet(good)).to_parquet(tmp_path / "blocks" / good.name)  # type: ignore[operator]
    with pytest.raises(AnalysisError, match=said):
        read_blocks(tmp_path, good.stem)


def test_truncated_blocks_are_one_clear_error(tmp_path: Path, folder: Path) -> None:
    good = next((folder / "blocks").glob("*.parquet"))
    (tmp_path / "blocks").mkdir()
    (tmp_path / "blocks" / good.name).write_bytes(good.read_bytes()[:200])
    with pytest.raises(AnalysisError, match="not readable"):
        read_blocks(tmp_path, good.stem)


def test_confounds_are_said_where_they_are_and_only_there(table: Table) -> None:
    text = " ".join(confounds(table, "val_bpb"))
    for said in (
        "2 seeds",
        "2 trunks",
        "One peak learning rate",
        "Data repeat",
        "floor",
        "bf16",
        "over some 333 steps",
    ):
        assert said in text
    one = table.where(lambda run: run.seed == 42)
    clean = replace(
        one,
        runs=tuple(
            replace(
                run,
                metrics={k: v for k, v in run.metrics.items() if k not in ("epochs", "quant_rows_at_floor")},
                columns={},
                group=(("optim.matrix_lr", 0.01 * (i % 2 + 1)),),
                trunk=run.run_id,
            )
            for i, run in enumerate(one.runs)
        ),
    )
    text = " ".join(confounds(clean, "val_bpb"))
    assert "One seed" in text
    for said in ("trunks", "One peak", "repeat", "floor", "bf16", "EMA"):
        assert said not in text


def test_replicate_noise_is_the_planted_one(table: Table) -> None:
    """Trunk noise was planted with SD .0004; at the end 30 % of it and as much again are left."""
    found = replicate_sd(table, "val_bpb")
    assert found is not None
    assert 0.0001 < found[0] < 0.0005


def test_compare_pairs_by_plan_and_reports_the_planted_difference(tmp_path: Path, folder: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_sweep(other, seeds=(42, 43), steps=(3000, 4500))
    for path in other.glob("blocks/*.parquet"):
        frame = read_parquet(path)
        last = frame["stage"] == "ttt"
        frame.loc[last, "nll"] -= 0.002 * np.log(2) * frame.loc[last, "bytes"]
        frame.to_parquet(path)
    runs = read_parquet(other / "runs.parquet")
    runs["ttt_bpb"] -= 0.002
    runs.to_parquet(other / "runs.parquet")
    result = compare(load(folder), load(other))
    ttt = next(d for d in result.summary if d.metric == "ttt_bpb")
    assert ttt.pairs == 12 and ttt.better == 12
    assert ttt.mean.low is not None and ttt.mean.low < -0.002 < ttt.mean.high  # type: ignore[operator]
    assert len(result.unpaired) == 6
    rows = result.frame[result.frame["metric"] == "ttt_bpb"]
    assert (rows["standard_error"] < 0.0005).all()


def test_compare_refuses_sweeps_without_common_plans(tmp_path: Path, folder: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_sweep(other, steps=(2000,))
    with pytest.raises(AnalysisError, match="no run of"):
        compare(load(folder), load(other))
