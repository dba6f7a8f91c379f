"""Lines that are a record, {"step": 100, "val/loss": 2.1}, as the words that other logs print."""

from __future__ import annotations

import ast
import json
import re

_STEPS = (
    "step", "_step", "global_step", "iter", "iteration", "train/step", "train/global_step",
    "trainer/global_step", "steps", "iterations", "optimizer_step",
)  # fmt: skip
_TOTAL = ("total_steps", "max_steps", "num_iterations", "iterations")
_NAMES = {"bpb": "val_bpb", "eval_bpb": "val_bpb", "eval_loss": "val_loss"}
_LABELS = ("label", "stage", "name", "event", "phase", "split", "tag", "type")
_PLAIN = {"val", "valid", "validation", "eval", "train", "training", "step", "log", "metrics", "evaluation"}
_LONGEST = 20_000
_ENDLESS = re.compile(r"\d{400}")  # Python refuses to read integers of over 4,300 digits


def worded(text: str) -> str:
    """`step:100 val_loss:2.1` of a JSON or Python record in one line; any other line as it is."""
    line = text.strip()
    if not (line.startswith("{") and line.endswith("}") and len(line) <= _LONGEST):
        return text
    record = _record(line)
    if record is None:
        return text
    values = {key: value for key, value in record.items() if isinstance(key, str)}
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


def _record(line: str) -> dict[object, object] | None:
    if _ENDLESS.search(line):
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
    return _NAMES.get(name, name)
