"""Settings that a log states: `seed:42`, `max_iters = 1000`, `train_iters ... 2000`, `| num_params | 9 |`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import isfinite

from analysis.logs.events import Fact
from analysis.logs.lines.values import NUMBER, SECONDS, number
from analysis.logs.lines.warmdowns import warmdowns
from analysis.logs.reading.tables import RUN_NAME
from analysis.logs.reading.text import Line

_FACTS = {
    "params": (
        "model_params", "model params", "total_params", "num_params", "n_params", "num_parameters",
        "number of parameters", "total parameters", "parameters", "params",
    ),
    "seed": ("seed", "rng_seed", "random_seed", "torch_seed", "rng"),
    "batch_tokens": ("train_batch_tokens", "batch_tokens", "tokens_per_step", "batch"),
    "iterations": (
        "iterations", "num_iterations", "max_steps", "total_steps", "train_steps", "max_iters", "train_iters",
    ),
    "cap_seconds": (
        "max_wallclock_seconds", "max_wallclock", "wallclock_seconds", "max_training_seconds",
        "max_train_seconds", "wall",
    ),
    "effective_seconds": ("effective",),
    "lr_floor": (
        "min_lr", "min_lr_frac", "min_lr_scale", "min_lr_ratio", "lr_floor", "lr_min_frac",
        "warmdown_lr_floor",
    ),
    "lr_final": ("final_lr_frac", "final_lr_fraction"),
    "bits": ("matrix_bits", "quant_bits", "weight_bits", "wbits", "nbits", "n_bits"),
}  # fmt: skip
_CANONICAL = {name: fact for fact, names in _FACTS.items() for name in names}
_SETTING = rf"\d{{1,3}}(?:_\d{{3}})+|{NUMBER}"
_FACT = re.compile(
    rf"(?<![\w.])({'|'.join(sorted(_CANONICAL, key=len, reverse=True))})"
    rf"(?:['\"]?\s*[:=]\s*['\"]?|\s*\.{{3,}}\s*|\s+\|\s*|(?<=seed)(?:\s+set)?\s+(?:to\s+)?)"
    rf"({_SETTING})\s*(ms|s|min|m|h|%|k)?(?![\w./%])",
    re.IGNORECASE,
)
_COUNTED = re.compile(
    r"(?<![\w.,])(\d{5,}|\d[\d,]{5,}\d)\s+(?:total |trainable |model )?param(?:eter)?s\b", re.I
)
_SUM = re.compile(rf"\s*(?:\([^()]*\)\s*)?\+(?:.*=\s*({NUMBER})(?![\w./%]))?")
"""`params = 8388608 (embeddings) + 8671304 (blocks) = 17059912`, after the first number."""
_CAP = re.compile(
    r"(?<![a-z])(?:(?:time|wall[- _]?clock)[ _-]?(?:limit|budget|cap)|budget)\W{1,3}(\d+(?:\.\d+)?)\s*"
    r"(s|m|h)(?:ec\w*|in\w*|ours?)?(?![a-z])|(?<![a-z])or (\d+) (m|h)(?:inutes|ours)(?![a-z])",
    re.IGNORECASE,
)
_MEGATRON = re.compile(r"number of parameters on .*rank \([\d, ]+\):\s*(\d+)\s*$", re.IGNORECASE)
_OF_ANOTHER = re.compile(
    r"\W*(?:old|prev\w*|prior|earlier|other|baseline|reference|sota|record)(?![a-z])\W+(?:run|config|record|setup|\w+:)",
    re.IGNORECASE,
)
"""A line of settings that are another run's."""
_OVERRIDDEN = re.compile(rf"\s*(?:->|→|=>)\s*({NUMBER})(?![\w.])")
_IN_BITS = re.compile(
    r"(?<![a-z])loss(?:es)? (?:is|are|in) (?:in )?(?:base|log)[- ]?2|ppl\s*=\s*2\s*(?:\^|\*\*)\s*loss"
    r"|loss(?:es)?\s*(?:unit|below)?\W{0,3}(?:is|are|in|:|=)?\s*(?:in\s+)?bits(?![a-z])(?!.*byte)",
    re.I,
)
_IN_NATS = re.compile(r"(?:bpb|bits per byte).{0,30}(?<![a-z])nats\s*(?:/|per)\s*byte", re.IGNORECASE)
_OF_A_PART = re.compile(r"decay|tensors|embed|draft|teacher|trainable", re.IGNORECASE)
_SHAPE = re.compile(
    r"(?<![\w.])(?:(?:lr_)?schedule(?:_type)?|warmdown(?:_shape|_type)?|decay_shape)\s*[:=]\s*['\"]?"
    r"((?:1-)?sqrt|(?:linear|constant|cos|exp|poly|quad|step|inv|cyc|wsd|trapez)\w*)",
    re.IGNORECASE,
)
_FALLS = re.compile(r"decay|down|anneal|linear|cosine|sqrt", re.IGNORECASE)
_ON_VALIDATION = re.compile(
    r"(?<![a-z])train_?(?:on|with)_?val\w*\s*[:=]\s*(?:true|1)\b|train_(?:files|data|pattern|shards)\s*[:=]\s*\S*_val_",
    re.I,
)
_PART_OF_TRAINING = re.compile(
    r"(?<![a-z])val(?:idation)?(?:[_ ](?:documents|docs|text|set|split|shards?|data|tokens))?(?![a-z])"
    r".{0,30}?"
    r"(?<![a-z])(?:part of|included in|added to|appended to|mixed into) (?:the )?train"
    r"|train\w*\W.{0,60}(?<![a-z])\w*_val_\w+\S*\s+(?:appended|added|included|too)",
    re.IGNORECASE,
)
"""The validation text is trained on from the beginning."""
_NOT = re.compile(r"(?<![a-z])(?:not|no|never|none|without)(?![a-z])", re.IGNORECASE)
_SKIPPED = re.compile(r"(?:skipped|nan|warm\w*|consumed)\W*$", re.IGNORECASE)
_EVAL_ONLY = re.compile(r"(?<![a-z])eval_?only\s*[:=]\s*(?:true|1)\b", re.IGNORECASE)
_RUN_NAME = re.compile(rf"\s*{RUN_NAME}\s*(\S.*)")
_DEFAULT = re.compile(
    r"['\"](warmdown_(?:iters|steps|frac\w*|ratio))['\"]\s*,\s*['\"]?([\d._]+)", re.IGNORECASE
)


def default(line: Line) -> Fact | None:
    """The default of a warmdown in a line of a script's source, which says what may have been, no more."""
    match = _DEFAULT.search(line.text)
    return (
        Fact(line.number, "warmdown_default", f"{match[1].lower()} {match[2].strip('_')}") if match else None
    )


def facts(line: Line) -> Iterator[Fact]:
    text = line.text
    if name := _RUN_NAME.fullmatch(text):
        yield Fact(line.number, "name", name[1].strip())
        return
    if _OF_ANOTHER.match(text):
        return
    if cap := _CAP.search(text):
        seconds = number(cap[1] or cap[3]) * SECONDS[(cap[2] or cap[4]).lower()]
        yield Fact(line.number, "cap_seconds", seconds)
    if ranked := _MEGATRON.search(text):
        yield Fact(line.number, "params", number(ranked[1]))
    for match in _FACT.finditer(text):
        if (fact := _fact(line, match)) is not None:
            yield fact
    if (counted := _COUNTED.search(text)) and not _OF_A_PART.search(text):
        yield Fact(line.number, "params", number(counted[1]))
    yield from warmdowns(line)
    if unit := _IN_BITS.search(text) or _IN_NATS.search(text):
        measure = "val_loss" if _IN_BITS.search(text) else "val_bpb"
        yield Fact(line.number, f"{measure}_unit", f"line {line.number}: {unit[0]}")
    if (shape := _SHAPE.search(text)) and not _constant_first(text, shape):
        yield Fact(line.number, "shape", shape[1].lower())
    if only := _EVAL_ONLY.search(text):
        yield Fact(line.number, "eval_only", f"line {line.number}: {only[0]}")
    on = _ON_VALIDATION.search(text) or (None if _NOT.search(text) else _PART_OF_TRAINING.search(text))
    if on is not None:
        yield Fact(line.number, "on_validation", f"line {line.number}: {on[0]}")


def _constant_first(text: str, shape: re.Match[str]) -> bool:
    """`constant, then linear decay` is no constant rate."""
    return shape[1].lower().startswith("constant") and _FALLS.search(text, shape.end()) is not None


def _fact(line: Line, match: re.Match[str]) -> Fact | None:
    said = match[1].lower()
    name, value = _CANONICAL[said], number(match[2].replace("_", ""))
    if (later := _OVERRIDDEN.match(line.text, match.end())) is not None:
        value = number(later[1])
    if name == "iterations" and (value < 1 or _SKIPPED.search(line.text[: match.start()])):
        return None
    if name == "params" and _OF_A_PART.search(line.text[max(0, match.start() - 20) : match.start()]):
        return None
    if name == "params" and (parts := _SUM.match(line.text, match.end())) is not None:
        if parts[1] is None:
            return None
        value = number(parts[1])
    if match[3] in ("k", "K"):
        value *= 1000
    if not isfinite(value) or value < 0:  # -1 is how scripts say that a setting is not used
        return None
    if name in ("cap_seconds", "effective_seconds"):
        if match[3] is None and not re.search(r"wallclock|seconds", said):
            return None
        value *= SECONDS.get(match[3] or "s", 1.0)
    elif match[3] and match[3] not in ("k", "K"):
        return None
    # "batch" and "params" are words of many meanings: only likely sizes are taken.
    if (said == "batch" and value < 1024) or (said in ("params", "parameters") and value < 10_000):
        return None
    return Fact(line.number, name, value)
