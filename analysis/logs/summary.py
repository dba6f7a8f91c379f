"""What an import found, a line a run for reading and a record a log for programs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from analysis.logs.ends import DIVERGED, DONE, UNFINISHED
from analysis.logs.record import Record
from analysis.runs.strictjson import plain
from analysis.runs.units import STAGES, counted


@dataclass
class Log:
    """A file: its runs, or why it was refused."""

    path: Path
    records: list[Record] = field(default_factory=list)
    refused: str = ""


@dataclass
class Imported:
    """The files that an import wrote, and all logs it was given."""

    runs: Path
    trajectories: Path
    summary: Path
    logs: list[Log]

    @property
    def read(self) -> list[Log]:
        return [log for log in self.logs if not log.refused]

    @property
    def refused(self) -> list[Log]:
        return [log for log in self.logs if log.refused]


def described(log: Log) -> dict[str, object]:
    """For programs: each run's row, why its empty cells are empty, and figures that are of no column."""
    runs = [
        {
            "run": plain(record.row),
            "lines": list(record.lines),
            "validations": len(record.curve),
            "empty_because": record.why_not,
            "figures_not_filed": record.unfiled,
        }
        for record in log.records
    ]
    return {"log": str(log.path), "refused": log.refused or None, "runs": runs}


def summary_lines(done: Imported, width: int = 100) -> list[str]:
    """A table of runs, with notes cut to `width`; then the counts."""
    rows = [["run", "steps", "warmdown", *(name.removesuffix("_bpb") for name in STAGES), "notes"]]
    records = [record for log in done.read for record in log.records]
    rows += [_cells(record.row, width) for record in records]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    table = ["  ".join([*map(str.ljust, row[:-1], widths), row[-1]]).rstrip() for row in rows]
    states = Counter(str(record.row["status"]) for record in records)
    known = sum(record.row["warmdown_steps"] is not None for record in records)
    counts = [
        f"{counted(len(done.logs), 'file')}, {len(done.refused)} refused: {counted(len(records), 'run')}"
    ]
    counts += [f"{states[name]} {name}" for name in (UNFINISHED, DIVERGED) if states[name]]
    return [*table, f"{', '.join(counts)}; warmdown known of {known}"]


def _cells(row: dict[str, object], width: int) -> list[str]:
    steps = f"{row['steps']:,}" + ("" if row["status"] == DONE else f" {row['status']}")
    down = "?" if row["warmdown_steps"] is None else f"{row['warmdown_steps']:,}"
    finals = ("-" if row[name] is None else f"{row[name]:.4f}" for name in STAGES)
    notes = str(row["notes"])
    short = notes if len(notes) <= width else notes[: width - 3] + "..."
    return [str(row["run_id"]), steps, down, *finals, short]
