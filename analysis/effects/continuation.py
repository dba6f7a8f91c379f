"""What the same steps at the full learning rate bring: the constant-rate continuation of a run.

Fitted, as a straight line in step^-1/2, to the constant phases of all runs of the run's group from half of
its peak_steps on. It is measured where a longer run holds the full rate, and an extrapolation elsewhere.

Why -1/2: fitted to a public constant-rate curve over a factor of 2 in steps and extrapolated by 2 to 4 (124M
to 50k, 25M and 100M to 72k, the published study to 12k), it is off by -0.0015 to -0.012 at the end; ln(step)
by -0.02 to -0.10, step^-0.3 by -0.007 to -0.04, 1/step by +0.003 to +0.04, and no further progress by +0.02
to +0.13.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.effects.slopes import Estimate, LinearFit, fit_linear, piecewise_design
from analysis.runs.table import Run, Table

Floats = NDArray[np.float64]


def _abscissa(step: NDArray[np.int64] | Floats) -> Floats:
    """Increasing in the step, 0 at infinity."""
    return -(np.asarray(step, dtype=float) ** -0.5)


@dataclass(frozen=True)
class Continuation:
    """Expected value at the constant rate: piecewise linear in step^-1/2, measured up to `measured_to`."""

    fit: LinearFit
    knots: Floats
    measured_to: int

    def _design(self, step: NDArray[np.int64] | Floats) -> Floats:
        return piecewise_design(_abscissa(step), self.knots)

    def at(self, step: NDArray[np.int64] | Floats) -> Floats:
        return np.asarray(self._design(step) @ self.fit.coef)

    def decline(self, start: int, end: int, level: float) -> Estimate:
        """Value at start less value at end."""
        first, last = self._design(np.array([start, end], dtype=float))
        return self.fit.combination(first - last, level)


def continuation_fit(run: Run, table: Table, metric: str) -> Continuation | None:
    """The constant phases in this run's group from half of its peak_steps on; None below 4 evaluated steps
    and for a run that decays right after its warm-up.

    Runs repeating one trunk's rows count once, retrained trunks are averaged: one value a step. One straight
    line in step^-1/2 where it must extrapolate; bent at every factor of about 1.6 where it is measured.
    """
    if run.peak_steps < 1.5 * run.warmup_steps:  # all of the early, steep part: nothing to continue from
        return None
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
    knots = _abscissa(np.geomspace(steps[0], used, pieces + 1))
    knots[-1] = 0.0  # the last piece goes on as it is
    return Continuation(fit_linear(piecewise_design(_abscissa(steps), knots), means), knots, int(steps[-1]))
