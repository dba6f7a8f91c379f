"""Steps x warmdown ratio as a heat map, with the best ratio and how well it is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.report.plots.errors import UnavailableError
from analysis.report.plots.style import CATEGORIES, canvas, sequential, steps_axis
from analysis.report.study import Study
from analysis.runs.units import axis, unit

NAME, TITLE, ORDER = "surface", "Steps and warmdown ratio together", 50


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
                "ratio_low": best.low,
                "ratio_high": best.high,
                "value": best.prediction.value,
            }
        )
    for run in study.forecast.ensemble.table.runs:
        value = run.final(study.final_metric)
        if value is not None and not run.is_constant:
            rows.append(
                {"kind": "measured", "steps": run.steps, "warmdown_ratio": run.warmdown_ratio, "value": value}
            )
    return pd.DataFrame(rows)


def draw(frame: pd.DataFrame, study: Study) -> Figure:
    figure, (panel,) = canvas()
    grid = frame[frame["kind"] == "predicted"].pivot(index="warmdown_ratio", columns="steps", values="value")
    lengths, ratios = grid.columns.to_numpy(float), grid.index.to_numpy(float)
    measured, best = frame[frame["kind"] == "measured"], frame[frame["kind"] == "best"]
    colours = sequential().reversed()
    mesh = panel.pcolormesh(
        lengths, ratios, grid.to_numpy(), cmap=colours, shading="gouraud", rasterized=True
    )
    lines = panel.contour(lengths, ratios, grid.to_numpy(), levels=8, colors="white", linewidths=0.7)
    panel.clabel(lines, fontsize=7, fmt="%.3f")
    figure.colorbar(mesh, label=axis(study.final_metric), pad=0.02)
    panel.fill_between(best["steps"], best["ratio_low"], best["ratio_high"], color="white", alpha=0.28, lw=0)
    panel.plot(best["steps"], best["warmdown_ratio"], color="white", lw=3.2)
    panel.plot(
        best["steps"], best["warmdown_ratio"], color=CATEGORIES[1], lw=1.8, label="best of the ratios run"
    )
    look: dict[str, Any] = {
        "edgecolors": "white",
        "linewidths": 1.1,
        "zorder": 5,
        "label": "measured",
        "s": 36,
    }
    low, high = mesh.get_clim()
    run_steps = best.loc[best["was_run"].astype(bool), "steps"].tolist()
    x, y = measured["steps"], measured["warmdown_ratio"]
    if len(measured):
        panel.scatter(x, y, c=measured["value"], cmap=colours, vmin=low, vmax=high, **look)
    panel.axvline(max(run_steps), color="white", lw=0.9, ls=(0, (2, 2)))
    steps_axis(panel, log_ticks=[*run_steps, lengths[-1]])
    panel.set_xlim(lengths[0] * 0.97, lengths[-1])
    panel.set_ylim(ratios[0], ratios[-1])
    panel.set_ylabel("warmdown ratio [warmdown steps / steps]")
    panel.grid(visible=False)
    figure.legend(loc="outside upper left", ncols=2)
    return figure


def caption(frame: pd.DataFrame, study: Study) -> str:
    best = frame[frame["kind"] == "best"]
    width = float(np.mean(best["ratio_high"] - best["ratio_low"]))
    return (
        f"Predicted {unit(study.final_metric)}; discs are measured in the same colours, right of the "
        f"dashed line is "
        f"extrapolation. The pale band, {width:.2f} wide on average, holds the ratios that the laws or "
        f"replicate noise do not "
        "tell from the best."
    )
