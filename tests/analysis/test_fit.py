"""The one fitting routine and the rows that it is given."""

from dataclasses import replace

import numpy as np
import pytest

from analysis.laws import TRAJECTORY_LAWS, kappa_relax
from analysis.laws.design import Design
from analysis.laws.fit import fit
from analysis.laws.law import Law
from analysis.laws.observations import BURN_IN, finals_are_apart, trajectory_rows
from analysis.runs.errors import AnalysisError
from analysis.runs.table import Floats, Table
from benchmarks.synthetic import grid
from tests.analysis.test_laws import GRID, LINEAR, planted, run

LAW = kappa_relax.LAW
THETA = np.array([0.5, 0.7, 0.8, 0.1])


def test_coefficients_are_not_negative_even_where_data_ask_for_it() -> None:
    table = planted(LAW, THETA, GRID)
    rising = [
        replace(r, metrics={}, trajectory=replace(c, values={"val_loss": 6.0 - c.values["val_loss"]}))
        for r in table.runs
        if (c := r.trajectory) is not None
    ]
    found = fit(LAW, trajectory_rows(Table(tuple(rising)), "val_loss"))
    assert np.all(found.coefficients >= 0)


def test_a_shared_trunk_enters_once_and_early_rows_not_at_all() -> None:
    table = planted(LAW, THETA, GRID)
    shared = Table(tuple(replace(r, trunk="one") for r in table.runs))
    data, alone = trajectory_rows(shared, "val_loss"), trajectory_rows(table, "val_loss")
    assert data.design.step.min() >= BURN_IN * 16000
    on_trunk = data.design.warmdown < data.design.step  # any row; steps of the constant phases follow
    constant = [step for r in shared.runs for step in np.arange(2750, r.peak_steps + 1, 250)]
    assert len(data.value) == len(alone.value) - (len(constant) - len(set(constant)))
    assert on_trunk.any()


def test_finals_measured_elsewhere_get_an_offset() -> None:
    table = planted(LAW, THETA, GRID)
    moved = []
    for r in table.runs:
        assert r.trajectory is not None
        cut = r.trajectory.step < r.steps
        curve = replace(
            r.trajectory,
            step=r.trajectory.step[cut],
            lr_scale=r.trajectory.lr_scale[cut],
            values={"val_loss": r.trajectory.values["val_loss"][cut]},
        )
        moved.append(replace(r, metrics={"final_loss": r.metrics["final_loss"] + 0.036}, trajectory=curve))
    assert not finals_are_apart(table, "val_loss")
    assert finals_are_apart(Table(tuple(moved)), "val_loss")
    found = fit(LAW, trajectory_rows(Table(tuple(moved)), "val_loss"))
    assert found.offset == pytest.approx(0.036, abs=3e-4)
    assert fit(LAW, trajectory_rows(table, "val_loss")).offset == 0.0


def test_one_run_off_does_not_move_the_rest() -> None:
    table = planted(LAW, THETA, GRID)
    assert table.runs[0].trajectory is not None
    value = table.runs[0].trajectory.values["val_loss"].copy()
    value[20] += 0.5  # a spike: a single evaluation on a broken step
    spoiled = replace(table.runs[0], trajectory=replace(table.runs[0].trajectory, values={"val_loss": value}))
    found = fit(LAW, trajectory_rows(Table((spoiled, *table.runs[1:])), "val_loss"))
    far = Design([(run(30000, 12000), np.array([30000]))])
    assert found.predict(far) == pytest.approx(LAW.terms(THETA, far) @ LINEAR, abs=3e-3)


def test_no_trajectory_is_an_error_of_the_data() -> None:
    bare = Table(tuple(replace(r, trajectory=None) for r in planted(LAW, THETA, GRID).runs), "bare")
    with pytest.raises(AnalysisError, match="no run has a trajectory of val_loss"):
        trajectory_rows(bare, "val_loss")


def test_a_fit_of_thirty_runs_asks_for_the_terms_at_most_a_few_hundred_times() -> None:
    data = trajectory_rows(grid(np.random.default_rng(0), runs=30, evaluations=30), "val_loss")
    for law in sorted(TRAJECTORY_LAWS, key=lambda law: -len(law.parameters))[:3]:
        asked = 0

        def counted(theta: Floats, design: Design, law: Law = law) -> Floats:
            nonlocal asked
            asked += 1
            return law.terms(theta, design)

        fit(replace(law, terms=counted), data)
        assert asked < 1000, law.name
