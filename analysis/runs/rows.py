"""One row of a table of runs, and the rows of its trajectory, as a typed Run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.runs.errors import AnalysisError
from analysis.runs.schedule import SHAPES
from analysis.runs.table import MAX_STEPS, Run, Trajectory

METRICS = [
    "float_bpb", "ema_bpb", "int6_bpb", "int6_sliding_bpb", "ttt_bpb", "ema_sliding_bpb", "ema_ttt_bpb",
    "merged_bpb",
    "final_loss", "val_loss", "val_bpb",
    "artifact_bytes", "code_bytes", "quant_rows_at_floor", "quant_rows", "quantized_fraction",
    "train_loss_final",
    "train_seconds", "eval_seconds", "ttt_seconds", "gpu_seconds_own", "gpu_seconds_shared", "gpus", "ranks",
    "params", "train_tokens", "epochs",
]  # fmt: skip
CURVES = ("val_bpb", "val_loss", "ema_val_bpb", "int6_val_bpb", "raw_int6_val_bpb", "train_loss")
SIZES = ("artifact_bytes", "raw_artifact_bytes")
"""Trajectory columns that are no losses."""
UNKNOWN = "unknown"
"""Schedule of a run of which only steps and finals are known."""
GROUP_AXES = ("params", "peak_lr", "data_fingerprint")


def _number(row: dict, name: str, where: str) -> float | None:
    """A finite number, or None for an empty cell or a missing column."""
    cell = row.get(name)
    if cell is None or pd.isna(cell):
        return None
    try:
        value = float(cell)
    except (TypeError, ValueError):
        raise AnalysisError(f"{where}: {name} is {str(cell)[:80]!r}, not a number") from None
    except OverflowError:  # a whole number of hundreds of digits
        value = float("inf")
    if not np.isfinite(value):
        raise AnalysisError(f"{where}: {name} is {value}; leave unknown cells empty, drop diverged runs")
    return value


def _whole(row: dict, name: str, where: str) -> int | None:
    value = _number(row, name, where)
    if value is not None and (value < 0 or value != int(value)):
        raise AnalysisError(f"{where}: {name} is {value:g}, not a whole number of steps >= 0")
    return None if value is None else int(value)


class UnknownScheduleError(AnalysisError):
    """A row says neither how long the warmdown was nor how the learning rate went."""


def run_of(
    row: dict,
    curve: pd.DataFrame | None,
    axes: tuple[str, ...],
    source: str,
    notes: list[str],
    scheduled: bool = True,
) -> Run:
    """The row as a Run; `scheduled`: it must say how the learning rate went.

    Raises:
        UnknownScheduleError: it does not.
        AnalysisError: a value is not what its column holds.
    """
    where = f"{source}, run '{row['run_id']}'"
    steps, peak, down = (_whole(row, name, where) for name in ("steps", "peak_steps", "warmdown_steps"))
    if not steps:
        raise AnalysisError(f"{where}: steps is empty or 0")
    if steps > MAX_STEPS:
        raise AnalysisError(f"{where}: steps is {steps:,}; a run has {MAX_STEPS:,} at most")
    schedule = row.get("schedule")
    schedule = schedule if isinstance(schedule, str) else None
    logged_lr = curve is not None and "lr_scale" in curve.columns and bool(curve["lr_scale"].notna().any())
    if peak is None and down is None:
        ratio = _number(row, "warmdown_ratio", where)
        if ratio is not None:
            down = round(ratio * steps)
        elif schedule == "constant":
            down = 0
        elif logged_lr:
            schedule = "observed"
            peak = down = None
        elif scheduled:
            raise UnknownScheduleError(
                f"{where}: give peak_steps, warmdown_steps, or trajectories with lr_scale"
            )
        else:
            schedule, down, curve = UNKNOWN, 0, None
    if schedule is None:
        schedule = "linear" if down != 0 and peak != steps else "constant"
        if schedule == "linear":
            notes.append(f"run '{row['run_id']}': no schedule given, taken as linear to 0")
    if schedule not in SHAPES and schedule not in ("observed", UNKNOWN):
        if not logged_lr:
            raise AnalysisError(f"{where}: schedule '{schedule}' is unknown; known: {', '.join(SHAPES)}")
        schedule = "observed"
    trajectory = None if curve is None else _trajectory(curve, where, notes)
    if trajectory is not None and (last := trajectory.step.max(initial=0)) > steps:
        raise AnalysisError(f"{where}: its trajectory has a row at step {last}, past its {steps} steps")
    warmup = _whole(row, "warmup_steps", where) or 0
    if schedule == "observed" and peak is None and down is None:
        assert trajectory is not None
        at_peak = trajectory.step[trajectory.lr_scale >= trajectory.lr_scale.max() - 1e-6]
        peak = int(at_peak[-1])
    if peak is None:
        peak = steps - (down or 0)
    if down is None:
        down = steps - peak
    if peak + down != steps or peak < 0:
        raise AnalysisError(f"{where}: peak_steps {peak} + warmdown_steps {down} is not steps {steps}")
    fraction = _number(row, "final_lr_fraction", where)
    if fraction is None:
        fraction = 1.0 if schedule == "constant" else 0.0
    run = Run(
        run_id=str(row["run_id"]),
        steps=steps,
        peak_steps=peak,
        warmdown_steps=down,
        schedule=schedule,
        final_lr_fraction=fraction,
        warmup_steps=warmup,
        seed=_whole(row, "seed", where) or 0,
        group=tuple((a, row[a]) for a in (*GROUP_AXES, *axes) if a in row and not pd.isna(row[a])),
        trunk=str(row["trunk"]) if isinstance(row.get("trunk"), str) else "",
        metrics={m: v for m in METRICS if (v := _number(row, m, where)) is not None},
        columns={k: v for k, v in row.items() if k not in METRICS},
        trajectory=trajectory,
    )
    if trajectory is None or np.isfinite(trajectory.lr_scale).all():
        return run
    return replace(run, trajectory=replace(trajectory, lr_scale=run.rate(trajectory.step)))


def _trajectory(curve: pd.DataFrame, where: str, notes: list[str]) -> Trajectory:
    columns = [name for name in ("step", "lr_scale", *CURVES, *SIZES) if name in curve.columns]
    rows = curve[columns]
    for name in columns:
        numeric = pd.to_numeric(rows[name], errors="coerce")
        text = numeric.isna() & rows[name].notna()
        if text.any():
            raise AnalysisError(
                f"{where}: trajectory column {name} has {rows[name][text].iloc[0]!r}, not a number"
            )
        rows = rows.assign(**{name: numeric})
    if rows["step"].isna().any() or (rows["step"] < 0).any():
        raise AnalysisError(f"{where}: a trajectory row has no step, or a negative one")
    odd = rows["step"][(rows["step"] > MAX_STEPS) | (rows["step"] % 1 != 0)]
    if len(odd):
        raise AnalysisError(
            f"{where}: a trajectory row has step {odd.iloc[0]:.10g}; steps are whole numbers, "
            f"{MAX_STEPS:,} at most"
        )
    if rows["step"].duplicated().any():
        step = int(rows["step"][rows["step"].duplicated()].iloc[0])
        raise AnalysisError(f"{where}: step {step} appears twice in its trajectory; keep one row a step")
    rows = rows.sort_values("step")
    values = {name: rows[name].to_numpy(float) for name in columns if name in (*CURVES, *SIZES)}
    silent = ~np.any([np.isfinite(value) for value in values.values()], axis=0)
    if silent.any():
        notes.append(f"{where}: {int(silent.sum())} rows of its trajectory hold no value and were left out")
    lr = rows["lr_scale"].to_numpy(float) if "lr_scale" in columns else np.full(len(rows), np.nan)
    return Trajectory(rows["step"].to_numpy(np.int64), lr, values)
