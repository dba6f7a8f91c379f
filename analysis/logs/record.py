"""One run of a log as the row and the curve that the analysis reads, and why some cells are empty."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import log

from analysis.logs.ends import DONE, End, end
from analysis.logs.events import MEASURES
from analysis.logs.split import Training
from analysis.logs.stages import FINALS, Stages, stages
from analysis.logs.warmdown import Warmdown, clock, warmdown
from analysis.runs.errors import AnalysisError

COLUMNS = (
    "run_id", "status", "steps", "planned_steps", "stopped_by", "cap_seconds", "peak_steps", "warmdown_steps",
    "schedule", "final_lr_fraction", "warmdown_fraction", "warmdown_of", "params", "train_tokens",
    "float_bpb", *FINALS, "artifact_bytes", "code_bytes", "train_seconds", "seed", "source", "notes",
)  # fmt: skip
WHOLE = (
    "steps", "planned_steps", "peak_steps", "warmdown_steps", "params", "train_tokens", "artifact_bytes",
    "code_bytes", "seed",
)  # fmt: skip
_MOST_WHOLE = 2**63  # what a column of whole numbers holds
CURVE = ("step", "val_bpb", "val_loss", "ema_val_bpb", "train_loss", "train_time_ms")


@dataclass
class Record:
    """`row` by COLUMNS, None where unknown; `curve` by CURVE, a row for each validation."""

    row: dict[str, object]
    curve: list[dict[str, float]]
    why_not: dict[str, str] = field(default_factory=dict)  # column -> why it has no figure
    unfiled: list[str] = field(default_factory=list)  # figures that are of no column
    lines: tuple[int, int] = (0, 0)
    name: str = ""  # that the file gives the run


def record(run: Training, given: int | None = None, planned: int | None = None) -> Record:
    """The row of a run; `given`: its warmdown in steps, from who imports it, before what the log states.

    `planned`: the steps that it was to make, from who started it and saw it end well.

    Raises:
        AnalysisError: the warmdown given does not fit the run.
    """
    other_unit = _drop_other_units(run)
    ended = end(run, given is not None, planned)
    notes = [*run.notes, *ended.notes, *other_unit]
    if run.conflicts > 1:
        notes.append(
            f"{run.conflicts} steps have two values, of several runs or models? the later ones count"
        )
    finals = stages(run)
    if ended.status != DONE:
        finals = Stages(unfiled=finals.unfiled, why_not=dict.fromkeys(FINALS, f"the run is {ended.status}"))
    times = clock(run, ended.seconds)
    if ended.status != DONE:
        fall = Warmdown(note=f"warmdown unknown: the run is {ended.status}")
    elif given is not None:
        if not 0 <= given <= ended.steps:
            raise AnalysisError(f"a warmdown of {given:,} does not fit its {ended.steps:,} steps")
        fall = Warmdown(given, "linear" if given else "constant", note="warmdown as given")
    else:
        fall = warmdown(run, ended.steps, ended.planned, ended.stopped_by, times)
    why_not = dict(finals.why_not)
    last = _last(run, ended)
    final = last.get("val_bpb")
    if "ema_bpb" not in finals.values and "ema_val_bpb" in last:
        finals.values["ema_bpb"] = last["ema_val_bpb"]
        del why_not["ema_bpb"]
    if final is None:
        why_not["float_bpb"] = (
            f"the run is {ended.status}"
            if ended.status != DONE
            else f"no val_bpb at step {ended.steps:,}, its last"
        )
    for column, why in _beyond(finals.values).items():
        finals.unfiled.append(f"{column} {finals.values.pop(column):g} not filed: {why}")
        why_not[column] = why
    notes += [*finals.notes, *_doubtful(final, finals.values), *_per_token(run)]
    if ended.status == DONE:
        notes += [f"{', '.join(columns)}: {reason}" for reason, columns in _grouped(why_not).items()]
    notes.append(fall.note)
    batch, cap = run.facts.get("batch_tokens"), run.facts.get("cap_seconds")
    sizes, about = _sizes(run)
    row: dict[str, object] = {
        "run_id": "",
        "status": ended.status,
        "steps": ended.steps,
        "planned_steps": ended.planned,
        "stopped_by": ended.stopped_by or None,
        "cap_seconds": cap or None,
        "peak_steps": None if fall.steps is None else ended.steps - fall.steps,
        "warmdown_steps": fall.steps,
        "schedule": fall.schedule,
        "final_lr_fraction": fall.final,
        "warmdown_fraction": fall.fraction,
        "warmdown_of": fall.of,
        "params": _whole(run.facts.get("params")),
        "train_tokens": ended.steps * int(batch) if isinstance(batch, float) else None,
        "float_bpb": final,
        **{column: finals.values.get(column) for column in FINALS},
        **sizes,
        "train_seconds": round(times.at(ended.steps), 3)
        if times and times.steps[-1] == ended.steps
        else None,
        "seed": _whole(run.facts.get("seed")),
        "source": None,
        "notes": "; ".join(note for note in [*notes, *about] if note),
    }
    row |= {name: None for name in WHOLE if isinstance(n := row[name], int) and abs(n) >= _MOST_WHOLE}
    name, lines = str(run.facts.get("name", "")), (run.first_line, run.last_line)
    return Record(row, _curve(run), why_not, finals.unfiled, lines, name)


def _drop_other_units(run: Training) -> list[str]:
    """Leaves out losses that the log says are in bits, and bits per byte that are in nats."""
    notes = []
    for name in MEASURES:
        if said := run.facts.get(f"{name}_unit"):
            notes.append(f"{name} is of another unit and left out ({said})")
            for values in run.points.values():
                values.pop(name, None)
    return notes


def _last(run: Training, end: End) -> dict[str, float]:
    """The values of the last step; where steps count from 0, that is the step before."""
    if end.status != DONE:
        return {}
    last = end.steps - 1 if run.last == end.steps - 1 == (end.planned or 0) - 1 else end.steps
    return run.points.get(last, {})


def _grouped(why_not: dict[str, str]) -> dict[str, list[str]]:
    """Columns by the reason why they are empty."""
    reasons: dict[str, list[str]] = {}
    for column in sorted(why_not, key=COLUMNS.index):
        reasons.setdefault(why_not[column], []).append(column)
    return reasons


_GAINS = (
    ("ema_bpb", ("float_bpb",), 0.02, "the last step's, as sliding windows would be"),
    (
        "int6_bpb",
        ("ema_bpb", "float_bpb"),
        0.01,
        "the unquantized weights', as other averages or windows would be",
    ),
    ("int6_sliding_bpb", ("int6_bpb", "ema_bpb", "float_bpb"), 0.06, "the figure without windows"),
    ("ttt_bpb", ("int6_sliding_bpb", "int6_bpb", "ema_bpb", "float_bpb"), 0.08, "the figure without it"),
)
"""Column, those it is measured against (the first there is), its most likely gain, and the other in words."""


_MOST = {"int6_sliding_bpb": (("int6_bpb",), 0.06), "ttt_bpb": (("int6_sliding_bpb", "int6_bpb"), 0.08)}
"""What windows and legal test-time training gain at most on the same weights, several times the usual."""


def _beyond(values: dict[str, float]) -> dict[str, str]:
    """Figures that no such stage makes of the same weights: of a learnt text, or more than a model."""
    found = {}
    for column, (others, most) in _MOST.items():
        other = next((name for name in others if name in values and name not in found), None)
        if column in values and other is not None and (gain := values[other] - values[column]) > most:
            found[column] = (
                f"{values[column]:g} is {gain:.3f} below {other}, more than the stage gives: measured after "
                "learning the text, or with more than the model"
            )
    return found


def _doubtful(final: float | None, values: dict[str, float]) -> list[str]:
    """Figures that are better than their stage makes them: of something more, or of another stage."""
    values = values if final is None else values | {"float_bpb": final}
    notes = []
    for column, others, most, than in _GAINS:
        other = next((values[name] for name in others if name in values), None)
        if column in values and other is not None and values[column] < other - most:
            notes.append(f"{column} is {other - values[column]:.3f} below {than}: more than its stage gives")
    return notes


def _per_token(run: Training) -> list[str]:
    """Bits per byte that are the loss in bits are of a tokenizer of bytes, or no bits per byte."""
    points = [p for p in run.points.values() if "val_bpb" in p and "val_loss" in p]
    same = [abs(p["val_bpb"] * log(2) - p["val_loss"]) < 1e-3 * p["val_loss"] for p in points]
    return (
        ["val_bpb is val_loss in bits: of a byte tokenizer, or bits per token"] if same and all(same) else []
    )


_NOT_PACKED = re.compile(r"\+(?:none|raw|uncompressed)(?![a-z])")


def _sizes(run: Training) -> tuple[dict[str, int | None], list[str]]:
    """Bytes of the artifact and the code: of several formats that of int6, of one printed again the last."""
    sized = [mark for mark in run.marks if 0 < mark.values.get("bytes", 0) < _MOST_WHOLE]
    artifacts = [mark for mark in sized if mark.kind == "artifact"]
    ranked = (
        [m for m in artifacts if "int6" in m.text] or [m for m in artifacts if "quant" in m.text] or artifacts
    )
    ranked = [m for m in ranked if not _NOT_PACKED.search(m.text)] or ranked
    notes, artifact = [], None
    if len({mark.text for mark in ranked}) > 1:
        notes.append(f"artifact_bytes: of several formats ({', '.join(sorted({m.text for m in ranked}))})")
    elif ranked:
        artifact = int(ranked[-1].values["bytes"])
        if "int6" not in ranked[-1].text and "quant" not in ranked[-1].text:
            notes.append(f"artifact_bytes is of {ranked[-1].text}")
    codes = [mark for mark in sized if mark.kind == "code"]
    code = next((m for m in reversed(codes) if m.text.startswith("compressed")), codes[-1] if codes else None)
    return {"artifact_bytes": artifact, "code_bytes": int(code.values["bytes"]) if code else None}, notes


def _curve(run: Training) -> list[dict[str, float]]:
    rows = []
    for step, values in sorted(run.points.items()):
        if values.keys() & {"val_bpb", "val_loss", "ema_val_bpb"}:
            row = {"step": step} | {name: values[name] for name in CURVE if name in values}
            if "seconds" in values:
                row["train_time_ms"] = round(1000 * values["seconds"], 3)
            rows.append(row)
    return rows


def _whole(value: object) -> int | None:
    return int(value) if isinstance(value, float) and value.is_integer() else None
