"""What the laws leave over along the trajectories, on the rows that they were fitted to and no others."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.forecast.gaps import BASES, StageGap
from analysis.forecast.surface import Forecast
from analysis.laws.fit import Fit
from analysis.laws.observations import trajectory_rows


def residuals(forecast: Forecast) -> pd.DataFrame | None:
    """A row a fitted value: run_id, steps, step, lr_scale, measured, fitted, residual.

    None where only laws of final values were fitted.
    """
    laws = _trajectory_laws(forecast)
    if not laws:
        return None
    table, metric = forecast.ensemble.table, fitted_metric(forecast)
    data = trajectory_rows(table, metric)
    fitted = sum(weight * (fit.predict(data.design) + fit.offset * data.offset) for weight, fit in laws)
    runs, of_row = data.design.runs, data.design.run_of_row
    rate = np.zeros(len(data.value))
    for index, run in enumerate(runs):
        mine = of_row == index
        rate[mine] = run.rate(data.design.step[mine])
    return pd.DataFrame(
        {
            "run_id": [runs[i].run_id for i in of_row],
            "steps": [runs[i].steps for i in of_row],
            "step": data.design.step.astype(int),
            "lr_scale": rate,
            "measured": data.value,
            "fitted": fitted,
            "residual": data.value - fitted,
        }
    )


def fitted_metric(forecast: Forecast) -> str:
    """The trajectory that the laws of a forecast describe: the metric's own, or that of its base."""
    metric = forecast.ensemble.metric
    own = any(run.curve(metric) is not None for run in forecast.ensemble.table.runs)
    return metric if own else BASES.get(metric, metric)


def rms(frame: pd.DataFrame) -> float:
    """Root mean square residual."""
    return float(np.sqrt(np.mean(frame["residual"] ** 2)))


def _trajectory_laws(forecast: Forecast) -> list[tuple[float, Fit]]:
    """(weight, fit) of the laws that describe whole curves, weights summing to 1."""
    found: list[tuple[float, Fit]] = []
    for name, fitted in forecast.ensemble.fits.items():
        fit = fitted.base if isinstance(fitted, StageGap) else fitted
        if not fit.law.of_finals:
            found.append((forecast.ensemble.weights[name], fit))
    total = sum(weight for weight, _ in found)
    return [(weight / total, fit) for weight, fit in found] if total > 0 else []
