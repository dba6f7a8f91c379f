"""Several laws as one predictor: their weighted mean, corrected by what they leave over at known finals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from analysis.forecast.folds import NEAR_DEFICIT, deficit_distance
from analysis.forecast.gaps import StageGap
from analysis.forecast.kriging import Residuals
from analysis.forecast.members import Fitted, evaluate
from analysis.forecast.prefix import measured_prefix
from analysis.laws.design import Design
from analysis.laws.plans import last_known
from analysis.runs.table import Bools, Floats, Ints, Run, Table

BEYOND = 1.05  # a run longer than this times the longest one is an extrapolation
GAIN_DOUBT, STUDIED, MOST_DOUBT = 0.05, 7500, 0.5
"""The least standard error of what a longer run is predicted to gain: a twentieth of it, as in public
studies, whose runs have 7,500 steps or more, and more in proportion to 1 / sqrt(steps) where runs are
shorter, which laws describe less well. The first was chosen on all of these studies; the growth on six sweeps
of 60 to 400 steps whose gain was clear, which missed by 6 to 83 % of it."""


@dataclass(frozen=True)
class Finals:
    """Predicted finals of plans: each law as fitted and corrected, and the parts of the centre's error."""

    laws: dict[str, Floats]  # [plans]
    corrected: dict[str, Floats]  # [plans]
    centre: Floats  # [plans]
    spread: Floats  # [plans] weighted standard deviation of the corrected laws, relative
    unknown: Floats  # [plans] standard deviation of what no run of the table tells, relative
    ahead: Bools  # [plans] longer than every run of the table


@dataclass(frozen=True)
class Ensemble:
    """Fitted laws, their weights (sum 1), and the errors that the weighted centre makes in inner backtests.

    Errors are relative; `scale` turns the standard error that laws and residuals give into the one that was
    found, here and in other studies, and `scale_ahead` does so for runs longer than any. None of it was made
    with anything but `table` and `experience`.
    """

    table: Table
    metric: str
    fits: dict[str, Fitted]
    weights: dict[str, float]
    scores: dict[str, float]  # RMS relative backtest error of each law, NaN where it could not be tried
    process: Residuals
    scale: float
    scale_ahead: float
    replicate_sd: float  # relative
    held_out: tuple[tuple[str, str, float], ...] = ()  # (kind, run_id, relative error) of the trials

    @cached_property
    def measured(self) -> Table:
        """The runs that say something of the metric itself: how far a prediction reaches, reaches from them.

        Laws of a stage's base quantity may be fitted to further ones.
        """
        return self.table.where(lambda run: last_known(run, self.metric) is not None)

    def laws(self, run: Run, steps: Ints, final: bool) -> dict[str, Floats]:
        """Values at steps of a run by each law that can speak for it; `final`: as finals are measured."""
        usable = {name: f for name, f in self.fits.items() if final or not f.law.of_finals}
        if deficit_distance(self.measured, run) > NEAR_DEFICIT:
            usable = {name: f for name, f in usable.items() if not f.law.of_steps_alone} or usable
        return {name: evaluate(f, run, steps, final) for name, f in usable.items()}

    def finals(self, plans: Sequence[Run]) -> Finals:
        """Final values of planned runs: the laws, corrected by what they leave over at measured finals."""
        design = Design([(plan, np.array([plan.steps])) for plan in plans])
        laws = {name: fitted.predict(design) + fitted.offset for name, fitted in self.fits.items()}
        weights, variance = self.process.weights(plans)
        left = self.left_over
        corrected = np.array([value * np.exp(weights @ left[name]) for name, value in laws.items()])
        trust = np.array([[self.weights[name]] for name in laws]) * self.speaks(plans)
        centre, spread = mix(trust, corrected)
        spread = np.hypot(spread, self.gap_doubt(design) / centre)
        by_law = dict(zip(laws, corrected, strict=True))
        longest = max((run.steps for run in self.measured.runs), default=0)
        ahead = np.array([plan.steps > BEYOND * longest for plan in plans])
        return Finals(laws, by_law, centre, spread, np.sqrt(variance), ahead)

    def standard_error(self, found: Finals) -> Floats:
        """Relative, of predicted finals, [plans]."""
        scale = np.where(found.ahead, self.scale_ahead, self.scale)
        told = scale * np.hypot(found.spread, found.unknown)
        return np.hypot(np.maximum(told, self.least_error(found.centre, found.ahead)), self.replicate_sd)

    def least_error(self, centre: Floats, ahead: Bools) -> Floats:
        """Relative, of predicted finals, [plans]: a part of what longer runs gain on the best known one."""
        known = [(run, last[1]) for run in self.measured.runs if (last := last_known(run, self.metric))]
        finals = [value for run, value in known if not run.is_constant] or [value for _, value in known]
        if not finals or not ahead.any():
            return np.zeros(len(centre))
        longest = max(run.steps for run, _ in known)
        part = min(GAIN_DOUBT * max(STUDIED / longest, 1.0) ** 0.5, MOST_DOUBT)
        return np.where(ahead, part * np.maximum(1 - centre / min(finals), 0.0), 0.0)

    def gap_doubt(self, design: Design) -> Floats:
        """What the regressors of a stage's gap disagree about, [plans]; 0 for a metric without a gap."""
        gap = next((f.gap for f in self.fits.values() if isinstance(f, StageGap)), None)
        if gap is None:
            return np.zeros(len(design))
        return gap.at(design.steps_total, design.warmdown)[1]

    def speaks(self, plans: Sequence[Run]) -> Floats:
        """1 where a law speaks for a plan, [laws, plans]: one of steps alone, for schedules like those."""
        alone = np.array([f.law.of_steps_alone for f in self.fits.values()])
        if alone.all():
            return np.ones((len(alone), len(plans)))
        unlike = np.array([deficit_distance(self.measured, plan) > NEAR_DEFICIT for plan in plans])
        return np.where(np.outer(alone, unlike), 0.0, 1.0)

    @cached_property
    def left_over(self) -> dict[str, Floats]:
        """ln(measured / law) at the table's plans, by law."""
        return {name: left_over(fitted, self.process) for name, fitted in self.fits.items()}

    def trajectory(self, run: Run, steps: Ints) -> Floats:
        """Values along a run, [n]: the centre, or what was measured where its plan repeats a measured one."""
        centre = self.centre(self.laws(run, steps, final=False))
        value, likeness = measured_prefix(self.table, self.metric, run, steps)
        return centre + likeness * (value - centre)

    def centre(self, laws: dict[str, Floats]) -> Floats:
        """The laws' weighted mean, as fitted."""
        total = sum(self.weights[name] for name in laws)
        return np.sum([self.weights[name] / total * value for name, value in laws.items()], axis=0)


def left_over(fitted: Fitted, process: Residuals) -> Floats:
    """ln(measured / law) at the table's plans, [m]."""
    if not process.plans:
        return np.empty(0)
    design = Design([(run, np.array([run.steps])) for run in process.plans])
    return np.log(process.value / (fitted.predict(design) + fitted.offset))


def mix(trust: Floats, values: Floats) -> tuple[Floats, Floats]:
    """(mean, relative standard deviation) of laws, each [plans]; trust and values are [laws, plans]."""
    trust = trust / trust.sum(axis=0)
    centre = np.sum(trust * values, axis=0)
    return centre, np.sqrt(np.sum(trust * (values / centre - 1) ** 2, axis=0))
