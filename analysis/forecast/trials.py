"""Inner backtests: every law, and the ensemble, tried on runs that were held out of the fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.forecast.centre import Ensemble
from analysis.forecast.folds import Fold, last_known
from analysis.forecast.members import evaluate
from analysis.runs.table import Floats


@dataclass(frozen=True)
class Trial:
    """One fold's outcome. Errors are relative (predicted / measured - 1)."""

    kind: str  # as the fold's
    runs: tuple[str, ...]
    errors: dict[str, Floats]  # by law: [runs] at the last measurement, corrected as predictions are
    curves: dict[str, float]  # by law: mean square over the runs' warmdowns; NaN where none was measured
    unknown: Floats  # [runs] the standard error that was to be expected before the laws disagreed

    def square(self, law: str) -> float:
        """Mean square error of a law: finals and, where there are some, whole warmdowns count alike."""
        final = float(np.mean(self.errors[law] ** 2))
        return final if np.isnan(self.curves[law]) else (final + self.curves[law]) / 2

    def centre(self, weights: dict[str, float]) -> tuple[Floats, Floats]:
        """(error of the weighted centre, spread of the laws around it), each [runs]."""
        weight = np.array([[weights[name]] for name in self.errors])
        errors = np.array(list(self.errors.values()))
        centre = np.sum(weight * errors, axis=0) / weight.sum()
        return centre, np.sqrt(np.sum(weight * (errors - centre) ** 2, axis=0) / weight.sum())


def trial(inner: Ensemble, fold: Fold) -> Trial:
    """What an ensemble of the fold's training rows says of the runs held out."""
    found = inner.finals(fold.held_out)
    errors = {name: np.empty(len(fold.held_out)) for name in found.laws}
    squares: dict[str, list[float]] = {name: [] for name in found.laws}
    for i, run in enumerate(fold.held_out):
        known = last_known(run, inner.metric)
        assert known is not None
        step, value, is_final = known
        curve = run.curve(inner.metric)
        unseen = np.empty(0, bool) if curve is None else curve[0] > run.peak_steps
        for name, fitted in inner.fits.items():
            end = (
                found.corrected[name][i]
                if is_final
                else float(evaluate(fitted, run, np.array([step]), False)[0])
            )
            errors[name][i] = end / value - 1
            if curve is not None and unseen.any() and not fitted.law.of_finals:
                ratio = evaluate(fitted, run, curve[0][unseen], False) / curve[2][unseen]
                squares[name].append(float(np.mean((ratio - 1) ** 2)))
    curves = {name: float(np.mean(of)) if of else float("nan") for name, of in squares.items()}
    return Trial(fold.kind, tuple(run.run_id for run in fold.held_out), errors, curves, found.unknown)
