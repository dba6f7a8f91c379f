"""Predictions: only training rows reach them, and no interval is printed where there is no honest one."""

import json
from dataclasses import replace

import numpy as np
import pytest

from analysis.forecast.ensemble import build
from analysis.forecast.folds import folds, replicate_sd
from analysis.forecast.predict import predict, predict_run
from analysis.runs.errors import AnalysisError
from analysis.runs.table import Run, Table
from benchmarks.synthetic import Synthetic, sweep


@pytest.fixture(scope="module")
def made() -> Synthetic:
    return sweep(np.random.default_rng(3), "planted")


def finals_only(table: Table) -> Table:
    return Table(tuple(replace(run, trajectory=None) for run in table.runs), table.source)


def test_a_longer_run_is_predicted_within_its_interval(made: Synthetic) -> None:
    ensemble = build(made.table, "val_loss")
    for target in made.targets:
        found = predict_run(ensemble, target, 0.99)
        truth = target.final("val_loss")
        assert truth is not None and found.low is not None and found.high is not None
        assert found.low < truth < found.high
        assert found.high - found.low < 0.04
    assert sum(ensemble.weights.values()) == pytest.approx(1)


def test_the_interval_follows_the_level_and_the_distance(made: Synthetic) -> None:
    def width(steps: int, level: float) -> float:
        found = predict(made.table, steps=steps, warmdown=round(0.4 * steps), metric="val_loss", level=level)
        assert found.low is not None and found.high is not None
        return found.high - found.low

    assert width(30000, 0.5) < width(30000, 0.9) < width(90000, 0.9)


def test_json_says_what_was_done_and_how_far_it_reaches(made: Synthetic) -> None:
    found = predict(made.table, steps=40000, warmdown=16000, metric="val_loss")
    told = json.loads(json.dumps(found.to_json()))
    assert {"metric", "steps", "warmdown", "value", "low", "high", "level", "laws", "extrapolation"} <= set(
        told
    )
    assert told["extrapolation"]["beyond_longest"]
    assert "x the longest run" in told["extrapolation"]["label"]
    assert set(told["laws"]) == set(told["weights"])


def test_a_run_that_lacks_the_metric_brings_no_prediction_nearer(made: Synthetic) -> None:
    longest = max(made.table.runs, key=lambda run: run.steps)
    long = replace(
        longest, run_id="long", steps=4 * longest.steps, peak_steps=longest.steps,
        warmdown_steps=3 * longest.steps, metrics={}, trajectory=None,
    )  # fmt: skip
    plan = {"steps": 3 * longest.steps, "warmdown": 2 * longest.steps, "metric": "val_loss"}
    with_it = predict(replace(made.table, runs=(*made.table.runs, long)), **plan)  # type: ignore[arg-type]
    assert with_it.to_json() == predict(made.table, **plan).to_json()  # type: ignore[arg-type]
    assert with_it.extrapolation["beyond_longest"] and not with_it.extrapolation["ratio_inside"]


def test_no_interval_from_one_run_length(made: Synthetic) -> None:
    longest = max(run.steps for run in made.table.runs)
    found = predict(
        made.table.where(lambda run: run.steps == longest), steps=30000, warmdown=9000, metric="val_loss"
    )
    assert found.low is None and found.high is None
    assert found.reason is not None and "fewer than two run lengths" in found.reason


def test_no_interval_for_another_ratio_when_one_was_run(made: Synthetic) -> None:
    ratio = made.table.runs[0].warmdown_ratio
    table = made.table.where(lambda run: abs(run.warmdown_ratio - ratio) < 0.01)
    same = predict(table, steps=20000, warmdown=round(ratio * 20000), metric="val_loss")
    other = predict(table, steps=20000, warmdown=18000, metric="val_loss")
    assert same.low is not None
    assert other.low is None and other.reason is not None and "one kind of warmdown" in other.reason


def test_one_run_is_still_predicted_by_the_laws_median(made: Synthetic) -> None:
    found = predict(
        made.table.where(lambda r: r is made.table.runs[-1]), steps=20000, warmdown=8000, metric="val_loss"
    )
    assert found.value == pytest.approx(np.median(list(found.laws.values())))
    assert found.low is None


def test_finals_alone_carry_laws_of_finals(made: Synthetic) -> None:
    found = predict(finals_only(made.table), steps=20000, warmdown=8000, metric="val_loss")
    assert set(found.laws) <= {"power", "log-linear", "surface"}
    assert found.low is not None


def test_too_little_is_an_error_that_says_what_it_takes(made: Synthetic) -> None:
    two = finals_only(made.table.where(lambda run: run.steps == made.table.runs[0].steps))
    with pytest.raises(AnalysisError, match="carries no law"):
        predict(two, steps=20000, warmdown=8000, metric="val_loss")


def test_a_constant_rate_alone_says_nothing_of_a_warmdown(made: Synthetic) -> None:
    constant = tuple(
        replace(run, peak_steps=run.steps, warmdown_steps=0, schedule="constant") for run in made.table.runs
    )
    with pytest.raises(AnalysisError, match="falling learning rate"):
        predict(Table(constant, "constant"), steps=20000, warmdown=8000, metric="val_loss")


@pytest.mark.parametrize(
    ("steps", "warmdown", "level"), [(100, 200, 0.9), (0, 0, 0.9), (100, -1, 0.9), (100, 20, 1.5)]
)
def test_impossible_plans(made: Synthetic, steps: int, warmdown: int, level: float) -> None:
    with pytest.raises(AnalysisError):
        predict(made.table, steps=steps, warmdown=warmdown, metric="val_loss", level=level)


def test_runs_of_several_groups_are_not_pooled(made: Synthetic) -> None:
    runs = tuple(
        replace(run, group=(("peak_lr", 1e-3 if i % 2 else 3e-4),)) for i, run in enumerate(made.table.runs)
    )
    mixed = Table(runs, "mixed")
    with pytest.raises(AnalysisError, match=r"peak_lr: 0\.0003, 0\.001"):
        predict(mixed, steps=20000, warmdown=8000, metric="val_loss")
    one = predict(mixed, steps=20000, warmdown=8000, metric="val_loss", where={"peak_lr": 1e-3})
    alone = mixed.where(lambda run: run.group == (("peak_lr", 1e-3),))
    assert one.value == predict(alone, steps=20000, warmdown=8000, metric="val_loss").value


def test_length_folds_train_on_nothing_longer_than_they_know(made: Synthetic) -> None:
    for fold in folds(made.table, "val_loss"):
        trained = {run.run_id for run in fold.train.runs}
        assert not trained & {run.run_id for run in fold.held_out}
        if fold.kind == "length":
            assert max(r.steps for r in fold.train.runs) < min(r.steps for r in fold.held_out)
            ends = [r.trajectory.step[-1] for r in fold.train.runs if r.trajectory is not None]
            assert max(ends) < min(r.steps for r in fold.held_out)


def test_replicates_are_compared_by_trunk() -> None:
    def replicate(seed: int, final: float) -> Run:
        return Run(
            run_id=f"s{seed}-{final}", steps=1000, peak_steps=800, warmdown_steps=200, seed=seed,
            trunk=f"t{seed}", metrics={"final_loss": final},
        )  # fmt: skip

    twins = Table((replicate(1, 3.0), replicate(1, 3.0), replicate(2, 3.012), replicate(3, 2.988)))
    expected = np.sqrt((0.0004**2 + 2 * 0.004**2) / 3)
    assert replicate_sd(twins, "val_loss") == pytest.approx(expected, rel=0.01)
    assert replicate_sd(Table(twins.runs[:1]), "val_loss") == pytest.approx(0.0004)
