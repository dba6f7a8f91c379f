"""Steps x warmdown ratio as a heat map, with the best ratio and how well it is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.interpolate import RectBivariateSpline
from scipy.ndimage import gaussian_filter

from analysis.report.plots.errors import UnavailableError
from analysis.report.plots.style import CATEGORIES, canvas, is_narrow, sequential, steps_axis, tip
from analysis.report.study import Study
from analysis.runs.units import axis

Floats = NDArray[np.float64]

NAME, TITLE, ORDER, SECTION = "surface", "Steps and warmdown ratio together", 15, "length"


def data(study: Study) -> pd.DataFrame:
    if study.forecast is None:
        raise UnavailableError(study.no_forecast)
    surface = study.forecast.surface
    ratios = {
        round(run.warmdown_ratio, 2) for run in study.forecast.ensemble.measured.runs if not run.is_constant
    }
    if len(ratios) < 2:
        raise UnavailableError("all runs have one warmdown ratio")
    if not study.forecast.knows_ratios:
        raise UnavailableError("no law that the runs carry depends on the warmdown")
    lengths = {run.steps for run in study.forecast.ensemble.measured.runs if not run.is_constant}
    rows: list[dict[str, object]] = [
        {"kind": "predicted", "steps": steps, "warmdown_ratio": ratio, "value": surface.value[i, j]}
        for i, steps in enumerate(surface.steps)
        for j, ratio in enumerate(surface.ratios)
    ]
    for best in study.forecast.best:
        rows.append(
            {
                "kind": "best",
                "steps": best.steps,
                "was_run": best.steps in lengths,
                "warmdown_ratio": best.ratio,
                "ratio_was_run": any(abs(ratio - best.ratio) < 0.005 for ratio in ratios),
                "ratio_low": best.low,
                "ratio_high": best.high,
                "value": best.prediction.value,
            }
        )
    for run in study.forecast.ensemble.table.runs:
        value = run.final(study.final_metric)
        if value is not None and not run.is_constant:
            rows.append(
                {
                    "kind": "measured",
                    "run_id": run.run_id,
                    "steps": run.steps,
                    "warmdown_ratio": run.warmdown_ratio,
                    "value": value,
                }
            )
    return pd.DataFrame(rows)


def draw(frame: pd.DataFrame, study: Study) -> Figure:
    figure, (panel,) = canvas()
    grid = frame[frame["kind"] == "predicted"].pivot(index="warmdown_ratio", columns="steps", values="value")
    measured, best = frame[frame["kind"] == "measured"], frame[frame["kind"] == "best"]
    lengths, ratios, values = _finer(grid)
    colours = sequential().reversed()
    mesh = panel.pcolormesh(lengths, ratios, values, cmap=colours, shading="gouraud", rasterized=True)
    lines = panel.contour(lengths, ratios, values, levels=8, colors="white", linewidths=0.7)
    panel.clabel(lines, fontsize=7, fmt="%.3f")
    where = "bottom" if is_narrow() else "right"
    figure.colorbar(mesh, label=axis(study.final_metric), pad=0.02, location=where)
    panel.fill_between(best["steps"], best["ratio_low"], best["ratio_high"], color="white", alpha=0.28, lw=0)
    panel.plot(best["steps"], best["warmdown_ratio"], color="white", lw=3.2)
    label = f"best predicted ratio{'' if best['ratio_was_run'].all() else ', interpolated between those run'}"
    panel.plot(best["steps"], best["warmdown_ratio"], color=CATEGORIES[1], lw=1.8, label=label)
    low, high = mesh.get_clim()
    for index, row in enumerate(measured.to_dict("records")):
        look: dict[str, Any] = {"mec": "white", "mew": 1.1, "zorder": 5, "ms": 6, "ls": ""}
        shade = colours((row["value"] - low) / ((high - low) or 1.0))
        named: dict[str, Any] = {"label": "measured"} if index == 0 else {}
        (disc,) = panel.plot(row["steps"], row["warmdown_ratio"], "o", color=shade, **look, **named)
        tip(disc, row["run_id"], f"{row['value']:.4f}")
    run_steps = best.loc[best["was_run"].astype(bool), "steps"].tolist()
    panel.axvline(max(run_steps), color="white", lw=0.9, ls=(0, (2, 2)))
    steps_axis(panel, log_ticks=[*run_steps, lengths[-1]])
    panel.set_xlim(lengths[0] * 0.97, lengths[-1])
    panel.set_ylim(ratios[0], ratios[-1])
    panel.set_ylabel("warmdown ratio")
    panel.grid(visible=False)
    figure.legend(loc="outside upper left", ncols=1 if is_narrow() else 2)
    return figure


def _finer(grid: pd.DataFrame) -> tuple[Floats, Floats, Floats]:
    """(lengths, ratios, values [ratios, lengths]) between the predicted points, for contours that are smooth.

    A spline in ln steps and the ratio, then a Gaussian of 0.09 of the ratios and 0.04 of the lengths: where
    the laws that speak for a plan change, predictions jump by less than their intervals.
    """
    lengths, ratios = grid.columns.to_numpy(float), grid.index.to_numpy(float)
    spline = RectBivariateSpline(ratios, np.log(lengths), grid.to_numpy(float))
    fine, finer = np.linspace(ratios[0], ratios[-1], 80), np.geomspace(lengths[0], lengths[-1], 80)
    return finer, fine, gaussian_filter(spline(fine, np.log(finer)), sigma=(7, 3), mode="nearest")


def caption(frame: pd.DataFrame, study: Study) -> str:
    best = frame[frame["kind"] == "best"]
    width = float(np.mean(best["ratio_high"] - best["ratio_low"]))
    return (
        f"Predicted {axis(study.final_metric)}; discs are measured, in the same colours; right of the dashed "
        f"line is extrapolation. The pale band, {width:.2f} wide on average, holds the ratios that the laws "
        "or replicate noise do not tell from the best. Drawn smoothed; the CSV has the predictions."
    )
