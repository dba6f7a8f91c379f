"""Files that are no log but hold a curve, as the lines that a log would have: tables and records of loggers.

Tables (CSV, TSV): a step and a loss a row, as Lightning or a spreadsheet writes them; W&B's export of a
chart, with a column a run. Records (JSON): a list of them, or transformers' trainer_state.json.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from math import isfinite

from analysis.logs.keyed import STEPS, plain, worded
from analysis.runs.errors import AnalysisError

_RUN = {"run", "run_id", "run_name", "name", "experiment", "model"}
_OF_A_RUN = re.compile(r"(?P<run>.+?) - (?P<metric>[^ ].*?)(?P<band>__(?:MIN|MAX))?")
"""W&B's name of a column: run, metric, and the band that it draws around it."""
_VALIDATION = re.compile(r"(?<![a-z])(?:val|valid|validation|eval|evaluation|dev)(?![a-z])")
_WORDS = {
    "val", "valid", "validation", "eval", "evaluation", "dev", "train", "training", "trainer", "loss", "bpb",
    "ema", "lm", "ce", "step", "epoch", "mean", "avg", "per", "byte", "bits", "",
}  # fmt: skip
"""Words that the name of a curve may have."""
_LONGEST = 64 << 20
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+(?:[eE][-+]?\d+)?")
RUN_NAME = "run_name:"


def as_log(text: str) -> list[str] | None:
    """The lines of a log with the same curve; None for a text that is neither table nor record.

    Raises:
        AnalysisError: a table has steps, but no column with a loss, or is too long.
    """
    start = text[:200].lstrip("\ufeff \t\r\n")
    if start.startswith(("{", "[")) and len(text) <= _LONGEST:
        return _records(text)
    return _table(text)


def _records(text: str) -> list[str] | None:
    """Of one JSON value: a list of records, or an object with one, which transformers calls log_history."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    history = found.get("log_history") if isinstance(found, dict) else found
    if not isinstance(history, list) or not any(isinstance(record, dict) for record in history):
        return None
    planned = found.get("max_steps") if isinstance(found, dict) else None
    head = [f"iterations:{planned}"] if isinstance(planned, int) and planned > 0 else []
    return head + [worded(json.dumps(record)) for record in history if isinstance(record, dict)]


def _table(text: str) -> list[str] | None:
    head, _, rest = text.lstrip("\ufeff\r\n").partition("\n")
    if len(head) > 100_000 or not (delimiter := next((d for d in "\t;," if d in head), None)):
        return None
    try:
        header = [name.strip() for name in next(csv.reader([head], delimiter=delimiter))]
        steps = [i for i, name in enumerate(header) if plain(name) in STEPS]
        named = {i: curve for i, name in enumerate(header) if (curve := _curve(name)) is not None}
        # Of two columns of one name, as of a step and an epoch, the first.
        curves = {i: curve for i, curve in named.items() if curve not in [named[j] for j in named if j < i]}
        if not steps:
            return None
        if not curves:
            _refuse_other_tables(header, rest, steps[0], delimiter)
            return None
        if len(text) > _LONGEST:
            raise AnalysisError(
                f"a table longer than {_LONGEST >> 20} MiB; leave out what is no step and no loss"
            )
        runs = next((i for i, name in enumerate(header) if plain(name) in _RUN), None)
        rows = csv.reader(rest.splitlines(), delimiter=delimiter)
        return list(_lines(rows, steps[0], runs, curves))
    except csv.Error:
        return None


def _refuse_other_tables(header: list[str], rest: str, step_column: int, delimiter: str) -> None:
    """Refuses a table of steps and other values; a text with such a first line is none, and left alone."""
    first = next(csv.reader(rest.splitlines()[:1], delimiter=delimiter), [])
    if len(first) == len(header) and _number(first, step_column) is not None:
        names = ", ".join(header)[:200]
        raise AnalysisError(
            f"a table whose columns are {names}; none is named as a loss: call it val_loss or val_bpb"
        )


def _lines(
    rows: Iterable[list[str]], step_column: int, run_column: int | None, curves: Mapping[int, tuple[str, str]]
) -> Iterator[str]:
    """Run after run. `curves`: column -> (run, '' where a column or nothing says, name of its values)."""
    runs: dict[str, dict[int, dict[str, float]]] = {}
    for row in rows:
        if (step := _number(row, step_column)) is None or not step.is_integer() or step < 0:
            continue
        of_row = row[run_column].strip() if run_column is not None and run_column < len(row) else ""
        for column, (run, name) in curves.items():
            if (value := _number(row, column)) is None:
                continue
            point = runs.setdefault(run or of_row, {}).setdefault(int(step), {})
            if point.setdefault(name, value) != value:
                raise AnalysisError(
                    f"a table with two values of {name} at step {int(step):,}, {point[name]:g} and "
                    f"{value:g}: of several runs? name them in a column called run"
                )
    for run, points in runs.items():
        if run:
            yield f"{RUN_NAME} {run}"
        for step, values in sorted(points.items()):
            yield " ".join([f"step:{step}", *(f"{name}:{value!r}" for name, value in values.items())])


def _curve(header: str) -> tuple[str, str] | None:
    """(run, name of its values) of a column with a loss; None for any other."""
    match = _OF_A_RUN.fullmatch(header)
    if match is not None and match["band"]:
        return None
    run, metric = (match["run"], match["metric"]) if match else ("", header)
    words = plain(metric)
    if set(words.split("_")) - _WORDS:  # of another model, of quantized weights, of a part of the loss
        return None
    what = next((kind for kind in ("bpb", "loss") if re.search(rf"(?<![a-z]){kind}(?![a-z])", words)), None)
    if what is None:
        return None
    if "ema" in words.split("_"):
        return (run, "ema_val_bpb") if what == "bpb" else None
    if _VALIDATION.search(words):
        return run, f"val_{what}"
    return (run, "train_loss") if what == "loss" else None


def _number(row: list[str], column: int) -> float | None:
    try:
        cell = row[column].strip()
        value = float(cell.replace(",", ".", 1) if _DECIMAL_COMMA.fullmatch(cell) else cell)
    except (IndexError, ValueError):
        return None
    return value if isfinite(value) else None
