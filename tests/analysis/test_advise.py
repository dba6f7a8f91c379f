"""Advice: costs come from the runs' times, the best ratio from the laws; neither is claimed beyond them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.forecast.advise import Advice, advise
from analysis.forecast.cost import cost_of
from analysis.forecast.surface import Forecast, forecast
from analysis.runs.errors import AnalysisError
from analysis.runs.load import load
from analysis.runs.table import Table
from tests.synthetic_results import write_sweep


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    return load(write_sweep(tmp_path_factory.mktemp("advice"), steps=(1000, 2000, 3000), ratios=(0.2, 0.5)))


@pytest.fixture(scope="module")
def found(table: Table) -> Forecast:
    return forecast(table, "ttt_bpb", 0.0005)


@pytest.fixture(scope="module")
def advice(found: Forecast) -> Advice:
    return advise(found)


def test_cost_is_what_the_runs_took(table: Table) -> None:
    """Planted: 0.01 s a step, 35 s of evaluation, on CPU."""
    cost = cost_of(table)
    assert cost is not None and cost.device == "CPU-worker"
    assert 3600 * cost.per_step == pytest.approx(0.01)
    assert 3600 * cost.fixed == pytest.approx(35)
    assert cost.steps(cost.hours(2000)) == pytest.approx(2000, abs=1)
    assert cost.steps(0.0) == 0
    assert cost.text(0.1) == "6 CPU-worker-minutes" and cost.text(3) == "3 CPU-worker-hours"


@pytest.mark.parametrize(("held", "devices"), [({"gpus": 0.25}, 0.25), ({"gpus": 0.0, "ranks": 4.0}, 4.0)])
def test_device_seconds_are_of_the_devices_held(table: Table, held: dict[str, float], devices: float) -> None:
    def on(metrics: dict[str, float]) -> dict[str, float]:
        return {k: v * (devices if k.startswith("gpu_seconds") else 1) for k, v in metrics.items()} | held

    cost = cost_of(replace(table, runs=tuple(replace(run, metrics=on(run.metrics)) for run in table.runs)))
    assert cost is not None
    assert 3600 * cost.per_step == pytest.approx(0.01 * devices)
    assert 3600 * cost.fixed == pytest.approx(35 * devices)


def test_no_times_no_cost(table: Table) -> None:
    timeless = {"gpu_seconds_own", "gpu_seconds_shared", "train_seconds"}
    runs = [replace(r, metrics={k: v for k, v in r.metrics.items() if k not in timeless}) for r in table.runs]
    bare = replace(table, runs=tuple(runs))
    assert cost_of(bare) is None


def test_published_hours_are_of_the_machine(shared: Path) -> None:
    reference = shared / "reference"
    cost = cost_of(load(reference / "gepa_runs.csv", reference / "gepa_trajectories.csv"))
    assert cost is not None and cost.device == "machine"
    assert cost.hours(25000) == pytest.approx((12509 + 2074) / 3600, rel=0.01)


def test_the_longer_planted_warmdown_is_best_and_said_to_be_an_edge(found: Forecast, advice: Advice) -> None:
    """The planted drop grows with the warmdown faster than the trunk falls: .5 beats .2 at all lengths."""
    assert [best.ratio for best in found.best] == pytest.approx([0.5] * len(found.best), abs=0.1)
    assert any("the longest that was run" in sentence for sentence in advice.sentences)


def test_best_ratio_stays_within_those_that_were_run(found: Forecast) -> None:
    for best in found.best:
        assert 0.2 <= best.low <= best.ratio <= best.high <= 0.5


def test_surface_agrees_with_single_predictions(found: Forecast) -> None:
    surface = found.surface
    for i, j in ((0, 0), (3, 10), (-1, -1)):
        steps, ratio = round(surface.steps[i]), surface.ratios[j]
        assert surface.value[i, j] == pytest.approx(found.at(steps, round(steps * ratio)).value, abs=2e-5)


def test_longer_budgets_are_predicted_better_and_marked(advice: Advice) -> None:
    values = [budget.best.prediction.value for budget in advice.budgets]
    assert len(values) >= 2 and values == sorted(values, reverse=True)
    assert advice.marginal is not None and advice.marginal < 0
    assert any("x the longest run" in sentence for sentence in advice.sentences)


def test_next_run_is_new_and_priced_by_new_steps(table: Table, advice: Advice) -> None:
    made = {(run.steps, run.warmdown_steps) for run in table.runs}
    best = advice.candidates[0]
    assert (best.steps, best.warmdown_steps) not in made
    longest_trunk = max(run.peak_steps for run in table.runs)
    assert best.new_steps == best.warmdown_steps + max(best.steps - best.warmdown_steps - longest_trunk, 0)
    assert all(0 <= candidate.settles <= 1 + 1e-9 for candidate in advice.candidates)
    gains = [candidate.settles / candidate.new_steps for candidate in advice.candidates]
    assert gains == sorted(gains, reverse=True)


def test_groups_are_not_mixed(table: Table) -> None:
    runs = [replace(r, run_id=f"{r.run_id}-x", group=(("optim.matrix_lr", 0.1),)) for r in table.runs[:2]]
    mixed = replace(table, runs=(*table.runs, *runs))
    result = forecast(mixed, "ttt_bpb", None)
    assert set(result.left_out) == {run.run_id for run in runs}
    assert result.noise == 0.001


def test_no_warmdown_no_forecast(table: Table) -> None:
    constant = [replace(r, schedule="constant", peak_steps=r.steps, warmdown_steps=0) for r in table.runs[:1]]
    with pytest.raises(AnalysisError, match="no run has a warmdown and a ttt_bpb"):
        forecast(replace(table, runs=tuple(constant)), "ttt_bpb", None)


def test_one_ratio_gives_no_best_ratio(table: Table) -> None:
    one = table.where(lambda run: np.isclose(run.warmdown_ratio, 0.5))
    sentences = advise(forecast(one, "ttt_bpb", None)).sentences
    assert sentences[0].startswith("All runs warm down for 0.50 of their steps")
