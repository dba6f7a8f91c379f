"""What one line of a log states: pairs of a known name and a number, and a small vocabulary around them.

No form is tied to a script. A line that begins with a step and holds a loss is a point of the curve; another
line with a `val_bpb` is a figure, whose words before it say of what; the rest are settings and marks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import isfinite

from analysis.logs.events import Event, Fact, Figure, Loose, Mark, Step
from analysis.logs.structured import RUN_NAME
from analysis.logs.text import Line

NUMBER = r"[-+]?(?:(?:\d[\d,]*(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?|nan|inf(?:inity)?)"
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}

_FACTS = {
    "params": ("model_params", "model params", "total_params", "num_params", "n_params", "params"),
    "seed": ("seed",),
    "batch_tokens": ("train_batch_tokens", "batch_tokens", "tokens_per_step", "batch"),
    "iterations": ("iterations", "num_iterations", "max_steps", "total_steps", "train_steps"),
    "cap_seconds": (
        "max_wallclock_seconds",
        "max_wallclock",
        "wallclock_seconds",
        "max_training_seconds",
        "max_train_seconds",
        "wall",
    ),
    "effective_seconds": ("effective",),
    "warmdown_fraction": (
        "warmdown_frac",
        "warmdown_fraction",
        "warmdown_ratio",
        "cooldown_frac",
        "cooldown_fraction",
    ),
    "warmdown_iters": ("warmdown_iters", "warmdown_steps", "cooldown_iters", "cooldown_steps"),
    "warmdown": ("warmdown", "cooldown"),
    "lr_floor": (
        "min_lr",
        "min_lr_frac",
        "min_lr_scale",
        "min_lr_ratio",
        "lr_floor",
        "lr_min_frac",
        "warmdown_lr_floor",
    ),
    "lr_final": ("final_lr_frac", "final_lr_fraction"),
    "bits": ("matrix_bits",),
}
_CANONICAL = {name: fact for fact, names in _FACTS.items() for name in names}
_FACT = re.compile(
    rf"(?<![\w.])({'|'.join(sorted(_CANONICAL, key=len, reverse=True))})['\"]?\s*[:=]\s*['\"]?"
    rf"({NUMBER})\s*(ms|s|min|m|h|%)?(?![\w./%])",
    re.IGNORECASE,
)
_SHAPE = re.compile(
    r"(?<![\w.])(?:(?:lr_)?schedule(?:_type)?|warmdown(?:_shape|_type)?|decay_shape)\s*[:=]\s*['\"]?"
    r"((?:1-)?sqrt|(?:linear|constant|cos|exp|poly|quad|step|inv|cyc|wsd|trapez)\w*)",
    re.IGNORECASE,
)
_VALUES = {
    "val_bpb": "val_bpb", "valbpb": "val_bpb", "validation_bpb": "val_bpb",
    "ema_val_bpb": "ema_val_bpb",
    "val_loss": "val_loss", "valloss": "val_loss", "validation_loss": "val_loss",
    "train_loss": "train_loss", "trainloss": "train_loss",
    "train_time": "seconds", "elapsed": "seconds",
    "tok/s": "tokens_per_second", "tok_s": "tokens_per_second",
    "lr_scale": "lr_scale", "lr_mul": "lr_scale", "lrm": "lr_scale",
    "learning_rate_multiplier": "lr_scale",
}  # fmt: skip
_VALUE = re.compile(
    r"(?<![\w.])((?:ema[_ ])?val[_ ]?bpb|val(?:idation)?[_ ](?:loss|bpb)|val_?loss|train[_ ]?loss"
    r"|train[_ ]?time|elapsed|tok[/_]s|lr_scale|lr_mul|lrm|learning_rate_multiplier)"
    rf"\s*[:=]?\s*({NUMBER})(ms|s|min|m|h)?(?![\w.])",
    re.IGNORECASE,
)
_OTHERS = re.compile(
    r"(?<![a-z])(?:ema|swa|sliding|windowed|int\d|quant\w*|fake\w*|draft|teacher|best|prev(?:ious)?"
    r"|min(?:imum)?)[\s_:|(\[]*$",
    re.IGNORECASE,
)
"""Before a value: it is of other weights, another model or another step than the line's."""
_BARE = re.compile(rf"(?<![\w.])(bpb|loss)(?:[ _]value)?\s*[:=]?\s*({NUMBER})(?![\w.])", re.IGNORECASE)
_VALIDATION = re.compile(r"(?<![a-z])(?:val|valid|validation|eval)(?![a-z])", re.IGNORECASE)
_STEP = re.compile(
    r"\W{0,3}(?:(?:epoch\W{0,2}\d+(?:/\d+)?|train(?:ing)?|val(?:idation)?|eval(?:uation)?|at|after)\b\W{0,3}){0,2}"
    r"\W{0,3}(?:(?P<word>(?:global[_ ])?(?:step|iter|iteration)s?)\s*[:=\[#]?\s*)?(?P<step>\d[\d,]*)\s*"
    r"(?:(?:/|of)\s*(?P<total>\d[\d,]*))?(?![\w.%])",
    re.IGNORECASE,
)
_STEP_LAST = re.compile(
    r"\W{0,3}(?:(?:val(?:idation)?|eval(?:uation)?|train(?:ing)?)[ _](?:loss|bpb)\b|(?:loss|bpb)\s*[:=])"
    r"[^()]*?\b(?P<word>(?:step|iter|iteration)s?)\s*[:=#]?\s*(?P<step>\d[\d,]*)"
    r"\s*(?:(?:/|of)\s*(?P<total>\d[\d,]*))?(?![\w.%])",
    re.IGNORECASE,
)
"""`val_loss 2.1 val_bpb 1.2 at step 100`: the loss first."""
_BAR = re.compile(r"\|\s*(?P<step>\d+)/(?P<total>\d+)\s*\[[^\]]*?,(?P<rest>[^\]]*)\]")
_ALONE = re.compile(
    rf"\W{{0,3}}(?:(?:val(?:idation)?[_ ]?(?:loss|bpb))\s*[:=]?\s*{NUMBER}[\s,|]*){{1,2}}", re.IGNORECASE
)
_RUN_NAME = re.compile(rf"\s*{RUN_NAME}\s*(\S.*)")
_NOT_LOG = re.compile(r"\s*(?:#|//|\"|'|`|log0?\(|print\(|f\"|>)")

_FIGURE = re.compile(rf"(?<![\w.])val[_ ]?bpb(?:\s*[:=]\s*|\s+)({NUMBER})(?![\w.%])", re.IGNORECASE)
_LOSS = re.compile(rf"(?<![\w.])val[_ ]?loss(?:\s*[:=]\s*|\s+)({NUMBER})(?![\w.%])", re.IGNORECASE)
_SETTING = re.compile(r"(?<=\s)\S+[:=]\S+\s*")  # after the first word of a label
_FIRST_VALUE = re.compile(r"(?<![\w.])val[_ ]?(?:loss|bpb)\s*(?:[:=]|(?=[\d.]))", re.IGNORECASE)
_PROGRESS = re.compile(
    r"\d+\s*/\s*\d+|%|(?<![a-z])(?:chunk|batch|batches|running|progress|epoch|windows|phase)(?![a-z])",
    re.IGNORECASE,
)
_ARTIFACT = re.compile(
    r"\s*(?:serialized[_ ](?:model|artifact)[_ ](?!fp\d|bf16|float|raw)(?P<format>[\w+.,=\- ]+?)"
    r"|(?P<packed>compressed) model):\s*(?P<bytes>\d[\d,]*)\s*bytes",
    re.IGNORECASE,
)
_CODE = re.compile(r"\s*code(?:[_ ]size|[_ ]bytes)(?P<packed>[^:]*):\s*(?P<bytes>\d[\d,]*)(?: bytes)?", re.I)
_STOP = re.compile(r"\s*(?:stopping[_ ]early|early[_ ]stop\w*)\s*[:=]?\s*(?P<why>[\w ]*)", re.IGNORECASE)
_STOPPED_AT = re.compile(r"\bstep\s*[:=]\s*(\d[\d,]*)(?:/(\d[\d,]*))?", re.IGNORECASE)
_CRASH = re.compile(
    r"Traceback \(most recent|OutOfMemoryError|out of memory|SIG(?:SEGV|KILL|TERM|ABRT)|Signal \d+"
    r"|^\s*Killed\b|ChildFailedError|KeyboardInterrupt|TIMEOUT|CUDA error|Connection to .* closed"
    r"|DUE TO TIME LIMIT"
)
_MODE = re.compile(r"\s*final_eval_mode\s*[:=]\s*(\w+)")
_SLIDING = re.compile(
    r"sliding[_ ](?:window[_ ])?eval|eval(?:uat\w+)?.{0,20}sliding|^\s*sliding_eval", re.IGNORECASE
)
_TTT = re.compile(
    r"ttt|test[- ]time[- ](?:train|adapt)|(?<![a-z])adapt(?:ing|ation|ed)?(?![a-z])|fine-?tun\w*.{0,40}\bval"
    r"|\bval\w*.{0,20}fine-?tun|epoch\W*\d+\s*/\s*\d+.*\bloss",
    re.IGNORECASE,
)
"""Training after training: on the validation text, or on a text that the line does not name."""
_NO_EMA = re.compile(r"ema\W*skip|skip\w*.{0,20}\bema\b|(?:swa|lawa)\W*applying", re.IGNORECASE)
_EMA = re.compile(r"ema\W*applying", re.IGNORECASE)
_MIXED = re.compile(r"(?<![a-z])n-?gram|(?<![a-z])(?:ppm|mixer|backoff)(?![a-z])", re.IGNORECASE)
_SCALE = re.compile(
    rf"(?:qat|ema|swa)\w*\W.*\bstep\s*[:=]\s*(\d+).*?\b(?:lr_)?scale\s*[:=]\s*({NUMBER})", re.IGNORECASE
)
_WEIGHTS = re.compile(
    r"\s*gptq\s*\(int(\d)\).*blocks|mixed_precision:\s*(\d[\d,]*) int5 params, (\d[\d,]*) int6"
)
_DEFAULT = re.compile(
    r"['\"](warmdown_(?:iters|steps|frac\w*|ratio))['\"]\s*,\s*['\"]?([\d._]+)", re.IGNORECASE
)
_RELEVANT = re.compile(
    r"val|bpb|loss|ttt|adapt|tun|warm|cool|seed|param|iter|step|wall|effective|batch|serial|code|stop|lr|sched"
    r"|scale|bits|int\d|gram|mix|ppm|backoff|ema|swa|lawa|error|kill|sig|trace|memory|skip|slid|mode|connection|time",
    re.IGNORECASE,
)


def number(text: str) -> float:
    return float(text.replace(",", ""))


def _default(line: Line) -> Fact | None:
    """The default of a warmdown in a line of a script's source, which says what may have been, no more."""
    match = _DEFAULT.search(line.text)
    return (
        Fact(line.number, "warmdown_default", f"{match[1].lower()} {match[2].strip('_')}") if match else None
    )


def events(line: Line) -> Iterator[Event]:
    """What a line states; nothing for most lines."""
    text = line.text
    if line.source:
        if (default := _default(line)) is not None:
            yield default
        return
    if not (_RELEVANT.search(text) or text.startswith(RUN_NAME)) or _NOT_LOG.match(text):
        return
    if (step := _step(line)) is not None:
        yield step
        return
    if (found := _figure(line) or _loose(line)) is not None:
        yield found
        return
    if name := _RUN_NAME.fullmatch(text):
        yield Fact(line.number, "name", name[1].strip())
    yield from _marks(line)
    for match in _FACT.finditer(text):
        yield from _fact(line, match)
    if shape := _SHAPE.search(text):
        yield Fact(line.number, "shape", shape[1].lower())


def _fact(line: Line, match: re.Match[str]) -> Iterator[Fact]:
    name, value = _CANONICAL[match[1].lower()], number(match[2])
    if not isfinite(value) or value < 0:  # -1 is how scripts say that a setting is not used
        return
    if name in ("cap_seconds", "effective_seconds"):
        if match[3] is None and not re.search(r"wallclock|seconds", match[1], re.IGNORECASE):
            return
        value *= _SECONDS.get(match[3] or "s", 1.0)
    elif match[3] == "%" and name.startswith("warmdown"):
        name, value = "warmdown_fraction", value / 100
    elif match[3]:
        return
    # "batch", "params" and "warmdown" are words of many meanings: only likely sizes are taken.
    if (match[1].lower() == "batch" and value < 1024) or (match[1].lower() == "params" and value < 10_000):
        return
    if name == "warmdown":
        if 1 <= value < 10 or _STOPPED_AT.search(line.text):
            return
        name = "warmdown_fraction" if value < 1 else "warmdown_iters"
    yield Fact(line.number, name, value)


def _values(text: str) -> tuple[dict[str, float], float, bool]:
    """Named values of a line, by how much its seconds were rounded, and whether a loss is not finite."""
    found: dict[str, float] = {}
    coarse, broken = 0.0, False
    for match in _VALUE.finditer(text):
        name, digits, unit = match.groups()
        key = _VALUES[name.lower().replace(" ", "_")]
        if key in ("val_bpb", "val_loss") and _OTHERS.search(
            text[max(0, match.start() - 40) : match.start()]
        ):
            continue
        value = number(digits)
        if not isfinite(value):
            broken = broken or key in ("val_bpb", "val_loss", "train_loss")
            continue
        if key == "seconds":
            size = _SECONDS.get(unit or "ms", 1.0)
            coarse = size * 10.0 ** -len(digits.partition(".")[2])
            value *= size
        found.setdefault(key, value)
    return found, coarse, broken


def _step(line: Line) -> Step | None:
    """A line that begins with a step, or a progress bar, or ends in a step, and holds a loss."""
    text = line.text
    match: re.Match[str] | None = _STEP.match(text)
    if match is not None:
        rest = text[match.end() :]
        if match["word"] is None and (
            match["total"] is None or not re.match(r"\W*(?:val|train)[_ ]?(?:loss|bpb)", rest)
        ):
            return None
        values, coarse, broken = _values(rest)
        if (word := _VALIDATION.search(text)) is not None:
            broken = _bare(text, word.end(), values) or broken
    elif (match := _STEP_LAST.match(text)) is not None:
        values, coarse, broken = _values(text)
        if (word := _VALIDATION.search(text)) is not None:
            broken = _bare(text, word.end(), values) or broken
    elif (match := _BAR.search(text)) is not None:
        values, coarse, broken = _values(match["rest"])
        if "val_bpb" not in values and "val_loss" not in values:
            return None
    else:
        return None
    loose = False
    if not broken and not values.keys() & {"val_bpb", "val_loss", "train_loss", "ema_val_bpb"}:
        if (plain := _BARE.search(text, match.end())) is None or plain[1].lower() != "loss":
            return None
        value, loose = number(plain[2]), True
        values, broken = ({"train_loss": value}, False) if isfinite(value) else ({}, True)
    total = match["total"]
    counts = number(match["step"]), 0.0 if total is None else number(total)
    if not all(isfinite(count) for count in counts):
        return None
    step, of = int(counts[0]), None if total is None else int(counts[1])
    if step > 10**9 or (of is not None and step > of and "step" not in text.lower()):
        return None
    return Step(line.number, step, of, values, coarse, broken, loose)


def _bare(text: str, first: int, values: dict[str, float]) -> bool:
    """Adds to `values` a plain `loss` or `bpb` after the word for a validation, which ends at `first`.

    Returns whether one is not finite.
    """
    broken = False
    for match in _BARE.finditer(text, first):
        name = f"val_{match[1].lower()}"
        if name == "val_loss" and values.keys() & {"val_loss", "val_bpb", "train_loss"}:
            continue  # of training, beside the validation's own
        if isfinite(value := number(match[2])):
            values.setdefault(name, value)
        else:
            broken = True
    return broken


def _loose(line: Line) -> Loose | None:
    """A line that is nothing but a validation's, as `val loss 2.1`."""
    if not _ALONE.fullmatch(line.text):
        return None
    values, _, broken = _values(line.text)
    return Loose(line.number, values, broken)


def _figure(line: Line) -> Figure | None:
    match = _FIGURE.search(line.text)
    if match is None:
        return None
    first = _FIRST_VALUE.search(line.text)
    label = line.text[: first.start() if first else match.start()].strip(" :|-=>*\t")
    label = _SETTING.sub("", label)
    if not label or len(label) > 100 or _PROGRESS.search(label):
        return None
    loss = _LOSS.search(line.text)
    return Figure(
        line.number,
        label,
        number(match[1]),
        len(match[1].partition(".")[2]),
        number(loss[1]) if loss else None,
    )


def _marks(line: Line) -> Iterator[Mark]:
    text, at = line.text, line.number
    if match := _ARTIFACT.match(text):
        name = (match["format"] or match["packed"]).strip().lower()
        yield Mark(at, "artifact", name, {"bytes": number(match["bytes"])})
    elif match := _CODE.match(text):
        yield Mark(at, "code", match["packed"].strip(" ()_").lower(), {"bytes": number(match["bytes"])})
    elif match := _STOP.match(text):
        values, coarse, _ = _values(text)
        found = {key: values[key] for key in ("seconds",) if key in values} | {"coarse": coarse}
        if where := _STOPPED_AT.search(text):
            found["step"] = number(where[1])
            if where[2]:
                found["total"] = number(where[2])
        yield Mark(at, "stop", match["why"].strip().lower(), found)
    elif match := _MODE.match(text):
        yield Mark(at, "mode", match[1].lower())
    elif _CRASH.search(text):
        yield Mark(at, "crash", text.strip()[:100])
    elif match := _WEIGHTS.match(text):
        bits = float(match[1]) if match[1] else (5.0 if number(match[2]) > number(match[3]) else 6.0)
        yield Mark(at, "weights", text.strip()[:100], {"bits": bits})
    elif match := _SCALE.search(text):
        yield Mark(
            at, "multiplier", text.strip()[:100], {"step": number(match[1]), "scale": number(match[2])}
        )
    elif _EMA.search(text):
        yield Mark(at, "ema", text.strip()[:100])
    elif _NO_EMA.search(text):
        yield Mark(at, "no ema", text.strip()[:100])
    elif _MIXED.search(text):
        yield Mark(at, "mixed", text.strip()[:100])
    if _TTT.search(text):
        yield Mark(at, "ttt", text.strip()[:100])
    elif _SLIDING.search(text) and not _FIGURE.search(text):
        yield Mark(at, "sliding", text.strip()[:100])
