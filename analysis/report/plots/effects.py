"""Each stage's effect over steps and warmdown ratio, with its paired error."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.figure import Figure

from analysis.report.plots import stages
from analysis.report.plots.errors import UnavailableError
from analysis.report.plots.style import (
    GREY,
    MARKERS,
    canvas,
    is_narrow,
    marker_lines,
    shade_legend,
    shades,
    steps_axis,
    tip,
    told_apart,
    two_digits,
)
from analysis.report.study import Study

NAME, TITLE, ORDER, SECTION = "effects", "Stage effects over steps and ratio", 61, "stages"


def data(study: Study) -> pd.DataFrame:
    frame = stages.data(study)
    if frame["steps"].nunique() < 2:
        raise UnavailableError("all runs have one length")
    return frame


def draw(frame: pd.DataFrame, study: Study) -> Figure:
    names = list(dict.fromkeys(frame["effect"]))
    columns = min(len(names), 2)
    height = math.ceil(len(names) / columns)
    figure, panels = canvas(columns, rows=height, height=2.3 * height + 0.4, sharex=True)
    ratios = two_digits(frame["warmdown_ratio"])
    colours = shades(ratios)
    markers = told_apart(frame["setting"], MARKERS)
    for panel, name in zip(panels, names, strict=False):
        for (ratio, kind), rows in frame[frame["effect"] == name].groupby([ratios, "setting"]):
            colour, means = colours[float(str(ratio))], rows.groupby("steps")["effect_bpb"].mean()
            panel.plot(means.index, 1000 * means, lw=0.8, color=colour)
            errors = 1000 * rows["standard_error"].astype(float)
            panel.errorbar(rows["steps"], 1000 * rows["effect_bpb"], errors, fmt="none", lw=1, ecolor=colour)
            for run_id, at, effect in zip(rows["run_id"], rows["steps"], rows["effect_bpb"], strict=True):
                (disc,) = panel.plot(at, 1000 * effect, markers[str(kind)], ms=4, color=colour)
                tip(disc, run_id, f"{effect:+.4f}")
        bottom, top = panel.get_ylim()
        if bottom < 0.5 * (top - bottom) and top > -0.5 * (top - bottom):  # 0 is near: show it
            panel.axhline(0, color=GREY, lw=0.8)
        panel.set_title(name)
        steps_axis(panel, log_ticks=frame["steps"])
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    for panel in panels[: len(names) - (1 if is_narrow() else columns)]:
        panel.set_xlabel("")
    figure.supylabel("effect (10⁻³ BPB), negative is better", fontsize=9)
    shade_legend(figure, "warmdown\nratio", colours, marker_lines(markers))
    return figure


def caption(frame: pd.DataFrame, study: Study) -> str:
    errors = " Bars: ± 1 paired standard error." if frame["standard_error"].notna().any() else ""
    seeds = ", lines join means over seeds" if len({run.seed for run in study.table.runs}) > 1 else ""
    scales = " Scales differ between panels." if frame["effect"].nunique() > 1 else ""
    return f"A point a run{seeds}.{errors}{scales}"
