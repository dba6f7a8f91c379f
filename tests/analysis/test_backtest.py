"""The backtest: DESIGN's JSON, nothing learnt from test rows, and the scores claimed on public curves."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.forecast.backtest import backtest, score
from analysis.forecast.predict import predict
from analysis.runs.errors import AnalysisError
from analysis.runs.load import load
from analysis.runs.table import Table
from benchmarks.laws import GOLF_50K
from benchmarks.synthetic import sweep


@pytest.fixture(scope="module")
def split_table() -> Table:
    """A synthetic grid whose longest runs are the test rows."""
    table = sweep(np.random.default_rng(5), "outside").table
    longest = max(run.steps for run in table.runs)
    marks = [
        replace(run, columns={"part": "test" if run.steps == longest else "train"}) for run in table.runs
    ]
    ignored = replace(marks[0], run_id="ignored", columns={"part": None}, metrics={"final_loss": 99.0})
    return Table((*marks, ignored), "synthetic")


def test_it_has_the_keys_of_the_contract(split_table: Table) -> None:
    told: Any = json.loads(json.dumps(backtest(split_table, split="part")))
    run = next(iter(told["runs"].values()))
    per_run = {"mae", "rmse", "r2", "pred_e", "worst_e", "final_error", "low", "high", "covered"}
    totals = {
        "mean_mae", "mean_worst_e", "mean_abs_final_error", "max_abs_final_error", "coverage", "mean_width",
    }  # fmt: skip
    assert per_run <= set(run) and totals <= set(told)
    assert totals - {"coverage", "mean_width"} <= set(told["laws"]["mpl"])
    assert {"momentum", "mpl", "fsl", "kappa-mpl", "creep", "power-fsl"} <= set(told["laws"])
    assert "ignored" not in told["runs"] and told["mean_abs_final_error"] < 0.02


def test_what_the_test_rows_say_changes_no_prediction(split_table: Table) -> None:
    def predictions(table: Table) -> list[float]:
        told: Any = backtest(table, split="part")
        return [run["value"] for run in told["runs"].values()]

    moved = []
    for run in split_table.runs:
        if run.columns["part"] == "test" and run.trajectory is not None:
            values = {"val_loss": run.trajectory.values["val_loss"] + 0.5}
            curve = replace(run.trajectory, values=values)
            run = replace(run, metrics={"final_loss": run.metrics["final_loss"] + 0.5}, trajectory=curve)
        moved.append(run)
    assert predictions(split_table) == predictions(Table(tuple(moved), "moved"))


def test_columns_that_split_nothing(split_table: Table) -> None:
    with pytest.raises(AnalysisError, match="no column 'parts'"):
        backtest(split_table, split="parts")
    with pytest.raises(AnalysisError, match="calls no run test"):
        backtest(split_table.split("part", "train"), split="part")


def test_runs_of_another_group_are_not_scored_and_that_is_said(split_table: Table) -> None:
    train = split_table.split("part", "train")
    test = split_table.split("part", "test")
    train = replace(train, runs=tuple(replace(run, group=(("peak_lr", 1e-3),)) for run in train.runs))
    other = replace(test.runs[0], run_id="other", group=(("peak_lr", 3e-4), ("params", 7)))
    like = tuple(replace(run, group=(("peak_lr", 1e-3), ("params", 7))) for run in test.runs[:1])
    told: Any = score(train, replace(test, runs=(*like, other)), "val_loss")
    assert list(told["runs"]) == [like[0].run_id]
    assert told["warnings"][0] == "no training run has peak_lr=0.0003: 1 test runs are not scored"
    with pytest.raises(AnalysisError, match=r"no training run has peak_lr=0\.0003"):
        score(train, replace(test, runs=(other,)), "val_loss")


def public(shared: Path, name: str) -> Table:
    folder = shared / "reference" / "curves" / name
    return load(folder / "runs.csv", folder / "trajectories.csv")


def test_public_schedules_are_predicted_better_than_published(shared: Path) -> None:
    scores: list[Any] = [backtest(public(shared, name), split="split") for name in ("mpl_25m", "mpl_100m")]
    assert np.mean([found["mean_mae"] for found in scores]) <= 0.0031
    assert np.mean([found["mean_worst_e"] for found in scores]) <= 0.0047
    for found in scores:
        for run in ("wsd_20000_24000", "wsdld_20000_24000"):
            assert abs(found["runs"][run]["final_error"]) <= 0.010


def test_longer_runs_and_unseen_ratios_of_public_grids(shared: Path) -> None:
    for name in ("wsd_124m_lr1e-3", "wsd_124m_lr5e-4"):
        table = public(shared, name)
        longer: Any = backtest(table, split="split_length")
        assert longer["mean_abs_final_error"] <= 0.0025 and longer["max_abs_final_error"] <= 0.005
        assert longer["coverage"] >= 5 / 6 and longer["mean_width"] <= 0.016
        ratios: Any = backtest(table, split="split_ratio")
        assert ratios["mean_abs_final_error"] <= 0.0025 and ratios["coverage"] >= 5 / 6


def test_one_warmdown_tells_of_runs_two_and_four_times_as_long(shared: Path) -> None:
    """210M parameters: one run of 50k steps, to 100k at two ratios and to 200k."""
    found: Any = backtest(public(shared, "wsd_210m_horizon"), split="split")
    assert found["mean_abs_final_error"] <= 0.012
    assert found["coverage"] == 1.0 and found["mean_width"] <= 0.045


def test_stages_of_a_challenge_entry_at_twice_its_length(shared: Path) -> None:
    """Seeds that the wall clock ended are one length; the gaps of int6 and TTT go on as they went."""
    table = public(shared, "golf_pr549")
    for metric, truth in GOLF_50K.items():
        found = predict(table, steps=50000, warmdown=19500, metric=metric)
        assert found.low is not None and found.high is not None
        assert abs(found.value - truth) < 0.004 and found.low < truth < found.high
        assert found.high - found.low < 0.015


@pytest.mark.parametrize(("metric", "close"), [("float_bpb", 0.001), ("ttt_bpb", 0.002)])
def test_the_reference_study_predicts_its_longer_runs(shared: Path, metric: str, close: float) -> None:
    table = load(shared / "reference/gepa_runs.csv", shared / "reference/gepa_trajectories.csv")
    short = table.where(lambda run: run.steps <= 15000)
    for run in table.runs:
        if run.steps > 15000:
            found = predict(short, steps=run.steps, warmdown=run.warmdown_steps, metric=metric)
            truth = run.final(metric)
            assert truth is not None and found.low is not None and found.high is not None
            assert abs(found.value - truth) <= close
            assert found.low <= truth <= found.high
