"""JSON and Python records, one a line or one for the whole file, as the words that other logs print."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from typing import Any

_STEPS = (
    "step", "global_step", "train/global_step", "trainer/global_step", "train/step", "iter", "iteration",
    "steps", "iterations", "optimizer_step", "_step",
)  # fmt: skip
_TOTAL = ("total_steps", "max_steps", "num_iterations", "iterations", "max_iterations", "max_iters")
_NAMES = {"bpb": "val_bpb", "bits_per_byte": "val_bpb", "eval_bpb": "val_bpb", "eval_loss": "val_loss"}
_OF_VALIDATION = re.compile(
    r"(?:val|valid|validation|eval|evaluation|held_?out|dev)_(bpb|bits_per_byte|loss|nll)"
)
_LABELS = (
    "msg",
    "window",
    "eval",
    "variant",
    "weights",
    "label",
    "stage",
    "name",
    "event",
    "phase",
    "split",
    "tag",
    "type",
)
_PLAIN = {"val", "valid", "validation", "eval", "train", "training", "step", "log", "metrics", "evaluation"}
_WRAPPERS = {"metrics", "metric", "data", "values", "scalars", "log", "logs", "stats", "payload", "results"}
_SOURCES = ("run", "run_id", "run_name", "experiment", "model", "seed")
"""Keys that say of which of several runs a record is."""
_MESSAGES = ("log", "message", "msg", "MESSAGE", "textPayload")
"""Keys under which collectors of logs keep a line."""
_PAIR = re.compile(r"(?<!\S)(?P<key>[\w./-]+)=(?P<value>\"[^\"]*\"|[^\s\"]+)(?!\S)")
_LONGEST, _WHOLE = 20_000, 64 << 20
_ENDLESS = re.compile(r"\d{400}")  # Python refuses to read integers of over 4,300 digits


def worded(text: str) -> str:
    """`step:100 val_loss:2.1` of a record in one line; any other line as it is."""
    record = _record(text.strip()) or _pairs(text)
    return text if record is None else _words(record)


def _pairs(text: str) -> dict[str, Any] | None:
    """A line that is all `key=value`, as logfmt has it, with a message and a step; None for any other."""
    if "msg=" not in text or _PAIR.sub("", text).strip():
        return None
    found = {match["key"]: _as_number(match["value"].strip('"')) for match in _PAIR.finditer(text)}
    known = {plain(key) for key in found}
    return found if known & {*STEPS, *_NAMES} else None


def message(text: str) -> str | None:
    """The line that a collector of logs wrapped into a record, as docker and cloud services do."""
    record = _record(text.strip())
    if record is None or any(plain(str(key)) in STEPS for key in record):
        return None
    return next((record[key] for key in _MESSAGES if isinstance(record.get(key), str)), None)


def source(text: str) -> str:
    """Of which run a record is, '' where it does not say."""
    record = _record(text.strip())
    if record is None or not any(plain(str(key)) in STEPS for key in record):
        return ""
    said = (record[key] for key in _SOURCES if isinstance(record.get(key), str | int))
    return "-".join(str(value) for value in said)


def as_records(text: str) -> list[str] | None:
    """The lines of a file that is one JSON value: a list of records, an object with one, which transformers
    calls log_history, or an object of columns; None for any other text."""
    if not text[:200].lstrip("\ufeff \t\r\n").startswith(("{", "[")) or len(text) > _WHOLE:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    records = _history(found)
    if records is None:
        return None
    planned = found.get("max_steps") if isinstance(found, dict) else None
    head = [f"iterations:{planned}"] if isinstance(planned, int) and planned > 0 else []
    return head + [_words(record) for record in records]


def _history(found: Any) -> list[dict[str, Any]] | None:
    history = found
    if isinstance(found, dict):
        history = found.get("log_history")
        if history is None:
            history = _rows(found) or next(
                (v for v in found.values() if isinstance(v, list) and v and isinstance(v[0], dict)), None
            )
        if history is None:
            inside = (_rows(v) for v in found.values() if isinstance(v, dict))
            history = next((rows for rows in inside if rows), None)
    if not isinstance(history, list):
        return None
    records = [record for record in history if isinstance(record, dict)]
    return records or None


def _rows(columns: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The records of an object with a list for each column, or with the values of each by step."""
    pairs = [
        {"step": _as_number(step), name: value}
        for name, of in columns.items()
        for step, value in _by_step(of)
    ]
    if pairs:
        return pairs
    lists = {key: value for key, value in columns.items() if isinstance(value, list)}
    step = next((key for key in lists if plain(key) in STEPS), None)
    if step is None:
        return None
    whole = {key: value for key, value in lists.items() if len(value) == len(lists[step])}
    return [dict(zip(whole, row, strict=True)) for row in zip(*whole.values(), strict=True)]


def _by_step(values: Any) -> list[tuple[Any, Any]]:
    """(step, value) of {"100": 2.1} and of [[100, 2.1]]; nothing for anything else."""
    items = list(values.items()) if isinstance(values, dict) else values if isinstance(values, list) else []
    if not items or not all(isinstance(item, list | tuple) and len(item) == 2 for item in items):
        return []
    numbers = (int, float)
    told = all(isinstance(_as_number(a), numbers) and isinstance(b, numbers) for a, b in items)
    return [(a, b) for a, b in items] if told else []


def _words(record: dict[Any, Any]) -> str:
    values = {key: _as_number(value) for key, value in _flat(record)}
    for key in ("tag", "metric", "name"):  # {"tag": "val/loss", "step": 9, "value": 2.1}
        if isinstance(values.get(key), str) and "value" in values:
            values[values.pop(key)] = values.pop("value")
            break
    labels = [str(values.pop(key)) for key in _LABELS if isinstance(values.get(key), str)]
    named = [label for label in labels if label.lower() not in _PLAIN]
    numbers = {
        _name(k): v for k, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)
    }
    step = next((numbers.pop(key) for key in STEPS if key in numbers), None)
    words = [*labels, *(f"{key}:{value}" for key, value in numbers.items())]
    if step is None or named:  # what has a name is a figure of its own, not a point of the curve
        return " ".join([*named, *(word for word in words if word not in named)])
    total = next((int(numbers[key]) for key in _TOTAL if key in numbers), None)
    return " ".join([f"step:{step:.0f}" + ("" if total is None else f"/{total}"), *words])


def _as_number(value: Any) -> Any:
    """Numbers that were written as text."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?", value):
        return float(value)
    return value


def _flat(record: dict[Any, Any], above: str = "", depth: int = 3) -> Iterator[tuple[str, Any]]:
    """Values by key; of records within a record by both keys, but for names that say nothing."""
    for key, value in record.items():
        if not isinstance(key, str):
            continue
        name = f"{above}/{key}" if above else key
        if isinstance(value, dict) and depth:
            yield from _flat(value, above if key.lower() in _WRAPPERS else name, depth - 1)
        else:
            yield name, value


def _record(line: str) -> dict[Any, Any] | None:
    if not (line.startswith("{") and line.endswith("}") and len(line) <= _LONGEST) or _ENDLESS.search(line):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(line)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
        return found if isinstance(found, dict) else None
    return None


def plain(key: str) -> str:
    """`Val/Loss` as `val_loss`."""
    return re.sub(r"[/ .-]+", "_", key.strip().lower())


STEPS = tuple(dict.fromkeys(map(plain, _STEPS)))
"""What loggers call the step, in plain words."""


def _name(key: str) -> str:
    name = plain(key)
    if (match := _OF_VALIDATION.fullmatch(name)) is not None:
        return "val_bpb" if match[1].startswith("b") else "val_loss"
    return _NAMES.get(name, name)
