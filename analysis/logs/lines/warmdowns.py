"""How long the learning rate falls at the end of a run: `warmdown_iters: 800`, or the same in other words.

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
    r"(?<![a-z])(?:wsd|trapez\w*|stable|flat|num_decay\w*|constant)(?![a-z])", re.IGNORECASE
)
_FLAG = re.compile(r"--([a-z][a-z\d]*(?:-[a-z\d]+)+)(?:=|\s+)", re.IGNORECASE)
_COUNT = r"(?P<count>\d[\d,_]*(?:\.\d+(?=k))?)(?P<kilo>k)?(?![\w./%])"
_ITERATIONS = r"[-_ ]?(?:iters?|iterations|steps)"
_PLAINLY = r"['\"]?(?:\s*[:=]\s*|\s*\.{3,}\s*|\s+\|\s*|\s+)['\"]?"
_GIVEN = _PLAINLY.replace("[:=]", "[:=(]")
_SHARE = r"(?P<share>[01]?\.\d+|1|0)(?![\w./%])"
_PERCENT = r"(?P<percent>\d{1,3}(?:\.\d+)?)\s*%"


def _patterns(word: str) -> tuple[re.Pattern[str], ...]:
    forms = (
        rf"{word}{_ITERATIONS}{_GIVEN}{_COUNT}",
        rf"{word}{_GIVEN}(?:[a-z]\w*,\s*|over (?:the )?(?:last |final )?)?{_COUNT}"
        r"\s*(?:iters?|iterations|steps)(?![a-z])",
        rf"{word}(?:\s*[:=]\s*)(?P<bare>\d{{2}}[\d,_]*)(?![\w./%])",
        rf"(?:^|[,;|(]\s*|\d\s+|\s{{2,}}){word}\s+(?P<alone>\d{{2}}[\d,_]*)(?=\s*(?:$|[,;)]))",
        rf"{word}[-_ ]?(?:frac\w*|ratio|share|pct|percent){_GIVEN}{_SHARE}",
        rf"{word}{_GIVEN}(?P<point>0?\.\d+)(?![\w./%])",
        rf"{word}(?:[-_ ]?(?:frac\w*|ratio|share|pct|percent))?{_PLAINLY}{_PERCENT}",
        rf"{word}.{{0,30}}?(?:last|final)\s+{_PERCENT}",
        rf"{word}\s+(?:for|over)\s+the\s+(?:remaining|rest|last|final)\s+{_PERCENT}",
        rf"(?:last|final)\s+{_PERCENT}.{{0,30}}?{word}",
        rf"{word}[-_ :]?(?:phase[_ ])?(?:starts?|begins?|from|starting)(?:[_ ](?:step|iter\w*))?\W{{1,3}}"
        r"(?:(?:at|with|from)\s+)?(?:(?:step|iter\w*)\W{0,2})?(?P<start>\d{2}[\d,]*)(?![\w.%])",
        rf"{word}[-_ ]?(?:phase[_ ])?(?:starts?|begins?)\s+(?:at|after|from)\s+"
        r"(?P<until>\d{1,2}(?:\.\d+)?)\s*%",
    )
    return tuple(re.compile(form, re.IGNORECASE) for form in forms)


_OWN_FORMS = _patterns(_OWN)
_DECAY_FORMS = _patterns(_DECAY)
_WSD = re.compile(rf"(?<![a-z])wsd(?![a-z]).*?(?<![a-z])decay(?:_steps)?\W{{1,3}}{_COUNT}", re.IGNORECASE)
_DECAY_FRACTION = re.compile(rf"(?<![\w])decay_frac(?:tion)?{_GIVEN}{_SHARE}", re.IGNORECASE)
_OVER_THE_LAST = re.compile(
    r"(?<![a-z])(?:decay\w*|linear\w*|falls?|anneal\w*|(?:warm|cool)[-_ ]?down)\b.{0,40}?"
    r"\bover the (?:last|final)\s+"
    rf"{_COUNT}\s*(?:iters?|iterations|steps)(?![a-z])",
    re.IGNORECASE,
)
_OVER_A_SHARE = re.compile(
    rf"(?<![a-z])(?:decay\w*|falls?|anneal\w*)\b.{{0,40}}?\bover the (?:last|final)\s+{_PERCENT}",
    re.IGNORECASE,
)
_UNTIL = re.compile(
    r"(?<![a-z])(?:constant|flat|stable)\W+(?:\w+\W+){0,2}?(?:until|to)\W+(?:(?:step|iter\w*)\W+)?(?P<start>\d{2}[\d,]*)(?![\w.%])",
    re.IGNORECASE,
)
_SHORT = re.compile(rf"(?<![a-z])wd_(?:steps|iters){_GIVEN}{_COUNT}", re.IGNORECASE)
"""`wd` alone is the decay of weights; counted in steps it is the warmdown."""
_DECAY_START = re.compile(
    r"(?<![\w])decay_start(?:_step|_iter)?\s*[:=]\s*(?P<start>\d[\d,]*)(?![\w.%])", re.IGNORECASE
)
_LONGEST = 15  # characters of a number of steps
_OVERRIDDEN = re.compile(r"\s*(?:->|→|=>)\s*(\d[\d,]*)(?![\w.])")


def warmdowns(line: Line) -> Iterator[Fact]:
    """At most one: the last form that fits, where a line has several."""
    text = _FLAG.sub(lambda flag: f"{flag[1].replace('-', '_')}=", line.text)
    lowered = text.lower()
    if not any(
        word in lowered
        for word in (
            "down",
            "decay",
            "anneal",
            "wd_",
            "until",
            "over the",
            "stable to",
            "constant to",
            "flat to",
        )
    ):
        return
    forms = [*_OWN_FORMS, _DECAY_FRACTION, _DECAY_START, _OVER_THE_LAST, _OVER_A_SHARE, _UNTIL, _SHORT]
    if _CONSTANT_FIRST.search(text):
        forms += [*_DECAY_FORMS, _WSD]
    found = [fact for form in forms if (match := form.search(text)) and (fact := _fact(line, match))]
    starts = [fact for fact in found if fact.name == "warmdown_start"]
    yield from (starts or found)[-1:]


def _fact(line: Line, match: re.Match[str]) -> Fact | None:
    ((name, digits),) = ((k, v) for k, v in match.groupdict().items() if v is not None and k != "kilo")
    if len(digits) > _LONGEST:
        return None
    if name in ("count", "bare", "alone"):
        later = _OVERRIDDEN.match(match.string, match.end())
        count = float((later[1] if later else digits).replace(",", "").replace("_", ""))
        return Fact(line.number, "warmdown_iters", count * (1000 if match.groupdict().get("kilo") else 1))
    value = float(digits.replace(",", ""))
    if name == "start":
        return Fact(line.number, "warmdown_start", value)
    share = {"until": 1.0 - value / 100, "percent": value / 100}.get(name, value)
    return Fact(line.number, "warmdown_fraction", share) if 0 <= share <= 1 else None
