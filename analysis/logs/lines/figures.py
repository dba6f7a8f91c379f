"""Bits per byte that are printed outside of the curve, by the words before them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from analysis.logs.events import Figure
from analysis.logs.lines.values import NUMBER, number
from analysis.logs.reading.text import Line

_FIGURE = re.compile(rf"(?<![\w.])val[_ ]?bpb(?:\s*[:=]\s*|\s+)({NUMBER})(?![\w.%])", re.IGNORECASE)
_LOSS = re.compile(rf"(?<![\w.])val[_ ]?loss(?:\s*[:=]\s*|\s+)({NUMBER})(?![\w.%])", re.IGNORECASE)
_KEYED = re.compile(
    rf"(?<![\w.])((?!(?:best|prev|train|test)_)[a-z]\w*?)_(?:val_)?bpb['\"]?\s*[:=]\s*({NUMBER})(?![\w.%])",
    re.IGNORECASE,
)
"""`int6_sliding_val_bpb: 1.1`, where the name of the value is its label."""
_SETTING = re.compile(r"(?<=\s)\S+[:=]\S+\s*")  # after the first word of a label
_FIRST_VALUE = re.compile(r"(?<![\w.])val[_ ]?(?:loss|bpb)\s*(?:[:=]|(?=[\d.]))", re.IGNORECASE)
_SUMMARY = re.compile(r"\s*wandb:")
"""W&B repeats the last values of a run, however it ended."""
_PROGRESS = re.compile(
    r"\d+\s*/\s*\d+|%|(?<![a-z])(?:chunk|batch|batches|running|progress|epoch|windows|phase)(?![a-z])"
    r"|(?<![a-z])(?:best|saved|saving|checkpoint|improved)(?![a-z])",
    re.IGNORECASE,
)


def figures(line: Line) -> Iterator[Figure]:
    if _SUMMARY.match(line.text):
        return
    match = _FIGURE.search(line.text)
    if match is None:
        if not _PROGRESS.search(line.text):
            for keyed in _KEYED.finditer(line.text):
                yield Figure(line.number, keyed[1], number(keyed[2]), _digits(keyed[2]))
        return
    first = _FIRST_VALUE.search(line.text)
    label = line.text[: first.start() if first else match.start()].strip(" :|-=>*\t")
    label = _SETTING.sub("", label)
    if not label or len(label) > 100 or _PROGRESS.search(label):
        return
    loss = _LOSS.search(line.text)
    yield Figure(line.number, label, number(match[1]), _digits(match[1]), number(loss[1]) if loss else None)


def _digits(text: str) -> int:
    return len(text.partition(".")[2])
