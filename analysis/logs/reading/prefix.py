"""What stands before every line of a log and is not the script's: times, ranks, machines, loggers.

Known forms are taken off line by line. What is left is learnt from the file: text that stands before a step
and, but for its digits, before most other lines too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

_PREFIX = re.compile(
    r"""\s*(?:
      \[?\d{4}[-/]\d\d[-/]\d\d\]?(?=\ +[a-zA-Z\[])                                      # a date
    | \d{4}\.\d\d\.\d\d(?:\ \d{4}(?=\ [a-z]))?                                         # 2026.11.27 1201
    | \d{10}(?:\d{3,9})?(?:\.\d+)?(?=\ +[a-zA-Z])                                    # since 1970
    | (?:[MTWFS][a-z]{2}\ )?[JFMASOND][a-z]{2}\ +\d\d?\ \d\d:\d\d:\d\d                  # that of `date`
      \ (?:[A-Z]{3,4}\ )?\d{4}(?=\W)
    | (?:\d+\ -\ )?[\w.]+\ -\ (?:DEBUG|INFO|WARNING|ERROR)\ -                          # a logger and a level
    | \[?(?:[IWEF]\ )?\d{4}[-/]\d\d[-/]\d\d[T\ ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?(?:Z|[+-]\d\d:?\d\d)?\]?
    | \[\d{1,3}:\d\d\] | \d{1,3}:\d\d(?=\ +(?:step|iter|epoch))                          # minutes and seconds
    | \[?\d\d:\d\d:\d\d(?:[.,]\d+)?\]? | \[\d+(?:\.\d+)?\ ?s\]                        # a time
    | (?:[JFMASOND][a-z]{2})\ +\d\d?\ \d\d:\d\d:\d\d(?:\ [\w.-]+\ [\w./-]+\[\d+\]:)?   # syslog
    | [IWEF]\d{4}\ \d\d:\d\d:\d\d\.\d+\ \d+\ [\w./]+:\d+\]                            # glog
    | [\[(]?(?i:rank|default|worker|gpu)[\ _:=-]?(?P<rank>\d{1,4})(?:[\])]:?|:|\ +\|)   # [rank0]:
    | (?P<task>\d{1,4}):(?=\s)(?!\s*val)                                                        # 0: of srun
    | \[(?!step|iter|epoch)[\w.-]+:\d{4,7}\](?=\s)                                      # [host:pid]
    | \[(?!step|iter|epoch)(?:\d+,|[\w.-]+:)?(?P<peer>\d{1,4})\](?!\s*(?:val|train|loss))
      (?:<std(?:out|err)>)?:?  # mpirun
    | \(\w+\ pid=\d+(?:,\ ip=[\d.]+)?\)                                               # (Worker pid=1234)
    | \[?(?:stdout|stderr)\]?(?:\ [FP]\ |:|(?=\ )) | \[(?:__\w+__|\w+(?:\.\w+)+)\]    # a stream, a module
    | \[?(?:DEBUG|INFO|WARNING|ERROR)\]?(?::[\w.]+)?(?:[:\s]|$)                       # a level
    | \[(?:debug|info|warning|error)\ *\]                                             # structlog's
    | [\w.<>]+:[\w.<>]+:\d+\ -\                                                       # module:function:line -
    | [a-z_]\w*(?:\.\w+)+::(?=\s) | (?:INFO|WARN|ERROR)?\s*[a-z_]\w*(?:::\w+)+[\]:](?=\s) # levanter's, Rust's
    | \w+:\d+\s+[\w.]+:\d+\s+(?:DEBUG|INFO|WARNING|ERROR)(?=\s)                        # OLMo's
    )""",
    re.VERBOSE,
)
_PREFIXED = re.compile(
    r"\s*(?:[\[(\d]|[IWEF]\ ?\d|(?:[MTWFS][a-z]{2} )?[JFMASOND][a-z]{2} |std|DEBUG|INFO|WARN|ERROR"
    r"|(?i:rank|default|worker|gpu)\W?\d|[\w.<>]+:[\w.<>]+:\d+ - )"
)
POINT = re.compile(
    r"(?<![\w/.-])(?:(?:step|iter|iteration)s?\s*[:=\[#]?\s*\d|\d[\d,]*/\d[\d,]*\W+(?:val|train)[_ ]?loss)",
    re.IGNORECASE,
)
_DIGITS = re.compile(r"\d+")
_OWN_WORDS = {
    "train", "training", "val", "valid", "validation", "eval", "evaluation", "test", "epoch", "step", "iter",
    "metrics", "after", "completed", "ema", "best", "at", "on", "global", "optimizer", "opt", "micro", "loss",
    "bpb", "results", "draft", "teacher", "swa", "student", "raw", "main",
}  # fmt: skip
_MOST = 0.5  # of the lines have the same text before them
_LONGEST = 120


def unprefixed(text: str) -> str:
    """The line without timestamps and the like, '' for one that another rank than the first wrote.

    Leading blanks are kept where there is no prefix: they tell source from log.
    """
    if not _PREFIXED.match(text):
        return text.rstrip()
    rest = text
    while match := _PREFIX.match(rest):
        if int(match["rank"] or match["task"] or match["peer"] or 0) > 0:
            return ""
        rest = rest[match.end() :].lstrip(" \t-|:")
    return rest.rstrip()


def common_prefix(texts: Iterable[str]) -> re.Pattern[str] | None:
    """What this file has before its lines, as a pattern; None where that is nothing."""
    lines = list(texts)
    shapes: Counter[str] = Counter()
    texts_of: dict[str, str] = {}
    for text in lines:
        point = None if text.startswith("{") else POINT.search(text, 0, _LONGEST)
        if point is not None and (before := text[: point.start()].rstrip("[( \t")):
            shapes[_shape(before)] += 1
            texts_of[_shape(before)] = before
    for shape, points in shapes.most_common(3):
        pattern = re.compile(shape)
        held = sum(pattern.match(text) is not None for text in lines)
        if held >= _MOST * len(lines) and (
            held > points or (held == len(lines) > 2 and _foreign(texts_of[shape]))
        ):
            return pattern
    return None


def _foreign(before: str) -> bool:
    """Whether the text before a step is none of a trainer's own words for it."""
    return any(word.lower() not in _OWN_WORDS for word in re.findall(r"[^\W\d_]+", before))


def _shape(before: str) -> str:
    """A pattern of texts that differ from this one in their digits only."""
    return r"\d+".join(re.escape(part) for part in _DIGITS.split(before)) + r"(?:\s+|$)"
