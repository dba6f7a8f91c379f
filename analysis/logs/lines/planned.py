"""How many steps a run is to make, in other words than `iterations: 2000`, said before its first step."""

from __future__ import annotations

import re
from collections.abc import Iterator

from analysis.logs.events import Fact
from analysis.logs.reading.text import Line

_COUNT = r"(?P<count>\d[\d,_]*(?:\.\d+(?=k))?)(?P<kilo>k)?(?![\w.%/])"
_NAMED = re.compile(
    r"(?<![\w-])(?:--)?(?:(?P<of>[a-z]+)[-_])?(?:(?:n|num|max|total|train(?:ing)?|optimi[sz]ation)[-_ ])*"
    rf"n?(?:steps|iters?|iterations|updates)['\"]?(?:\s*[:=]\s*|\s+(?:is\s+)?){_COUNT}",
    re.IGNORECASE,
)
"""`steps=5000`, `--num-steps 5000`, `n_iters: 5000`, `total steps 3000`."""
_SPOKEN = re.compile(
    rf"(?:^|(?<![a-z])(?:train\w*|run\w*|for|of|distil\w*|plan|budget|limit|make|do|schedule)\W+(?:[^\W\d]+\W+)?|[,:;(]\s*){_COUNT}"
    r"\s+(?:(?:optimi[sz]er|training|total|gradient|update)\s+)?(?:steps|iterations|iters|updates)(?![a-z])"
    r"(?!\s+(?:ago|left|to go|per|each|remain))",
    re.IGNORECASE,
)
"""`training for 5000 steps`, `plan: 20000 steps, warmdown 4000`."""
_GENERAL = {
    "n",
    "num",
    "max",
    "total",
    "train",
    "training",
    "number",
    "of",
    "optimization",
    "optimisation",
    "param",
}
_OF_A_PART = re.compile(
    r"warm|cool|decay|anneal|eval|val|sav|log|ttt|adapt|accum|every|last|final|stable|constant|until|after|first|check"
    r"|burn|tune|gptq|swa|ema|ramp|pre|post",
    re.IGNORECASE,
)
_LONGEST = 15


def planned(line: Line) -> Iterator[Fact]:
    """At most one."""
    text = line.text
    lowered = text.lower()
    if not any(word in lowered for word in ("step", "iter", "update")):
        return
    for form in (_NAMED, _SPOKEN):
        for match in form.finditer(text):
            if (fact := _fact(line, match)) is not None:
                yield fact
                return


def _fact(line: Line, match: re.Match[str]) -> Fact | None:
    of = match.groupdict().get("of")
    if (of and of.lower() not in _GENERAL) or len(match["count"]) > _LONGEST:
        return None
    # The words before it, back to the last comma, say of which steps.
    before = re.split(r"[,;|(]", line.text[: match.start()])[-1]
    if _OF_A_PART.search(before) or _OF_A_PART.search(match[0]):
        return None
    count = float(match["count"].replace(",", "").replace("_", "")) * (1000 if match["kilo"] else 1)
    return Fact(line.number, "planned", count) if count >= 10 else None
