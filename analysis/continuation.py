"""What the same steps at the full learning rate bring: the constant-rate continuation of a run.

Fitted, in ln(step), to the constant phases of all runs of the run's group from half of its peak_steps on.
It is measured where a longer run holds the full rate, and an extrapolation elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.slopes import Estimate, LinearFit, fit_linear, piecewise_design
from analysis.table import Run, Table

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Continuation:
    """Expected value at the constant rate: piecewise linear in ln(step), measured up to `measured_to`."""

    fit: LinearFit
    knots: Floats
    measured_to: int

    def _design(self, step: NDArray[np.int64] | Floats) -> Floats:
        return piecewise_design(np.log(np.asarray(step, dtype=float)), self.knots)

    def at(self, step: NDArray[np.int64] | Floats) -> Floats:
        return np.asarray(self._design(step) @ self.fit.coef)

    def decline(self, start: int, end: int, level: float) -> Estimate:
        """Value at start less value at end."""
        first, last = self._design(np.array([start, end], dtype=float))
        return self.fit.combination(first - last, level)


def continuation_fit(run: Run, table: Table, metric: str) -> Continuation | None:
    """The constant phases in this run's group from half of its peak_steps on; None below 4 evaluated steps.

    Runs repeating one trunk's rows count once, retrained trunks are averaged: one value a step. One straight
    line in ln(step) where it must extrapolate; bent at every factor of about 1.6 where it is measured.
    """
    start = max(run.peak_steps / 2, run.warmup_steps, 1)
    at: dict[int, dict[str, float]] = {}
    for other in table.runs:
        curve = other.curve(metric)
        if other.group != run.group or curve is None:
            continue
        end = other.steps if other.is_constant else other.peak_steps
        for step, _, value in zip(*curve, strict=True):
            if start <= step <= end:
                at.setdefault(int(step), {})[other.trunk or other.run_id] = float(value)
    if len(at) < 4:
        return None
    steps = np.array(sorted(at), dtype=float)
    means = np.array([np.mean(list(at[int(s)].values())) for s in steps])
    used = min(float(steps[-1]), float(run.steps))
    covered = used >= 0.9 * run.steps
    pieces = min(max(round(np.log(used / steps[0]) / np.log(1.6)), 1), len(steps) // 4) if covered else 1
    knots = np.linspace(np.log(steps[0]), np.log(used), pieces + 1)
    knots[-1] = np.inf  # the last piece goes on as it is
    return Continuation(fit_linear(piecewise_design(np.log(steps), knots), means), knots, int(steps[-1]))
