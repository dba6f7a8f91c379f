"""Warmdowns with too few evaluations to be measured: how many there are, and what to set."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.effects.warmdown import ANOTHER_RUNS, MIN_EVALUATIONS, Warmdown

_REMEDIES = {
    "recipe": "set eval.every: {}",
    "script": "have the script validate every {} steps",
    "table": "it takes one every {} steps",
}


def undetermined(result: Warmdown) -> str:
    """That most warmdowns have too few evaluations, and what to set; '' where most have enough."""
    every = needed_period(result)
    if not every:
        return ""
    annealed = _annealed(result)
    word = "warmdown has" if annealed == 1 else "warmdowns have"
    return (
        f"Undetermined: {len(result.sparse)} of {annealed} {word} fewer than {MIN_EVALUATIONS} evaluations; "
        f"{_REMEDIES[result.origin].format(every)}."
    )


def needed_period(result: Warmdown) -> int:
    """Steps between evaluations that would let the warmdowns be measured; 0 where most of them are."""
    if 2 * len(result.sparse) <= _annealed(result):
        return 0
    return evaluate_every([run.warmdown_steps for run in (*(r.run for r in result.runs), *result.sparse)])


def _annealed(result: Warmdown) -> int:
    """Trainings with a warmdown."""
    others = [why for _, why in result.skipped if why != ANOTHER_RUNS and not why.startswith("constant")]
    return len(result.runs) + len(others)


def evaluate_every(warmdown_steps: Sequence[int]) -> int:
    """The largest round period (1, 2 or 5 times a power of ten) that puts enough evaluations into three
    quarters of the warmdowns: the shortest one of a grid would make all others pay.
    """
    ordered = sorted(warmdown_steps)
    shortest = ordered[len(ordered) // 4]
    round_periods = [m * 10**k for k in range(9) for m in (1, 2, 5)]
    return max((n for n in round_periods if n * MIN_EVALUATIONS <= shortest), default=1)
