"""Stage waterfall: what each stage of the job adds to or takes from the BPB."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.plots.errors import UnavailableError
from analysis.plots.style import CATEGORIES, GREY, canvas
from analysis.study import Study

NAME, TITLE, ORDER = "stages", "From raw weights to the submitted score", 60


def data(study: Study) -> pd.DataFrame:
    rows = [
        {
            "run_id": result.run.run_id,
            "steps": result.run.steps,
            "warmdown_ratio": result.run.warmdown_ratio,
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
    figure, (left, right) = canvas(2, gridspec_kw={"width_ratios": [3, 2]})
    best = frame[frame["run_id"] == _best(frame)]
    names = [_wrapped(name) for name in best["effect"]]
    levels = [best["before_bpb"].iloc[0], *best["after_bpb"]]
    left.bar(0, levels[0], width=0.6, color=GREY)
    for i, row in enumerate(best.to_dict("records"), start=1):
        effect, before, after = (float(row[name]) for name in ("effect_bpb", "before_bpb", "after_bpb"))
        colour = CATEGORIES[2] if effect < 0 else CATEGORIES[1]
        left.bar(i, effect, bottom=before, width=0.6, color=colour)
        left.plot([i - 0.7, i + 0.3], [before] * 2, color="black", lw=0.7)
        top = max(before, after)
        error = "" if pd.isna(row["standard_error"]) else f"\n± {row['standard_error']:.4f}"
        left.annotate(
            f"{effect:+.4f}{error}",
            (i, top),
            (0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=7.5,
        )
    last = len(names) + 1
    left.bar(last, levels[-1], width=0.6, color=CATEGORIES[0])
    for x, level in ((0, levels[0]), (last, levels[-1])):
        left.annotate(
            f"{level:.4f}", (x, level), (0, 3), textcoords="offset points", ha="center", fontsize=7.5
        )
    left.set_xticks(range(last + 1), ["raw\nweights", *names, "final"])
    span = max(levels) - min(levels)
    left.set_ylim(min(levels) - 0.35 * span, max(levels) + 0.3 * span)
    left.set_ylabel("validation [BPB], axis cut")
    left.set_title(f"best run: {_best(frame)}", fontsize=8.5)
    left.grid(axis="x", visible=False)
    effects = list(dict.fromkeys(frame["effect"]))
    for place, effect in enumerate(effects):
        rows = frame[frame["effect"] == effect]
        x = place + np.linspace(-0.3, 0.3, len(rows)) * (len(rows) > 1)
        right.errorbar(
            x,
            1000 * rows["effect_bpb"],
            1000 * rows["standard_error"].astype(float),
            fmt="o",
            ms=3,
            lw=0.8,
            color=CATEGORIES[0],
        )
    right.axhline(0, color="black", lw=0.7)
    right.set_xticks(range(len(effects)), [_wrapped(effect) for effect in effects])
    right.set_xlim(-0.5, len(effects) - 0.5)
    right.set_ylabel("effect [mBPB], ± 1 standard error")
    right.set_title("all runs, short to long", fontsize=8.5)
    right.grid(axis="x", visible=False)
    return figure


def _best(frame: pd.DataFrame) -> str:
    """The run with the most stages, and among those the best last one."""
    stages = frame.groupby("run_id").agg(n=("effect", "size"), last=("after_bpb", "last"))
    return str(stages.sort_values(["n", "last"], ascending=[False, True]).index[0])


def _wrapped(name: str) -> str:
    return (
        name.replace("test-time training", "TTT").replace("sliding windows", "sliding").replace(" + ", "\n+ ")
    )


def caption(frame: pd.DataFrame, study: Study) -> str:
    errors = (
        "Errors are paired over validation blocks."
        if frame["standard_error"].notna().any()
        else "Without per-block figures there are no errors."
    )
    mixed = (
        " An effect with + in its name mixes stages that were not measured one at a time."
        if frame["effect"].str.contains("+", regex=False).any()
        else ""
    )
    return f"Left: the best run, stage by stage. Right: every run's effects. {errors}{mixed}"
