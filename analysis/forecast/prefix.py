"""What a measured run says of another one: branches repeat their trunk up to noise."""

from __future__ import annotations

import numpy as np

from analysis.runs.table import Floats, Ints, Run, Table

LIKENESS = 0.01
"""Difference in r (its mean so far and now) that ends the likeness of two histories. Chosen on mpl_25m and
mpl_100m, the only given curves whose test runs share a long prefix with training runs of another plan."""
_GRID = 512
_WIDEST = 2.0  # evaluations farther apart than this factor in steps tell nothing of the steps between


def measured_prefix(table: Table, metric: str, run: Run, steps: Ints) -> tuple[Floats, Floats]:
    """What the table's runs measured at these steps, and how alike their learning rates were until then,
    0..1, [n].

    Between evaluations along straight lines in ln(step), from the first one after the warm-up on.
    """
    best, weight, total = np.zeros(len(steps)), np.zeros(len(steps)), np.zeros(len(steps))
    for other in table.runs:
        curve = other.curve(metric)
        if curve is None:
            continue
        late = curve[0] >= max(other.warmup_steps, 1)
        at, value = curve[0][late], curve[2][late]
        if len(at) < 2:
            continue
        n = min(run.steps, other.steps)
        right = np.clip(np.searchsorted(at, steps), 1, len(at) - 1)
        inside = (steps >= at[0]) & (steps <= min(at[-1], n)) & (at[right] <= _WIDEST * at[right - 1])
        likeness = np.where(inside, np.exp(-_apart(run, other, n, steps) / LIKENESS), 0.0)
        total += likeness * np.interp(np.log(np.maximum(steps, 1)), np.log(at), value)
        weight += likeness
        best = np.maximum(best, likeness)
    return total / np.maximum(weight, 1e-300), best


def _apart(a: Run, b: Run, until: int, steps: Ints) -> Floats:
    """Difference of the rates at steps, and its mean up to there, [n]."""
    grid = np.unique(np.concatenate([np.linspace(0, until, _GRID), np.clip(steps, 0, until)]))
    difference = np.abs(a.rate(grid) - b.rate(grid))
    area = np.concatenate([[0.0], np.cumsum(np.diff(grid) * (difference[:-1] + difference[1:]) / 2)])
    where = np.searchsorted(grid, np.clip(steps, 0, until))
    return area[where] / np.maximum(grid[where], 1.0) + difference[where]
