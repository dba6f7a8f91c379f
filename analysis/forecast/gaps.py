"""Stages that are only measured at the end (int6, sliding, TTT): a trajectory law of the float loss plus a
gap.

The gap, measured at the runs' ends, is constant or falls with ln steps; inner backtests weigh the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.laws.design import Design
from analysis.laws.fit import Fit
from analysis.laws.law import Law
from analysis.runs.table import Floats, Table

BASES = {"int6_bpb": "val_bpb", "int6_sliding_bpb": "val_bpb", "ttt_bpb": "val_bpb", "ema_bpb": "val_bpb"}
"""Stage -> the trajectory it hangs on, if its own was not measured."""


@dataclass(frozen=True)
class StageGap:
    """A law of the base quantity, shifted by intercept + slope ln(thousand steps)."""

    base: Fit
    intercept: float
    slope: float

    offset = 0.0

    @property
    def law(self) -> Law:
        return self.base.law

    @property
    def warnings(self) -> tuple[str, ...]:
        return self.base.warnings

    def predict(self, design: Design) -> Floats:
        gap = self.intercept + self.slope * np.log(design.steps_total / 1000)
        return self.base.predict(design) + self.base.offset + gap


def fit_gaps(base: dict[str, Fit], table: Table, metric: str) -> dict[str, StageGap]:
    """Each law with a constant gap, and with one linear in ln steps from two run lengths on.

    Through two lengths that line is exact; its weight comes from inner backtests, which know fewer lengths
    than the table. Asking for three takes it out of most of them: the published 20k and 25k runs are then
    predicted from 9k to 15k with errors of .0023 and .0045 instead of .0015 and .0035.
    """
    known = [
        (run.steps, final - before)
        for run in table.runs
        if (final := run.final(metric)) is not None and (before := run.final(BASES[metric])) is not None
    ]
    if not known:
        return {}
    log_steps, gap = np.log([steps / 1000 for steps, _ in known]), np.array([gap for _, gap in known])
    result = {f"{name} + gap": StageGap(fit, float(gap.mean()), 0.0) for name, fit in base.items()}
    if len(set(log_steps)) >= 2:
        slope, intercept = np.polyfit(log_steps, gap, 1)
        result |= {
            f"{n} + gap(ln steps)": StageGap(f, float(intercept), float(slope)) for n, f in base.items()
        }
    return result
