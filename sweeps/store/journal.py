"""events.jsonl, the journal of an attempt: one JSON object a line, appended as things happen."""

import json
import time
from pathlib import Path
from typing import Any


def emit(journal: Path, event: str, **facts: Any) -> None:
    with journal.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"event": event, "time": time.time(), **facts}) + "\n")


def objects(data: bytes) -> list[dict[str, Any]]:
    """The JSON objects of a file of one a line; a line cut short by a kill is passed over."""
    found = []
    for line in data.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def events(data: bytes) -> list[dict[str, Any]]:
    """The events of a journal."""
    return [value for value in objects(data) if "event" in value]


def reports(data: bytes) -> list[dict[str, Any]]:
    """The reports of training steps, each step once (the last word on it), in order."""
    found = {event["step"]: event for event in events(data) if event["event"] == "report"}
    return [found[step] for step in sorted(found)]


def reports_up_to(data: bytes, step: int) -> bytes:
    """The journal's reports of steps until `step`, as a journal."""
    kept = [report for report in reports(data) if report["step"] <= step]
    return b"".join(json.dumps(report).encode() + b"\n" for report in kept)
