"""What a run costs: device time as a fixed part and a part per step, from runs that were made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.runs.table import Run, Table


@dataclass(frozen=True)
class Cost:
    """hours(steps) = fixed + per_step x steps, for a run trained alone."""

    per_step: float  # hours
    fixed: float  # hours: evaluation and test-time training
    device: str  # what an hour is of: GPU, CPU-worker or machine

    def hours(self, steps: float) -> float:
        return self.fixed + self.per_step * steps

    def text(self, hours: float) -> str:
        """'2.03 GPU-hours', or minutes where hours are few."""
        return (
            f"{hours:.3g} {self.device}-hours" if hours >= 0.5 else f"{60 * hours:.3g} {self.device}-minutes"
        )

    def steps(self, hours: float) -> int:
        """Steps that fit, 0 if none do."""
        return max(int((hours - self.fixed) / self.per_step), 0)


def run_hours(run: Run) -> float | None:
    """Hours of a run had it been trained alone; None where its times are not known."""
    m = run.metrics
    if "gpu_seconds_own" in m and "gpu_seconds_shared" in m:
        return (m["gpu_seconds_own"] + m["gpu_seconds_shared"]) / 3600
    if "train_seconds" not in m:
        return None
    return (m["train_seconds"] + m.get("eval_seconds", 0.0) + m.get("ttt_seconds", 0.0)) / 3600


def cost_of(table: Table) -> Cost | None:
    """Per-step and fixed cost; None without times.

    The fixed part is what runs say of their evaluations, not an intercept, which compilation would enter.
    """
    known = [(run, hours) for run in table.runs if (hours := run_hours(run)) is not None]
    if not known:
        return None
    fixed = [_fixed(run) for run, _ in known]
    per_step = [max(hours - f, 0.0) / run.steps for (run, hours), f in zip(known, fixed, strict=True)]
    if float(np.median(per_step)) <= 0:
        return None
    return Cost(float(np.median(per_step)), float(np.median(fixed)), device_of(table))


def _fixed(run: Run) -> float:
    m = run.metrics
    # Device-seconds are of the devices a run held: part of a GPU, or CPU workers, one a rank.
    devices = (m.get("gpus") or m.get("ranks") or 1.0) if "gpu_seconds_own" in m else 1.0
    return devices * (m.get("eval_seconds", 0.0) + m.get("ttt_seconds", 0.0)) / 3600


def device_of(table: Table) -> str:
    """GPU, CPU-worker, or a machine whose devices the table does not count."""
    counted = [run for run in table.runs if "gpu_seconds_own" in run.metrics]
    if not counted:
        return "machine"
    return "GPU" if any(run.metrics.get("gpus", 0) > 0 for run in counted) else "CPU-worker"
