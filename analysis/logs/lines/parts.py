"""Words for a measurement of a part of the validation text."""

from __future__ import annotations

import re

_PART = re.compile(
    r"(?<![a-z])(?:quick|partial|subset|proxy|sampled?|smoke|sanity|fast)(?![a-z]).{0,40}"
    r"(?:eval\w*|check|val(?:idation)?)(?![a-z])"
    r"|(?:eval|check|val)\w*.{0,40}(?<![a-z])(?:quick|partial|subset|proxy)(?![a-z])"
    r"|tokens?\W{1,3}[\d,]+\s*(?:of|/)\s*[\d,]+"
    r"|(?<!skipping )first\s+[\d,]+[kM]?\s+(?:\w+\s+){0,2}(?:tokens|files|shards|docs)"
    r"|capped at\s+\d|max_eval_\w+\s*[:=]\s*[1-9]|stopped by (?:its|the) timer|share of the val|val\[:\d"
    r"|(?<![a-z])mini(?![a-z]).{0,20}eval|\d/\d+ of the (?:docs|documents|text|tokens)",
    re.IGNORECASE,
)
_HINTS = (
    "quick", "partial", "subset", "proxy", "sample", "smoke", "sanity", "fast", "token", "first", "capped",
    "max_eval", "timer", "share", "val[", "mini", "of the",
)  # fmt: skip
"""Without one of these no such words are there: most lines are told so at once."""


def of_a_part(text: str) -> bool:
    lowered = text.lower()
    return any(hint in lowered for hint in _HINTS) and _PART.search(text) is not None
