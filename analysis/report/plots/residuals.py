"""What the laws leave over along the trajectories they were fitted to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.forecast.gaps import StageGap
from analysis.laws.design import Design
from analysis.laws.fit import Fit
from analysis.report.plots.errors import UnavailableError
from analysis.report.plots.style import GREY, canvas, shade_legend, shades, steps_axis
from analysis.report.study import Study
from analysis.runs.table import Floats, Run
from analysis.runs.units import unit

NAME, TITLE, ORDER = "residuals", "Residuals of the fitted trajectories", 90

BURN_IN = 1 / 6
"""Of the longest run: what comes before is not fitted."""


def data(study: Study) -> pd.DataFrame:
    if study.forecast is None:
        raise UnavailableError(study.no_forecast)
    laws = _trajectory_laws(study)
    if not laws:
        raise UnavailableError("only laws of final values were fitted")
    table = study.forecast.ensemble.table
    longest = max(run.steps for run in table.runs)
    rows = []
    for run in table.runs:
        curve = run.curve(study.metric)
        if curve is None:
            continue
        step, lr, value = (
            column[(curve[0] >= BURN_IN * longest) & (curve[0] <= run.steps)] for column in curve
        )
        if len(step) == 0:
            continue
        fitted = _centre(laws, run, step)
        for s, r, v, f in zip(step, lr, value, fitted, strict=True):
            rows.append(
                {
                    "run_id": run.run_id,
                    "steps": run.steps,
                    "step": int(s),
                    "lr_scale": float(r),
                    "measured": v,
                    "fitted": f,
                }
            )
    if not rows:
        raise UnavailableError("no trajectories")
    frame = pd.DataFrame(rows)
    return frame.assign(residual=frame["measured"] - frame["fitted"])


def _trajectory_laws(study: Study) -> list[tuple[float, Fit]]:
    """(weight, fit of the trajectories' metric) of laws that describe whole curves, weights summing to 1."""
    assert study.forecast is not None
    ensemble = study.forecast.ensemble
    found: list[tuple[float, Fit]] = []
    for name, fitted in ensemble.fits.items():
        fit = fitted.base if isinstance(fitted, StageGap) else fitted
        if not fit.law.of_finals:
            found.append((ensemble.weights[name], fit))
    total = sum(weight for weight, _ in found)
    return [(weight / total, fit) for weight, fit in found] if total > 0 else []


def _centre(laws: list[tuple[float, Fit]], run: Run, step: np.ndarray) -> Floats:
    design = Design([(run, step)])
    return np.sum([weight * fit.predict(design) for weight, fit in laws], axis=0)


def draw(frame: pd.DataFrame, study: Study) -> Figure:
    figure, (left, right) = canvas(2, sharey=True)
    colours = shades(frame["steps"])
    for _, run in frame.groupby("run_id", sort=False):
        look: dict[str, Any] = {"color": colours[run["steps"].iloc[0]], "alpha": 0.8}
        left.plot(run["step"], 1000 * run["residual"], lw=0.8, **look)
        right.plot(run["lr_scale"], 1000 * run["residual"], ".", ms=3, **look)
    for panel in (left, right):
        panel.axhline(0, color=GREY, lw=0.8)
    steps_axis(left)
    left.set_ylabel(f"measured - fitted [10⁻³ {unit(study.metric)}]")
    right.set_xlabel("learning rate [fraction of the peak]")
    right.invert_xaxis()
    shade_legend(figure, "steps", colours)
    return figure


def caption(frame: pd.DataFrame, study: Study) -> str:
    rms = float(np.sqrt(np.mean(frame["residual"] ** 2)))
    return (
        f"In-sample, RMS {rms:.4f} {unit(study.metric)}. Structure here is what the laws miss; it is not "
        f"the error of a "
        "prediction, which the held-out runs measure."
    )
