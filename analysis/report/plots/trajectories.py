"""Validation along training, a panel a schedule: the constant phase, then the dive."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.report.plots.errors import UnavailableError
from analysis.report.plots.style import (
    GREY,
    LIGHT,
    canvas,
    main_schedules,
    shade_legend,
    shades,
    steps_axis,
    tip,
)
from analysis.report.study import Study
from analysis.runs.units import axis

NAME, TITLE, ORDER, SECTION = "trajectories", "Validation along training", 20, "length"

_AVERAGED: Any = {"ls": (0, (4, 1.5)), "marker": "o", "ms": 2.6, "mew": 0, "lw": 0.9}


def data(study: Study) -> pd.DataFrame:
    rows = []
    for run in study.table.runs:
        curve = run.curve(study.metric)
        if curve is None:
            continue
        ema = run.curve("ema_val_bpb") if study.metric == "val_bpb" else None
        averaged = dict(zip(ema[0].tolist(), ema[2].tolist(), strict=True)) if ema else {}
        rows += [
            {
                "run_id": run.run_id,
                "schedule": run.schedule,
                "steps": run.steps,
                "peak_steps": run.peak_steps,
                "seed": run.seed,
                "step": int(step),
                "lr_scale": float(lr),
                study.metric: float(value),
                "ema_val_bpb": averaged.get(int(step), np.nan),
            }
            for step, lr, value in zip(*curve, strict=True)
        ]
    if not rows:
        raise UnavailableError("no trajectories")
    return pd.DataFrame(rows)


def draw(frame: pd.DataFrame, study: Study) -> Figure:
    runs = frame.drop_duplicates("run_id")
    schedules = main_schedules(runs["schedule"])
    figure, panels = canvas(len(schedules), sharey=True, sharex=True)
    colours = shades(runs["steps"])
    for panel, schedule in zip(panels, schedules, strict=True):
        for _, run in frame[frame["schedule"] == "constant"].groupby("run_id", sort=False):
            panel.plot(run["step"], run[study.metric], color=LIGHT, lw=0.9)
        for run_id, run in frame[frame["schedule"] == schedule].groupby("run_id", sort=False):
            colour = colours[run["steps"].iloc[0]]
            (line,) = panel.plot(run["step"], run[study.metric], color=colour, lw=1.0)
            tip(line, run_id)
            averaged = run[run["ema_val_bpb"].notna()]
            panel.plot(averaged["step"], averaged["ema_val_bpb"], color=colour, alpha=0.75, **_AVERAGED)
            (end,) = panel.plot(run["step"].iloc[-1], run[study.metric].iloc[-1], "o", ms=3.6, color=colour)
            tip(end, run_id, f"{run[study.metric].iloc[-1]:.4f}")
        panel.set_title(schedule)
        steps_axis(panel)
    shown = frame[frame["step"] >= 0.25 * frame["peak_steps"].clip(lower=0.2 * frame["steps"])]
    low, high = shown[study.metric].min(), shown[study.metric].quantile(0.995)
    panels[0].set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    panels[0].set_ylabel(axis(study.metric))
    others: dict[str, dict[str, object]] = {}
    if frame["ema_val_bpb"].notna().any():
        others["EMA weights"] = {"color": GREY, **_AVERAGED}
    if (frame["schedule"] == "constant").any():
        others["constant"] = {"color": LIGHT}
    shade_legend(figure, "steps", colours, others)
    return figure


def caption(frame: pd.DataFrame, study: Study) -> str:
    runs = frame["run_id"].nunique()
    ema = (
        " Dashed: the averaged (EMA) weights at the same step." if frame["ema_val_bpb"].notna().any() else ""
    )
    return (
        f"Raw weights while they train, of {runs} runs, coloured by length; discs mark the ends. "
        f"The first steps are cut off, and so is what rises above the rest.{ema}"
    )
