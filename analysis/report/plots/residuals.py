"""What the laws leave over along the trajectories they were fitted to."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis.report.plots.errors import UnavailableError
from analysis.report.plots.style import GREY, canvas, shade_legend, shades, steps_axis, tip
from analysis.report.residuals import rms
from analysis.report.study import Study
from analysis.runs.units import unit

NAME, TITLE, ORDER, SECTION = "residuals", "Residuals of the fitted trajectories", 90, "certainty"


def data(study: Study) -> pd.DataFrame:
    if study.forecast is None:
        raise UnavailableError(study.no_forecast)
    if study.residuals is None:
        raise UnavailableError("only laws of final values were fitted")
    return study.residuals


def draw(frame: pd.DataFrame, study: Study) -> Figure:
    figure, (left, right) = canvas(2, sharey=True)
    colours = shades(frame["steps"])
    for run_id, run in frame.groupby("run_id", sort=False):
        look: dict[str, Any] = {"color": colours[run["steps"].iloc[0]], "alpha": 0.8}
        (line,) = left.plot(run["step"], 1000 * run["residual"], lw=0.8, marker=".", ms=3, **look)
        (discs,) = right.plot(run["lr_scale"], 1000 * run["residual"], ".", ms=3, **look)
        for artist in (line, discs):
            tip(artist, run_id)
    for panel in (left, right):
        panel.axhline(0, color=GREY, lw=0.8)
    steps_axis(left)
    left.set_ylabel(f"measured − fitted (10⁻³ {unit(study.metric)})")
    right.set_xlabel("learning rate (of the peak)")
    right.invert_xaxis()
    shade_legend(figure, "steps", colours)
    return figure


def caption(frame: pd.DataFrame, study: Study) -> str:
    return (
        f"The {len(frame)} values that the laws were fitted to; RMS {rms(frame):.4f} {unit(study.metric)}. "
        "Structure here is what the laws miss; it is not the error of a prediction, which the held-out runs "
        "measure."
    )
