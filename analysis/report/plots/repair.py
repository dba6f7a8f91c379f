"""What test-time training gains on float and on int6 weights, and the tax of int6 before and after it."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis.report.plots.errors import UnavailableError
from analysis.report.plots.style import CATEGORIES, GREY, MARKERS, canvas, steps_axis, tip
from analysis.report.study import Study

NAME, TITLE, ORDER, SECTION = "repair", "What test-time training mends of int6", 62, "stages"

_PANELS = (
    ("what TTT changes", {"on_float": "float (EMA) weights", "on_int6": "int6 weights"}),
    ("int6 less float", {"tax_before": "before TTT", "tax_after": "after TTT"}),
)


def data(study: Study) -> pd.DataFrame:
    rows = []
    for found in study.stages.repairs:
        row: dict[str, object] = {
            "run_id": found.run.run_id,
            "steps": found.run.steps,
            "warmdown_ratio": found.run.warmdown_ratio,
        }
        for name in ("on_float", "on_int6", "tax_before", "tax_after", "mended"):
            effect = getattr(found, name)
            row |= {f"{name}_bpb": effect.value, f"{name}_error": effect.error}
        rows.append(row)
    if not rows:
        raise UnavailableError("no run has both float and int6 weights scored after test-time training")
    return pd.DataFrame(rows).sort_values(["steps", "warmdown_ratio"], kind="stable")


def draw(frame: pd.DataFrame, study: Study) -> Figure:
    figure, panels = canvas(2)
    for panel, (title, names), first in zip(panels, _PANELS, (0, 2), strict=True):
        for index, (name, label) in enumerate(names.items()):
            colour, marker = CATEGORIES[first + index], MARKERS[index]
            means = frame.groupby("steps")[f"{name}_bpb"].mean()
            panel.plot(means.index, 1000 * means, color=colour, lw=0.9, marker=marker, ms=4, label=label)
            for row in frame.to_dict("records"):
                error = row[f"{name}_error"]
                spread = None if pd.isna(error) else 1000 * float(error)
                drawn = panel.errorbar(
                    row["steps"], 1000 * row[f"{name}_bpb"], spread, fmt=marker, ms=4, lw=0.9, color=colour
                )
                tip(drawn[0], row["run_id"], f"{label}: {row[f'{name}_bpb']:+.4f}")
        panel.axhline(0, color=GREY, lw=0.8)
        panel.set_title(title)
        panel.legend(fontsize=7.5, loc="best", frameon=True, framealpha=1.0, edgecolor="none")
        steps_axis(panel, log_ticks=frame["steps"])
    panels[0].set_ylabel("10⁻³ BPB, negative is better")
    return figure


def caption(frame: pd.DataFrame, study: Study) -> str:
    errors = " Bars: ± 1 standard error, paired over validation blocks." if _has_errors(frame) else ""
    return (
        "Left: TTT's change of each kind of weights; what it brings int6 beyond float mends the quantizer. "
        f"Right: the tax of int6, before and after. Lines join means over ratios and seeds.{errors}"
    )


def _has_errors(frame: pd.DataFrame) -> bool:
    return bool(frame["on_float_error"].notna().any())
