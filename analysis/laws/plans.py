"""What counts as one plan: lengths within 5 % are one length, runs of one plan are replicates.

Public logs end by the wall clock: three seeds of one plan stop at 7,179, 7,182 and 7,193 steps.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from analysis.runs.table import Run, Table

SAME_LENGTH = 1.05
RATIO_STEP = 0.05  # warmdown ratios closer than this are one

Plan = tuple[int, int, str, float]


def last_known(run: Run, metric: str) -> tuple[int, float, bool] | None:
    """(step, value, is it the run's final value) of the last measurement."""
    final = run.final(metric)
    if final is not None:
        return run.steps, final, True
    curve = run.curve(metric)
    return None if curve is None else (int(curve[0][-1]), float(curve[2][-1]), False)


def lengths(runs: Iterable[Run]) -> dict[int, int]:
    """Steps of each run -> the length it counts as: the longest of those within 5 % of each other."""
    found: dict[int, int] = {}
    cluster: list[int] = []
    for steps in sorted({run.steps for run in runs}):
        if cluster and steps > SAME_LENGTH * cluster[0]:
            found |= dict.fromkeys(cluster, cluster[-1])
            cluster = []
        cluster.append(steps)
    return found | dict.fromkeys(cluster, cluster[-1] if cluster else 0)


def by_plan(table: Table) -> dict[Plan, list[Run]]:
    """Runs by (length, warmdown ratio, shape, final rate), whatever their seed and trunk."""
    length = lengths(table.runs)
    plans: dict[Plan, list[Run]] = {}
    for run in table.runs:
        ratio = round(run.warmdown_ratio / RATIO_STEP) if not run.is_constant else 0
        plans.setdefault((length[run.steps], ratio, run.schedule, run.final_lr_fraction), []).append(run)
    return plans


def same_plan(a: Run, b: Run) -> bool:
    """Whether b is a replicate of a, for the purpose of predicting its end."""
    long, short = max(a.steps, b.steps), min(a.steps, b.steps)
    return (
        long <= 1.005 * short
        and abs(a.warmdown_ratio - b.warmdown_ratio) < 0.005
        and (a.schedule, a.final_lr_fraction) == (b.schedule, b.final_lr_fraction)
    )


def mean_final(runs: Iterable[Run], metric: str) -> tuple[float, int] | None:
    """(mean of the finals, independent trunks they come from): branches of one trunk share its noise."""
    by_trunk: dict[str, list[float]] = {}
    for run in runs:
        if (final := run.final(metric)) is not None:
            by_trunk.setdefault(f"{run.seed}/{run.trunk or run.run_id}", []).append(final)
    if not by_trunk:
        return None
    return float(np.mean([np.mean(finals) for finals in by_trunk.values()])), len(by_trunk)


def measured_plans(table: Table, metric: str) -> list[tuple[Run, float, int]]:
    """(a run of the plan, the mean final of its replicates, how many trunks it is of) of every plan known."""
    found = []
    for runs in by_plan(table).values():
        known = mean_final(runs, metric)
        if known is not None:
            with_it = [run for run in runs if run.final(metric) is not None]
            typical = sorted(with_it, key=lambda run: run.steps)[len(with_it) // 2]
            found.append((typical, *known))
    return found
