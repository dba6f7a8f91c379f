"""Many logs as the two CSV files that the analysis reads, with a summary of what each log gave, and what not.

A log that cannot be read is refused with one line and does not stop the others.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.logs.lines import events
from analysis.logs.reading.streams import OTHER
from analysis.logs.reading.text import Line, read_lines
from analysis.logs.record import COLUMNS, CURVE, WHOLE, Record, record
from analysis.logs.split import Training, trainings
from analysis.logs.summary import Imported, Log, described
from analysis.runs.errors import AnalysisError
from analysis.runs.strictjson import dumps
from analysis.runs.tabular import csv_text

PATTERNS = ("*.log", "*.txt", "*.log.gz", "*.txt.gz")
_SEED = re.compile(r"(?<![\w.])seed:(\d{1,12})(?![\w.])")
_GENERIC = {"train"}  # names that say nothing: the run is called after its folder


@dataclass(frozen=True)
class ImportedLog:
    """The one run of a log: its row for the table of runs, and its trajectory."""

    run: dict[str, object]
    trajectory: pd.DataFrame


def read_log(path: Path, warmdown_steps: int | None = None, planned_steps: int | None = None) -> ImportedLog:
    """A log with one run; `read_runs` reads any.

    Raises:
        AnalysisError: as read_runs; the log has several runs.
    """
    records = read_runs(path, warmdown_steps, planned_steps)
    if len(records) > 1:
        raise AnalysisError(f"{path}: {len(records)} runs in one log ({_spans(records)})")
    _name([Log(path, records)])
    return ImportedLog(records[0].row, _frame(records, CURVE).drop(columns="run_id"))


def read_runs(
    path: Path, warmdown_steps: int | None = None, planned_steps: int | None = None
) -> list[Record]:
    """Every run of a log with at least one validation after its first step.

    Args:
        warmdown_steps: of its finished runs, before what the log itself states.
        planned_steps: of a run that is known to have ended well.

    Raises:
        AnalysisError: the file is missing or no text, holds no curve, or the warmdown is longer than a run.
    """
    lines = read_lines(path)
    streams: dict[str, list[Line]] = {}
    for line in lines:
        if line.stream.lower() not in OTHER:
            streams.setdefault(line.stream, []).append(line)
    try:
        found = [
            run for name, of in streams.items() for run in _trainings(of, name if len(streams) > 1 else "")
        ]
        only = [run for run in found if "eval_only" in run.facts]
        runs = [run for run in found if run.measured and "eval_only" not in run.facts]
        if only and not runs:
            told = only[0].facts["eval_only"]
            raise AnalysisError(f"an evaluation without a training ({told}); no curve to read")
        if not runs:
            raise AnalysisError(_nothing(lines, found))
        records = [record(run, warmdown_steps, planned_steps) for run in runs]
    except AnalysisError as error:
        raise AnalysisError(f"{path}: {error}") from None
    if dropped := [run for run in found if run.points and not run.measured]:
        spans = ", ".join(f"{run.first_line}-{run.last_line}" for run in dropped)
        records[0].row["notes"] = (
            f"{records[0].row['notes']}; lines {spans}: a run without validation, left out"
        )
    return records


def _trainings(lines: list[Line], name: str) -> list[Training]:
    """The runs of one stream; `name`: its own, '' where there is only one."""
    found = trainings(event for line in lines for event in events(line))
    if name:
        seeds = {seed[1] for line in lines if (seed := _SEED.search(line.text)) is not None}
        for run in found:
            run.facts.setdefault("name", name)
            if len(seeds) == 1:
                run.facts.setdefault("seed", float(*seeds))
    return found


def _nothing(lines: list[Line], found: list[Training]) -> str:
    """Why a text has no run, with the line nearest to one."""
    for run in found:
        if run.broken and run.last > 0:
            broken = run.broken[0]
            return f"line {broken.line}: the loss is not finite and no validation before it is; leave it out"
        if run.points:
            return (
                f"lines {run.first_line} to {run.last_line}: steps up to {run.last:,}, but no validation "
                "after step 0; no curve to read"
            )
    for line in lines:
        if "val_bpb" in line.text and any(letter.isdigit() for letter in line.text):
            return f"line {line.number}: {line.text.strip()[:80]!r} is no line of a step; no curve to read"
    epochs = re.compile(r"\bepoch\W{0,2}\d+.*\bval\w*[_ ]loss", re.IGNORECASE)
    for line in lines:
        if epochs.search(line.text):
            return f"line {line.number}: {line.text.strip()[:80]!r} counts epochs; steps are needed"
    return "no line like `step:N/M val_loss:... val_bpb:...`; is it a training log?"


def find_logs(paths: Sequence[Path], pattern: str | None = None) -> list[Path]:
    """The files named, those that a pattern names, and of folders all logs below, each once.

    Args:
        pattern: names of the files to take within folders (default: .log, .txt and their .gz).

    Raises:
        AnalysisError: a folder or a pattern holds none.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = {file for wanted in ([pattern] if pattern else PATTERNS) for file in path.rglob(wanted)}
            files = sorted(file for file in inside if file.is_file())
            if not files:
                raise AnalysisError(f"{path}: no {pattern or ', '.join(PATTERNS)} below it")
            found += files
        elif not path.exists() and any(sign in str(path) for sign in "*?["):
            named = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
            if not named:
                raise AnalysisError(f"{path}: no file has such a name")
            found += [file for file in named if file.is_file()]
        else:
            found.append(path)
    return list(dict.fromkeys(found))


def import_logs(
    paths: Sequence[Path], out: Path, warmdown_steps: Sequence[int] = (), pattern: str | None = None
) -> Imported:
    """Write OUT (trajectories), OUT's stem + _runs.csv, and + _import.json: all that was found, and why not.

    Args:
        warmdown_steps: none, one for all logs, or one a log.
        pattern: as find_logs.

    Raises:
        AnalysisError: as find_logs; the number of warmdowns fits neither; not one log could be read.
    """
    files = find_logs(paths, pattern)
    if len(warmdown_steps) not in (0, 1, len(files)):
        raise AnalysisError(
            f"{len(warmdown_steps)} warmdowns for {len(files)} logs: give one, or one for each log"
        )
    downs: Sequence[int | None] = [*warmdown_steps] or [None]
    downs = [*downs] * (len(files) if len(downs) == 1 else 1)
    logs = [_read(path, down) for path, down in zip(files, downs, strict=True)]
    read = [log for log in logs if not log.refused]
    if not read:
        first = logs[0].refused if logs else "no log given"
        raise AnalysisError(
            first if len(logs) == 1 else f"none of {len(logs)} logs could be read; the first: {first}"
        )
    _name(read)
    records = [record for log in read for record in log.records]
    out.parent.mkdir(parents=True, exist_ok=True)
    runs, summary = (out.with_name(f"{out.stem}_{name}") for name in ("runs.csv", "import.json"))
    table = pd.DataFrame([record.row for record in records], columns=list(COLUMNS))
    runs.write_text(csv_text(table.astype(dict.fromkeys(WHOLE, "Int64"))), encoding="utf-8")
    out.write_text(csv_text(_frame(records, CURVE)), encoding="utf-8")
    summary.write_text(dumps([described(log) for log in logs]) + "\n", encoding="utf-8")
    return Imported(runs, out, summary, logs)


def _read(path: Path, down: int | None) -> Log:
    try:
        return Log(path, read_runs(path, down))
    except AnalysisError as error:
        return Log(path, refused=str(error))


def _frame(records: Sequence[Record], columns: Sequence[str]) -> pd.DataFrame:
    rows = [{"run_id": record.row["run_id"], **point} for record in records for point in record.curve]
    frame = pd.DataFrame(rows)
    return frame[["run_id", *(name for name in columns if name in frame)]]


def _spans(records: Sequence[Record]) -> str:
    return ", ".join(f"lines {first} to {last}" for first, last in (record.lines for record in records))


def _name(logs: Sequence[Log]) -> None:
    """run_ids: the file's name with as many folders as tell it apart, and of several runs in it the seed.

    Runs of a table have names of their own.
    """
    parts = {id(log): _parts(log.path) for log in logs}
    depth = dict.fromkeys(parts, 1)
    for _ in range(max(map(len, parts.values()))):
        names = {key: "/".join(parts[key][-depth[key] :]) for key in parts}
        twice = {name for name, count in Counter(names.values()).items() if count > 1}
        if not twice:
            break
        depth = {key: depth[key] + (names[key] in twice) for key in parts}
    names = {key: "/".join(parts[key][-depth[key] :]) for key in parts}
    for log in logs:
        seeds = [record.row["seed"] for record in log.records]
        own = [record.name for record in log.records]
        for i, one in enumerate(log.records):
            name = names[id(log)]
            if all(own) and len(set(own)) == len(own):
                name = own[i] if len(logs) == 1 else f"{name}/{own[i]}"
            elif len(log.records) > 1:
                told = None not in seeds and len(set(seeds)) == len(seeds)
                name += f"-seed{seeds[i]}" if told else f"-run{i + 1}"
            one.row["run_id"], one.row["source"] = name, f"{log.path}:{one.lines[0]}-{one.lines[1]}"


def _parts(path: Path) -> list[str]:
    """Folders and name without endings; a file called train.log is its folder."""
    name = path.name.removesuffix(".gz")
    stem = name.rpartition(".")[0] or name
    folders = [part for part in path.absolute().parent.parts if part.strip("/\\")]
    return folders if stem in _GENERIC and folders else [*folders, stem]
