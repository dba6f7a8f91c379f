"""A file into which several runs were printed at once, by what stands before their lines."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from analysis.logs.reading.prefix import POINT

_LONGEST = 80
_SERVICE = re.compile(r"\[?[\w./-]+\]?(?:\s+\||:)?\s+")
_GREP = re.compile(r"(?P<file>[\w./-]+\.(?:log|txt|out|err)):(?:\d+:)?|(?P<path>[\w.-]*/[\w./-]+):\d+:")
_SHELL = ("$ ", "--")
"""How lines begin that are the command's, or grep's own between what it found."""
MAIN = {"main", "student", "raw"}
OTHER = {"draft", "teacher", "ema", "swa", "reference", "ref", "shadow"}
"""Models of one training: the one that is trained, and others; before a line, a step or a value."""
_USUAL = re.compile(
    r"(?:\W|\d|train|training|val|valid|validation|eval|evaluation|test|info|debug|epoch|step|iter|metrics|after"
    r"|completed|ema|best|final|rank|default|at|on|loss|bpb)*",
    re.IGNORECASE,
)
"""What may stand before a step that is of the same run."""


def files_of(texts: Sequence[str]) -> list[tuple[str, str]] | None:
    """(file, line) of what grep found in several files or one, None for any other text."""
    found = [_GREP.match(text) for text in texts]
    if not any(found) or any(
        match is None and not text.startswith(_SHELL) for match, text in zip(found, texts, strict=True)
    ):
        return None
    return [
        (match["file"] or match["path"], text[match.end() :]) if match else ("", "")
        for match, text in zip(found, texts, strict=True)
    ]


def stream_tags(texts: Sequence[str]) -> dict[str, str]:
    """Text before a line -> name of its run, for files that several runs wrote at the same time; else empty.

    They are told by steps that come in turns, each twice, under texts that precede other lines as well.
    """
    steps: dict[str, list[tuple[int, str]]] = {}
    for i, text in enumerate(texts):
        point = POINT.search(text, 0, _LONGEST)
        if point is not None and (tag := text[: point.start()]) and not _USUAL.fullmatch(tag):
            steps.setdefault(tag, []).append(
                (i, re.sub(r"\D+", " ", text[point.start() : point.end() + 20]).split()[0])
            )
    tags = {tag: at for tag, at in steps.items() if len(at) > 1}
    if not 2 <= len(tags) <= 64:
        return {}
    others = Counter(tag for text in texts for tag in tags if text.startswith(tag))
    names = {tag: tag.strip(" \t|:[]-") for tag in tags}
    models = {name.lower() for name in names.values()} <= MAIN | OTHER
    numbered = len({re.sub(r"\d+|(?<![a-zA-Z])[a-zA-Z](?![a-zA-Z])", "#", tag) for tag in tags}) == 1
    if not (models or numbered) and any(
        others[t] <= len(at) and not _SERVICE.fullmatch(t) for t, at in tags.items()
    ):
        return {}
    spans = [(at[0][0], at[-1][0]) for at in tags.values()]
    in_turns = max(first for first, _ in spans) < min(last for _, last in spans)
    shared = set.intersection(*({step for _, step in at} for at in tags.values()))
    if not (in_turns and shared):
        return {}
    return names
