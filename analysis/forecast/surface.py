"""Predictions over plans not run: the steps x warmdown-ratio surface and its best ratio.

Laws are fitted once (ensemble.build) and evaluated over the whole grid in one batch. The best ratio is sought
among those that were run: a law is not asked where its optimum lies among schedules nobody tried.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.forecast.centre import Ensemble
from analysis.forecast.ensemble import build
from analysis.forecast.predict import Prediction, one_group, planned_run, predict_run
from analysis.laws.plans import last_known
from analysis.runs.errors import AnalysisError
from analysis.runs.table import Table

Floats = NDArray[np.float64]

LEVEL = 0.9
FARTHEST = 2.0  # times the longest run
BESIDE = 0.1  # the surface is drawn this far beyond the ratios that were run
_FLAT = 1e-6  # relative: laws that know no warmdown give one value for all ratios
_MINOR = 0.05  # laws of less weight do not move the range of optima
_LENGTHS, _RATIOS = 13, 25


@dataclass(frozen=True)
class Surface:
    """Predicted finals [lengths, ratios] on a grid; `laws` gives each law's own [lengths, ratios]."""

    steps: Floats
    ratios: Floats
    value: Floats
    laws: dict[str, Floats]


@dataclass(frozen=True)
class BestRatio:
    """Best warmdown ratio for a number of steps.

    `low`..`high`: the optima of all laws of weight, and the ratios that the centre cannot tell from the best
    by more than replicate noise. `at_edge`: the optimum lies at the end of the ratios that were run.
    """

    steps: int
    ratio: float
    low: float
    high: float
    at_edge: bool
    prediction: Prediction


@dataclass(frozen=True)
class Forecast:
    """An ensemble for one group of runs and its surface. `schedule` is the shape predicted for."""

    ensemble: Ensemble
    surface: Surface
    best: tuple[BestRatio, ...]
    tried: Floats  # grid over the ratios that were run
    noise: float  # relative replicate SD
    left_out: tuple[str, ...]  # runs of other groups, which one law must not mix

    @property
    def knows_ratios(self) -> bool:
        """Whether two ratios were run and a law of weight depends on them."""
        value = self.surface.value
        return len(self.tried) > 1 and bool((np.ptp(value, axis=1) > _FLAT * value.mean()).all())

    @property
    def schedule(self) -> str:
        return self.best[0].prediction.schedule

    def best_at(self, steps: int) -> BestRatio:
        """Best ratio for any number of steps."""
        return _best_ratio(self.ensemble, steps, self.tried, self.noise)

    def at(self, steps: int, warmdown: int) -> Prediction:
        return predict_run(self.ensemble, planned_run(self.ensemble.table, steps, warmdown, None), LEVEL)


def forecast(table: Table, metric: str, noise: float | None) -> Forecast:
    """Fit the largest group of runs and predict around it.

    `noise`: relative replicate SD; if not known 0.001, as between seeds in public studies.

    Raises:
        AnalysisError: the runs carry no law, or all have one length or no warmdown.
    """
    groups = table.groups()
    largest = max(groups, key=lambda group: len(groups[group].runs))
    members = one_group(groups[largest], {})
    annealed = [run for run in members.runs if not run.is_constant and last_known(run, metric) is not None]
    if not annealed:
        raise AnalysisError(f"no run has a warmdown and a {metric}")
    ensemble = build(members, metric)
    longest = max(run.steps for run in annealed)
    shortest = min(run.steps for run in annealed)
    ratios = [run.warmdown_ratio for run in annealed]
    grid = np.linspace(max(0.05, min(ratios) - BESIDE), min(0.95, max(ratios) + BESIDE), _RATIOS)
    surface = evaluate(ensemble, np.geomspace(shortest, FARTHEST * longest, _LENGTHS), grid)
    relative = 0.001 if noise is None else noise
    wanted = sorted({run.steps for run in annealed} | {round(1.5 * longest), round(2 * longest)})
    tried = (
        np.linspace(min(ratios), max(ratios), _RATIOS) if max(ratios) > min(ratios) else np.array(ratios[:1])
    )
    best = tuple(_best_ratio(ensemble, steps, tried, relative) for steps in wanted)
    others = tuple(run.run_id for run in table.runs if run.group != largest)
    return Forecast(ensemble, surface, best, tried, relative, others)


def evaluate(ensemble: Ensemble, steps: Floats, ratios: Floats) -> Surface:
    """All laws over a grid of plans, in one batch."""
    plans = [
        planned_run(ensemble.table, round(n), max(round(n * ratio), 1), None)
        for n in steps
        for ratio in ratios
    ]
    found = ensemble.finals(plans)
    shape = (len(steps), len(ratios))
    shaped = {name: values.reshape(shape) for name, values in found.corrected.items()}
    return Surface(steps, ratios, found.centre.reshape(shape), shaped)


def _best_ratio(ensemble: Ensemble, steps: int, ratios: Floats, noise: float) -> BestRatio:
    row = evaluate(ensemble, np.array([float(steps)]), ratios)
    centre = row.value[0]
    best = int(np.argmin(centre))
    optima = [int(np.argmin(v[0])) for name, v in row.laws.items() if ensemble.weights[name] >= _MINOR]
    alike = np.flatnonzero(centre <= centre[best] * (1 + noise))
    reach = [*optima, *alike.tolist(), best]
    ratio = float(ratios[best])
    plan = planned_run(ensemble.table, steps, round(steps * ratio), None)
    return BestRatio(
        steps=steps,
        ratio=ratio,
        low=float(ratios[min(reach)]),
        high=float(ratios[max(reach)]),
        at_edge=best in (0, len(ratios) - 1),
        prediction=predict_run(ensemble, plan, LEVEL),
    )
