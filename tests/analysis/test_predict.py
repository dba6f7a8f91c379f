"""Predictions: only training rows reach them, and no interval is printed where there is no honest one."""

import json
from dataclasses import replace

import numpy as np
import pytest

from analysis.forecast.centre import Ensemble
from analysis.forecast.ensemble import build
from analysis.forecast.folds import folds, replicate_sd
from analysis.forecast.gaps import fit_gap
from analysis.forecast.kriging import residuals
from analysis.forecast.predict import planned_run, predict, predict_run
from analysis.forecast.prefix import measured_prefix
from analysis.laws.plans import lengths
from analysis.runs.errors import AnalysisError
from analysis.runs.table import MAX_STEPS, Run, Table, Trajectory
from benchmarks.synthetic import Synthetic, sweep


@pytest.fixture(scope="module")
def made() -> Synthetic:
    return sweep(np.random.default_rng(3), "planted")


@pytest.fixture(scope="module")
def ensemble(made: Synthetic) -> Ensemble:
    return build(made.table, "val_loss")


def finals_only(table: Table) -> Table:
    return Table(tuple(replace(run, trajectory=None) for run in table.runs), table.source)


def test_a_longer_run_is_predicted_within_its_interval(made: Synthetic, ensemble: Ensemble) -> None:
    for target in made.targets:
        found = predict_run(ensemble, target, 0.99)
        truth = target.final("val_loss")
        assert truth is not None and found.low is not None and found.high is not None
        assert found.low < truth < found.high
        assert found.high - found.low < 0.04
    assert sum(ensemble.weights.values()) == pytest.approx(1)


def test_the_interval_follows_the_level_and_the_distance(made: Synthetic, ensemble: Ensemble) -> None:
    def width(steps: int, level: float) -> float:
        target = planned_run(made.table, steps, round(0.4 * steps), None)
        found = predict_run(ensemble, target, level)
        assert found.low is not None and found.high is not None
        return found.high - found.low

    assert width(30000, 0.5) < width(30000, 0.9) < width(90000, 0.9)


def test_a_plan_that_was_run_is_predicted_by_its_replicates(made: Synthetic, ensemble: Ensemble) -> None:
    run = made.table.runs[0]
    twins = [r for r in made.table.runs if (r.steps, r.warmdown_steps) == (run.steps, run.warmdown_steps)]
    found = predict_run(ensemble, replace(run, trajectory=None, metrics={}), 0.9)
    assert found.value == pytest.approx(np.mean([r.metrics["final_loss"] for r in twins]))
    assert found.low is not None and found.high is not None and found.high - found.low < 0.01


def test_no_interval_where_no_study_ever_reached(made: Synthetic, ensemble: Ensemble) -> None:
    found = predict_run(ensemble, planned_run(made.table, 400_000, 100_000, None), 0.9)
    assert found.low is None and found.high is None
    assert found.reason is not None and "times the longest run" in found.reason


def test_json_says_what_was_done_and_how_far_it_reaches(made: Synthetic, ensemble: Ensemble) -> None:
    found = predict_run(ensemble, planned_run(made.table, 40000, 16000, None), 0.9)
    told = json.loads(json.dumps(found.to_json()))
    assert {"metric", "steps", "warmdown", "value", "low", "high", "level", "laws", "extrapolation"} <= set(
        told
    )
    assert told["extrapolation"]["beyond_longest"]
    assert "x the longest run" in told["extrapolation"]["label"]
    assert set(told["laws"]) == set(told["weights"])


def test_a_run_that_lacks_the_metric_brings_no_prediction_nearer(made: Synthetic) -> None:
    table = finals_only(made.table)
    longest = max(table.runs, key=lambda run: run.steps)
    long = replace(
        longest, run_id="long", steps=4 * longest.steps, peak_steps=longest.steps,
        warmdown_steps=3 * longest.steps, metrics={},
    )  # fmt: skip
    plan = {"steps": 3 * longest.steps, "warmdown": 2 * longest.steps, "metric": "val_loss"}
    with_it = predict(replace(table, runs=(*table.runs, long)), **plan)  # type: ignore[arg-type]
    assert with_it.to_json() == predict(table, **plan).to_json()  # type: ignore[arg-type]
    assert with_it.extrapolation["beyond_longest"] and not with_it.extrapolation["ratio_inside"]


def test_one_run_length_is_predicted_from_several_beginnings_with_a_wider_interval(
    made: Synthetic, ensemble: Ensemble
) -> None:
    longest = max(run.steps for run in made.table.runs)
    one = made.table.where(lambda run: run.steps == longest and run.seed == 0)
    found = predict(one, steps=2 * longest, warmdown=made.targets[3].warmdown_steps, metric="val_loss")
    several = predict_run(ensemble, made.targets[3], 0.9)
    assert {"creep from 4 %", "creep from 30 %"} <= set(found.laws)
    truth = made.targets[3].final("val_loss")
    assert truth is not None and found.low is not None and found.high is not None
    assert several.low is not None and several.high is not None
    assert found.low < truth < found.high
    assert found.high - found.low > several.high - several.low


def test_seeds_that_the_clock_ended_are_one_length() -> None:
    def seed(steps: int, number: int, final: float) -> Run:
        return Run(
            run_id=f"{steps}-{number}", steps=steps, peak_steps=steps // 2, warmdown_steps=steps - steps // 2,
            seed=number, metrics={"final_loss": final},
        )  # fmt: skip

    runs = (seed(7179, 1, 3.001), seed(7182, 2, 3.000), seed(7193, 3, 2.999), seed(14000, 1, 2.9))
    assert lengths(runs) == {7179: 7193, 7182: 7193, 7193: 7193, 14000: 14000}
    found = predict(Table(runs), steps=28000, warmdown=14000, metric="val_loss")
    assert found.low is not None and found.high is not None and found.high - found.low < 0.04
    assert found.low < 2.9 - 0.1 * (2**-0.5) < found.high  # the power law with its exponent held at 1/2
    process = residuals(Table(runs), "val_loss", 14000)
    assert len(process.plans) == 2 and process.noise[0] < process.noise[1]


def test_away_from_the_only_ratio_that_was_run_less_is_known() -> None:
    def run(steps: int, ratio: float) -> Run:
        down = round(ratio * steps)
        finals = {"final_loss": 3.0 - steps / 1e5}
        return Run(
            run_id=f"{steps}-{down}",
            steps=steps,
            peak_steps=steps - down,
            warmdown_steps=down,
            metrics=finals,
        )

    plans = [run(8000, ratio) for ratio in (0.2, 0.4, 0.6)]
    alone = residuals(Table((run(4000, 0.2), run(8000, 0.2))), "val_loss", 8000).weights(plans)[1]
    several = residuals(Table((run(4000, 0.2), run(8000, 0.6))), "val_loss", 8000).weights(plans)[1]
    assert np.all(np.diff(np.sqrt(alone)) > 0.15 * 0.015 / 2.8)
    assert several.max() < alone[1]


def test_residuals_of_finals_correct_what_the_laws_leave_over(made: Synthetic) -> None:
    process = residuals(made.table, "val_loss", max(run.steps for run in made.table.runs))
    at_plans, variance = process.weights(process.plans)
    assert at_plans @ np.ones(len(process.plans)) == pytest.approx(1.0, abs=0.1)  # a common shift is undone
    far = [planned_run(made.table, n, round(0.4 * n), None) for n in (30000, 60000)]
    assert np.all(np.diff([variance.max(), *process.weights(far)[1]]) > 0)


def test_a_measured_prefix_starts_at_an_evaluation_and_bends_between_them() -> None:
    at = np.array([0, 1000, 1500, 8000])
    value = np.array([11.0, 4.0, 3.8, 3.0])
    run = Run(
        run_id="x", steps=8000, peak_steps=6000, warmdown_steps=2000,
        trajectory=Trajectory(at, np.ones(4), {"val_loss": value}),
    )  # fmt: skip
    found, likeness = measured_prefix(Table((run,)), "val_loss", run, np.array([500, 1200, 4000]))
    assert likeness.tolist() == [
        0.0,
        1.0,
        0.0,
    ]  # before the first evaluation, and in a hole of the log, nothing
    assert found[1] == pytest.approx(4.0 - 0.2 * np.log(1.2) / np.log(1.5))


def test_finals_alone_carry_laws_of_finals(made: Synthetic) -> None:
    found = predict(finals_only(made.table), steps=20000, warmdown=8000, metric="val_loss")
    assert set(found.laws) <= {"power", "surface"}
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
    ("steps", "warmdown", "level"),
    [(100, 200, 0.9), (0, 0, 0.9), (100, -1, 0.9), (100, 20, 1.5), (10 * MAX_STEPS, 20, 0.9)],
)
def test_impossible_plans(made: Synthetic, steps: int, warmdown: int, level: float) -> None:
    with pytest.raises(AnalysisError):
        predict(made.table, steps=steps, warmdown=warmdown, metric="val_loss", level=level)


def test_runs_of_several_groups_are_not_pooled(made: Synthetic) -> None:
    runs = tuple(
        replace(run, group=(("peak_lr", 1e-3 if i % 2 else 3e-4),))
        for i, run in enumerate(finals_only(made.table).runs)
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


def test_runs_without_a_warmdown_say_nothing_of_a_gap_after_one() -> None:
    def run(steps: int, down: int, gap: float) -> Run:
        raw = 1.2 + steps**-0.5
        return Run(
            run_id=f"{steps}-{down}", steps=steps, peak_steps=steps - down, warmdown_steps=down,
            metrics={"val_bpb": raw, "ttt_bpb": raw + gap},
        )  # fmt: skip

    annealed = [run(steps, steps // 2, -0.018) for steps in (1000, 2000, 4000)]
    constant = [run(steps, 0, -0.15) for steps in (1000, 2000, 4000)]
    gap = fit_gap(Table((*annealed, *constant)), "ttt_bpb")
    assert gap is not None
    value, doubt = gap.at(np.array([8000.0]), np.array([4000.0]))
    assert value[0] == pytest.approx(-0.018) and doubt[0] < 1e-9
    alone = fit_gap(Table(tuple(constant)), "ttt_bpb")
    assert alone is not None and alone.at(np.array([8000.0]), np.array([0.0]))[0][0] == pytest.approx(-0.15)
