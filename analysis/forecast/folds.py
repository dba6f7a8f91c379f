"""Inner backtests: what of a training table to hold out, and how far that reaches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from analysis.laws.design import lr_blocks
from analysis.laws.plans import by_plan, last_known, lengths
from analysis.runs.table import Run, Table, Trajectory

LENGTH_FOLDS = (
    2  # the longest ones: trials on a few short runs say too little good of what all of them can do
)
RATIO_FOLDS = 4
REPLICATE_SD = 4e-4  # relative, 0.001 nats at a loss of 2.5: what retrained runs of public studies differ by
NEAR_DEFICIT = 0.25  # schedules closer than this in `deficit` count as one that was run


@dataclass(frozen=True)
class Fold:
    """An inner backtest: runs held out of the training table."""

    kind: str  # "length" or "ratio"
    train: Table
    held_out: tuple[Run, ...]
    stretch: float  # ln(held-out length / longest trained), or distance of the held-out schedule in `deficit`


def folds(table: Table, metric: str) -> list[Fold]:
    """Expanding longest-run-out (train on all up to a length, predict the next),
    then leave one schedule out.
    """
    targets = table.where(lambda run: last_known(run, metric) is not None)
    length = lengths(targets.runs)
    result = []
    for known, wanted in list(pairwise(sorted(set(length.values()))))[::-1][:LENGTH_FOLDS]:
        held = tuple(
            run for run in targets.runs if length[run.steps] == wanted and not _is_bare_trunk(run, table)
        )
        shorter = replace(
            table, runs=tuple(cut for run in table.runs if (cut := cut_to(run, known)) is not None)
        )
        if held and shorter.runs:
            result.append(Fold("length", shorter, held, float(np.log(wanted / known))))
    kinds: dict[tuple[str, int], list[Run]] = {}
    for (_, ratio, schedule, _), runs in by_plan(targets).items():
        kinds.setdefault((schedule, ratio), []).extend(runs)
    if len(kinds) > 1:
        for kind in sorted(kinds, key=lambda kind: -len(kinds[kind]))[:RATIO_FOLDS]:
            out = [run for run in kinds[kind] if not _is_bare_trunk(run, table)]
            rest = table.where(lambda run, out=out: run not in out)  # type: ignore[misc]
            if out and rest.runs:
                apart = [deficit_distance(rest, run) for run in out]
                result.append(Fold("ratio", rest, tuple(out), float(np.mean(apart))))
    return result


def replicate_sd(table: Table, metric: str) -> float:
    """Relative SD between runs of one plan on different trunks, drawn to
    `REPLICATE_SD` where there are few.
    """
    squares, freedom = REPLICATE_SD**2, 1
    for runs in by_plan(table).values():
        trunks: dict[str, list[float]] = {}
        for run in runs:
            if (final := run.final(metric)) is not None:  # branches of a trunk share its noise
                trunks.setdefault(f"{run.seed}/{run.trunk or run.run_id}", []).append(np.log(final))
        means = np.array([np.mean(finals) for finals in trunks.values()])
        if len(means) > 1:
            squares += float(np.sum((means - means.mean()) ** 2))
            freedom += len(means) - 1
    return float(np.sqrt(squares / freedom))


def deficit(run: Run) -> float:
    """ln of the share of the constant rate's sum that a run's schedule gives up.

    With 0.02 added, so that a constant schedule has a finite one.
    """
    start, rate = lr_blocks(run)
    width = np.diff(np.append(start, run.steps))
    after = start >= run.warmup_steps
    return float(np.log(1.0 - (rate * width)[after].sum() / max(width[after].sum(), 1) + 0.02))


def deficit_distance(table: Table, target: Run) -> float:
    """How far a schedule is from the nearest one of a table, in `deficit`."""
    return min(abs(deficit(target) - deficit(run)) for run in table.runs)


def _is_bare_trunk(run: Run, table: Table) -> bool:
    """A constant run beside branches that anneal: it tells of the trunk, and has no final to predict."""
    return run.is_constant and any(not other.is_constant for other in table.runs)


def cut_trajectory(run: Run, steps: int) -> Trajectory | None:
    """Its rows up to a step, None if there are none."""
    if run.trajectory is None or run.trajectory.step[0] > steps:
        return None
    known = run.trajectory.step <= steps
    values = {name: value[known] for name, value in run.trajectory.values.items()}
    return Trajectory(run.trajectory.step[known], run.trajectory.lr_scale[known], values)


def cut_to(run: Run, steps: int) -> Run | None:
    """The run as known when no run was longer than `steps`: whole, a shorter constant run, or not at all."""
    if run.steps <= steps:
        return run
    known = cut_trajectory(run, steps) if run.is_constant else None
    if known is None:
        return None
    return replace(run, steps=steps, peak_steps=steps, metrics={}, trajectory=known)
