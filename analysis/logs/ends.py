"""Where and how a run ended, by what its log says: at the steps planned, stopped, diverged, or cut off."""

from __future__ import annotations

import re
from dataclasses import dataclass

from analysis.logs.events import Figure, Mark
from analysis.logs.split import Training

DONE, UNFINISHED, DIVERGED = "done", "unfinished", "diverged"
_CLOCK = re.compile(r"wall|(?<!train_)time|clock", re.IGNORECASE)
_CAPPED = 0.97  # of the cap: the last step's time where a clock stops a run
_FINAL = re.compile(r"final|int\d|quant|round-?trip|ttt|(?<![a-z])ema|slid", re.IGNORECASE)


@dataclass(frozen=True)
class End:
    """Where and how a run ended: `steps` made, of those `planned`."""

    steps: int
    planned: int | None
    status: str
    stopped_by: str  # 'steps', 'wallclock', 'early stop', or '' where nothing says so
    seconds: dict[int, float]
    notes: tuple[str, ...] = ()


def end(run: Training, vouched: bool, known: int | None) -> End:
    """`vouched`: who imports it gave its warmdown, and so says that it ended where its log does, if that does
    not say otherwise. `known`: the steps planned for a run that ended well."""
    stop = run.stop
    steps, seconds = run.last, {}
    planned = _planned(run)
    if stop is not None and "step" in stop.values:
        steps = max(steps, int(stop.values["step"]))
        if "seconds" in stop.values:
            seconds[steps] = stop.values["seconds"]
    crash = next((e for e in reversed(run.after) if isinstance(e, Mark) and e.kind == "crash"), None)
    said = f" (line {crash.line}: {crash.text})" if crash else ""
    badly = (f"ended badly{said}",) if crash else ()
    losses = {"val_bpb", "val_loss", "train_loss"}
    healthy = max((step for step, values in run.points.items() if values.keys() & losses), default=0)
    if broken := [event for event in run.broken if event.step > (healthy if event.skipped else 0)]:
        note = f"diverged: a loss is not finite at step {broken[0].step:,} (line {broken[0].line})"
        return End(steps, planned, DIVERGED, "", seconds, (note,))
    cap, spent = (
        run.facts.get("cap_seconds"),
        seconds.get(steps, run.points.get(steps, {}).get("seconds", 0.0)),
    )
    capped = isinstance(cap, float) and spent >= _CAPPED * cap > 0
    if known is not None and run.last > known + 1:
        note = f"it made {run.last:,} steps, where {known:,} were planned"
        return End(run.last, known, DONE, "", seconds, (note,))
    if known is not None and run.last + run.spacing >= known:
        return End(known, known, DONE, "steps", seconds)
    # Scripts that count from 0 print their last step as one less.
    last_of_0 = (
        planned is not None
        and steps == planned - 1
        and (stop is not None or _measured_after(run) or _counts_from_0(run))
    )
    if planned is not None and (steps >= planned or last_of_0):
        return End(steps, planned, DONE, "steps", seconds, badly)
    finished = any(isinstance(e, Mark) and e.kind == "finished" for e in run.after)
    if stop is None and planned is None and crash is None and (finished or _last_epoch(run)):
        return End(steps, None, DONE, "", seconds, badly)
    if stop is not None:
        by = (
            "wallclock"
            if capped or _CLOCK.search(stop.text)
            else "early stop"
            if planned or stop.text
            else ""
        )
        return End(steps, planned, DONE, by, seconds, badly)
    if known is not None:
        note = f"it ended well after step {steps:,} of {known:,}"
        return End(steps, known, DONE, "wallclock" if capped else "early stop", seconds, (note,))
    exact = bool(run.points.get(steps, {}).keys() & {"val_bpb", "val_loss"})
    if (capped and exact and crash is None) or _measured_after(run):
        note = "" if exact else f"{steps:,} is the last step logged; it may have made some more"
        return End(steps, planned, DONE, "wallclock" if capped else "", seconds, (*badly, note))
    if vouched and planned is None and crash is None:
        return End(steps, None, DONE, "", seconds, ("the log does not say how many steps were planned",))
    of = f" of {planned:,}" if planned else ", for all the log says (give --warmdown if it ended there)"
    return End(steps, planned, UNFINISHED, "", seconds, (f"unfinished at step {steps:,}{of}{said}",))


def _planned(run: Training) -> int | None:
    if run.totals:
        return run.totals[-1]
    stated, said = run.facts.get("iterations"), run.facts.get("planned")
    if isinstance(stated, float):
        return int(stated)
    return int(said) if isinstance(said, float) and said >= run.last else None


def _counts_from_0(run: Training) -> bool:
    """Whether validations come at 999, 1999, ...: at the ends of stretches of steps from 0."""
    measured = [step + 1 for step in run.measured]
    return len(measured) > 1 and measured[0] > 1 and all(step % measured[0] == 0 for step in measured)


def _last_epoch(run: Training) -> bool:
    """Whether it ends with the last epoch of those it counts, all of one length."""
    epochs = [mark.values for mark in run.marks if mark.kind == "epoch"]
    return (
        bool(epochs) and epochs[-1]["epoch"] == epochs[-1]["of"] > 1 and run.last % int(epochs[-1]["of"]) == 0
    )


def _measured_after(run: Training) -> bool:
    """Whether figures follow the last step that are not printed on the way too, as at every checkpoint."""
    after = [e for e in run.after if isinstance(e, Figure)]
    before = run.printed[: len(run.printed) - len(run.after)]
    usual = {_shape(e.label) for e in before if isinstance(e, Figure)}
    broke = any(isinstance(e, Mark) and e.kind == "crash" for e in run.after)
    new = [e for e in after if _shape(e.label) not in usual]
    return any(_FINAL.search(e.label) or not broke for e in new)


def _shape(label: str) -> str:
    return re.sub(r"\d{2,}", "#", label.lower())
