"""Values that cannot be in the units of their neighbours: nats in a column of BPB, a sign, a diverged run."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from analysis.runs.errors import AnalysisError
from analysis.runs.rows import CURVES
from analysis.runs.table import Run, Table
from analysis.runs.units import STAGES

_APART = 1.35  # nats to BPB is a factor of about 1.7; runs of one study differ by far less at like steps
_ONE_TEXT = 0.005  # relative: four digits of either loss
_SILENT_ROWS = 3  # evaluations that were due
_RISEN = 1.15  # of the least value: spikes fall again
_LOSSES = tuple(dict.fromkeys((*STAGES, "final_loss", "train_loss_final", *CURVES)))
_GRID = 64
_WHY = "mixed units (nats and BPB), or a diverged run; correct or drop it"


def refuse_signs(table: Table) -> None:
    """Losses and sizes are positive: laws take their logarithms.

    Raises:
        AnalysisError: one is not.
    """
    for run in table.runs:
        found = {name: run.metrics[name] for name in (*_LOSSES, "artifact_bytes") if name in run.metrics}
        for column in CURVES:
            if (curve := run.curve(column)) is not None:
                found[f"{column} at step {curve[0][curve[2].argmin()]}"] = float(curve[2].min())
        for name, value in found.items():
            if value <= 0:
                raise AnalysisError(
                    f"{table.source}: {name} of run '{run.run_id}' is {value:g}; it must be positive, and "
                    "unknown cells empty"
                )


def refuse_two_texts(table: Table) -> None:
    """Nats per token and bits per byte of one text are in one proportion, its bytes per token.

    Raises:
        AnalysisError: runs of one group disagree in it, so that they were evaluated on different texts.
    """
    for members in table.groups().values():
        ratios = {run.run_id: ratio for run in members.runs if (ratio := _nats_per_bpb(run)) is not None}
        if not ratios:
            continue
        high, low = max(ratios, key=lambda name: ratios[name]), min(ratios, key=lambda name: ratios[name])
        if ratios[high] > (1 + _ONE_TEXT) * ratios[low]:
            raise AnalysisError(
                f"{table.source}: val_loss / val_bpb is {ratios[high]:.4f} in run '{high}' and "
                f"{ratios[low]:.4f} in run '{low}': they were evaluated on different texts or tokenizers; "
                "keep the runs of one, or tell them apart in a column data_fingerprint"
            )


def _nats_per_bpb(run: Run) -> float | None:
    """Median of val_loss / val_bpb over a run's evaluations, else of its finals."""
    if run.trajectory is not None and {"val_loss", "val_bpb"} <= set(run.trajectory.values):
        ratio = run.trajectory.values["val_loss"] / run.trajectory.values["val_bpb"]
        ratio = ratio[np.isfinite(ratio)]
        if len(ratio):
            return float(np.median(ratio))
    known = [run.metrics.get(name) for name in ("val_loss", "val_bpb")]
    return known[0] / known[1] if known[0] is not None and known[1] else None


def diverged(run: Run) -> str | None:
    """Why a run's curve is no training to its end; None where it is.

    A loss that became infinite, stopped being a number while the log went on, or ends far above where it was.
    """
    for column in CURVES[:2]:
        values = None if run.trajectory is None else run.trajectory.values.get(column)
        if run.trajectory is None or values is None or not np.isfinite(values).any():
            continue
        step = run.trajectory.step
        if np.isinf(values).any():
            return f"{column} is infinite at step {step[np.isinf(values).argmax()]}"
        known = np.flatnonzero(np.isfinite(values))
        gaps = np.diff(step[known])
        usual = float(np.median(gaps)) if len(gaps) else float(run.steps)
        silent = step[-1] - step[known[-1]]
        logged = len(step) - 1 - known[-1]
        if run.final(column) is None and logged >= _SILENT_ROWS and silent > _SILENT_ROWS * usual:
            return f"{column} has no value after step {step[known[-1]]} of {run.steps}, while the log goes on"
        after = values[known][step[known] >= max(run.warmup_steps, 1)]
        if len(after) > 2 and after[-1] > _RISEN * after.min() > 0:
            return f"{column} ends at {after[-1]:.4g}, after {after.min():.4g} before"
    return None


def refuse_mixed_units(table: Table) -> None:
    """Compare every loss with those of runs of its group at like steps, and with its trajectory's end.

    Raises:
        AnalysisError: one is 1.35 times what it is compared with, or more.
    """
    for members in table.groups().values():
        for column in CURVES:
            _curves(table.source, column, members.runs)
        for metric in _LOSSES:
            _finals(table.source, metric, [run for run in members.runs if metric in run.metrics])


def _curves(source: str, column: str, runs: Iterable[Run]) -> None:
    curves = {run.run_id: curve for run in runs if (curve := run.curve(column)) is not None}
    ends = [step[-1] for step, _, _ in curves.values() if step[-1] > 0]
    if len(ends) < 2:
        return
    # Losses are near straight lines in logarithms, so that runs evaluated at other steps compare.
    at = np.linspace(np.log(min(ends) / 2), np.log(max(ends)), _GRID)
    level = pd.DataFrame(
        {
            run_id: np.interp(at, np.log(step[step > 0]), np.log(value[step > 0]), left=np.nan, right=np.nan)
            for run_id, (step, _, value) in curves.items()
            if step[-1] > 0
        }
    )
    level = level[level.notna().sum(axis=1) > 1]
    apart = level.sub(level.median(axis=1), axis=0).median().dropna()
    if len(apart) and apart.max() - apart.min() > np.log(_APART):
        high, low = str(apart.idxmax()), str(apart.idxmin())
        raise AnalysisError(
            f"{source}: {column} of run '{high}' is {np.exp(apart[high] - apart[low]):.2f} times that of run "
            f"'{low}' at like steps: {_WHY}"
        )


def _finals(source: str, metric: str, runs: list[Run]) -> None:
    for run in runs:
        value = run.metrics[metric]
        compared = {}
        curve = run.curve(metric)
        if curve is not None and curve[0][-1] >= 0.9 * run.steps:
            compared["its trajectory's end says"] = float(curve[2][-1])
        near = [r.metrics[metric] for r in runs if r is not run and 0.5 <= r.steps / run.steps <= 2]
        if near:
            compared["runs of like steps say"] = float(np.median(near))
        if shorter := [r.metrics[metric] for r in runs if r.steps < run.steps]:  # which may be worse
            compared["shorter runs say"] = min(float(np.median(shorter)), value)
        for what, other in compared.items():
            if max(value, other) > _APART * min(value, other):
                raise AnalysisError(
                    f"{source}: {metric} of run '{run.run_id}' is {value:g}, but {what} {other:g}: {_WHY}"
                )
