"""Which stage of the job a printed figure measures: by the words before it, and by what went before the line.

Stages are those of `analysis.runs.units.STAGES`. One that cannot be told apart is filed nowhere, with why.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import isfinite

from analysis.logs.events import Figure, Mark
from analysis.logs.split import Training

FINALS = ("ema_bpb", "int6_bpb", "int6_sliding_bpb", "ttt_bpb")
ABSENT = "not in the log"

_SLIDING = {"sliding", "slide", "window", "windows", "sw", "strided", "stride", "overlapping"}
_QUANTIZED = {
    "quant", "quantized", "quantised", "quantize", "roundtrip", "dequantized", "dequantize", "dequant",
    "gptq", "int",
    "decoded", "decompressed", "reloaded", "reload", "unpacked", "exported", "deployed", "packed",
}  # fmt: skip
_NEUTRAL = {
    "final", "exact", "diagnostic", "eval", "evaluation", "val", "post", "model", "artifact", "submission",
    "loaded", "legal", "plain", "zstd", "zst", "zlib", "deflate", "lzma", "bcj", "brotli", "br", "xz", "gz",
    "gzip", "bz", "bzip", "lz", "ans", "rans", "arithcode", "huffman",
    "the", "with", "after", "of", "reaches", "is", "at", "chunk", "result", "results", "bpb", "average",
    "pergroup", "per", "group", "row", "mixed", "lite", "full", "phased", "lora", "score", "first", "done",
    "sgd", "causal", "chunked", "online", "prequantization", "quantization", "weights", "applied",
    "s", "v", "applying", "using", "we", "get", "ours", "our", "this", "run", "context", "ctx", "averaged",
    "live", "float", "unquantized", "prequential", "on", "and", "then", "",
}  # fmt: skip
"""Words of a label that leave its stage what the others say; with any word not known here it is none."""
_CHUNKED = re.compile(
    r"prequential|graded|(?:per|each|every)[- ]block"
    r"|chunks?\s*=|chunk_tokens|chunk_size|ttt_chunk|sliding|lora|phased|legal|score|causal|online|per-doc|docs\b|ttp|tttg",
    re.IGNORECASE,
)
"""Test-time training that scores a piece of the text before it trains on it."""
_BEGUN = re.compile(
    r"(?<![a-z])(?:start(?:s|ed|ing)?|begin\w*|running|adapting|dynamic\w*)(?![a-z])", re.IGNORECASE
)
"""The line is of test-time training itself, not of its settings."""
_WIDTH = re.compile(
    r"u?int(\d+)|(?<!\d)(\d+)[-_ ]?bits?(?![a-z])|(?<![a-z])[qw](\d)(?![\d.])|(?<![a-z])bits[=: ]+(\d)(?!\d)"
)
TERNARY, MIXED, FLOAT, OTHER = 1.58, 0.0, 32.0, -1.0
_SLICE = re.compile(r"\[\d*:\d*\]")
_PASSES = re.compile(r"epoch\W*\d+\s*/\s*\d|pre[-_ ]?quant", re.IGNORECASE)
"""Training on the whole text before any of it is scored."""
_IDLE = re.compile(
    r"compil|warm(?:ing)?[-_ ]?up|disabled|skip|\boff\b|not run|ttt_enabled|enabled\s*[:=]\s*(?:0|false)"
    r"|not used|[:=]\s*none|epochs\s*[:=]\s*0\b|=0\.0s|saved|config"
    r"|grad_steps|timer|precompute|hints|no val data",
    re.IGNORECASE,
)
_ANNOUNCED = {"standard": "int6_bpb", "sliding_window": "int6_sliding_bpb", "sliding_window_ttt": "ttt_bpb"}
_UNLIKELY = 6  # decimals that two measurements do not share by chance


@dataclass
class Stages:
    """Finals by column; for every column without one the reason; figures that were filed nowhere."""

    values: dict[str, float] = field(default_factory=dict)
    why_not: dict[str, str] = field(default_factory=dict)
    unfiled: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Filed:
    """A figure and the column it belongs to, or why it belongs to none."""

    figure: Figure
    column: str | None
    why: str = ""


@dataclass
class _State:
    """What the lines so far say of the weights that are being measured, and how."""

    bits: float | None = None  # of the quantizer; MIXED of one that uses several widths
    quantized: bool = False
    sliding: bool = False  # announced for the figure that comes
    mode: str | None = None  # the same, in the words of older scripts
    chunked: bool = False  # test-time training that scores first has begun
    begun: Mark | None = None  # where it did
    adapted: Mark | None = None  # trained on the text that is scored
    passes: bool = False  # in whole passes over it
    before: bool = False  # before the weights were quantized
    no_ema: Mark | None = None
    mixed: Mark | None = None  # the model's probabilities with those of counts
    part: Mark | None = None  # the figure that comes is of a part of the text


def stages(run: Training) -> Stages:
    """File every figure that a run printed after its last step; see the module."""
    found, state, filed = Stages(), _State(), list[_Filed]()
    bits = run.facts.get("bits")
    state.bits = bits if isinstance(bits, float) else None
    if on := run.facts.get("on_validation"):
        state.adapted, state.passes = Mark(0, "learns", str(on)), True
    for event in run.after:
        if isinstance(event, Mark):
            _observe(state, event)
            continue
        filed.append(_file(event, state, filed))
        _enter(found, filed[-1], filed[:-1], state)
        _after(state, filed[-1])
    found.why_not = {c: found.why_not.get(c, ABSENT) for c in FINALS if c not in found.values}
    return found


def _observe(state: _State, mark: Mark) -> None:
    if mark.kind == "artifact":
        if state.mixed is not None and state.mixed.kind == "pruned":
            state.mixed = None  # to fit: this is the artifact of the pruned weights
        packed = re.search(r"int\d|\dbit|quant|mixed|ternary|compressed|zstd|zlib|lzma|brotli", mark.text)
        state.quantized = state.quantized or bool(packed)
        if state.bits is None and (widths := _widths(mark.text)):
            state.bits = min(widths)
    elif mark.kind == "weights":
        state.bits = mark.values["bits"]
    elif mark.kind in ("ema", "no ema"):
        state.no_ema = mark if mark.kind == "no ema" else None
    elif mark.kind == "mixed" or (mark.kind == "pruned" and state.quantized):
        state.mixed = state.mixed if _IDLE.search(mark.text) else mark
    elif mark.kind == "mode":
        state.mode = mark.text
        state.chunked = state.chunked or "ttt" in mark.text
    elif mark.kind == "sliding" and not _IDLE.search(mark.text):
        state.sliding = True
    elif mark.kind == "part":
        state.part = mark
    elif mark.kind == "restored":
        state.adapted, state.passes, state.before, state.mixed = None, False, False, None
        state.begun = None
    elif mark.kind == "learns" and not _IDLE.search(mark.text):
        _adapt(state, mark)
        state.passes = True
    elif mark.kind == "ttt" and not _IDLE.search(mark.text) and not state.chunked:
        if _CHUNKED.search(mark.text) and not _PASSES.search(mark.text):
            state.chunked = True
            if _BEGUN.search(mark.text):
                state.begun = mark
        else:
            _adapt(state, mark)


def _adapt(state: _State, mark: Mark) -> None:
    if state.adapted is None:
        state.adapted, state.before = mark, not state.quantized
    state.passes = state.passes or bool(_PASSES.search(mark.text))


def _after(state: _State, filed: _Filed) -> None:
    """What a printed figure says of those after it."""
    label = _before_ttt(filed.figure.label)[0]
    state.part = None
    if "ttt" in label:
        if state.quantized:
            state.chunked = state.chunked or state.adapted is None
        else:
            _adapt(state, Mark(filed.figure.line, "ttt", filed.figure.label))
    elif filed.column == "int6_sliding_bpb" and "slid" in label:
        state.sliding = False
    state.quantized = state.quantized or bool(filed.column and filed.column.startswith("int6"))


def _before_ttt(label: str) -> tuple[str, bool]:
    """The label without words that it precedes test-time training, and whether there were any."""
    label = label.lower()
    shorter = re.sub(r"(?:pre|before|no)[-_ ]ttt", " ", label)
    return shorter, shorter != label


def _joined(label: str) -> str:
    """The label with what precedes quantization, follows it, or is called EMA, as one word."""
    label = re.sub(r"exponential(?:ly)?[-_ ]moving[-_ ]average[ds]?(?![a-z])", "ema", label)
    label = re.sub(r"(?<![a-z])polyak(?:[- ]averag\w+)?", "ema", label)
    label = re.sub(r"online[- ]adapt\w+|adapt\w+[- ]online", "ttt", label)
    label = re.sub(r"after (?:the )?quantization", "quantized", label)
    label = re.sub(r"post[-_ ]?quant(?:iz\w+)?(?![a-z])", "quantized", label)
    return re.sub(r"pre[-_ ]?quant(?:iz\w+)?(?![a-z])", "prequantization", label)


def _widths(text: str) -> set[float]:
    """Bits of weights that a text names."""
    named = {float(next(filter(None, found))) for found in _WIDTH.findall(text)}
    if "ternary" in text:
        named.add(TERNARY)
    return named or ({MIXED} if "mixed" in text else named)


def _format(bits: float) -> str:
    said = {
        TERNARY: "ternary weights",
        MIXED: "mixed widths",
        FLOAT: "unquantized weights",
        OTHER: "another format",
    }
    return said.get(bits, f"int{bits:g}")


def _file(figure: Figure, state: _State, filed: list[_Filed]) -> _Filed:
    if not isfinite(figure.bpb):
        return _Filed(figure, None, "not a finite number")
    if (twin := _printed_before(figure, filed)) is not None:
        return _Filed(figure, twin.column, twin.why)
    if state.part is not None:
        return _Filed(figure, None, f"of a part of the text (line {state.part.line}: {state.part.text})")
    if _SLICE.search(figure.label):
        return _Filed(figure, None, f"'{figure.label}' is of a part of the text")
    label, before_ttt = _before_ttt(figure.label)
    bits = _widths(label)
    words = {
        word.rstrip("0123456789") for word in re.findall(r"[a-z0-9]+", _WIDTH.sub("int", _joined(label)))
    }
    ttt = {word for word in words if "ttt" in word}
    unquantized = words & {"float", "unquantized"}
    if unquantized and words & _QUANTIZED:
        return _Filed(figure, None, f"'{figure.label}' names two formats")
    if words - ttt - _SLIDING - _QUANTIZED - _NEUTRAL - {"ema"} or (
        ttt and ("mixed" in words or unquantized)
    ):
        return _Filed(figure, None, f"'{figure.label}' is none of the job's stages")
    if ttt:
        return _test_time(figure, state, bits)
    if state.adapted is not None:
        return _Filed(figure, None, _adapted(state.adapted))
    sliding = bool(words & _SLIDING)
    quantized = before_ttt or bool(words & _QUANTIZED) or (sliding and state.quantized)
    if "prequantization" in words or not quantized:
        return _unquantized(figure, state, words)
    if (width := _width(bits, state)) != 6.0:
        return _Filed(figure, None, f"'{figure.label}' is of {_format(width)}, not int6")
    if (mixed := state.mixed) is not None:
        return _Filed(figure, None, f"measured with more than the model (line {mixed.line}: {mixed.text})")
    if sliding and state.begun is not None:
        return _Filed(figure, None, _adapted(state.begun))
    if sliding:
        return _Filed(figure, "int6_sliding_bpb")
    return _Filed(figure, "int6_bpb") if before_ttt else _roundtrip(figure, state)


def _printed_before(figure: Figure, filed: list[_Filed]) -> _Filed | None:
    """Where a number was printed first: it is one measurement, whatever it is called later.

    A line of exact values repeats the line before it, which may be the one that says what was measured.
    """
    if filed and "exact" in figure.label.lower() and _agrees(figure, filed[-1].figure):
        return filed[-1]
    for one in filed:
        exact = min(figure.digits, one.figure.digits) >= _UNLIKELY
        if one.column and exact and _agrees(figure, one.figure):
            return one
    return None


def _agrees(a: Figure, b: Figure) -> bool:
    """Whether two values are one but for rounding."""
    bound = 0.51 * 10.0 ** -min(a.digits, b.digits) + 1e-12
    if a.loss is not None and b.loss is not None and not abs(a.loss - b.loss) <= bound:
        return False
    return abs(a.bpb - b.bpb) <= bound


def _width(bits: set[float], state: _State) -> float:
    """Bits of a quantized figure: by its name, else by what the log says of its weights, else the job's 6."""
    if bits:
        return min(bits)
    return 6.0 if state.bits is None else state.bits


def _unquantized(figure: Figure, state: _State, words: set[str]) -> _Filed:
    if "ema" not in words or words & _SLIDING:
        return _Filed(figure, None, f"'{figure.label}' is of weights or windows that are no stage of the job")
    if state.no_ema is not None:
        why = f"the log says that it was not applied (line {state.no_ema.line}: {state.no_ema.text})"
        return _Filed(figure, None, why)
    return _Filed(figure, "ema_bpb")


def _test_time(figure: Figure, state: _State, bits: set[float]) -> _Filed:
    scores_first = bool(_CHUNKED.search(figure.label))
    if state.adapted is not None and (state.passes or state.before or not (state.chunked or scores_first)):
        return _Filed(figure, None, _adapted(state.adapted))
    if not state.quantized and not bits:
        return _Filed(figure, None, f"'{figure.label}' is of weights that were not quantized yet")
    if (width := _width(bits, state)) != 6.0:
        return _Filed(figure, None, f"'{figure.label}' is of {_format(width)}, not int6")
    return _Filed(figure, "ttt_bpb")


def _roundtrip(figure: Figure, state: _State) -> _Filed:
    """A plain name, under which older scripts print whatever evaluation they announced."""
    if state.mode is not None:
        if (column := _ANNOUNCED.get(state.mode)) is not None:
            return _Filed(figure, column)
        return _Filed(figure, None, f"'{figure.label}' is of the evaluation {state.mode}, none of the stages")
    if state.chunked:
        return _Filed(figure, "ttt_bpb")
    return _Filed(figure, "int6_sliding_bpb" if state.sliding else "int6_bpb")


def _adapted(mark: Mark) -> str:
    known = re.search(r"ttt|val|test|quant", mark.text, re.IGNORECASE)
    what = "adapting to the validation text" if known else "further training, on what is not said"
    where = f"line {mark.line}: {mark.text}" if mark.line else mark.text
    return f"measured after {what} ({where})"


def _enter(found: Stages, new: _Filed, earlier: list[_Filed], state: _State) -> None:
    """Take a figure's value, unless its column has one: of two that differ the first counts."""
    figure, column = new.figure, new.column
    where = f"line {figure.line}: {figure.bpb:g}"
    if column is None:
        found.unfiled.append(f"{where} not filed: {new.why}")
        if (claimed := _claimed(figure.label)) is not None:
            found.why_not.setdefault(claimed, new.why)
        return
    held = [one.figure for one in earlier if one.column == column and isfinite(one.figure.bpb)]
    if not held:
        if "int6" in figure.label and state.bits not in (None, 6.0):
            found.notes.append(f"{column} is called int6; by the log most weights are {_format(state.bits)}")
        if state.mixed is not None:
            found.notes.append(
                f"{column} is of more than the model (line {state.mixed.line}: {state.mixed.text})"
            )
        if column == "int6_sliding_bpb" and state.chunked:
            found.notes.append(f"{column} was printed after test-time training, whose weights it may be of")
        found.values[column] = figure.bpb
    elif column not in found.values:
        return
    elif column == "ema_bpb" and not _agrees(figure, held[0]) and figure.label != held[0].label:
        del found.values[column]
        found.why_not[column] = (
            f"of several averages ({held[0].label}, {figure.label}), the log has no one figure"
        )
    elif not _agrees(figure, held[0]):
        found.notes.append(f"{column} is the first of two; {where} ({figure.label}) differs")
    elif figure.digits > max(one.digits for one in held if _agrees(one, held[0])):
        found.values[column] = figure.bpb


def _claimed(label: str) -> str | None:
    """The column that a figure would have filled by its name alone."""
    label = label.lower()
    if "ttt" in label:
        return "ttt_bpb"
    if "ema" in re.findall(r"[a-z]+", label):
        return "ema_bpb"
    if not re.search(r"int\d|quant|roundtrip", label):
        return None
    return "int6_sliding_bpb" if "slid" in label else "int6_bpb"
