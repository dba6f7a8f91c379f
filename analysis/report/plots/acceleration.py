"""How steep the curve is before the warmdown and on each fifth of it."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.report.plots.errors import UnavailableError
from analysis.report.plots.style import canvas, is_narrow, main_schedules, shade_legend, shades, tip
from analysis.report.study import Study
from analysis.runs.units import unit

NAME, TITLE, ORDER = "acceleration", "Improvement per 1,000 steps, by part of the run", 30
SECTION = "warmdown"

SEGMENTS = ("constant\ntail", "0-20 %", "20-40 %", "40-60 %", "60-80 %", "80-100 %")


def data(study: Study) -> pd.DataFrame:
    rows = []
    for result in study.warmdown.runs:
        for index, slope in enumerate((result.tail_slope, *result.fifth_slopes)):
            if slope is not None:
                rows.append(
                    {
                        "run_id": result.run.run_id,
                        "schedule": result.run.schedule,
                        "steps": result.run.steps,
                        "warmdown_steps": result.run.warmdown_steps,
                        "segment": SEGMENTS[index].replace("\n", " "),
                        "position": index,
                        "improvement_per_1000_steps": -slope.value,
                        "low": None if slope.high is None else -slope.high,
                        "high": None if slope.low is None else -slope.low,
                    }
                )
    if not rows:
        raise UnavailableError("no warmdown has enough evaluations")
    return pd.DataFrame(rows)


def draw(frame: pd.DataFrame, study: Study) -> Figure:
    schedules = main_schedules(frame.drop_duplicates("run_id")["schedule"])
    figure, panels = canvas(len(schedules), sharey=True)
    colours = shades(frame["warmdown_steps"])
    for panel, schedule in zip(panels, schedules, strict=True):
        groups = list(frame[frame["schedule"] == schedule].groupby("run_id", sort=False))
        groups.sort(key=lambda item: item[1]["warmdown_steps"].iloc[0])
        shift = np.linspace(-0.28, 0.28, len(groups)) if len(groups) > 1 else [0.0]
        for offset, (run_id, run) in zip(shift, groups, strict=True):
            colour = colours[run["warmdown_steps"].iloc[0]]
            x = run["position"] + offset
            (discs,) = panel.plot(x, run["improvement_per_1000_steps"], "o", ms=3.6, color=colour)
            tip(discs, run_id)
            panel.vlines(x, run["low"].astype(float), run["high"].astype(float), color=colour, lw=0.9)
            warm = run["position"] > 0
            panel.plot(x[warm], run["improvement_per_1000_steps"][warm], lw=0.7, alpha=0.5, color=colour)
        panel.set_title(schedule)
        positions = sorted(set(frame["position"]))
        turned = 60 if len(schedules) > 1 or is_narrow() else 0
        panel.set_xticks(positions, [SEGMENTS[i] for i in positions], rotation=turned)
        panel.axvspan(-0.5, 0.5, color="#f3f3f3", zorder=0)
        panel.grid(axis="x", visible=False)
    panels[0].set_ylabel(f"improvement per\n1,000 steps ({unit(study.metric)})")
    values = frame["improvement_per_1000_steps"]
    if values.min() > 0 and values.max() > 40 * values.min():
        panels[0].set_yscale("log")
        panels[0].set_ylim(bottom=0.6 * values.min())
    else:
        for panel in panels:
            panel.axhline(0, color="black", lw=0.6)
    for panel in panels[-1:] if is_narrow() else panels:
        panel.set_xlabel("share of the warmdown")
    shade_legend(figure, "warmdown\nsteps", colours)
    return figure


def caption(frame: pd.DataFrame, study: Study) -> str:
    return (
        "Slopes of a continuous piecewise-linear fit, 90 % intervals with AR(1) errors. A rise to the right "
        "is acceleration per step; the grey column is the last third of the constant phase."
    )
