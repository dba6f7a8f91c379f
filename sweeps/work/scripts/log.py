"""What a running script prints: kept up to a limit, and read line by line for its curve.

Read here are only steps with their losses, for progress and the trajectory, and lines that the sweep file
names. What other figures a finished log holds, and of which stage each is, is the importer's to say.
"""

import re
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

MAX_LOG_BYTES = 64 << 20
_TAIL_BYTES = 1 << 20
_MAX_LINE = 64 << 10
_NUMBER = r"[-+]?(?:(?:\d[\d,]*(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?|nan|inf(?:inity)?)"
_STEP = re.compile(
    r"(?<![\w./])(?:steps?|iter(?:ation)?s?)\s*[:=#\[]?\s*(\d[\d,]*)(?:\s*/\s*(\d[\d,]*))?(?![\w.])"
    r"|^\s*(\d+)/(\d+)(?![\w./])",
    re.IGNORECASE,
)
_VALUE = re.compile(
    r"(?<![\w.])(ema_val_bpb|val_bpb|val_loss|validation_loss|train_loss|training_loss|loss|train_time|tok/s"
    rf"|tokens/s|lr_scale)\s*[:=]?\s*({_NUMBER})(ms|s|min|m)?(?![\w.])",
    re.IGNORECASE,
)
_NAMES = {"validation_loss": "val_loss", "training_loss": "train_loss", "loss": "train_loss"}
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0}
_BPB = re.compile(rf"(?<![\w.])val_bpb\s*[:=]\s*({_NUMBER})(?![\w.])", re.IGNORECASE)
_AFTER = re.compile(r"(?<![a-z])(?:ttt|adapt\w*|chunk|window\w*)(?![a-z])")
"""Words of what is done after the training: its steps are not the run's."""
BROKEN_IN_A_ROW = 3
"""Training losses that are not finite, one after another, after which a run has diverged."""


@dataclass
class Curve:
    """The reports of a run so far, a step each, later lines of a step laid over earlier ones."""

    figure_lines: Mapping[str, str] = field(default_factory=dict)
    """Column -> how the line begins whose val_bpb it takes."""
    on_report: Callable[[dict[str, Any]], None] = lambda report: None
    reports: dict[int, dict[str, Any]] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    finals: list[tuple[str, float]] = field(default_factory=list)
    """Lines with a val_bpb that are of no step, by the words before it: measured after the training."""
    diverged: str | None = None
    """The line by which the run has diverged."""
    _broken: int = 0

    @property
    def last_step(self) -> int:
        return max(self.reports, default=0)

    def read(self, line: str) -> None:
        """Takes in a line; nothing for most lines."""
        if "loss" not in (lower := line.lower()) and "bpb" not in lower:
            return
        values: dict[str, float] = {}
        for name, digits, unit in _VALUE.findall(line):
            key = _NAMES.get(name.lower(), name.lower())
            value = float(digits.replace(",", ""))
            values.setdefault(key, value * _SECONDS.get(unit or "ms", 1.0) if key == "train_time" else value)
        step = None if _AFTER.search(lower) else _STEP.search(line)
        if step is None:
            self._figure(line)
        elif values.keys() & {"val_bpb", "val_loss", "ema_val_bpb", "train_loss"}:
            self._report(int((step[1] or step[3]).replace(",", "")), values, line)

    def _figure(self, line: str) -> None:
        if (match := _BPB.search(line)) is None:
            return
        value = float(match[1].replace(",", ""))
        self.finals.append((line[: match.start()].split(":")[0].strip(), value))
        if not isfinite(value):
            self.diverged = self.diverged or line.strip()
        for column, label in self.figure_lines.items():
            if line.strip().startswith(label) and isfinite(value):
                self.figures[column] = value

    def _report(self, step: int, values: dict[str, float], line: str) -> None:
        losses = {key: value for key, value in values.items() if key.endswith(("loss", "bpb"))}
        if any(not isfinite(value) for value in losses.values()):
            self._broken += 1
            measured = any(not isfinite(value) for key, value in losses.items() if key != "train_loss")
            if measured or self._broken >= BROKEN_IN_A_ROW:
                self.diverged = self.diverged or line.strip()
        elif "train_loss" in losses:
            self._broken = 0
        finite = {key: value for key, value in values.items() if isfinite(value)}
        report = self.reports.setdefault(step, {"step": step})
        report |= {
            {
                "train_time": "elapsed_seconds",
                "tok/s": "tokens_per_second",
                "tokens/s": "tokens_per_second",
            }.get(key, key): value
            for key, value in finite.items()
        }
        self.on_report(report)

    @property
    def ends_broken(self) -> bool:
        """Whether the last losses seen were not finite, though too few to end the run for it."""
        return self._broken > 0


class Lines:
    """Bytes in, lines out; a carriage return ends one too, as progress bars have it."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        *whole, self._rest = re.split(rb"\r\n|\n|\r", self._rest + data)
        if len(self._rest) > _MAX_LINE:
            whole.append(self._rest)
            self._rest = b""
        return [line.decode("utf-8", "replace") for line in whole]

    def end(self) -> list[str]:
        rest, self._rest = self._rest, b""
        return [rest.decode("utf-8", "replace")] if rest else []


class KeptLog:
    """The log's file: whole up to MAX_LOG_BYTES, then only what `keeps` says, and its end."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8", errors="replace", newline="\n")
        self._left = MAX_LOG_BYTES
        self._tail: deque[str] = deque()
        self._tail_size = 0
        self.dropped = 0

    def write(self, line: str, *, kept: bool) -> None:
        size = len(line) + 1
        if self._left > 0 or kept:
            self._left -= size
            self._file.write(line + "\n")
            return
        self._tail.append(line)
        self._tail_size += size
        while self._tail_size > _TAIL_BYTES:
            self._tail_size -= len(self._tail.popleft()) + 1
            self.dropped += 1

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        if self.dropped:
            self._file.write(f"[{self.dropped:,} lines left out: the log is over its limit]\n")
        self._file.writelines(line + "\n" for line in self._tail)
        self._file.close()
