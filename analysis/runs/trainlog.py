"""Training logs of the challenge (`train.log`) as the two CSV files the analysis reads.

Lines read (openai/parameter-golf, train_gpt.py; others are passed over):
    step:500/20000 val_loss:2.3523 val_bpb:1.3931 train_time:251727ms ...
    step:500/20000 train_loss:2.4225 train_time:251700ms ...
    model_params:27030107   seed:42   train_batch_tokens:786432 ...
    Serialized model int6+zstd: 15632049 bytes   Code size: 68212 bytes
    DIAGNOSTIC post_ema val_loss:1.8991 val_bpb:1.1248 ...
    final_int6_roundtrip_exact ..., final_int6_sliding_window_exact ..., legal_ttt_exact val_bpb:1.0944
    final_eval_mode:sliding_window_ttt ...   (of older scripts: what the round trip that follows measures)
Logs do not say how long the warmdown was: it is given beside them, or filled in by hand.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.runs.errors import AnalysisError

_STEP = re.compile(r"^step:(\d+)/(\d+)\s+(.*)$")
_FIELD = re.compile(r"(\w+):([-+]?\d[-+.\deE]*)")
_ARTIFACT = re.compile(r"^Serialized model int6\S*: (\d+) bytes")
_CODE = re.compile(r"^Code size: (\d+) bytes")
_FINALS: Mapping[str, str | None] = {
    "post_ema": "ema_bpb",
    "final_int6_roundtrip_exact": "int6_bpb",
    "final_int6_sliding_window_exact": "int6_sliding_bpb",
    "legal_ttt_exact": "ttt_bpb",
}
_ROUNDTRIPS = {
    "standard": "int6_bpb",
    "sliding_window": "int6_sliding_bpb",
    "sliding_window_ttt": "ttt_bpb",
}
"""What final_int6_roundtrip_exact measures, by the mode that older scripts announce."""
_FACTS = {"model_params": "params", "seed": "seed", "train_batch_tokens": "batch_tokens"}


@dataclass(frozen=True)
class ImportedLog:
    """One log: its row for the table of runs, and its trajectory."""

    run: dict[str, object]
    trajectory: pd.DataFrame


def read_log(path: Path, warmdown_steps: int | None = None) -> ImportedLog:
    """Parse one log; the run is named after the file, or after its folder if that is called train.log.

    A run stopped early counts the steps it made. Of a log written twice, the later line of a step counts.

    Raises:
        AnalysisError: the file is missing, is no text, holds no validation, a value is not a finite number,
            or the warmdown is longer than the run.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="strict").splitlines()
    except FileNotFoundError:
        raise AnalysisError(f"{path}: no such file") from None
    except (UnicodeDecodeError, IsADirectoryError):
        raise AnalysisError(f"{path}: not a text file") from None
    points: dict[int, dict[str, float]] = {}
    facts: dict[str, float] = {}
    adapted, finals = False, _FINALS
    for number, line in enumerate(lines, start=1):
        line = line.strip()
        if match := _STEP.match(line):
            step = int(match[1])
            points.setdefault(step, {"step": step}).update(_fields(match[3], f"{path}:{number}"))
            continue
        # TTT before the int6 evaluations changes what their lines measure: not this job's stages.
        adapted = adapted or line.startswith("ttt:start")
        if mode := _announced(line):
            finals = {**_FINALS, "final_int6_roundtrip_exact": _ROUNDTRIPS.get(mode)}
        facts |= _facts(line, {} if adapted else finals, f"{path}:{number}")
    steps = max(points, default=0)
    measured = [point for point in points.values() if "val_bpb" in point or "val_loss" in point]
    if not measured or steps == 0:
        raise AnalysisError(f"{path}: no line `step:N/M val_loss:... val_bpb:...`; is it a training log?")
    if warmdown_steps is not None and not 0 <= warmdown_steps <= steps:
        raise AnalysisError(f"{path}: a warmdown of {warmdown_steps} does not fit its {steps} steps")
    return ImportedLog(_run(path, steps, warmdown_steps, points[steps], facts), _trajectory(points))


def _fields(text: str, where: str) -> dict[str, float]:
    names = {"val_bpb", "val_loss", "train_loss", "train_time"}
    found = {name: _number(value, where) for name, value in _FIELD.findall(text) if name in names}
    # A diverged run writes nan, which the pattern above does not take for a number.
    if re.search(r"\b(val_bpb|val_loss):(nan|inf|-inf)", text):
        raise AnalysisError(f"{where}: the loss is not finite; leave a diverged run out")
    return found


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise AnalysisError(f"{where}: {text!r} is not a number") from None


def _announced(line: str) -> str | None:
    """How the int6 evaluations that follow are made, where the line says so."""
    if line.startswith("ttt_sliding:start"):
        return "sliding_window_ttt"
    return line.partition(":")[2].partition(" ")[0] if line.startswith("final_eval_mode:") else None


def _facts(line: str, finals: Mapping[str, str | None], where: str) -> dict[str, float]:
    """`finals`: the column that each line of final figures fills, None where it is another's measure."""
    if match := _ARTIFACT.match(line):
        return {"artifact_bytes": int(match[1])}
    if match := _CODE.match(line):
        return {"code_bytes": int(match[1])}
    word = "post_ema" if line.startswith("DIAGNOSTIC post_ema ") else line.split(" ", 1)[0]
    if column := finals.get(word):
        values = dict(_FIELD.findall(line))
        return {column: _number(values["val_bpb"], where)} if "val_bpb" in values else {}
    return {_FACTS[name]: _number(value, where) for name, value in _FIELD.findall(line) if name in _FACTS}


def _run(
    path: Path, steps: int, warmdown: int | None, last: dict[str, float], facts: dict[str, float]
) -> dict[str, object]:
    batch = facts.get("batch_tokens")
    milliseconds = last.get("train_time")
    return {
        "run_id": path.parent.name if path.stem == "train" and path.parent.name else path.stem,
        "steps": steps,
        "peak_steps": None if warmdown is None else steps - warmdown,
        "warmdown_steps": warmdown,
        "schedule": "linear" if warmdown else "constant" if warmdown == 0 else None,
        "params": _whole(facts.get("params")),
        "train_tokens": None if batch is None else int(steps * batch),
        "float_bpb": last.get("val_bpb"),
        **{name: facts.get(name) for name in _FINALS.values() if name},
        "artifact_bytes": _whole(facts.get("artifact_bytes")),
        "code_bytes": _whole(facts.get("code_bytes")),
        "train_seconds": None if milliseconds is None else milliseconds / 1000,
        "seed": _whole(facts.get("seed")),
    }


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _trajectory(points: dict[int, dict[str, float]]) -> pd.DataFrame:
    frame = pd.DataFrame([points[step] for step in sorted(points)]).rename(
        columns={"train_time": "train_time_ms"}
    )
    columns = ("step", "val_bpb", "val_loss", "train_loss", "train_time_ms")
    frame = frame[[name for name in columns if name in frame]]
    return frame[frame[[c for c in ("val_bpb", "val_loss") if c in frame]].notna().any(axis=1)]


def import_logs(paths: Sequence[Path], out: Path, warmdown_steps: Sequence[int] = ()) -> tuple[Path, Path]:
    """Write OUT (trajectories) and OUT's stem + _runs.csv; returns (runs, trajectories).

    `warmdown_steps`: none, one for all logs, or one a log.

    Raises:
        AnalysisError: as read_log; two logs give one run_id; the number of warmdowns fits neither.
    """
    if len(warmdown_steps) not in (0, 1, len(paths)):
        raise AnalysisError(
            f"{len(warmdown_steps)} warmdowns for {len(paths)} logs: give one, or one for each log"
        )
    downs: Sequence[int | None] = warmdown_steps or [None]
    downs = [*downs] * (len(paths) if len(downs) == 1 else 1)
    logs = [read_log(path, down) for path, down in zip(paths, downs, strict=True)]
    ids = [str(log.run["run_id"]) for log in logs]
    twice = sorted({name for name in ids if ids.count(name) > 1})
    if twice:
        raise AnalysisError(
            f"two logs give the run_id {', '.join(map(repr, twice))}; rename one of the files"
        )
    runs = pd.DataFrame([log.run for log in logs])
    curves = pd.concat([log.trajectory.assign(run_id=name) for log, name in zip(logs, ids, strict=True)])
    curves = curves[["run_id", *(name for name in curves if name != "run_id")]]
    out.parent.mkdir(parents=True, exist_ok=True)
    runs_path = out.with_name(f"{out.stem}_runs.csv")
    counts = [
        "peak_steps",
        "warmdown_steps",
        "params",
        "train_tokens",
        "seed",
        "artifact_bytes",
        "code_bytes",
    ]
    runs.astype(dict.fromkeys(counts, "Int64")).to_csv(runs_path, index=False, lineterminator="\n")
    curves.to_csv(out, index=False, lineterminator="\n")
    return runs_path, out
