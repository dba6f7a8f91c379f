"""Validations that name a micro-batch, an epoch or no step at all: each is put at its step of the run."""

from __future__ import annotations

from dataclasses import replace

from analysis.logs.events import MEASURES, Event, Fact, Loose, Mark, Step
from analysis.runs.errors import AnalysisError


def placed(found: list[Event]) -> list[Event]:
    """The same with validations that name no step at the step before them, the first of all at step 0.

    Some trainers print `val loss 2.1` on a line of its own between the lines of their steps.
    Where validations name their steps, such a line is of something else and left out, as are plain losses,
    of which the steps planned are kept.
    """
    found = _optimizer_steps(_counted(found))
    if len({e.label for e in found if isinstance(e, Loose)}) > 1:  # of several texts
        found = [e for e in found if not isinstance(e, Loose)]
    measured = any(isinstance(e, Step) and e.values.keys() & set(MEASURES) for e in found)
    found = _beside_their_bars(found)
    placed: list[Event] = []
    between = 0
    last: Step | None = None
    taken = False  # whether the step before has its validation
    for event in found:
        if isinstance(event, Step):
            between += taken and last is not None
            last, taken = event, False
        elif isinstance(event, Loose):
            if not taken:
                step, total = (0, None) if last is None else (last.step, last.total)
                placed.append(Step(event.line, step, total, event.values, broken=event.broken))
            taken = True
            continue
        placed.append(event)
    if between and not measured:
        return placed
    named: list[Event] = [
        _rate(e) if isinstance(e, Step) and e.loose else e
        for e in found
        if not isinstance(e, Loose) and not (isinstance(e, Step) and e.loose and "lr" not in e.values)
    ]
    named = _whole(named)
    totals = {e.total for e in found if isinstance(e, Step) and e.loose and e.total}
    if named and len(totals) == 1 and not any(isinstance(e, Step) and e.total for e in named):
        return [Fact(named[0].line, "iterations", float(totals.pop())), *named]
    return named


def _optimizer_steps(found: list[Event]) -> list[Event]:
    """The same with validations that name a micro-batch, `iter 4000: val loss 2.1`, at the step that it ends.

    The other lines of such a log, litgpt's, repeat the validation before.
    """
    pairs = [(e.micro, e.step) for e in found if isinstance(e, Step) and e.micro and e.step]
    rates = {round(micro / (step + 1)) for micro, step in pairs} | {
        round(micro / step) for micro, step in pairs if micro % step == 0
    }
    rate = min(rates, default=1)
    if rate < 2 or any(abs(micro / rate - step) > 1 for micro, step in pairs):
        return found
    own = {
        id(e)
        for e in found
        if isinstance(e, Step) and not e.micro and e.words.startswith("iter") and e.step % rate == 0
    }
    if not own:
        return found
    return [
        replace(e, step=e.step // rate)
        if isinstance(e, Step) and id(e) in own
        else replace(e, values={k: v for k, v in e.values.items() if k != "val_loss"})
        if isinstance(e, Step) and e.micro
        else e
        for e in found
    ]


def _whole(found: list[Event]) -> list[Event]:
    """Without validations of a part of the text, where others are of all of it."""
    measured = [e for e in found if isinstance(e, Step) and e.values.keys() & set(MEASURES)]
    most = max((e.tokens for e in measured if e.tokens), default=0.0)
    partly = {id(e): e.part or bool(e.tokens and e.tokens < most) for e in measured}
    if len(set(partly.values())) < 2:
        return found
    quick = {key for key, part in partly.items() if part}
    return [e for e in found if id(e) not in quick]


def _rate(step: Step) -> Mark:
    """The learning rate of a step that is left out."""
    return Mark(step.line, "rate", step.words, {"step": float(step.step), "lr": step.values["lr"]})


def _counted(found: list[Event]) -> list[Event]:
    """The same with the bars of epochs counted on, and a bar's validation only where it is new."""
    longest = max((e.total or 0 for e in found if isinstance(e, Step) and e.bar), default=0)
    found = [e for e in found if not (isinstance(e, Step) and e.bar and not e.values and e.total != longest)]
    epochs = [e.epoch for e in found if isinstance(e, Step) and e.epoch is not None]
    epochs += [int(e.values["epoch"]) for e in found if isinstance(e, Mark) and e.kind == "epoch"]
    _refuse_epochs(found)
    counted: list[Event] = []
    epoch: int | None = None
    before: dict[str, float] = {}
    for event in found:
        if isinstance(event, Mark) and event.kind == "epoch":
            epoch = int(event.values["epoch"])
        if not (isinstance(event, Step) and event.bar):
            counted.append(event)
            continue
        stale = all(before.get(k) == v for k, v in event.values.items() if k in MEASURES)
        new = {k: v for k, v in event.values.items() if not (stale and k in MEASURES)}
        before = event.values
        of = event.epoch if event.epoch is not None else epoch
        if of is not None and event.total and len(set(epochs)) > 1:
            step = event.step + (of - min(epochs)) * event.total
            event = replace(event, step=step, total=None)
        counted.append(replace(event, values=new))
    return counted


def _refuse_epochs(found: list[Event]) -> None:
    """Steps that begin again with each epoch, of a length that is not said, cannot be counted on."""
    epoch, last = None, 0
    for event in found:
        if not isinstance(event, Step) or event.epoch is None or event.bar:
            continue
        if epoch is not None and event.epoch == epoch + 1 and event.step <= last:
            raise AnalysisError(
                f"line {event.line}: steps begin again with epoch {event.epoch}, whose length is not said; "
                "count them through"
            )
        epoch, last = event.epoch, event.step


def _beside_their_bars(found: list[Event]) -> list[Event]:
    """The same with records of validations after the bar of their step.

    Bars go to another stream than records, and may be printed before or after those of their step. The epoch
    that a record names tells: it is the same share of the step everywhere.
    """
    bars = [i for i, e in enumerate(found) if isinstance(e, Step) and e.bar]
    records = [(i, e) for i, e in enumerate(found) if isinstance(e, Loose) and e.epoch]
    if not bars or len({e.epoch for _, e in records}) < 2:
        return found
    before = [max((j for j in bars if j < i), default=None) for i, _ in records]
    after = [min((j for j in bars if j > i), default=None) for i, _ in records]
    if _in_proportion(found, records, before):
        return found
    if not _in_proportion(found, records, after):
        raise AnalysisError(
            f"line {records[0][1].line}: the epochs of the validations do not go with the steps of the bars "
            "beside them; give the trainer's own record, trainer_state.json, instead"
        )
    moved = {at: found[i] for at, (i, _) in zip(after, records, strict=True)}
    taken = {i for i, _ in records}
    placed: list[Event] = []
    for i, event in enumerate(found):
        placed += [] if i in taken else [event]
        placed += [moved[i]] if i in moved else []
    return placed


def _in_proportion(found: list[Event], records: list[tuple[int, Loose]], bars: list[int | None]) -> bool:
    if None in bars:
        return False
    steps = [found[bar].step for bar in bars if bar is not None]  # type: ignore[union-attr]
    rates = [step / (e.epoch or 1.0) for step, (_, e) in zip(steps, records, strict=True)]
    return max(rates) <= 1.05 * min(rates) + 1
