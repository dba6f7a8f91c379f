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


def data(study: Study) -> pd.DataFrame:
    frames = [frame for run in study.table.runs if len(frame := _of(run))]
    if not frames:
        raise UnavailableError("int6 was not measured along training (eval.int6_every)")
    return pd.concat(frames, ignore_index=True)


def _of(run: Run) -> pd.DataFrame:
    """Evaluations with int6 or a size: the tax is int6 less the averaged weights at the same step, or less
    the raw ones where no average was scored."""
    names = ("int6_val_bpb", "artifact_bytes", "ema_val_bpb", "val_bpb")
    columns = {name: run.curve(name) for name in names}
    known = {name: curve for name, curve in columns.items() if curve is not None}
    steps = sorted({int(s) for name in ("int6_val_bpb", "artifact_bytes") for s in known.get(name, ([],))[0]})
    if not steps:
        return pd.DataFrame()
    frame = pd.DataFrame({"run_id": run.run_id, "run_steps": run.steps, "step": steps})
    for name, (step, lr, value) in known.items():
        frame[name] = frame["step"].map(dict(zip(step.tolist(), value.tolist(), strict=True)))
        if name in ("int6_val_bpb", "artifact_bytes"):
            rate = frame["step"].map(dict(zip(step.tolist(), lr.tolist(), strict=True)))
            frame["lr_scale"] = frame["lr_scale"].fillna(rate) if "lr_scale" in frame else rate
    base = frame.get("ema_val_bpb", pd.Series(np.nan, frame.index))
    base = base.fillna(frame["val_bpb"]) if "val_bpb" in frame else base
    frame["tax_bpb"] = frame["int6_val_bpb"] - base if "int6_val_bpb" in frame else np.nan
    frame["warmdown_done"] = ((frame["step"] - run.peak_steps) / max(run.warmdown_steps, 1)).clip(lower=0)
    return frame


def draw(frame: pd.DataFrame, study: Study) -> Figure:
    rows = [("tax_bpb", 1e-3, "int6 less float (10⁻³ BPB)")] if frame["tax_bpb"].notna().any() else []
    if "artifact_bytes" in frame and frame["artifact_bytes"].notna().any():
        scale, prefix = (1e6, "MB") if frame["artifact_bytes"].max() > 2e6 else (1e3, "kB")
        rows.append(("artifact_bytes", scale, f"artifact ({prefix}, decimal)"))
    figure, panels = canvas(2, rows=len(rows), height=2.6 * len(rows) + 0.4)
    colours = shades(frame["run_steps"])
    for index, (column, scale, label) in enumerate(rows):
        left, right = panels[2 * index : 2 * index + 2]
        for run_id, run in frame[frame[column].notna()].groupby("run_id", sort=False):
            look: dict[str, Any] = {
                "color": colours[run["run_steps"].iloc[0]],
                "lw": 0.9,
                "marker": ".",
                "ms": 4,
            }
            for panel, x in ((left, run["step"]), (right, run["lr_scale"])):
                (line,) = panel.plot(x, run[column] / scale, **look)
                tip(line, run_id)
        if column == "tax_bpb":
            for panel in (left, right):
                panel.axhline(0, color=GREY, lw=0.8)
        left.set_ylabel(label)
        steps_axis(left)
        right.set_xlabel("learning rate (of the peak)")
        right.invert_xaxis()
    shade_legend(figure, "steps", colours)
    return figure


def caption(frame: pd.DataFrame, study: Study) -> str:
    of = "averaged" if "ema_val_bpb" in frame and frame["ema_val_bpb"].notna().any() else "raw"
    return f"int6 less the {of} weights at the same step, and the size of the compressed model, of every run."
