"""Which stage of the job a printed figure measures: by the words before it, and by what went before the line.

Stages are those of `analysis.runs.units.STAGES`. One that cannot be told apart is filed nowhere, with why.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import isfinite

from analysis.logs.lines import Figure, Mark
from analysis.logs.split import Training

ABSENT = "not in the log"
FINALS = ("ema_bpb", "int6_bpb", "int6_sliding_bpb", "ttt_bpb")

_SLIDING = {"sliding", "slide", "window", "windows", "sw", "strided"}
_QUANTIZED = {"quant", "quantized", "quantised", "roundtrip", "dequantized", "gptq", "int"}
_NEUTRAL = {
    "final", "exact", "diagnostic", "eval", "evaluation", "val", "post", "model", "artifact", "submission",
    "loaded", "legal", "zstd", "zlib", "lzma", "brotli", "xz", "gz", "gzip", "bz", "ans", "rans", "arithcode",
    "pergroup", "per", "group", "row", "mixed", "lite", "full", "phased", "lora", "score", "first", "done",
    "sgd", "chunked", "prequantization", "quantization", "weights", "applied", "stride", "s", "v", "",
}  # fmt: skip
"""Words of a label that leave its stage what the others say; with any word not known here it is none."""
_CHUNKED = re.compile(
    r"chunks?\s*=|chunk_tokens|chunk_size|ttt_chunk|sliding|lora|phased|legal|score|per-doc|docs\b|ttp|tttg",
    re.I,
)
_PASSES = re.compile(r"epoch\W*\d+\s*/\s*\d|pre[-_ ]?quant", re.IGNORECASE)
_IDLE = re.compile(
    r"compil|warm|disabled|skip|\boff\b|not run|ttt_enabled|enabled\s*[:=]\s*(?:0|false)|=0\.0s|saved|config"
    r"|grad_steps|timer|precompute|hints|no val data",
    re.IGNORECASE,
)


@dataclass
class Stages:
    """Finals by column; for every column without one the reason; figures that were filed nowhere."""

    values: dict[str, float] = field(default_factory=dict)
    why_not: dict[str, str] = field(default_factory=dict)
    unfiled: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    digits: dict[str, int] = field(default_factory=dict)


@dataclass
class _State:
    """What the lines so far say of the weights that are being measured."""

    adapted: Mark | None = None  # weights that were trained on the validation text
    passes: bool = False  # in whole passes over it, not chunk by chunk after scoring
    before: bool = False  # and before they were quantized
    chunked: bool = False  # test-time training that scores each chunk before it trains on it
    quantized: bool = False
    sliding: bool = False
    no_ema: Mark | None = None
    bits: float | None = None
    mode: str | None = None


def stages(run: Training) -> Stages:
    """File every figure of a run; see the module."""
    found, state = Stages(), _State()
    state.bits = run.facts.get("bits") if isinstance(run.facts.get("bits"), float) else None  # type: ignore[assignment]
    seen: list[tuple[Figure, str | None]] = []
    printed: list[Figure | Mark] = [*run.figures, *run.marks]
    for event in sorted((e for e in printed if e.line > run.end_line), key=lambda e: e.line):
        if isinstance(event, Mark):
            _observe(state, event)
            continue
        column, why = _filed(event, state, seen) if isfinite(event.bpb) else (None, "not a finite number")
        seen.append((event, column))
        if column and column not in found.values and "int6" in event.label and state.bits not in (None, 6.0):
            found.notes.append(f"{column} is called int6; by the log most weights are int{state.bits:g}")
        _enter(found, event, column, why)
        _after(state, event, column)
    found.why_not = {c: found.why_not.get(c, ABSENT) for c in FINALS if c not in found.values}
    return found


def _observe(state: _State, mark: Mark) -> None:
    if mark.kind == "artifact":
        packed = re.search(r"int(\d)|quant|ternary|fp\d|nvfp", mark.text)
        state.quantized = state.quantized or bool(packed)
        if packed and packed[1] and state.bits is None:
            state.bits = float(packed[1])
    elif mark.kind == "weights":
        state.bits = mark.values["bits"] if state.bits is None else state.bits
    elif mark.kind == "no ema":
        state.no_ema = mark
    elif mark.kind == "mode":
        state.mode = mark.text
        state.chunked = state.chunked or "ttt" in mark.text
    elif mark.kind == "sliding":
        state.sliding = True
    elif mark.kind == "ttt" and not _IDLE.search(mark.text) and not state.chunked:
        if _CHUNKED.search(mark.text) and not _PASSES.search(mark.text):
            state.chunked = True
        else:
            _adapt(state, mark)


def _adapt(state: _State, mark: Mark) -> None:
    if state.adapted is None:
        state.adapted, state.before = mark, not state.quantized
    state.passes = state.passes or bool(_PASSES.search(mark.text))


def _after(state: _State, figure: Figure, column: str | None) -> None:
    """What a printed figure says of those after it."""
    label = _before_ttt(figure.label)[0]
    if "ttt" in label:
        if state.quantized:
            state.chunked = True
        else:
            _adapt(state, Mark(figure.line, "ttt", figure.label))
    elif column == "int6_sliding_bpb" and "slid" in label:
        state.sliding = False
    state.quantized = state.quantized or bool(column and column.startswith("int6"))


def _before_ttt(label: str) -> tuple[str, bool]:
    """The label without words that it precedes test-time training, and whether there were any."""
    label = label.lower()
    shorter = re.sub(r"(?:pre|before|no)[-_ ]ttt", " ", label)
    return shorter, shorter != label


def _filed(figure: Figure, state: _State, seen: list[tuple[Figure, str | None]]) -> tuple[str | None, str]:
    """(column, '') or (None, why not)."""
    for other, column in seen:
        # A number printed again is the same measurement, whatever it is called the second time.
        if (
            column
            and _agrees(figure, other)
            and (min(figure.digits, other.digits) >= 6 or _alike(figure, other))
        ):
            return column, ""
    label, before_ttt = _before_ttt(figure.label)
    bits = {float(width) for width in re.findall(r"int(\d)", label)}
    words = {word.rstrip("0123456789") for word in re.findall(r"[a-z0-9]+", label.replace("e-q", "eq"))}
    if any("ttt" in word for word in words):
        words = {word for word in words if "ttt" not in word}
        if words - _SLIDING - _QUANTIZED - _NEUTRAL - {"ema"}:
            return None, f"'{figure.label}' is none of the job's stages"
        return _test_time(figure, state, bits)
    if words - _SLIDING - _QUANTIZED - _NEUTRAL - {"ema"}:
        return None, f"'{figure.label}' is none of the job's stages"
    if state.adapted is not None:
        return None, _adapted(state.adapted)
    sliding = bool(words & _SLIDING)
    quantized = before_ttt or bool(words & _QUANTIZED) or (sliding and "final" in words and state.quantized)
    if "prequantization" in words or not quantized:
        if "ema" not in words or sliding:
            return None, f"'{figure.label}' does not say of which weights, or of none that the job measures"
        if state.no_ema is not None:
            return None, f"the log says that no average was applied (line {state.no_ema.line})"
        return "ema_bpb", ""
    if (width := _width(bits, state)) != 6.0:
        return None, f"'{figure.label}' is of int{width:g}, not int6"
    if sliding:
        return "int6_sliding_bpb", ""
    return ("int6_bpb", "") if before_ttt else _roundtrip(figure, state)


def _adapted(mark: Mark) -> str:
    return f"measured after adapting to the validation text (line {mark.line}: {mark.text})"


def _width(bits: set[float], state: _State) -> float:
    """Bits of a quantized figure: by its name, else by what the log says of its weights, else the job's 6."""
    if bits:
        return min(bits)
    return 6.0 if state.bits is None else state.bits


def _test_time(figure: Figure, state: _State, bits: set[float]) -> tuple[str | None, str]:
    if state.adapted is not None and (state.passes or state.before):
        return None, _adapted(state.adapted)
    if not state.quantized and not bits:
        return None, f"'{figure.label}' is of weights that were not quantized yet"
    width = _width(bits, state)
    return ("ttt_bpb", "") if width == 6.0 else (None, f"'{figure.label}' is of int{width:g}, not int6")


_ANNOUNCED = {"standard": "int6_bpb", "sliding_window": "int6_sliding_bpb", "sliding_window_ttt": "ttt_bpb"}


def _roundtrip(figure: Figure, state: _State) -> tuple[str | None, str]:
    """A plain name, under which older scripts print whatever evaluation they announced."""
    if state.mode is not None:
        column = _ANNOUNCED.get(state.mode)
        return (
            column,
            "" if column else f"'{figure.label}' is of the evaluation {state.mode}, none of the stages",
        )
    if state.chunked:
        return "ttt_bpb", ""
    return ("int6_sliding_bpb" if state.sliding else "int6_bpb"), ""


def _alike(a: Figure, b: Figure) -> bool:
    """One name, but for how exact the value is and what stands in brackets."""
    stems = [re.sub(r"[-_ ]exact|\(.*\)", "", figure.label.lower()).strip() for figure in (a, b)]
    return stems[0] == stems[1]


def _agrees(a: Figure, b: Figure) -> bool:
    digits = min(a.digits, b.digits)
    return isfinite(a.bpb) and isfinite(b.bpb) and abs(a.bpb - b.bpb) <= 0.51 * 10.0**-digits + 1e-12


def _enter(found: Stages, figure: Figure, column: str | None, why: str) -> None:
    where = f"line {figure.line}: {figure.bpb:g}"
    if column is None:
        found.unfiled.append(f"{where} not filed: {why}")
        claimed = _claimed(figure.label)
        if claimed and claimed not in found.values:
            found.why_not.setdefault(claimed, why)
        return
    if column not in found.values:
        found.values[column], found.digits[column] = figure.bpb, figure.digits
        return
    held = Figure(0, "", found.values[column], found.digits[column])
    if not _agrees(figure, held):
        found.notes.append(f"{column} is the first of two; {where} ({figure.label}) differs")
    elif figure.digits > held.digits:
        found.values[column], found.digits[column] = figure.bpb, figure.digits


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
