"""Each quantizer's tax on the averaged weights, against steps and against the bytes it takes."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.report.plots.errors import UnavailableError
from analysis.report.plots.style import CATEGORIES, GREY, MARKERS, canvas, legend, steps_axis, tip, told_apart
from analysis.report.study import Study
from analysis.runs.table import Run

NAME, TITLE, ORDER, SECTION = "quantizers", "What each quantizer costs", 64, "stages"


def data(study: Study) -> pd.DataFrame:
    rows = [
        {
            "run_id": result.run.run_id,
            "quantizer": _quantizer(result.run),
            "steps": result.run.steps,
            "warmdown_ratio": result.run.warmdown_ratio,
            "seed": result.run.seed,
            "tax_bpb": step.effect.value,
            "tax_error": step.effect.error,
            "artifact_bytes": result.run.metrics.get("artifact_bytes"),
        }
        for result in study.stages.runs
        for step in result.steps
        if step.name == "int6" and not result.run.is_constant
    ]
    frame = pd.DataFrame(rows)
    if not rows or frame["quantizer"].nunique() < 2:
        raise UnavailableError("one quantizer only")
    return frame.sort_values(["quantizer", "steps", "warmdown_ratio"], kind="stable")


def _quantizer(run: Run) -> str:
    """The run's values of the quantizer's axes: 'gptq', or 'gptq, clip_sigmas 8'."""
    values = {axis.split(".")[-1]: value for axis, value in run.group if axis.startswith("quant.")}
    named = str(values.pop("method", ""))
    return ", ".join(filter(None, [named, *(f"{name} {value}" for name, value in values.items())]))


def draw(frame: pd.DataFrame, study: Study) -> Figure:
    sizes = frame["artifact_bytes"].notna().all()
    figure, panels = canvas(2 if sizes else 1)
    looks = told_apart(frame["quantizer"], list(zip(CATEGORIES, MARKERS, strict=True)))
    scale, prefix = (1e6, "MB") if frame["artifact_bytes"].max() > 2e6 else (1e3, "kB")
    for name, rows in frame.groupby("quantizer", sort=False):
        colour, marker = looks[str(name)]
        means = rows.groupby("steps")["tax_bpb"].mean()
        panels[0].plot(means.index, 1000 * means, lw=0.9, color=colour)
        for row in rows.to_dict("records"):
            error = None if pd.isna(row["tax_error"]) else 1000 * float(row["tax_error"])
            places = [(panels[0], row["steps"])]
            if sizes:
                places.append((panels[1], row["artifact_bytes"] / scale))
            for panel, x in places:
                drawn = panel.errorbar(
                    x, 1000 * row["tax_bpb"], error, fmt=marker, ms=3.5, lw=0.7, color=colour
                )
                tip(drawn[0], row["run_id"], f"{row['tax_bpb']:+.4f}")
    for panel in panels:
        panel.axhline(0, color=GREY, lw=0.8)
    panels[0].set_ylabel("int6 less EMA weights (10⁻³ BPB)")
    steps_axis(panels[0], log_ticks=frame["steps"])
    if sizes:
        panels[1].set_xlabel(f"artifact ({prefix}, decimal)")
    handles = [
        Line2D([], [], color=colour, marker=marker, ms=4, ls="", label=name)
        for name, (colour, marker) in looks.items()
    ]
    legend(figure, handles, "quantizer")
    return figure


def caption(frame: pd.DataFrame, study: Study) -> str:
    return (
        "The tax of int6 in plain evaluation, of every run with a warmdown; lines join the means over ratios "
        "and seeds. Bars: ± 1 standard error, paired over validation blocks."
    )
