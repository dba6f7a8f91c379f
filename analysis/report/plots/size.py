"""Size of the compressed model against training steps, and how many rows the quantizer's floor holds."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis.report.plots.errors import UnavailableError
from analysis.report.plots.style import (
    CATEGORIES,
    MARKERS,
    canvas,
    marker_lines,
    shade_legend,
    shades,
    steps_axis,
    tip,
    told_apart,
    two_digits,
)
from analysis.report.study import Study
from analysis.runs.settings import setting, varying_axes

NAME, TITLE, ORDER, SECTION = "size", "Artifact size against steps", 70, "stages"

CAP_BYTES = 16_000_000
"""The challenge's limit on code and compressed model together, decimal."""


def data(study: Study) -> pd.DataFrame:
    axes = varying_axes(study.table)
    rows = [
        {
            "run_id": run.run_id,
            "steps": run.steps,
            "warmdown_ratio": run.warmdown_ratio,
            "schedule": run.schedule,
            "setting": setting(run, axes),
            "seed": run.seed,
            "artifact_bytes": run.metrics["artifact_bytes"],
            "quant_rows_at_floor": run.metrics.get("quant_rows_at_floor"),
        }
        for run in study.table.runs
        if "artifact_bytes" in run.metrics
    ]
    if len(rows) < 2:
        raise UnavailableError("fewer than two runs have an artifact size")
    return pd.DataFrame(rows)


def draw(frame: pd.DataFrame, study: Study) -> Figure:
    floor = frame["quant_rows_at_floor"].notna().any()
    figure, panels = canvas(2 if floor else 1)
    ratios = two_digits(frame["warmdown_ratio"])
    colours = shades(ratios)
    markers = told_apart(frame["setting"], MARKERS)
    scale, prefix = (1e6, "MB") if frame["artifact_bytes"].max() > 2e6 else (1e3, "kB")
    columns = [
        ("artifact_bytes", scale, f"artifact ({prefix}, decimal)"),
        ("quant_rows_at_floor", 1.0, "rows at the quantizer's floor"),
    ]
    for panel, (column, unit, label) in zip(panels, columns, strict=False):
        for (ratio, name), rows in frame.groupby([ratios, "setting"]):
            means, colour = rows.groupby("steps")[column].mean() / unit, colours[float(str(ratio))]
            panel.plot(means.index, means, "-", lw=0.8, color=colour)
            for run_id, at, value in zip(rows["run_id"], rows["steps"], rows[column], strict=True):
                (disc,) = panel.plot(at, value / unit, markers[str(name)], ms=4.5, color=colour)
                tip(disc, run_id, f"{value:,.0f}")
        steps_axis(panel, log_ticks=frame["steps"])
        panel.set_ylabel(label)
        panel.ticklabel_format(axis="y", useOffset=False, style="plain")
    if scale == 1e6 and frame["artifact_bytes"].max() > 0.9 * CAP_BYTES:
        panels[0].axhline(CAP_BYTES / scale, color=CATEGORIES[1], lw=0.9, ls="--")
        panels[0].annotate(
            "cap, code included",
            (frame["steps"].min(), CAP_BYTES / scale),
            (0, 3),
            textcoords="offset points",
            fontsize=7.5,
            color=CATEGORIES[1],
        )
    shade_legend(figure, "warmdown\nratio", colours, marker_lines(markers))
    return figure


def caption(frame: pd.DataFrame, study: Study) -> str:
    cap = (
        " Cap: the challenge allows 16,000,000 bytes for code and compressed model together."
        if frame["artifact_bytes"].max() > 0.9 * CAP_BYTES
        else ""
    )
    if frame["quant_rows_at_floor"].isna().all():
        return (
            "Rows at the quantizer's floor were not recorded, so that the quantizer may shrink the artifact "
            f"as well as the training. Lines join the means over seeds.{cap}"
        )
    return (
        "Rows at the floor are stored with a step that no longer follows their weights, so that the "
        f"quantizer may shrink the artifact. Lines join the means over seeds.{cap}"
    )
