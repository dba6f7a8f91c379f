"""What laws leave over at the runs' ends, carried to other plans by a Gaussian process.

Residuals of finals are alike for plans of like length and warmdown ratio. Their
covariance, relative to the loss:

    c0 + [a ln(T/Tmax) ln(T'/Tmax) + b exp(-(ln T - ln T')^2 / 2)] exp(-2 (ratio - ratio')^2) x shape

so that far lengths are less certain, in proportion to ln of the reach. The posterior mean corrects a law, the
posterior variance is what no run of the table can know: the body of the interval. Where a single ratio was
run, the distance from it adds to the variance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.laws.plans import measured_plans
from analysis.runs.table import Floats, Run, Table

_NATS = 2.8  # the loss at which the scales below are in nats; set before any study was looked at with them
COMMON, REACH, LENGTH, NOISE = 0.004 / _NATS, 0.006 / _NATS, 0.004 / _NATS, 0.001 / _NATS
RATIO_SCALE = 0.5
ONE_RATIO = 0.05  # ratios that differ by less are one
OUTSIDE = 0.015 / _NATS
"""For each unit of the warmdown ratio away from the only one that was run: what another one does is then for
the laws alone to say, and they err on one side. Chosen on both studies of wsd_124m."""
OTHER_SHAPE = 0.6


@dataclass(frozen=True)
class Residuals:
    """The measured finals of a table, and the process between plans.

    `plans` [m] runs, `value` [m] their mean finals, `noise` [m] relative variances of these means.
    """

    plans: tuple[Run, ...]
    value: Floats
    noise: Floats
    longest: int

    def weights(self, targets: Sequence[Run]) -> tuple[Floats, Floats]:
        """([targets, m] weights of the residuals ln(measured / law), [targets] posterior variances)."""
        prior = self._variance(targets)
        if not self.plans:
            return np.zeros((len(targets), 0)), prior
        inverse = np.linalg.inv(self._covariance(self.plans, self.plans) + np.diag(self.noise))
        cross = self._covariance(targets, self.plans)
        weights = cross @ inverse
        return weights, np.maximum(prior - np.sum(weights * cross, axis=1), 0.0)

    def _variance(self, runs: Sequence[Run]) -> Floats:
        reach = np.array([np.log(run.steps / self.longest) for run in runs])
        return COMMON**2 + REACH**2 * reach**2 + LENGTH**2 + OUTSIDE**2 * self._outside(runs) ** 2

    def _outside(self, runs: Sequence[Run]) -> Floats:
        """How far each warmdown ratio is from the only one that was run, [runs]; 0 where several were."""
        known = [run.warmdown_ratio for run in self.plans]
        if not known or max(known) - min(known) > ONE_RATIO:
            return np.zeros(len(runs))
        return np.array([abs(run.warmdown_ratio - float(np.mean(known))) for run in runs])

    def _covariance(self, a: Sequence[Run], b: Sequence[Run]) -> Floats:
        x, y = (np.log([run.steps / self.longest for run in runs]) for runs in (a, b))
        u, v = (np.array([run.warmdown_ratio for run in runs]) for runs in (a, b))
        alike = np.array([[p.schedule == q.schedule for q in b] for p in a])
        length = REACH**2 * np.outer(x, y) + LENGTH**2 * np.exp(-(np.subtract.outer(x, y) ** 2) / 2)
        ratio = np.exp(-((np.subtract.outer(u, v) / RATIO_SCALE) ** 2) / 2)
        return COMMON**2 + length * ratio * np.where(alike, 1.0, OTHER_SHAPE)


def residuals(table: Table, metric: str, longest: int) -> Residuals:
    """The process of a table's finals; `longest` is the longest run that says something of the metric."""
    known = [(run, value, n) for run, value, n in measured_plans(table, metric) if not run.is_constant]
    return Residuals(
        tuple(run for run, _, _ in known),
        np.array([value for _, value, _ in known]),
        np.array([NOISE**2 / n for _, _, n in known]),
        longest,
    )
