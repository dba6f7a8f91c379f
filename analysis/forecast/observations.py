"""Which rows of a table a law is fitted to."""

from __future__ import annotations

from collections import Counter

import numpy as np

from analysis.forecast.folds import last_known
from analysis.laws.design import Design
from analysis.laws.fit import Observations
from analysis.runs.errors import AnalysisError
from analysis.runs.table import Floats, Ints, Run, Table

BURN_IN = 1 / 6
"""Part of the longest run whose rows are left out at its start: a power law in S does not hold from step
0. Constant runs of 24k-50k steps are extrapolated to twice and thrice their length within .002 from then
on, and not from 2k."""


def trajectory_rows(table: Table, metric: str) -> Observations:
    """Every evaluation after the burn-in, rows of a shared trunk once, and finals that no evaluation repeats.

    Raises:
        AnalysisError: no run has a trajectory of this quantity.
    """
    longest = max((run.steps for run in table.runs if last_known(run, metric) is not None), default=0)
    taken: set[tuple[str, int]] = set()
    rows: list[tuple[Run, Ints]] = []
    values: list[Floats] = []
    offsets: list[Floats] = []
    for run in sorted(table.runs, key=lambda run: -run.steps):
        step, value = np.empty(0, np.int64), np.empty(0)
        curve = run.curve(metric)
        if curve is not None:
            step, _, value = curve
            late = (
                (step >= BURN_IN * longest)
                & (step >= 2 * run.warmup_steps)
                & (step > 0)
                & (step <= run.steps)
            )
            new = np.array([s > run.peak_steps or (run.trunk, int(s)) not in taken for s in step])
            taken |= {(run.trunk, int(s)) for s in step if s <= run.peak_steps}
            step, value = step[late & new], value[late & new]
        final = run.final(metric)
        offset = np.zeros(len(step))
        if final is not None and (len(step) == 0 or step[-1] < run.steps):
            step, value, offset = np.append(step, run.steps), np.append(value, final), np.append(offset, 1.0)
        if len(step):
            rows.append((run, step))
            values.append(value)
            offsets.append(offset)
    if not any(run.curve(metric) is not None for run in table.runs):
        raise AnalysisError(f"{table.source}: no run has a trajectory of {metric}")
    value = np.concatenate(values)
    offset = np.concatenate(offsets) * finals_are_apart(table, metric)
    return Observations(Design(rows), value, _replicate_weights(rows), offset)


def _replicate_weights(rows: list[tuple[Run, Ints]]) -> Floats:
    """1 / sqrt(n) where n runs measured the same: replicates count as their mean, not as more data."""
    keys = [
        (int(step), None if step <= run.peak_steps else (run.steps, run.peak_steps, run.schedule))
        for run, steps in rows
        for step in steps
    ]
    count = Counter(keys)
    return np.array([count[key] ** -0.5 for key in keys])


def finals_are_apart(table: Table, metric: str) -> bool:
    """Whether finals were measured otherwise (on more data, say) than trajectories, so that laws need an
    offset.

    Known where a trajectory reaches the run's last step; where none does, it has to be assumed.
    """
    both = [
        (final, float(curve[2][-1]))
        for run in table.runs
        if (final := run.final(metric)) is not None
        and (curve := run.curve(metric)) is not None
        and curve[0][-1] == run.steps
    ]
    return not both or any(abs(final - last) > 1e-3 * last for final, last in both)


def final_rows(table: Table, metric: str) -> Observations:
    """One row a plan: its final value, the mean of its replicates.

    Raises:
        AnalysisError: no final value is known.
    """
    plans: dict[tuple[object, ...], list[tuple[Run, float]]] = {}
    for run in table.runs:
        if (final := run.final(metric)) is not None:
            plan = (run.steps, run.peak_steps, run.schedule, run.final_lr_fraction)
            plans.setdefault(plan, []).append((run, final))
    if not plans:
        raise AnalysisError(f"{table.source}: no final {metric} is known")
    design = Design([(made[0][0], np.array([made[0][0].steps])) for made in plans.values()])
    values = np.array([np.mean([final for _, final in made]) for made in plans.values()])
    return Observations(design, values, np.ones(len(plans)), np.zeros(len(plans)))
