"""Predicted against measured, of runs held out of the fit: longer ones, and other warmdowns."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.report.plots.errors import UnavailableError
from analysis.report.plots.style import CATEGORIES, GREY, MARKERS, canvas, is_narrow, steps_axis, tip
from analysis.report.study import Study
from analysis.runs.units import axis, counted, unit

NAME, TITLE, ORDER, SECTION = "predicted", "Predicted against measured", 80, "certainty"

_KINDS = {"length": "longer than those fitted", "ratio": "a warmdown left out"}


def data(study: Study) -> pd.DataFrame:
    if study.forecast is None:
        raise UnavailableError(study.no_forecast)
    ensemble = study.forecast.ensemble
    rows = []
    for kind, run_id, error in ensemble.held_out:
        run = ensemble.table.run(run_id)
        # The trial was scored on the run's last measurement, its final value where that is known.
        curve = run.curve(study.final_metric)
        measured = run.final(study.final_metric)
        if measured is None and curve is not None:
            measured = float(curve[2][-1])
        if measured is not None:
            rows.append(
                {
                    "held_out_for": kind,
                    "run_id": run_id,
                    "steps": run.steps,
                    "warmdown_ratio": run.warmdown_ratio,
                    "schedule": run.schedule,
                    "measured": measured,
                    "predicted": measured * (1 + error),
                    "error": measured * error,
                }
            )
    if not rows:
        raise UnavailableError("no run could be held out: one length and one warmdown")
    return pd.DataFrame(rows)


def draw(frame: pd.DataFrame, study: Study) -> Figure:
    figure, (left, right) = canvas(2)
    low, high = frame[["measured", "predicted"]].min().min(), frame[["measured", "predicted"]].max().max()
    handles: list[Line2D] = []
    margin = 0.06 * (high - low) or 0.01
    left.plot([low - margin, high + margin], [low - margin, high + margin], color=GREY, lw=0.8)
    for (kind, label), colour, marker in zip(_KINDS.items(), CATEGORIES, MARKERS, strict=False):
        rows = frame[frame["held_out_for"] == kind]
        if len(rows):
            look: dict[str, Any] = {"marker": marker, "ls": "", "ms": 4.5, "color": colour, "alpha": 0.85}
            handles.append(Line2D([], [], label=label, **look))
            for row in rows.to_dict("records"):
                (one,) = left.plot(row["measured"], row["predicted"], **look)
                (other,) = right.plot(row["steps"], 1000 * row["error"], **look)
                for disc in (one, other):
                    tip(
                        disc,
                        row["run_id"],
                        f"predicted {row['predicted']:.4f}, measured {row['measured']:.4f}",
                    )
    left.set_xlim(low - margin, high + margin)
    left.set_ylim(low - margin, high + margin)
    left.set_aspect("equal")
    left.set_xlabel(f"measured {axis(study.final_metric)}")
    left.set_ylabel("predicted")
    right.axhline(0, color=GREY, lw=0.8)
    steps_axis(right, log_ticks=frame["steps"])
    right.set_ylabel(f"predicted − measured (10⁻³ {unit(study.final_metric)})")
    figure.legend(handles=handles, loc="outside upper left", ncols=1 if is_narrow() else 2)
    return figure


def caption(frame: pd.DataFrame, study: Study) -> str:
    parts = []
    for kind, label in _KINDS.items():
        errors = frame.loc[frame["held_out_for"] == kind, "error"].abs()
        if len(errors):
            size = f"mean absolute error {errors.mean():.4f}, worst {errors.max():.4f}"
            parts.append(f"{label}: {size} ({counted(len(errors), 'run')})")
    return f"Predictions by laws that had not seen the run: {'; '.join(parts)}."
