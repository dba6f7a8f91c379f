"""Lines that say something of the lines after them: how a run ended, what was done to its weights since."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from analysis.logs.events import Mark
from analysis.logs.lines.learning import learning
from analysis.logs.lines.parts import of_a_part
from analysis.logs.lines.values import NUMBER, number, values
from analysis.logs.reading.text import Line

_ARTIFACT = re.compile(
    r"\s*(?:(?:export )?(?:attempt|try) \d+\W\s*)?"
    r"(?:serialized[_ ](?:model|artifact)[_ ](?!fp\d|bf16|float|raw)(?P<format>[\w+.,=\- ]+?)"
    r"|(?P<packed>compressed) model):\s*(?P<bytes>\d[\d,]*)\s*bytes"
    r"|\s*(?P<named>int\d[\w+.-]*) (?:artifact|model)[ _](?:bytes|size)\s*[:=]\s*(?P<count>\d[\d,]*)"
    r"|\s*(?:compressed |quantized |final |(?P<of>int\d(?:[+ ]\w+)?)[ _])?(?:artifact|model|archive)"
    r"(?:[_ ](?P<width>int\d(?:[+]\w+)?))?"
    r"(?:[_ ](?:size|bytes))?"
    r"\s*[:=]\s*(?P<size>\d[\d,]{5,})(?:\s*(?:bytes|B)(?![a-z]))?\s*(?:\((?P<how>[^()]*)\))?\s*(?:$|,(?!.*over))"
    r"|\s*(?:\w+\W+)?(?:artifact|compressed)_bytes[:=](?P<plain>\d[\d,]{5,})(?!\d)"
    r"|\s*(?:saved|wrote|exported)\s+(?P<file>\S*(?:int\d|quant|\.ptz|\.zst)\S*)"
    r"\s*\((?P<written>\d[\d,]{5,})\s*bytes\)",
    re.IGNORECASE,
)
_CODE = re.compile(r"\s*code(?:[_ ]size|[_ ]bytes)(?P<packed>[^:]*):\s*(?P<bytes>\d[\d,]*)(?: bytes)?", re.I)
_STOP = re.compile(
    r"\s*(?:stopping[_ ]early|early[_ ]stop(?:ping|ped)?)(?![\w(])"
    r"(?!\W*(?:true|false|none|null|on|off|enabled|disabled)\b|\s*[:=]?\s*\d)\s*[:=]?\s*(?P<why>[\w ]*)",
    re.IGNORECASE,
)
_STOP_SAID = re.compile(
    r"(?<![a-z])(?:early[- ]stopp(?:ing|ed)\W+(?:at|after|triggered)"
    r"|stopp(?:ing|ed)\W+(?:training\W+)?(?:early|at step)"
    r"|out of (?P<out>budget|time)|(?P<up>time|minutes|hours) (?:is|are) up"
    r"|(?:reached|hit|exceeded|out of)\W+(?:the\W+)?(?:max\w*\W+)?"
    r"(?P<clock>wall[- _]?clock|time)(?:[- _]*(?:cap|limit|budget))"
    r"|(?P<limit>wall[- _]?clock|time)[- _]*(?:cap|limit|budget)\W+"
    r"(?:of\W+[\d.]+\W*\w*\W+)?(?:was\W+|is\W+)?(?:reached|hit|exceeded))",
    re.IGNORECASE,
)
"""The same in a sentence."""
_OVER = re.compile(
    r"(?:\[\w+\])?\s*training\W+(?:is\W+|has\W+)?(?:completed?|finished|done|ended)\b(?!\s*[:=]\s*(?:false|0|\d+\s*%))"
    r"|.*\btrain_runtime\b"
    r"|\W*Trainer\.fit\W+stopped:\W+max_(?:steps|epochs)=\d+\W+reached",
    re.IGNORECASE,
)
_FINISHED = re.compile(
    r"\W*(?:all\W)?(?:finished|done|bye)\W*$|\s*(?:total )?training[ _]time\s*[:=]", re.IGNORECASE
)
"""The end of a run, or of whatever was at work: it tells where no number of steps does."""
_STOPPED_AT = re.compile(
    r"\b(?:step\s*[:=]|at (?:step|iter\w*)|final (?:step|iteration)\W?|after)\s*"
    r"(\d[\d,]*)(?![\d.])(?:/(\d[\d,]*))?",
    re.IGNORECASE,
)
_CRASH = re.compile(
    r"Traceback \(most recent|OutOfMemoryError|out of memory|SIG(?:SEGV|KILL|TERM|ABRT)|Signal \d+"
    r"|^\s*Killed\b|ChildFailedError|KeyboardInterrupt|TIMEOUT|CUDA error|Connection to .* closed"
    r"|DUE TO TIME LIMIT"
)
_RESUMED = re.compile(
    r"(?<![a-z_-])(?:resum(?:ed|es|ing)|continu(?:ed|es|ing)|restart(?:ed|s|ing))\W+(?:the\W+)?(?:training\W+|run\W+)?"
    r"(?:from|at)\b(?!\W*(?:none|null|false|scratch)\b)(?P<what>.*)"
    r"|(?:load|restor)\w*\W.{0,40}(?:checkpoint|ckpt|state)(?P<loaded>.*\bcontinu\w+.*)",
    re.IGNORECASE,
)
_RESUMED_AT = re.compile(
    r"(\d[\d,]*)\s*(?:steps?|iter(?:ation)?s?|updates?)\b"
    r"|(?:step|iter(?:ation)?|update|ckpt|checkpoint|model|state)[-_ =:#]*(\d\d[\d,]*)",
    re.IGNORECASE,
)
_MODE = re.compile(r"\s*final_eval_mode\s*[:=]\s*(\w+)")
_SLIDING = re.compile(
    r"sliding[_ ](?:window[_ ])?eval|eval(?:uat\w+)?.{0,20}sliding|^\s*sliding_eval", re.IGNORECASE
)
_BPB = re.compile(r"val_?bpb\W*\d", re.IGNORECASE)
_NO_EMA = re.compile(r"ema\W*skip|skip\w*.{0,20}\bema\b|(?:swa|lawa)\W*applying", re.IGNORECASE)
_EMA = re.compile(r"ema\W*applying|appl(?:y|ying|ied)\W+ema", re.IGNORECASE)
_MIXED = re.compile(
    r"(?<![a-z])n-?gram"
    r"|(?<![a-z])(?:teacher|soup|ensemble|draft model|for comparison|baseline's)(?![a-z])"
    r"|random(?:ly)? initiali[sz]ed"
    r"|loading (?:the )?(?:best )?checkpoint (?:of|from) step|best checkpoint"
    r"|(?<![a-z])(?:ppm|mixer|backoff|k-?nn|nearest[- ]neighbou?rs?|datastore|retrieval)(?![a-z])"
    r"|(?:blend|interpolat|mix)\w*.{0,30}(?:cache|memory|counts|keys)"
    r"|(?:cache|memory|counts|keys).{0,30}(?:blend|interpolat|mix)",
    re.IGNORECASE,
)
_RESTORED = re.compile(
    r"(?<![a-z])(?:restor|reload|revert|reset)\w*.{0,80}(?:weights|model|int6|quantized|checkpoint|artifact)",
    re.IGNORECASE,
)
_OWN_AGAIN = re.compile(
    r"(?:evaluat|measur|scor)\w*\W+(?:this|our|the (?:present|current|trained))\W+(?:run|model|checkpoint)",
    re.I,
)
_PRUNED = re.compile(
    r"(?<![a-z])(?:prun(?:e|es|ed|ing)|sparsif\w+|zeroing|dropping)\W.{0,40}(?:weights|heads|layers|params|blocks|%)",
    re.I,
)
_SCALE = re.compile(
    rf"(?:qat|ema|swa)\w*\W.{{0,80}}?\bstep\s*[:=]\s*(\d+).{{0,80}}?\b(?:lr_)?scale\s*[:=]\s*({NUMBER})",
    re.IGNORECASE,
)
_TAKES = r"(?<![a-z])(?:switch|swap|load|reload|restor|revert|now|us(?:e|ing)(?![a-z])|back to)\w*\W"
_PACKED = re.compile(
    r"(?P<odd>(?<![a-z\d])(?:nf4|fp4|mxfp\d|e[2345]m[123])(?![a-z\d])|(?<![a-z])(?:codebook|centroids|binari[sz]\w+)"
    r"(?![a-z]))|(?P<average>\d+\.\d+) bits? per (?:weight|param)"
    r"|(?:quant|compress|pack|cast|export)\w*\W.{0,80}?"
    r"(?:(?P<bits>\d+|eight|four|five|six)[- ]?bits?(?![a-z])|int(?P<int>\d+)|(?P<float>float8|fp8)"
    r"|(?P<ternary>ternary|\{-1, ?0, ?1\}))|(?P<bitnet>bitnet)"
    rf"|{_TAKES}.{{0,30}}?int(?P<taken>\d+)\W{{0,2}}(?:weights|model|artifact|quantized|checkpoint)"
    rf"|(?P<full>{_TAKES}.{{0,30}}?(?:float|fp32|bf16|full[- ]precision|unquantized|uncompressed|unpruned)"
    r"\W{0,2}(?:\w+\W)?(?:weights|model|checkpoint|parameters))",
    re.IGNORECASE,
)
"""To how many bits weights are being quantized, or which are taken up, in prose; 32: not quantized."""
_SPELT = {"eight": 8.0, "four": 4.0, "five": 5.0, "six": 6.0}
_WEIGHTS = re.compile(
    r"\s*gptq\s*\(int(\d)\).*blocks|mixed_precision:\s*(\d[\d,]*) int5 params, (\d[\d,]*) int6"
)
_EPOCH = re.compile(r"\s*epoch\s+(?P<epoch>\d+)\s*/\s*(?P<of>\d+)\s*", re.IGNORECASE)

_SAID: tuple[tuple[str, Callable[[str], object]], ...] = (
    ("crash", _CRASH.search), ("ema", _EMA.search), ("no ema", _NO_EMA.search), ("mixed", _MIXED.search),
)  # fmt: skip


def marks(line: Line) -> Iterator[Mark]:
    text, at = line.text, line.number
    said = text.strip()[:100]
    if (mark := _measured(line)) is not None:
        yield mark
    elif (kind := next((kind for kind, tells in _SAID if tells(text)), None)) is not None:
        yield Mark(at, kind, said)
    if _FINISHED.match(text):
        yield Mark(at, "finished", said)
    if _RESTORED.search(text) or _OWN_AGAIN.search(text):
        yield Mark(at, "restored", said)
    if resumed := _RESUMED.search(text):
        done = _RESUMED_AT.search(resumed["what"] or resumed["loaded"])
        yield Mark(at, "resumed", said, {"step": number(done[1] or done[2])} if done else {})
    if _PRUNED.search(text):
        yield Mark(at, "pruned", said)
    if (kind := learning(text)) is not None:
        yield Mark(at, kind, said)
    elif _SLIDING.search(text) and not _BPB.search(text):
        yield Mark(at, "sliding", said)
    if of_a_part(text):
        yield Mark(at, "part", said)


def _measured(line: Line) -> Mark | None:
    """A mark with numbers, or none."""
    text, at = line.text, line.number
    if match := _ARTIFACT.match(text):
        names = (match[name] for name in ("format", "packed", "named", "width", "of", "how", "file"))
        name = next((name.strip().lower() for name in names if name), "compressed")
        sizes = (match[name] for name in ("bytes", "count", "size", "written", "plain"))
        return Mark(at, "artifact", name, {"bytes": number(next(filter(None, sizes)))})
    if match := _CODE.match(text):
        return Mark(at, "code", match["packed"].strip(" ()_").lower(), {"bytes": number(match["bytes"])})
    if match := _STOP.match(text):
        return _stop(line, match["why"].strip().lower())
    if _OVER.match(text):
        return _stop(line, "")
    if (match := _STOP_SAID.search(text)) and not _CRASH.search(text):
        return _stop(
            line, "wallclock" if match["clock"] or match["limit"] or match["out"] or match["up"] else "early"
        )
    if match := _MODE.match(text):
        return Mark(at, "mode", match[1].lower())
    if match := _WEIGHTS.match(text):
        bits = float(match[1]) if match[1] else (5.0 if number(match[2]) > number(match[3]) else 6.0)
        return Mark(at, "weights", text.strip()[:100], {"bits": bits})
    if match := _PACKED.search(text):
        spelt = match["bits"] or match["int"] or match["taken"]
        bits = -1.0 if match["odd"] else 0.0 if match["average"] else 1.58
        bits = 32.0 if match["full"] else 8.0 if match["float"] else bits
        bits = (_SPELT.get(spelt.lower()) or float(spelt)) if spelt else bits
        return Mark(at, "weights", text.strip()[:100], {"bits": bits})
    if match := _SCALE.search(text):
        found = {"step": number(match[1]), "scale": number(match[2])}
        return Mark(at, "multiplier", text.strip()[:100], found)
    if match := _EPOCH.fullmatch(text):
        return Mark(at, "epoch", text.strip(), {"epoch": number(match["epoch"]), "of": number(match["of"])})
    return None


def _stop(line: Line, why: str) -> Mark:
    found = values(line.text)
    said = {key: found.of[key] for key in ("seconds",) if key in found.of} | {"coarse": found.coarse}
    if where := _STOPPED_AT.search(line.text):
        said["step"] = number(where[1])
        if where[2]:
            said["total"] = number(where[2])
    return Mark(line.number, "stop", why, said)
