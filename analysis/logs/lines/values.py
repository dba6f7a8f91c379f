"""Numbers of a line by the names that the analysis gives them, and whose they are.

A line may hold values of several models or weights: its own, an average's, a draft's, the best so far.
A word that is directly before a value says whose it is, and holds for the values after it too, up to one
that was given already, or to a word for the run itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import isfinite

from analysis.logs.reading.streams import MAIN, OTHER

NUMBER = r"[-+]?(?:(?:\d[\d,]*(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?|nan|inf(?:inity)?)"
SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
LOSSES = {"val_bpb", "val_loss", "train_loss"}

BPB = r"(?:bpb|bits?[-_ /]?(?:per|/)[-_ /]?byte)"
LOSS = r"(?:loss|nll(?:[_ ]loss)?(?:/tok(?:en)?)?|c(?:ross)?[-_ ]?e(?:ntropy)?|xent)"
OF_VALIDATION = r"(?:val(?:id(?:ation)?)?|eval(?:uation)?|dev|held[-_ ]?out)"
_OTHER_NAMES = {
    "val_loss_mean": "val_loss", "mean_val_loss": "val_loss", "lr": "lr", "learning_rate": "lr",
    "train_time": "seconds", "elapsed": "seconds", "t": "seconds",
    "tok/s": "tokens_per_second", "tok_s": "tokens_per_second",
    "lr_scale": "lr_scale", "lr_mul": "lr_scale", "lrm": "lr_scale",
    "learning_rate_multiplier": "lr_scale",
}  # fmt: skip
_VALUE = re.compile(
    rf"(?<![a-z\d.])({OF_VALIDATION}[_ /.-]?(?:{BPB}|{LOSS}|loss_mean)|mean_val_loss|(?<!_)lr"
    r"|learning_rate(?!_)|(?<![\w-])t(?==\d+\.\d+s)"
    r"|train[_ /.-]?loss|train[_ ]?time|elapsed|tok[/_]s|lr_scale|lr_mul|lrm"
    r"|learning_rate_multiplier)"
    r"(?:\s*\((?P<of>[a-z]\w*)\))?['\"]?(?:\s+(?:reached|is|was))?"
    rf"\s*[:=]?\s*({NUMBER})(ms|s|min|m|h)?(?!\w|\.\d)",
    re.IGNORECASE,
)
_BARE = re.compile(
    rf"(?<![\w.])(?:lm_)?({BPB}|{LOSS})(?:[ _]value)?\s*[:=]?\s*({NUMBER})(?!\w|\.\d)", re.IGNORECASE
)
VALIDATION = re.compile(
    r"(?<![a-z])(?:val|valid|validat(?:ion|ed?|ing)|eval|evaluat(?:ion|ed?|ing)|held[-_ ]?out)(?![a-z])", re.I
)
_DIRECT = re.compile(
    r"(?<![\w/.-])(?:val|valid|validation|eval)\s*[:=]?\s*((?:[1-9]|1[01])\.\d{2,})"
    r"(?![\w.%/]|\s*(?:m?s|min\w*|sec\w*|h|hours?|[kmg]i?b|tok\w*|it|x)(?![a-z]))",
    re.IGNORECASE,
)
"""`train 2.9 val 2.8`, where the name of the loss is left out."""
_PAIR = re.compile(
    rf"\bloss\W+train:\s*({NUMBER}),\s*val:\s*({NUMBER})"
    rf"|\bloss\s*\(train/val(?:id)?\)\s*[:=]?\s*({NUMBER})\s*/\s*({NUMBER})",
    re.IGNORECASE,
)
"""litgpt's `loss train: 2.1, val: 2.2`, and `loss(train/val) 2.1/2.2`."""
_WORD = re.compile(r"(?<![a-z\d])([a-z][a-z\d-]*)[\s_:|,;(){}\[\]\"'>=-]*$", re.IGNORECASE)
_ARROW = re.compile(rf"\s*(?:->|→|=>)\s*({NUMBER})(?![\w.])", re.IGNORECASE)
_IN_BITS = re.compile(
    r"(?<![a-z])bits?\s*(?:/|per)\s*tok(?:en)?(?![a-z])|\((?:log2|base[ -]2|in bits)\)"
    r"|loss\s*[:=]?\s*[\d.]+\s+bits?(?![a-z/]|\s*per)",
    re.IGNORECASE,
)
_DIRECTLY = re.compile(r"(?<![a-z\d])([a-z][a-z\d/-]*)\s+$", re.IGNORECASE)
_AFTER = re.compile(r"\s*\((ema|swa|draft|teacher|best|sliding|int\d)\)", re.IGNORECASE)
_ELSEWHERE = re.compile(r"\bon\s+(?:the\s+)?(test|train(?:ing)?)\b", re.IGNORECASE)
_OWN = MAIN | {"live", "current", "now", "ours", "online"}
_OTHERS = OTHER | {
    "lawa", "sliding", "windowed", "target", "assistant", "quant", "quantized", "fake", "fakequant", "qat",
    "averaged", "polyak", "proxy", "baseline", "test", "merged", "distilled", "smoothed", "smooth", "delta",
    "goal", "expected", "predicted",
}  # fmt: skip
_HISTORY = {"best", "prev", "previous", "min", "minimum", "lowest", "last", "initial", "from", "old", "was"}
"""Of another step than the line's: no more than the values up to the next separator."""
_NEUTRAL = {
    "step", "and", "with", "has", "the", "is", "of", "at", "new", "final", "full", "mean", "avg", "average",
    "train", "training", "loss", "bpb", "eval", "evaluation", "val", "valid", "validation", "metrics",
    "metric", "total", "ms", "s", "sec", "improved", "to", "time", "epoch", "iter", "info", "results",
    "result", "log", "lr", "n/a", "global",
}  # fmt: skip
"""Words before a value that do not say whose it is."""
_INT = re.compile(r"int\d|q\d|fp\d+|\d+bit")
_KIND = re.compile(r"[\s_]+(?:model|weights|net|network)(?=[\s_:|,;(){}\[\]\"'>=-]*$)", re.IGNORECASE)
_OF_VALIDATION = re.compile(
    r"(?<![a-z\d])(?:val|validation|eval|evaluation|metrics?|log|trainer|student|main|raw|model)[_/-]$",
    re.IGNORECASE,
)
_SEPARATOR = re.compile(r"[|;()]|->|=>")


_OF_A_TEXT = re.compile(
    rf"(?<![a-z]){OF_VALIDATION}[/_.]([a-z]\w*?)[/_.](?:{BPB}|{LOSS})\s*[:=]?\s*({NUMBER})", re.IGNORECASE
)


@dataclass
class Values:
    """Named values of a line.

    `coarse`: by how much its seconds were rounded; `broken`: a loss is not finite.
    """

    of: dict[str, float] = field(default_factory=dict)
    coarse: float = 0.0
    broken: bool = False
    validated: bool = False  # what is not finite is a validation's
    others: bool = False  # some are of other weights, another model or another step

    @property
    def measured(self) -> bool:
        return bool(self.of.keys() & {*LOSSES, "ema_val_bpb"})


def number(text: str) -> float:
    return float(text.replace(",", ""))


def values(text: str, *, first: int = 0) -> Values:
    """The line's own values from position `first` on; an EMA's bits per byte as `ema_val_bpb`.

    Of several, the one without a name before it is the line's; of several with names none is.
    """
    found = Values()
    named: dict[str, list[tuple[str, float]]] = {}
    owner, given = ("test" if _ELSEWHERE.search(text) else ""), set[str]()
    end = first
    for match in _VALUE.finditer(text, first):
        key = _column(match[1].lower())
        if key in ("seconds", "tokens_per_second", "lr_scale", "lr"):
            _take_other(found, key, match)
            end = match.end()
            continue
        before, end = text[end : match.start()], match.end()
        digits = match[3]
        if (
            later := _ARROW.match(text, end)
        ) is not None:  # `val_loss 2.8 -> 2.5`: the step's own is the last
            digits, end = later[1], later.end()
        if before.endswith(("_", "/", "-")) and not _OF_VALIDATION.search(before):
            name, _ = _owner("", set(), key, before)  # `ema_val_loss`: of this value alone
            if name:
                _take(found, key, measure(digits), name.lower())
            continue
        owner, given = _owner(owner, given, key, before)
        given.add(key)
        own = match["of"] or (after[1] if (after := _AFTER.match(text, end)) else None)
        if not (own or owner) and (name := _name(before)):
            named.setdefault(key, []).append((name, measure(digits)))
        else:
            _take(found, key, measure(digits), (own or owner).lower())
    if _IN_BITS.search(text) and "nat" not in text.lower():
        found.others = found.of.pop("val_loss", None) is not None or found.others
    for key, of in named.items():
        if len({name for name, _ in of}) == 1:
            _take(found, key, of[0][1], "")
    if (pair := _PAIR.search(text, first)) is not None:
        for key, digits in zip(("train_loss", "val_loss"), filter(None, pair.groups()), strict=True):
            _take(found, key, measure(digits), "")
    return found


def _column(name: str) -> str:
    """What the analysis calls a value of that name."""
    if (other := _OTHER_NAMES.get(name.replace(" ", "_"))) is not None:
        return other
    if name.startswith("train"):
        return "seconds" if name.endswith("time") else "train_loss"
    return "val_bpb" if re.search(BPB, name) else "val_loss"


def _name(before: str) -> str:
    """A word that stands directly before a value and is not of the line's usual ones, '' for none."""
    match = _DIRECTLY.search(before)
    return match[1].lower() if match is not None and match[1].lower() not in _NEUTRAL else ""


def measure(digits: str) -> float:
    """A loss is below 1,000: its comma is that of decimals."""
    digits = digits.rstrip(",")
    return number(digits.replace(",", ".") if digits.count(",") == 1 and "." not in digits else digits)


def _take_other(found: Values, key: str, match: re.Match[str]) -> None:
    value = number(match[3])
    if not isfinite(value):
        return
    if key == "seconds":
        size = SECONDS.get(match[4] or "ms", 1.0)
        found.coarse = size * 10.0 ** -len(match[3].partition(".")[2])
        value *= size
    found.of.setdefault(key, value)


def _owner(owner: str, given: set[str], key: str, before: str) -> tuple[str, set[str]]:
    """Whose the value `key` is after the text `before` it, with the values that were given of the same."""
    if key in given:
        owner, given = "", set()
    elif owner in _HISTORY and _SEPARATOR.search(before):
        owner = ""
    before = _KIND.sub("", before)
    if (word := _WORD.search(before)) is not None:
        name = word[1].lower()
        if name in _OWN:
            return "", set()
        if name in _OTHERS or name in _HISTORY or _INT.fullmatch(name):
            return name, set()
    return owner, given


def _take(found: Values, key: str, value: float, owner: str) -> None:
    if owner and owner not in _OWN:
        found.others = True
        if owner != "ema" or key != "val_bpb" or not isfinite(value):
            return
        key = "ema_val_bpb"
    if isfinite(value):
        found.of.setdefault(key, value)
    else:
        found.broken = True
        found.validated = found.validated or key != "train_loss"


def add_bare(found: Values, text: str, first: int) -> None:
    """Adds a plain `loss` or `bpb` after the word for a validation, which ends at `first`."""
    if found.others or _ELSEWHERE.search(text):
        return
    known = found.of.keys() & LOSSES
    if _of_several_texts(text, first):
        found.others = True
        return
    for match in _BARE.finditer(text, first):
        name = "val_bpb" if re.match(BPB, match[1], re.IGNORECASE) else "val_loss"
        if name == "val_loss" and (known - {"val_bpb"} if match[1].lower().startswith("nll") else known):
            continue  # of training, beside the validation's own
        if isfinite(value := measure(match[2])):
            found.of.setdefault(name, value)
        else:
            found.broken = found.validated = True


def _of_several_texts(text: str, first: int) -> bool:
    """`eval/c4/loss 2.1 eval/wiki/loss 2.3`: neither is the validation's."""
    named = {match[1]: match[2] for match in _OF_A_TEXT.finditer(text, max(first - 12, 0))}
    return len(named) > 1 and len(set(named.values())) > 1


def add_direct(found: Values, text: str) -> None:
    """Adds a number that stands directly behind the word for a validation, where no loss is named."""
    if "val_loss" not in found.of and not found.others and (match := _DIRECT.search(text)) is not None:
        found.of["val_loss"] = float(match[1])


def plain_loss(text: str, first: int) -> float | None:
    """The first plain `loss` from position `first` on: of training, or what else the line is about."""
    match = _BARE.search(text, first)
    return None if match is None or match[1].lower() != "loss" else measure(match[2])
