"""Stages that are only measured at the end (int6, sliding, TTT): a law of the raw loss plus a gap.

The gap between two stages is linear in some power of the warmdown's or the run's steps: its regressors are
tried on the longest plan left out, and count by how well they did there and as often as they may be trusted
unseen. What they disagree about belongs in the interval.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from analysis.laws.design import Design
from analysis.laws.fit import Fit
from analysis.laws.law import Law
from analysis.laws.plans import SAME_LENGTH, by_plan, mean_final
from analysis.runs.table import Floats, Table

BASES = {"int6_bpb": "val_bpb", "int6_sliding_bpb": "val_bpb", "ttt_bpb": "val_bpb", "ema_bpb": "val_bpb"}
"""Stage -> the trajectory it hangs on, if its own was not measured."""

REGRESSORS: dict[str, Callable[[Floats, Floats], Floats]] = {
    "sqrt(warmdown)": lambda steps, warmdown: np.sqrt(warmdown / 1000),
    "sqrt(steps)": lambda steps, warmdown: np.sqrt(steps / 1000),
    "steps": lambda steps, warmdown: steps / 1000,
}
"""Of thousands of steps. The root of the warmdown fits both public studies with stages (the published one and
golf_pr549) within 0.001; ln steps, tried before, misses the longer runs of both by 0.0024 to 0.0075."""
_DRIFT = 0.006  # BPB an e-fold of steps: gaps of the two public studies with stages change by 0.002 to 0.015
_DOUBT = 0.002  # BPB: error of a regressor before anything is known of it, and the weight of one trial


@dataclass(frozen=True)
class Gap:
    """Gap of a plan: weights (sum 1) over regressors of intercept + slope g."""

    lines: dict[str, tuple[float, float]]
    weights: dict[str, float]
    only: float | None = None  # the steps of all plans known, where they are of one length: no slope is known

    def values(self, steps: Floats, warmdown: Floats) -> dict[str, Floats]:
        """[n] by regressor."""
        return {
            name: intercept + slope * REGRESSORS[name](steps, warmdown)
            for name, (intercept, slope) in self.lines.items()
        }

    def at(self, steps: Floats, warmdown: Floats) -> tuple[Floats, Floats]:
        """(weighted mean, weighted standard deviation of the regressors), each [n]."""
        values = self.values(steps, warmdown)
        mean = np.sum([self.weights[name] * value for name, value in values.items()], axis=0)
        square = np.sum([self.weights[n] * (value - mean) ** 2 for n, value in values.items()], axis=0)
        if self.only is not None:
            square = square + (_DRIFT * np.log(steps / self.only)) ** 2
        return mean, np.sqrt(square)


@dataclass(frozen=True)
class StageGap:
    """A law of the base quantity, shifted by the gap."""

    base: Fit
    gap: Gap

    offset = 0.0

    @property
    def law(self) -> Law:
        return self.base.law

    @property
    def warnings(self) -> tuple[str, ...]:
        return self.base.warnings

    def predict(self, design: Design) -> Floats:
        gap, _ = self.gap.at(design.steps_total, design.warmdown)
        return self.base.predict(design) + self.base.offset + gap


def fit_gap(table: Table, metric: str) -> Gap | None:
    """The gap between a stage and its base over a table's plans; None where no run has both."""
    known = []
    for runs in by_plan(table).values():
        both = [run for run in runs if run.final(metric) is not None and run.final(BASES[metric]) is not None]
        after, before = mean_final(both, metric), mean_final(both, BASES[metric])
        if after is not None and before is not None:
            mean_steps = float(np.mean([run.steps for run in both]))
            known.append(
                (mean_steps, float(np.mean([run.warmdown_steps for run in both])), after[0] - before[0])
            )
    if not known:
        return None
    # Without a warmdown an average gains ten times as much, and says nothing of a gap after one.
    known = [plan for plan in known if plan[1] > 0] or known
    steps, warmdown, gap = np.array(sorted(known)).T
    lines = {name: _line(of(steps, warmdown), gap) for name, of in REGRESSORS.items()}
    raw = {name: _trust(of(steps, warmdown), gap) for name, of in REGRESSORS.items()}
    weights = {name: value / sum(raw.values()) for name, value in raw.items()}
    one = steps[-1] <= SAME_LENGTH * steps[0]
    return Gap(lines, weights, float(steps.mean()) if one else None)


def _line(x: Floats, y: Floats) -> tuple[float, float]:
    """(intercept, slope), no slope where all plans are one."""
    if np.ptp(x) <= 0.05 * x.max():
        return float(y.mean()), 0.0
    slope, intercept = np.polyfit(x, y, 1)
    return float(intercept), float(slope)


def _trust(x: Floats, y: Floats) -> float:
    """1 / mean square error on each plan from those shorter than it, two of them at least."""
    squares = [_DOUBT**2]
    for last in range(2, len(x)):
        intercept, slope = _line(x[:last], y[:last])
        squares.append(float((intercept + slope * x[last] - y[last]) ** 2))
    return float(1 / np.mean(squares))
