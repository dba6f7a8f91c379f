"""What to do about an attempt that did not finish. Pure functions: what was observed in, what to do out.

The driver executes and never decides. A fault of the machine is retried from the last checkpoint, as long as
the retries get somewhere; a fault of the configuration or the data is not retried at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Observed(StrEnum):
    """How an attempt ended, other than well."""

    STOPPED = "stopped"  # we asked it to
    PREEMPTED = "preempted"  # its worker got SIGTERM: a spot machine is taken away
    LOST = "lost"  # the worker, its node, or the way to it is gone
    OUT_OF_MEMORY = "out_of_memory"
    DIVERGED = "diverged"
    BAD_INPUT = "bad_input"
    STORAGE = "storage"
    DISK_FULL = "disk_full"
    DAMAGED = "damaged"  # what it was to start from
    CRASHED = "crashed"  # an exception nobody expected
    HUNG = "hung"  # a script that printed nothing for too long


class Action(StrEnum):
    RETRY = "retry"  # from the last checkpoint
    RESTART_SMALLER = "restart_smaller"  # from the segment's start, with half the micro-batch
    DIVERGE = "diverge"  # the runs through it are `diverged`
    FAIL = "fail"  # the runs through it are `failed`
    LEAVE = "leave"  # as it is, for the next launch
    STOP = "stop"  # the whole sweep: nothing else would fare better


@dataclass(frozen=True)
class Failure:
    """One attempt's end. `step`: steps its last checkpoint had done, None where it left none."""

    observed: Observed
    step: int | None = None
    micro_batch_seqs: int | None = None


@dataclass(frozen=True)
class Limits:
    """Failures in a row, without a step gained, after which a node is given up."""

    lost: int = 5
    preempted: int = 50
    crashed: int = 2
    storage: int = 4
    first_pause_seconds: float = 1.0
    longest_pause_seconds: float = 120.0


@dataclass(frozen=True)
class Decision:
    action: Action
    pause_seconds: float = 0.0
    micro_batch_seqs: int | None = None


def decide(history: Sequence[Failure], limits: Limits) -> Decision:
    """What to do after `history` (oldest first, never empty) of one segment's or stage's failures."""
    last = history[-1]
    match last.observed:
        case Observed.STOPPED:
            return Decision(Action.LEAVE)
        case Observed.DIVERGED:
            return Decision(Action.DIVERGE)
        case Observed.BAD_INPUT | Observed.DAMAGED:
            return Decision(Action.FAIL)
        case Observed.DISK_FULL:
            return Decision(Action.STOP)
        case Observed.OUT_OF_MEMORY:
            if last.micro_batch_seqs is not None and last.micro_batch_seqs > 1:
                return Decision(Action.RESTART_SMALLER, micro_batch_seqs=last.micro_batch_seqs // 2)
            return Decision(Action.FAIL)
        case Observed.PREEMPTED:
            limit = limits.preempted
        case Observed.STORAGE:
            limit = limits.storage
        case Observed.CRASHED | Observed.HUNG:
            limit = limits.crashed
        case Observed.LOST:
            limit = limits.lost
    in_vain = _in_vain(history)
    if in_vain > limit:
        return Decision(Action.LEAVE if last.observed is Observed.STORAGE else Action.FAIL)
    if last.observed is Observed.PREEMPTED or in_vain == 1:
        return Decision(Action.RETRY)
    pause = limits.first_pause_seconds * 2.0 ** (in_vain - 2)
    return Decision(Action.RETRY, min(pause, limits.longest_pause_seconds))


def _in_vain(history: Sequence[Failure]) -> int:
    """Failures of the last one's kind since a checkpoint got further than every one before it."""
    count, furthest = 0, -1
    for failure in history:
        if (failure.step or 0) > furthest:
            furthest, count = failure.step or 0, 0
        count += failure.observed is history[-1].observed
    return count
