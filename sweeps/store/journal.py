"""events.jsonl, the journal of an attempt: one JSON object a line, appended as things happen."""

import json
import time
from pathlib import Path
from typing import Any

from sweeps.store.records import EVENTS, Event, Report, read

_ALONE = "move it away to adopt the checkpoint without its curve"
_REMEDY = "delete its attempt's folder, and the sweep's launch.py command trains it again"


def emit(journal: Path, event: str, **facts: Any) -> None:
    with journal.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"event": event, "time": time.time(), **facts}) + "\n")


def events(data: bytes, where: str = "events.jsonl") -> list[dict[str, Any]]:
    """The events of a journal. A last line cut short by a kill is passed over.

    Raises RecordError, naming `where` and the line, for any other that is no event.
    """
    found = []
    for number, line in enumerate(data.splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break
        place = f"{where}, line {number}"
        event = read(Event, line, place, _REMEDY)
        model = EVENTS.get(event.event)
        found.append((read(model, line, place, _REMEDY) if model else event).model_dump(exclude_unset=True))
    return found


def reports_of_training(data: bytes, where: str) -> list[dict[str, Any]]:
    """The reports in the journal of a sweep's attempt, or of gepa_core.train, which holds nothing else.

    Raises RecordError.
    """
    if b'"event"' in data.partition(b"\n")[0]:
        return reports(data, where)
    lines = enumerate(data.splitlines(keepends=True), 1)
    whole = [(number, line) for number, line in lines if line.endswith(b"\n")]
    return [read(Report, line, f"{where}, line {number}", _ALONE).model_dump() for number, line in whole]


def reports(data: bytes, where: str = "events.jsonl") -> list[dict[str, Any]]:
    """The reports of training steps, each step once (the last word on it), in order. Raises RecordError."""
    found = {event["step"]: event for event in events(data, where) if event["event"] == "report"}
    return [found[step] for step in sorted(found)]


def reports_up_to(data: bytes, step: int, where: str = "events.jsonl") -> bytes:
    """The journal's reports of steps until `step`, as a journal. Raises RecordError."""
    kept = [report for report in reports(data, where) if report["step"] <= step]
    return b"".join(json.dumps(report).encode() + b"\n" for report in kept)
