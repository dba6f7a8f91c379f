"""What is printed over several lines, as one line each: values below a heading, and tables within a log."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import groupby

from analysis.logs.reading.tables import as_table, cells
from analysis.runs.errors import AnalysisError

_BELOW = re.compile(
    r"\s+(?:(?:train\w*|val\w*|eval|plain|sliding\w*|raw)[ _]+)*"
    r"(?:loss|bpb|nll|bits_per_byte)\s*[:=]?\s*\d+\.\d+(?!\w).*",
    re.IGNORECASE,
)
_OF_A_STEP = re.compile(
    r"\W*(?:(?P<val>val\w*|eval\w*)\W*)?(?:@|at|step|iter\w*)\W*(?:step\W*)?(?P<step>\d[\d,]*)\W*",
    re.IGNORECASE,
)
_TABLE = re.compile(r"\s*(?:[|│┃║┌├└┏┡┗╔╠╚╒╞╘╭╰]|\+[-=]{2,})")
_TOP = re.compile(r"\s*[┌┏╔╒╭]")
_MARKDOWN_RULE = re.compile(r"\s*\|[\s:|-]*-{3,}[\s:|-]*")
_RULED = re.compile(r"\s*-{3,}(?:\s+-{3,})+\s*")
_BITS = re.compile(r"bpb|bits", re.IGNORECASE)
_NUMBER = re.compile(r"\d+\.\d+")


def under_headings(texts: list[str]) -> Iterator[tuple[int, str]]:
    """(index, line): indented values behind the line above them, those of a step all on its line."""
    at = 0
    while at < len(texts):
        end = at + 1
        if texts[at][:1].strip():
            while end < len(texts) and _BELOW.fullmatch(texts[end]):
                end += 1
        below = texts[at + 1 : end]
        if below and (step := _OF_A_STEP.fullmatch(texts[at])):
            values = " ".join(text.strip() for text in below)
            yield at, f"step {step['step']} {'val ' if step['val'] else ''}{values}"
        elif below:
            heading = texts[at].strip(" \t-=#[]:*")
            yield at, texts[at]
            yield from ((at + 1 + i, f"{heading} {text.strip()}") for i, text in enumerate(below))
        else:
            yield at, texts[at]
        at = end


def with_tables(texts: list[str]) -> Iterator[tuple[int, str]]:
    """(index, line): tables of steps, or of stages and their bits per byte, as lines that say the same."""
    at = 0
    for in_table, group in groupby(_numbered(texts)):
        count = len(list(group))
        block = texts[at : at + count]
        rows = _read(block) if in_table else None
        yield from ((at, row) for row in rows) if rows else ((at + i, text) for i, text in enumerate(block))
        at += count


def _numbered(texts: list[str]) -> Iterator[int]:
    """For each line the number of the table that it is of, 0 outside of any; blank lines are not there."""
    number, tabular = 0, _tabular(texts)
    for i, (text, of_table) in enumerate(zip(texts, tabular, strict=True)):
        below = texts[i + 1] if i + 1 < len(texts) else ""
        above = texts[i - 1] if i else ""
        frames = text.lstrip()[:2] == "+-" == above.lstrip()[:2]
        if not (i and tabular[i - 1]) or _TOP.match(text) or _MARKDOWN_RULE.fullmatch(below) or frames:
            number += 1
        yield number if of_table else 0


def _tabular(texts: list[str]) -> list[bool]:
    """Which lines are of a table: framed ones, and columns under a header with a rule below it."""
    found = [_TABLE.match(text) is not None for text in texts]
    for i, text in enumerate(texts):
        if i > 0 and _RULED.fullmatch(text) and texts[i - 1].strip():
            end = i + 1
            while end < len(texts) and re.fullmatch(r"\s*\d[\d.,\s]*\S*", texts[end]):
                end += 1
            found[i - 1 : end] = [True] * (end - i + 1)
    return found


def _read(block: list[str]) -> list[str] | None:
    text = "\n".join(line.strip() for line in block)
    readers: tuple[Callable[[str], list[str] | None], ...] = (as_table, _stages)
    try:
        return next((rows for read in readers if (rows := read(text))), None)
    except AnalysisError:
        return None


def _stages(text: str) -> list[str] | None:
    """`int6 sliding val_bpb: 1.12` of each row of a table whose second column is bits per byte."""
    head, rows = cells(text)
    if head is None or len(head) != 2 or not _BITS.search(head[1]):
        return None
    found = [(row[0].strip("*_` "), row[1].strip("*_` ")) for row in rows if len(row) == 2]
    return [f"{name} val_bpb: {value}" for name, value in found if _NUMBER.fullmatch(value)]
