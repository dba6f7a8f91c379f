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
    r"(?<![\w./])(?:(?:train/)?(?:global)?[_ ]?(?:step|iter(?:ation)?)s?)['\"]?\s*[:=#\[]?\s*(\d[\d,]*)"
    r"(?:\s*(?:/|of)\s*(\d[\d,]*))?(?![\w.])|(?:^\W{0,3}|\|\s*)(\d+)/(\d+)(?![\w./])",
    re.IGNORECASE,
)
_VALUE = re.compile(
    r"(?<![\w.])(ema[_ ]val[_ ]bpb|val(?:id(?:ation)?)?[_ /.-]?(?:loss|bpb)|eval[_ /.-]?(?:loss|bpb)"
    r"|train(?:ing)?[_ /.-]?loss|loss|bpb|train[_ ]time|tok(?:ens)?/s(?:ec)?|lr_scale|lr_mul|lrm)"
    rf"(?:[_ ]value)?['\"]?\s*[:=]?\s*['\"]?({_NUMBER})(ms|s|min|m)?(?![\w.])",
    re.IGNORECASE,
)
_VALIDATION = re.compile(r"(?<![a-z])(?:val|valid|validation|eval|evaluation)(?![a-z])", re.IGNORECASE)
_COLOURS = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_ALONE = re.compile(
    rf"\W{{0,3}}(?:val(?:idation)?[_ ]?(?:loss|bpb)\s*[:=]?\s*{_NUMBER}[\s,|]*){{1,2}}", re.IGNORECASE
)
"""A validation that names no step is of the step before it."""
_OTHER_WORDS = {"validation": "val", "valid": "val", "eval": "val", "training": "train"}
_OTHER_NAMES = {
    "train_time": "elapsed_seconds", "lr_mul": "lr_scale", "lrm": "lr_scale",
    "tok/s": "tokens_per_second", "tokens/s": "tokens_per_second", "tok/sec": "tokens_per_second",
    "tokens/sec": "tokens_per_second",
}  # fmt: skip
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0}
_HISTORY = re.compile(r":\s*\[\s*[\[{\d]")
_BPB = re.compile(rf"(?<![\w.])val_bpb(?:\s*[:=]\s*|\s+)({_NUMBER})(?![\w.])", re.IGNORECASE)
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
        line = _COLOURS.sub("", line)
        if "loss" not in (lower := line.lower()) and "bpb" not in lower:
            return
        if line.lstrip().startswith("{") and _HISTORY.search(line):
            return  # of many steps: the importer's to read
        values = _values(line)
        step = None if _AFTER.search(lower) else _STEP.search(line)
        if step is not None:
            if values.keys() & {"val_bpb", "val_loss", "ema_val_bpb", "train_loss"}:
                self._report(int((step[1] or step[3]).replace(",", "")), values, line)
        elif _ALONE.fullmatch(line) and not self.finals:
            if "val_loss" not in self.reports.get(self.last_step, {}):
                self._report(self.last_step, values, line)
        else:
            self._figure(line)

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
        report |= finite
        self.on_report(report)

    @property
    def ends_broken(self) -> bool:
        """Whether the last losses seen were not finite, though too few to end the run for it."""
        return self._broken > 0


def _values(line: str) -> dict[str, float]:
    """Values by column. A plain `loss` is of training, but after the word for a validation, and with no other
    loss named as its own, of that."""
    found: dict[str, float] = {}
    plain: list[tuple[int, str, float]] = []
    for match in _VALUE.finditer(line):
        value = float(match[2].replace(",", ""))
        words = re.split(r"[_ .-]|/(?!s)", match[1].lower())
        key = "_".join(_OTHER_WORDS.get(word, word) for word in words)
        key = _OTHER_NAMES.get(key, key)
        if key in ("loss", "bpb"):
            plain.append((match.start(), f"val_{key}", value))
        else:
            scale = _SECONDS.get(match[3] or "ms", 1.0) if key == "elapsed_seconds" else 1.0
            found.setdefault(key, value * scale)
    word = _VALIDATION.search(line)
    named = found.keys() & {"val_loss", "val_bpb", "train_loss"}
    for at, key, value in plain:
        of_validation = word is not None and at >= word.end() and (key == "val_bpb" or not named)
        if of_validation or key == "val_loss":
            found.setdefault(key if of_validation else "train_loss", value)
    return found


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
