"""Steps that begin at 0 again where a training goes on from a saved state, counted on from that state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from analysis.logs.events import Event, Mark, Step
from analysis.runs.errors import AnalysisError

_LOSSES = ("val_loss", "val_bpb", "train_loss")
_Known = dict[int, dict[str, float]]  # step -> what was printed of it


def counted_on(found: list[Event]) -> Iterator[Event]:
    """The same, with steps after `resuming from step 1000` counted from there where they are not already.

    Raises:
        AnalysisError: they begin again, and the log does not say how many were done.
    """
    known: _Known = {}  # of the run so far
    totals: set[int | None] = {None}  # of steps that count from the run's beginning
    resumed: Mark | None = None
    done = last = 0  # steps when this one was 0; the furthest of the run so far
    for event in found:
        if isinstance(event, Mark) and event.kind == "resumed":
            resumed = event
        if not isinstance(event, Step):
            yield event
            continue
        step = event
        if resumed is not None:
            if done := _done(step, resumed, known):
                said = f"steps begin again after line {resumed.line}, and are counted on from {done:,}"
                yield replace(resumed, kind="counted on", text=said)
            resumed = None
        elif step.step + done < last:
            done, last, known = 0, 0, {}
        if done:
            total = None if step.total in totals else (step.total or 0) + done
            step = replace(step, step=step.step + done, total=total)
        else:
            totals.add(step.total)
        last = max(last, step.step)
        known.setdefault(step.step, {}).update(step.values)
        yield step


def _done(step: Step, resumed: Mark, known: _Known) -> int:
    """How many steps were done when this one was counted; 0 where it counts them itself."""
    at = resumed.values.get("step")
    if at is not None:
        before = known.get(int(at), {})
        differs = any(before[k] != step.values[k] for k in _LOSSES if k in before and k in step.values)
        return int(at) if step.step < at or (step.step == at and differs) else 0
    if step.step > min((s for s in known if s > 0), default=0) or not _goes_on(step, known):
        return 0
    raise AnalysisError(
        f"line {step.line}: steps begin again after line {resumed.line} ({resumed.text}), which does not say "
        "how many were done; count them through"
    )


def _goes_on(step: Step, known: _Known) -> bool:
    """Whether the loss is nearer to the last that was printed than to the first."""
    for name in _LOSSES:
        losses = [values[name] for _, values in sorted(known.items()) if name in values]
        if losses and name in step.values:
            return step.values[name] < (losses[0] + losses[-1]) / 2
    return False
