"""Numbers as English programs print them, of `12'000`, `12 000`, `12.000` and `2,1362`."""

from __future__ import annotations

import re

_MARKS = "'’\u202f\xa0\u2009"
_APART = re.compile(rf"(?<![\w.,{_MARKS}])(\d{{1,3}}(?:[{_MARKS}]\d{{3}})+)(?![\w{_MARKS}]|[.,]\d)")
_BLANKS = re.compile(r"(?<![\w.,])(?<![\d.,] )(\d{1,3}(?: \d{3})+)(?!\w|[.,]\d| \d)")
_COUNTED_BEFORE = re.compile(
    r"(?:(?<![a-z])(?:steps?|iterations?|iters?|of|warmdown|params|parameters|total)\W{1,3}|/ ?)$", re.I
)
_ENDS = re.compile(r"\s*(?:$|[/:|,;=)\]\n]|-\s|val)")
_COUNTED_AFTER = re.compile(r"\s*(?:steps|iterations|bytes|params|parameters|tokens)(?![a-z])", re.IGNORECASE)
_LOSS = r"(?:loss|bpb|byte)[^\w\n]{1,3}"
_COMMA = re.compile(rf"{_LOSS}\d,\d{{2,}}(?![\d,.])|\d,\d{{3,}} bits per byte", re.IGNORECASE)
_POINT = re.compile(rf"{_LOSS}\d\.\d", re.IGNORECASE)
_DOTTED = re.compile(r"(?<![\w.,])(\d{1,3}(?:\.\d{3})+)(?![\w.,]\d)")
_DECIMAL = re.compile(r"(?<![\w.,])([-+]?\d+),(\d+)(?![\w,]|\.\d)")


def in_english(text: str) -> str:
    """The text with its thousands together, and decimals behind a point where losses have a comma."""
    if any(mark in text for mark in _MARKS):
        text = _APART.sub(lambda match: re.sub(r"\D", "", match[1]), text)
    if _COMMA.search(text) and not _POINT.search(text):
        text = _DECIMAL.sub(r"\1.\2", _DOTTED.sub(lambda match: match[1].replace(".", ""), text))
    return _BLANKS.sub(_counted, text)


def _counted(match: re.Match[str]) -> str:
    """Blanks part the thousands of what is plainly one number: by the words for what it counts."""
    before, after = match.string[max(match.start() - 20, 0) : match.start()], match.end()
    counts = _COUNTED_BEFORE.search(before) and _ENDS.match(match.string, after)
    counts = counts or _COUNTED_AFTER.match(match.string, after)
    return match[1].replace(" ", "") if counts else match[0]
