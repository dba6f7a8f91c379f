"""Which rows of a table a law is fitted to."""

from __future__ import annotations

from collections import Counter

import numpy as np

from analysis.laws.design import Design
from analysis.laws.fit import Observations
from analysis.laws.plans import last_known, measured_plans
from analysis.runs.errors import AnalysisError
from analysis.runs.table import Floats, Ints, Run, Table

BURN_IN = 1 / 6
"""Part of the longest run whose rows are left out at its start: a power law in S does not hold from step
0. Of 0.03 to 0.3, chosen on all given studies: with two lengths known it hardly matters, with one it moves
predictions by up to 0.01 nats either way, so that ensembles then average over BURN_INS."""
BURN_INS = (0.04, 0.1, BURN_IN, 0.3)
MOST_ROWS = 3000  # of a fit: longer logs are thinned evenly


def trajectory_rows(table: Table, metric: str, burn_in: float = BURN_IN) -> Observations:
    """Every evaluation after the burn-in, rows of a shared trunk once, and finals that no evaluation repeats.

    Raises:
        AnalysisError: no run has a trajectory of this quantity, or none that lasts past the burn-in.
    """
    if not any(run.curve(metric) is not None for run in table.runs):
        raise AnalysisError(f"{table.source}: no run has a trajectory of {metric}")
    longest = max((run.steps for run in table.runs if last_known(run, metric) is not None), default=0)
    curves = _late_rows(table, metric, burn_in * longest)
    most = max(MOST_ROWS // max(len(curves), 1), 4)
    apart = finals_are_apart(table, metric)
    rows: list[tuple[Run, Ints]] = []
    values: list[Floats] = []
    offsets: list[Floats] = []
    for run, step, value in curves:
        if len(step) > most:
            kept = np.unique(np.linspace(0, len(step) - 1, most).round().astype(np.int64))
            step, value = step[kept], value[kept]
        final = run.final(metric)
        offset = np.zeros(len(step))
        if final is not None and (len(step) == 0 or step[-1] < run.steps):
            step, value, offset = np.append(step, run.steps), np.append(value, final), np.append(offset, 1.0)
        if len(step):
            rows.append((run, step))
            values.append(value)
            offsets.append(offset)
    if not rows:
        raise AnalysisError(f"{table.source}: no {metric} is known after step {burn_in * longest:.0f}")
    weight = _replicate_weights(rows)
    return Observations(Design(rows), np.concatenate(values), weight, np.concatenate(offsets) * apart)


def _late_rows(table: Table, metric: str, start: float) -> list[tuple[Run, Ints, Floats]]:
    """(run, steps, values) after the start, longest runs first; of a shared trunk only the first's rows."""
    taken: set[tuple[str, int]] = set()
    found = []
    for run in sorted(table.runs, key=lambda run: -run.steps):
        step, value = np.empty(0, np.int64), np.empty(0)
        curve = run.curve(metric)
        if curve is not None:
            step, _, value = curve
            late = (step >= max(start, 2 * run.warmup_steps, 1)) & (step <= run.steps)
            new = np.array([s > run.peak_steps or (run.trunk, int(s)) not in taken for s in step])
            taken |= {(run.trunk, int(s)) for s in step if s <= run.peak_steps}
            step, value = step[late & new], value[late & new]
        found.append((run, step, value))
    return found


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
    """Whether finals were measured otherwise (on more data, say) than trajectories,
    so that laws need an offset.

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
    plans = measured_plans(table, metric)
    if not plans:
        raise AnalysisError(f"{table.source}: no final {metric} is known")
    design = Design([(run, np.array([run.steps])) for run, _, _ in plans])
    values = np.array([value for _, value, _ in plans])
    return Observations(design, values, np.ones(len(plans)), np.zeros(len(plans)))
