"""Bits per byte that are printed outside of the curve, by the words before them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from analysis.logs.events import Figure
from analysis.logs.lines.values import BPB, LOSS, NUMBER, measure
from analysis.logs.reading.text import Line

_FIGURE = re.compile(rf"(?<![\w.])val[_ ]?bpb(?:\s*[:=]\s*|\s+)({NUMBER})(?![\w.%])", re.IGNORECASE)
_LOSS = re.compile(rf"(?<![\w.])val[_ ]?loss(?:\s*[:=]\s*|\s+)({NUMBER})(?![\w.%])", re.IGNORECASE)
_VALUES = re.compile(
    rf"(?:(?<![\w.])(?P<before>[a-z]\w*?)_)?(?<![a-z\d.])(?:val[_ ]?)?(?:{BPB})(?:_(?P<behind>\w+))?['\"]?"
    rf"(?P<within>\s*\([^()]*\)|(?:\s+(?:after|with|of)\s[^:=\d]*(?:int\d[^:=\d]*)?))?(?:\s*[:=|]\s*|\s+(?:is\s+)?)"
    rf"(?P<value>{NUMBER})(?!\w|\.\d|%)"
    rf"|(?<![\w.])(?P<amount>\d\.\d{{2,}})\s*(?:{BPB})(?![\w])",
    re.IGNORECASE,
)
"""A value of bits per byte, and the words of its name before, behind and between."""
_STAGE = re.compile(r"int\d|quant|round-?trip|ttt|(?<![a-z])ema(?![a-z])|slid|window", re.IGNORECASE)
_NOT_A_STAGES = re.compile(
    r"(?<![a-z])(?:best|prev\w*|train|test|delta|gap|target|loss)(?![a-z])", re.IGNORECASE
)
_OTHER_VALUE = re.compile(rf"(?<![a-z])(?:val[_ ]?)?{LOSS}\s*[:=]?\s*{NUMBER}", re.IGNORECASE)
_SETTING = re.compile(r"(?<=\s)(?!bits)\S+[:=]\S+\s*")  # after the first word of a label
_FIRST_VALUE = re.compile(r"(?<![\w.])val[_ ]?(?:loss|bpb)\s*(?:[:=]|(?=[\d.]))", re.IGNORECASE)
_SUMMARY = re.compile(r"\s*wandb:")
"""W&B repeats the last values of a run, however it ended."""
_PROGRESS = re.compile(
    r"\d+\s*/\s*\d+|%|\d+ windows|windows (?:done|\d)"
    r"|(?<![a-z])(?:chunk|batch|batches|running|progress|epoch|phase)(?![a-z])"
    r"|(?<![a-z])(?:best|saved|saving|checkpoint|improved)(?![a-z])",
    re.IGNORECASE,
)


def figures(line: Line) -> Iterator[Figure]:
    if _SUMMARY.match(line.text):
        return
    match = _FIGURE.search(line.text)
    if match is None or len(_VALUES.findall(line.text)) > 1:
        if not _PROGRESS.search(line.text):
            yield from _named(line)
        return
    first = _FIRST_VALUE.search(line.text)
    label = line.text[: first.start() if first else match.start()].strip(" :|-=>*\t")
    label = _SETTING.sub("", label)
    if not label:
        yield from _named(line)
    if not label or len(label) > 100 or _PROGRESS.search(label):
        return
    loss = _LOSS.search(line.text)
    yield Figure(line.number, label, measure(match[1]), _digits(match[1]), measure(loss[1]) if loss else None)


def _named(line: Line) -> Iterator[Figure]:
    """Figures in other words, each with the name of a stage: `int6_val_bpb: 1.1`, `Sliding BPB (int6): 1.1`,
    `after legal TTT: 1.1 bpb`."""
    end = 0
    for match in _VALUES.finditer(line.text):
        before, end = line.text[end : match.start()], match.end()
        label = " ".join(filter(None, (before, match["before"], match["within"], match["behind"])))
        label = _SETTING.sub("", _OTHER_VALUE.sub(" ", label)).strip(" :|-=>*,;\t")
        digits = match["value"] or match["amount"]
        if _STAGE.search(label) and len(label) <= 100 and not _NOT_A_STAGES.search(label):
            yield Figure(line.number, label, measure(digits), _digits(digits))


def _digits(text: str) -> int:
    return len(re.split(r"[.,]", text)[-1]) if re.search(r"[.,]", text) else 0
