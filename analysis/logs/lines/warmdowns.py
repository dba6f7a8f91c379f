"""How long the learning rate falls at the end of a run, in other words than `warmdown_iters: 800`.

`decay` is also what optimizers, averages and cosines have: it counts only beside the words of a schedule that
stays constant before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from analysis.logs.events import Fact
from analysis.logs.reading.text import Line

_OWN = r"(?<![\w-])(?:(?:lr|num|n)[_ ])?(?:(?:warm|cool)[-_ ]?down|anneal(?:ing)?)"
_DECAY = r"(?<![a-z])(?<!weight[_ ])(?<!ema[_ ])(?<!lr[_ ])(?:num[_ ])?decay"
_CONSTANT_FIRST = re.compile(
    r"(?<![a-z])(?:wsd|trapez\w*|stable|num_decay\w*|constant)(?![a-z])", re.IGNORECASE
)
_FLAG = re.compile(r"--([a-z][a-z\d]*(?:-[a-z\d]+)+)(?:=|\s+)", re.IGNORECASE)
_COUNT = r"(?P<count>\d{2}[\d,]*)(?P<kilo>k)?(?![\w.%])"
_ITERATIONS = r"[-_ ]?(?:iters?|iterations|steps)"
_GIVEN = r"['\"]?\s*[:=(]?\s*['\"]?"


def _patterns(word: str) -> tuple[re.Pattern[str], ...]:
    forms = (
        rf"{word}{_ITERATIONS}{_GIVEN}{_COUNT}",
        rf"{word}{_GIVEN}(?:\w+,\s*|over (?:the )?(?:last |final )?)?{_COUNT}"
        r"\s*(?:iters?|iterations|steps)(?![a-z])",
        rf"{word}(?:[-_ ]?(?:frac\w*|ratio|share|pct|percent))?{_GIVEN}(?P<share>0?\.\d+)(?![\w.])",
        rf"{word}.{{0,30}}?(?<![\d.])(?P<percent>\d{{1,2}}(?:\.\d+)?)\s*%",
        rf"(?:last|final)\s+(?P<before>\d{{1,2}}(?:\.\d+)?)\s*%.{{0,30}}?{word}",
        rf"{word}[-_ ]?(?:phase[_ ])?(?:starts?|begins?|from|starting)(?:[_ ](?:step|iter\w*))?\W{{1,3}}"
        r"(?:(?:at|with|from)\s+)?(?:(?:step|iter\w*)\W{0,2})?(?P<start>\d[\d,]*)(?![\w.%])",
        rf"{word}[-_ ]?(?:phase[_ ])?(?:starts?|begins?)\s+(?:at|after|from)\s+"
        r"(?P<until>\d{1,2}(?:\.\d+)?)\s*%",
    )
    return tuple(re.compile(form, re.IGNORECASE) for form in forms)


_OWN_FORMS = _patterns(_OWN)
_DECAY_FORMS = _patterns(_DECAY)
_WSD = re.compile(rf"(?<![a-z])wsd(?![a-z]).*?(?<![a-z])decay(?:_steps)?\W{{1,3}}{_COUNT}", re.IGNORECASE)
_DECAY_FRACTION = re.compile(
    rf"(?<![\w])decay_frac(?:tion)?{_GIVEN}(?P<share>0?\.\d+)(?![\w.])", re.IGNORECASE
)
_DECAY_START = re.compile(
    r"(?<![\w])decay_start(?:_step|_iter)?\s*[:=]\s*(?P<start>\d[\d,]*)(?![\w.%])", re.IGNORECASE
)

_LONGEST = 15  # characters of a number of steps
_OVERRIDDEN = re.compile(r"\s*(?:->|→|=>)\s*(\d[\d,]*)(?![\w.])")


def warmdowns(line: Line) -> Iterator[Fact]:
    """At most one: the last form that fits, where a line has several."""
    text = _FLAG.sub(lambda flag: f"{flag[1].replace('-', '_')}=", line.text)
    lowered = text.lower()
    if not any(word in lowered for word in ("down", "decay", "anneal")):
        return
    forms = [*_OWN_FORMS, _DECAY_FRACTION, _DECAY_START]
    if _CONSTANT_FIRST.search(text):
        forms += [*_DECAY_FORMS, _WSD]
    found = [fact for form in forms if (match := form.search(text)) and (fact := _fact(line, match))]
    starts = [fact for fact in found if fact.name == "warmdown_start"]
    yield from (starts or found)[-1:]


def _fact(line: Line, match: re.Match[str]) -> Fact | None:
    given = {name: value for name, value in match.groupdict().items() if value is not None}
    if max(map(len, given.values())) > _LONGEST:
        return None
    if "count" in given:
        later = _OVERRIDDEN.match(match.string, match.end())
        count = float((later[1] if later else given["count"]).replace(",", ""))
        count *= 1000 if "kilo" in given else 1
        return Fact(line.number, "warmdown_iters", count)
    if "start" in given:
        return Fact(line.number, "warmdown_start", float(given["start"].replace(",", "")))
    if "until" in given:
        return Fact(line.number, "warmdown_fraction", 1.0 - float(given["until"]) / 100)
    share = (
        float(given["share"]) if "share" in given else float(given.get("percent") or given["before"]) / 100
    )
    return Fact(line.number, "warmdown_fraction", share) if 0 < share <= 1 else None
