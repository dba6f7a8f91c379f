"""Inner backtests: every law, and the ensemble, tried on runs that were held out of the fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.forecast.centre import Ensemble
from analysis.forecast.experience import law_of
from analysis.forecast.folds import Fold
from analysis.forecast.members import Fitted, evaluate
from analysis.laws.plans import last_known
from analysis.runs.table import Floats, Run


@dataclass(frozen=True)
class Trial:
    """One fold's outcome. Errors are relative (predicted / measured - 1)."""

    kind: str  # as the fold's
    runs: tuple[str, ...]
    errors: dict[str, Floats]  # by law: [runs] at the last measurement, corrected as predictions are; members
    # of one law, which differ in burn-in or gap, by their mean
    curves: dict[str, float]  # by law: mean square over the runs' warmdowns; NaN where none was measured
    unknown: Floats  # [runs] the standard error that was to be expected before the laws disagreed

    def square(self, law: str) -> float:
        """Mean square error of a law: finals and, where there are some, whole warmdowns count alike."""
        final = float(np.mean(self.errors[law] ** 2))
        return final if np.isnan(self.curves[law]) else (final + self.curves[law]) / 2

    def centre(self, weights: dict[str, float]) -> tuple[Floats, Floats]:
        """(error of the centre weighted by law, the variance it was given before scaling), each [runs]."""
        weight = np.array([[weights.get(name, 0.0)] for name in self.errors])
        weight = np.full_like(weight, 1 / len(weight)) if weight.sum() == 0 else weight / weight.sum()
        errors = np.array(list(self.errors.values()))
        centre = np.sum(weight * errors, axis=0)
        return centre, self.unknown**2 + np.sum(weight * (errors - centre) ** 2, axis=0)


def trial(inner: Ensemble, fold: Fold) -> Trial:
    """What an ensemble of the fold's training rows says of the runs held out."""
    found = inner.finals(fold.held_out)
    ends: dict[str, list[Floats]] = {}
    squares: dict[str, list[float]] = {}
    for name, fitted in inner.fits.items():
        end = np.empty(len(fold.held_out))
        of_law = squares.setdefault(law_of(name), [])
        for i, run in enumerate(fold.held_out):
            known = last_known(run, inner.metric)
            assert known is not None
            step, value, is_final = known
            at_end = (
                found.corrected[name][i] if is_final else evaluate(fitted, run, np.array([step]), False)[0]
            )
            end[i] = at_end / value - 1
            of_law += _square_along(fitted, run, inner.metric)
        ends.setdefault(law_of(name), []).append(end)
    errors = {law: np.mean(of, axis=0) for law, of in ends.items()}
    curves = {law: float(np.mean(of)) if of else float("nan") for law, of in squares.items()}
    return Trial(fold.kind, tuple(run.run_id for run in fold.held_out), errors, curves, found.unknown)


def _square_along(fitted: Fitted, run: Run, metric: str) -> list[float]:
    """Mean square error over a run's warmdown; [] where it was not measured or the law knows finals only."""
    curve = run.curve(metric)
    if curve is None or fitted.law.of_finals or not (curve[0] > run.peak_steps).any():
        return []
    unseen = curve[0] > run.peak_steps
    ratio = evaluate(fitted, run, curve[0][unseen], False) / curve[2][unseen]
    return [float(np.mean((ratio - 1) ** 2))]
