"""Stage waterfall: what each stage of the job adds to or takes from the BPB."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis.report.plots.errors import UnavailableError
from analysis.report.plots.style import CATEGORIES, GREY, canvas, is_narrow
from analysis.report.study import Study
from analysis.runs.settings import setting, shortened, varying_axes

NAME, TITLE, ORDER, SECTION = "stages", "From raw weights to the submitted score", 60, "stages"


def data(study: Study) -> pd.DataFrame:
    axes = varying_axes(study.table)
    rows = [
        {
            "run_id": result.run.run_id,
            "steps": result.run.steps,
            "warmdown_ratio": result.run.warmdown_ratio,
            "setting": setting(result.run, axes),
            "effect": step.name,
            "before": step.before,
            "after": step.after,
            "before_bpb": result.run.metrics[step.before],
            "after_bpb": result.run.metrics[step.after],
            "effect_bpb": step.effect.value,
            "standard_error": step.effect.error,
        }
        for result in study.stages.runs
        for step in result.steps
    ]
    if not rows:
        raise UnavailableError("no run has two stages measured")
    return pd.DataFrame(rows).sort_values(["steps", "warmdown_ratio"], kind="stable")


def draw(frame: pd.DataFrame, study: Study) -> Figure:
    figure, (panel,) = canvas(height=3.4)
    best = frame[frame["run_id"] == _best(frame)]
    names = [short(name) for name in best["effect"]]
    levels = [best["before_bpb"].iloc[0], *best["after_bpb"]]
    size = 7 if is_narrow() else 8
    look: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": size}
    panel.bar(0, levels[0], width=0.6, color=GREY)
    for i, row in enumerate(best.to_dict("records"), start=1):
        effect, before, after = (float(row[name]) for name in ("effect_bpb", "before_bpb", "after_bpb"))
        colour = CATEGORIES[2] if effect < 0 else CATEGORIES[1]
        panel.bar(i, effect, bottom=before, width=0.6, color=colour)
        panel.plot([i - 0.7, i + 0.3], [before] * 2, color="black", lw=0.7)
        error = "" if pd.isna(row["standard_error"]) or is_narrow() else f"\n± {row['standard_error']:.4f}"
        panel.annotate(f"{effect:+.4f}{error}", (i, max(before, after)), (0, 3), **look)
    last = len(names) + 1
    panel.bar(last, levels[-1], width=0.6, color=CATEGORIES[0])
    for x, level in ((0, levels[0]), (last, levels[-1])):
        panel.annotate(f"{level:.4f}", (x, level), (0, 3), **look)
    names = ["raw weights" if not is_narrow() else "raw", *names, "final"]
    panel.set_xticks(range(last + 1), names, rotation=30 if is_narrow() else 0)
    span = max(levels) - min(levels) or 0.01
    panel.set_ylim(min(levels) - 0.3 * span, max(levels) + 0.25 * span)
    panel.set_ylabel("val BPB (axis does not start at 0)")
    panel.set_title(shortened(_best(frame)).removesuffix("…")[:60], fontsize=9, parse_math=False)
    panel.grid(axis="x", visible=False)
    return figure


def _best(frame: pd.DataFrame) -> str:
    """The run with the most stages, and among those the best last one."""
    stages = frame.groupby("run_id").agg(n=("effect", "size"), last=("after_bpb", "last"))
    return str(stages.sort_values(["n", "last"], ascending=[False, True]).index[0])


def short(name: str) -> str:
    """An effect's name for a tick label."""
    return (
        name.replace("test-time training", "TTT").replace("sliding windows", "sliding").replace(" + ", "\n+ ")
    )


def caption(frame: pd.DataFrame, study: Study) -> str:
    known = frame["standard_error"].notna().any()
    errors = (
        "± 1 standard error, paired over validation blocks." if known else "No per-block figures, no errors."
    )
    mixed = frame["effect"].str.contains("+", regex=False).any()
    text = f"The best run, stage by stage. {errors}"
    return text + (" A name with + mixes stages that were not measured one at a time." if mixed else "")
