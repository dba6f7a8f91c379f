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
