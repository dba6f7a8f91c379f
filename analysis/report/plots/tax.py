"""The tax of int6 and the artifact's size along training, against steps and the learning rate left."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.report.plots.errors import UnavailableError
from analysis.report.plots.style import GREY, canvas, shade_legend, shades, steps_axis, tip
from analysis.report.study import Study
from analysis.runs.table import Run

NAME, TITLE, ORDER, SECTION = "tax", "The tax of int6 and the artifact along the warmdown", 65, "stages"


_KINDS = {
    "averaged": ("int6_val_bpb", "ema_val_bpb", "artifact_bytes"),
    "raw": ("raw_int6_val_bpb", "val_bpb", "raw_artifact_bytes"),
}
"""Weights -> the columns of int6, of the same weights unquantized, and of the file they make."""
_DASHES = {"averaged": "-", "raw": (0, (3, 1.5))}


def data(study: Study) -> pd.DataFrame:
    frames = [_of(run, kind, *columns) for run in study.table.runs for kind, columns in _KINDS.items()]
    known = [frame for frame in frames if len(frame)]
    if not known:
        raise UnavailableError("int6 was not measured along training (eval.int6_every)")
    return pd.concat(known, ignore_index=True)


def _of(run: Run, kind: str, int6: str, plain: str, size: str) -> pd.DataFrame:
    """A run's evaluations with int6 or a size, of one kind of weights; the tax is int6 less the same weights
    unquantized, at the same step."""
    curves = {name: curve for name in (int6, plain, size) if (curve := run.curve(name)) is not None}
    steps = sorted({int(step) for name in (int6, size) if name in curves for step in curves[name][0]})
    rates = {int(step): float(lr) for curve in curves.values() for step, lr in zip(*curve[:2], strict=True)}
    values = {
        name: dict(zip(curve[0].tolist(), curve[2].tolist(), strict=True)) for name, curve in curves.items()
    }
    rows = [
        {
            "run_id": run.run_id,
            "run_steps": run.steps,
            "weights": kind,
            "step": step,
            "lr_scale": rates[step],
            "int6_bpb": values.get(int6, {}).get(step, np.nan),
            "float_bpb": values.get(plain, {}).get(step, np.nan),
            "artifact_bytes": values.get(size, {}).get(step, np.nan),
        }
        for step in steps
    ]
    frame = pd.DataFrame(rows)
    return frame.assign(tax_bpb=frame["int6_bpb"] - frame["float_bpb"]) if rows else frame


def draw(frame: pd.DataFrame, study: Study) -> Figure:
    rows = [("tax_bpb", 1e-3, "int6 less float (10⁻³ BPB)")] if frame["tax_bpb"].notna().any() else []
    if frame["artifact_bytes"].notna().any():
        scale, prefix = (1e6, "MB") if frame["artifact_bytes"].max() > 2e6 else (1e3, "kB")
        rows.append(("artifact_bytes", scale, f"artifact ({prefix}, decimal)"))
    figure, panels = canvas(2, rows=max(len(rows), 1), height=2.6 * len(rows) + 0.4)
    colours = shades(frame["run_steps"])
    kinds = list(dict.fromkeys(frame["weights"]))
    for index, (column, scale, label) in enumerate(rows):
        left, right = panels[2 * index : 2 * index + 2]
        for (run_id, kind), run in frame[frame[column].notna()].groupby(["run_id", "weights"], sort=False):
            look: dict[str, Any] = {"color": colours[run["run_steps"].iloc[0]], "ls": _DASHES[str(kind)]}
            for panel, x in ((left, run["step"]), (right, run["lr_scale"])):
                (line,) = panel.plot(x, run[column] / scale, lw=0.9, marker=".", ms=4, **look)
                tip(line, run_id, f"{kind} weights")
        if column == "tax_bpb":
            for panel in (left, right):
                panel.axhline(0, color=GREY, lw=0.8)
        left.set_ylabel(label)
        steps_axis(left)
        right.set_xlabel("learning rate (of the peak)")
        right.invert_xaxis()
    others: dict[str, dict[str, object]] = {
        f"{kind} weights": {"color": GREY, "ls": _DASHES[kind]} for kind in kinds
    }
    shade_legend(figure, "steps", colours, others if len(kinds) > 1 else {})
    return figure


def caption(frame: pd.DataFrame, study: Study) -> str:
    kinds = " and ".join(dict.fromkeys(frame["weights"]))
    return (
        f"int6 less the same {kinds} weights unquantized, at the same step, and the size of the compressed "
        "model, of every run: against steps, and against the learning rate that is left."
    )
