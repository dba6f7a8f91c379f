"""Runs and their trajectories as one typed table, from a results folder or from anyone's CSV.

CSV: a file of runs (columns run_id, steps, and peak_steps or warmdown_steps; others optional)
and a file of trajectories (run_id, step, and at least one of val_bpb, val_loss; lr_scale
optional). Unknown cells are empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from analysis.runs.errors import AnalysisError
from analysis.runs.schedule import observed_rate_at, rate_at
from analysis.runs.units import STAGES

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

MAX_STEPS = 100_000_000
"""Longer runs are a slip of the pen."""

TRAJECTORY_OF = {
    "float_bpb": "val_bpb",
    "ema_bpb": "ema_val_bpb",
    "final_loss": "val_loss",
    "train_loss_final": "train_loss",
}
"""Final metric -> the trajectory column whose last value it is. A trajectory column
may also be asked for by name.
"""


@dataclass(frozen=True)
class Trajectory:
    """Evaluations along a run: `step` [n] increasing (updates done), `lr_scale` [n], `values[column]` [n],
    NaN = not measured.
    """

    step: Ints
    lr_scale: Floats
    values: dict[str, Floats]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run. Steps count optimizer updates; `metrics` hold final
    values only where they are known.
    """

    run_id: str
    steps: int
    peak_steps: int  # the last step of the constant phase
    warmdown_steps: int
    schedule: str = "linear"
    final_lr_fraction: float = 0.0
    warmup_steps: int = 0
    seed: int = 0
    group: tuple[
        tuple[str, object], ...
    ] = ()  # axes other than seed and schedule: only equal groups are one law
    trunk: str = ""  # runs of one trunk repeat its rows and share its noise
    metrics: dict[str, float] = field(default_factory=dict)
    columns: dict[str, object] = field(default_factory=dict)  # every other column of the table as it was
    trajectory: Trajectory | None = None

    @property
    def warmdown_ratio(self) -> float:
        return self.warmdown_steps / self.steps

    @property
    def is_constant(self) -> bool:
        return self.warmdown_steps == 0 or self.schedule == "constant"

    def agrees(self, axes: Mapping[str, object]) -> bool:
        """Whether the run has these values of the axes that set groups apart."""
        mine = dict(self.group)
        return all(mine.get(axis) == value for axis, value in axes.items())

    def rate(self, step: Ints | Floats) -> Floats:
        """Multiplier of the peak learning rate at 0-based steps 0 .. steps, [n].

        Raises:
            AnalysisError: neither a schedule nor logged rates are known.
        """
        if self.schedule == "observed":
            if self.trajectory is None:
                raise AnalysisError(
                    f"run '{self.run_id}' has neither a schedule nor a trajectory with lr_scale"
                )
            curve = self.trajectory
            return observed_rate_at(step, curve.step, curve.lr_scale, self.warmup_steps)
        plan = (self.steps, self.peak_steps, self.schedule, self.final_lr_fraction, self.warmup_steps)
        return rate_at(step, *plan)

    def final(self, metric: str) -> float | None:
        """The final value of a metric or of a trajectory column, None where it is unknown.

        The loader fills it from a trajectory's row at `steps`, unless the table has finals of its own:
        these may be measured on other data than the trajectory is.
        """
        for name in (metric, *(m for m, column in TRAJECTORY_OF.items() if column == metric)):
            if name in self.metrics:
                return self.metrics[name]
        return None

    def curve(self, column: str) -> tuple[Ints, Floats, Floats] | None:
        """(step, lr_scale, value) of a trajectory column where it was measured; None if never."""
        name = TRAJECTORY_OF.get(column, column)
        if self.trajectory is None or name not in self.trajectory.values:
            return None
        value = self.trajectory.values[name]
        known = np.isfinite(value)
        if not known.any():
            return None
        return self.trajectory.step[known], self.trajectory.lr_scale[known], value[known]


Origin = Literal["recipe", "script", "table"]
"""Made by a sweep of the recipe, by one of a training script, or read from anyone's table."""


@dataclass(frozen=True)
class Table:
    """Runs of one study. `notes` say in plain words what of the input could not be used."""

    runs: tuple[Run, ...]
    source: str = ""
    notes: tuple[str, ...] = ()
    folder: Path | None = None  # the results folder, for per-block figures
    origin: Origin = "table"
    keeps_trunk: bool = False  # a longer run can start from the state of the longest trunk

    def where(self, keep: Callable[[Run], bool]) -> Table:
        return replace(self, runs=tuple(run for run in self.runs if keep(run)))

    def split(self, column: str, value: str) -> Table:
        return self.where(lambda run: run.columns.get(column) == value)

    def groups(self) -> dict[tuple[tuple[str, object], ...], Table]:
        keys = dict.fromkeys(run.group for run in self.runs)
        return {key: self.where(lambda run, key=key: run.group == key) for key in keys}  # type: ignore[misc]

    def axes(self) -> set[str]:
        """Names of the axes that set groups apart."""
        return {axis for run in self.runs for axis, _ in run.group}

    def metrics(self) -> list[str]:
        """Names known for at least one run: final metrics, then trajectory columns."""
        names: dict[str, None] = {}
        for run in self.runs:
            names |= dict.fromkeys(run.metrics)
        for run in self.runs:
            names |= dict.fromkeys(run.trajectory.values if run.trajectory else ())
        return list(names)

    def run(self, run_id: str) -> Run:
        for run in self.runs:
            if run.run_id == run_id:
                return run
        raise AnalysisError(f"no run '{run_id}' in {self.source}")


def default_metric(table: Table) -> str:
    """val_bpb where there is one, else val_loss: the quantity of the trajectories, else of the finals, and
    where there is neither the last stage of the job that is known.

    Raises:
        AnalysisError: none of them is known for any run.
    """
    candidates = ("val_bpb", "val_loss")
    for metric in candidates:
        if any(run.curve(metric) is not None for run in table.runs):
            return metric
    for metric in (*candidates, *reversed(STAGES)):
        if any(run.final(metric) is not None for run in table.runs):
            return metric
    wanted = ", ".join((*candidates, *STAGES))
    known = f" (known: {', '.join(table.metrics())})" if table.metrics() else ""
    raise AnalysisError(f"{table.source}: no run has a result; give one of the columns {wanted}{known}")


def joined_trunks(runs: Iterable[Run]) -> list[Run]:
    """Give runs that repeat each other's rows before their warmdowns the same
    `trunk`, the id of its first run.

    Branches of one trunk carry its numbers digit for digit; runs that retrained the same prefix do not. For
    a run whose column first_step says that it is a branch one equal row is proof. Else half of the common
    rows (3 or more) must be equal, as rounded values coincide by chance.
    """
    result = [run if run.trunk else replace(run, trunk=run.run_id) for run in runs]
    for i, run in enumerate(result):
        for other in result[:i]:
            if other.trunk != result[i].trunk and _repeats(run, other):
                joined = (result[i].trunk, other.trunk)
                result = [replace(r, trunk=joined[1]) if r.trunk == joined[0] else r for r in result]
    return result


def _repeats(a: Run, b: Run) -> bool:
    if a.group != b.group or a.seed != b.seed or a.trajectory is None or b.trajectory is None:
        return False
    last = min(a.peak_steps, b.peak_steps)
    steps, ia, ib = np.intersect1d(a.trajectory.step, b.trajectory.step, return_indices=True)
    common = (steps > 0) & (steps <= last)
    branch = any(run.columns.get("first_step") for run in (a, b))
    for column in set(a.trajectory.values) & set(b.trajectory.values):
        va, vb = a.trajectory.values[column][ia][common], b.trajectory.values[column][ib][common]
        known = np.isfinite(va) & np.isfinite(vb)
        if (va[known] == vb[known]).sum() >= (1 if branch else max(3, known.sum() / 2)):
            return True
    return False
