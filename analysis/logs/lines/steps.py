"""Lines that are a point of the curve: a step and a loss, in whatever order and form trainers print them."""

from __future__ import annotations

import re
from math import isfinite

from analysis.logs.events import Loose, Step
from analysis.logs.lines.parts import of_a_part
from analysis.logs.lines.values import (
    BPB,
    LOSS,
    NUMBER,
    OF_VALIDATION,
    VALIDATION,
    Values,
    add_bare,
    add_direct,
    number,
    plain_loss,
    values,
)
from analysis.logs.reading.streams import OTHER
from analysis.logs.reading.text import Line

_COUNT = r"\d+(?:\.\d+)?k\b|\d(?:\.\d+)?e\+?\d{1,2}\b|\d[\d,]*"
_OF = rf"(?:(?:/|of)\s*(?P<total>{_COUNT}))?"
_STEP = re.compile(
    r"\W{0,9}(?:(?:epoch\W{0,2}(?P<epoch>\d+)(?:/\d+)?|train(?:ing)?|val(?:idation|idate)?|eval(?:uation)?|metrics"
    r"|results|completed|(?:trial|run|experiment)\W?\d+|tokens\W{1,2}\d[\d,.]*[kmb]?|\d[\d.]*[kmb]?\s+tokens|at|after|validated|evaluated)\b\W{0,3}){0,3}"
    r"\W{0,3}(?:\[(?P<of>[a-z]\w*)\]\s*)?"
    r"(?:(?P<word>(?:global[_ ]|opt\w*[_ ]|micro[_ ]?)?(?:step|iter|iteration|it)s?)\s*[:=\[#]?\s*)?"
    rf"(?P<step>{_COUNT})\s*{_OF}(?![\w.%])",
    re.IGNORECASE,
)
_STEPS = re.compile(r"\s*(?:steps|iterations|updates)\b", re.IGNORECASE)
_OPTIMIZER_STEP = re.compile(
    r"\W{1,3}(?:(?:global|opt\w*)[_ ])?(?:step|update)s?\s*[:=]?\s*(?P<step>\d[\d,]*)(?![\w.%/])",
    re.IGNORECASE,
)
"""litgpt's `iter 4000 step 1000`: of microbatches and of the optimizer."""
_STEP_LAST = re.compile(
    rf"\W{{0,3}}(?:(?:{OF_VALIDATION}|train(?:ing)?)[ _/.-]*(?:{BPB}|{LOSS})|(?:loss|bpb)\s*[:=])"
    r"[^()]*?\(?(?<![a-z])(?P<word>(?:step|iter|iteration)s?)\s*[:=#]?\s*(?P<step>\d[\d,]*)"
    r"\s*(?:(?:/|of)\s*(?P<total>\d[\d,]*))?(?![\w.%])",
    re.IGNORECASE,
)
"""`val_loss 2.1 val_bpb 1.2 at step 100`: the loss first."""
_BAR = re.compile(
    r"^(?:\W{0,3}epoch\W{0,2}(?P<epoch>\d+)(?:/\d+)?\W)?.*?\|\s*(?P<step>\d+)/(?P<total>\d+)\s*\[[^\]]*?,(?P<rest>[^\]]*)\]",
    re.IGNORECASE,
)
_KERAS = re.compile(r"\W{0,3}(?P<step>\d+)/(?P<total>\d+)\s*(?:\[[=>.]+\]|━+)(?P<rest>.*)")
_LLMC = re.compile(rf"s:(?P<step>\d+)\s+(?P<name>tel|trl):(?P<value>{NUMBER})\b")
"""llm.c's main.log: `s:250 tel:6.4` of the validation, `trl` of the training."""
_TERSE = re.compile(rf"(?P<step>\d+)\s+(?P<name>val|train)\s+(?P<value>{NUMBER})")
"""build-nanogpt's log.txt: `250 val 6.4`."""
_HEADED = re.compile(r"\[(?:step|batch)=(?P<step>\d[\d,]*)/(?P<total>\d[\d,]*)(?:,\s*\w+=\S+?)?\]:?")
"""The head of a block of metrics, as OLMo and Composer print them."""
_METRIC = re.compile(
    r"(?:eval metrics/)?(?P<label>(?:eval|val)\w*(?:/[\w.-]+)*/(?:\w*cross_?entropy(?:loss)?|loss))"
    rf"\s*[=:]\s*(?P<value>{NUMBER})",
    re.IGNORECASE,
)
_ALONE = re.compile(
    rf"\W{{0,3}}(?:(?:val(?:idation)?[_ ]?(?:loss|bpb))\s*[:=]?\s*{NUMBER}[\s,|]*){{1,2}}", re.IGNORECASE
)
_RECORD = re.compile(rf"val_loss:{NUMBER}(?: [a-z_]\w*:[-+\w.]+)*")
"""transformers' record of an evaluation, which names no step."""
_OF_EPOCH = re.compile(r"\bepoch:(\d+(?:\.\d+)?)(?![\w.])")
_AMOUNT = re.compile(r"\(\s*(\d+(?:\.\d+)?)\s*([kmb])\s*tok(?:en)?s?\s*\)", re.IGNORECASE)
_BRACKETED = re.compile(r"\s*[\[(]\s*(?P<of>[a-z]+)[^\])]*[\])]", re.IGNORECASE)
_MOST = 10**9


def step(line: Line) -> Step | None:
    """A line that begins with a step, or is a progress bar, or ends in a step, and holds a loss."""
    text = line.text
    if (match := _LLMC.match(text) or _TERSE.fullmatch(text)) is not None:
        return _terse(line, match)
    if (match := _HEADED.fullmatch(text)) is not None:
        return Step(
            line.number, int(number(match["step"])), int(number(match["total"])), {}, loose=True, bar=True
        )
    if (match := _STEP.match(text)) is not None and (match["word"] or _named(text, match)):
        behind = _BRACKETED.match(text, match.end())
        if behind and behind["of"].lower() == "ema":
            return _of_ema(line, match, values(text, first=behind.end()))
        if any(of["of"].lower() in OTHER for of in (match, behind) if of and of["of"]):
            return None
        found = values(text, first=match.end())
    elif (match := _STEP_LAST.match(text)) is not None:
        found = values(text)
    elif (match := _KERAS.match(text) or _BAR.match(text)) is not None:
        found = values(match["rest"])
        if not found.of.keys() & {"val_bpb", "val_loss"} and not found.broken:
            return _bare_bar(line, match)
    else:
        return None
    bar = "rest" in match.groupdict()
    epoch = number(match["epoch"]) if match.groupdict().get("epoch") else None
    if not bar and (word := VALIDATION.search(text)) is not None:
        add_bare(found, text, word.end())
        add_direct(found, text)
    return _point(line, match, found, bar=bar, epoch=epoch)


def _of_ema(line: Line, match: re.Match[str], found: Values) -> Step | None:
    """`step:6000/6000 [ema 0.997] val_bpb:1.13`: the averaged weights' own value of that step."""
    bpb, at = found.of.get("val_bpb"), _count(match["step"])
    if bpb is None or not at <= _MOST:
        return None
    return Step(line.number, int(at), None, {"ema_val_bpb": bpb}, words=text_before(line, match))


def text_before(line: Line, match: re.Match[str]) -> str:
    """The words before the step."""
    return line.text[: match.start("step")].strip().lower()


def _bare_bar(line: Line, match: re.Match[str]) -> Step | None:
    """A bar without a loss, by which a validation that names no step may have one."""
    step, total = number(match["step"]), number(match["total"])
    if match["rest"].strip(" ]").startswith(("[", "-")) or not 0 < step <= total <= _MOST:
        return None
    return Step(line.number, int(step), int(total), {}, loose=True, bar=True)


def _named(text: str, match: re.Match[str]) -> bool:
    """Whether a count without the word `step` is one: `100/2000 val_loss:...`."""
    rest = text[match.end() :]
    if "@" in text[: match.start("step")] or _STEPS.match(rest):
        return True
    if text[: match.start("step")].rstrip().endswith("[") and rest.startswith("]"):
        return "val" in rest or (match["total"] is not None and "train_loss" in rest)
    if not text[: match.start("step")].strip() and re.match(r"\s*:\s*val[_ ]?loss", rest):
        return True
    return match["total"] is not None and bool(re.match(r"\W*(?:val|train)[_ ]?(?:loss|bpb)", rest))


def _terse(line: Line, match: re.Match[str]) -> Step | None:
    value, name = number(match["value"]), "val_loss" if match["name"] in ("tel", "val") else "train_loss"
    if isfinite(value):
        return Step(line.number, int(match["step"]), None, {name: value})
    return Step(line.number, int(match["step"]), None, {}, broken=True)


def _point(line: Line, match: re.Match[str], found: Values, *, bar: bool, epoch: float | None) -> Step | None:
    text, loose = line.text, False
    if found.others and not found.measured:
        return None
    if not found.broken and not found.measured:
        if (value := plain_loss(text, match.end())) is None:
            return None
        loose = True
        if isfinite(value):
            found.of["train_loss"] = value
        else:
            found.broken = True
    total = _count(match["total"]) if match["total"] else None
    at = _count(match["step"])
    micro = None
    if found.measured and (own := _OPTIMIZER_STEP.match(text, match.end())):
        micro, at = int(at) if isfinite(at) else None, number(own["step"])
    if not (isfinite(at) and at <= _MOST and (total is None or isfinite(total))):
        return None
    if total is not None and at > total and "step" not in text.lower():
        return None
    return Step(
        line.number,
        int(at),
        None if total is None else int(total),
        found.of,
        found.coarse,
        found.broken,
        loose,
        bar=bar,
        skipped=found.broken and not found.validated,
        part=of_a_part(text),
        epoch=None if epoch is None else int(epoch),
        words=text_before(line, match),
        micro=micro,
        tokens=_tokens(text),
    )


def _tokens(text: str) -> float | None:
    """Of how many tokens a measurement says to be: `(1.0M tokens)`."""
    match = _AMOUNT.search(text) if "(" in text else None
    return None if match is None else float(match[1]) * {"k": 1e3, "m": 1e6, "b": 1e9}[match[2].lower()]


def _count(digits: str) -> float:
    return 1000 * float(digits[:-1]) if digits[-1] in "kK" else number(digits)


def loose(line: Line) -> Loose | None:
    """A line that is nothing but a validation's, as `val loss 2.1`."""
    if (match := _METRIC.fullmatch(line.text.strip())) is not None and isfinite(
        value := number(match["value"])
    ):
        return Loose(line.number, {"val_loss": value}, label=match["label"])
    if not (_ALONE.fullmatch(line.text) or _RECORD.fullmatch(line.text)):
        return None
    found = values(line.text)
    epoch = _OF_EPOCH.search(line.text)
    return Loose(line.number, found.of, found.broken, number(epoch[1]) if epoch else None)
