"""A training script as a node: a whole run, or a stretch that starts from a state or ends in one.

Every attempt works in a copy of the script's folder on this machine, which is deleted afterwards. What stays
is the log, the curve, the files that the sweep file asks for and, at the end of a trunk, the state.
"""

import json
import os
import re
import shutil
import socket
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

from gepa_core.errors import UserError
from sweeps.kinds.kind import FINAL_STATE, OUTPUTS, SCRIPT_LOG, TRAJECTORY
from sweeps.kinds.script import ScriptRun, fill
from sweeps.kinds.stages import MEASURED
from sweeps.store.files import StorageError
from sweeps.store.journal import emit
from sweeps.store.schema import RUNS, to_parquet
from sweeps.store.schema import TRAJECTORY as COLUMNS
from sweeps.store.store import Outcome
from sweeps.work.job import Attempt, ScriptHow
from sweeps.work.policy import Observed
from sweeps.work.script_log import Curve, KeptLog
from sweeps.work.script_process import Ended, base_environment, run_group

_MEMORY = re.compile(
    r"OutOfMemoryError|CUDA out of memory|CUDA error: out of memory|MemoryError|Cannot allocate memory"
    r"|std::bad_alloc|oom-kill"
)
_USELESS_TO_REPEAT = re.compile(
    r"^(?:ModuleNotFoundError|ImportError|SyntaxError|IndentationError|NameError|FileNotFoundError|KeyError"
    r"|AttributeError|TypeError)\b|error: (?:unrecognized|the following arguments|argument |invalid )"
    r"|can't open file|command not found|No such file or directory"
)
_SIGNALS = {1: "HUP", 2: "INT", 4: "ILL", 6: "ABRT", 7: "BUS", 8: "FPE", 9: "KILL", 11: "SEGV", 15: "TERM"}
_FIGURES = {kind.name + "_bpb" for kind in MEASURED} | {
    "artifact_bytes", "code_bytes", "params", "train_tokens", "train_loss_final", "train_seconds",
    "eval_seconds", "ttt_seconds", "quantized_fraction",
}  # fmt: skip
"""Columns that a script's own JSON file may fill."""


@dataclass(frozen=True)
class Place:
    """The folders of one start of a script, all on this machine."""

    folder: Path
    """The copy of its files, where it is started."""
    out: Path
    state: Path
    """Where its state is, or will be."""


def execution(at: Attempt) -> dict[str, Any]:
    """How it was executed, for the record."""
    assert at.job.script is not None
    how = at.job.script
    return {"device": _device(how.gpus), "ranks": how.ranks, "threads": at.job.exec.threads}


def run(at: Attempt) -> Outcome:
    """Runs the script, and says what came of it."""
    job, how = at.job, at.job.script
    assert how is not None and isinstance(job.config, ScriptRun)
    is_trunk, start = bool(job.identity["trunk"]), int(job.identity["start"])
    journal = at.workdir.path / "events.jsonl"
    emit(journal, "started", pid=os.getpid(), step=start, until=job.until)
    begun = time.monotonic()

    def on_report(report: dict[str, Any]) -> None:
        if start or "elapsed_seconds" not in report:
            report["elapsed_seconds"] = time.monotonic() - begun
        emit(journal, "report", **report)

    curve = Curve(how.script.figures.lines, on_report)
    with copied(at, "run") as place:
        loaded = _load(at, place) if job.start else None
        ended = start_script(
            at, place, job.config, curve, stop=job.until if is_trunk else None, loaded=loaded
        )
        outcome = replace(at.outcome, result=_result(ended, curve, start, job.until))
        missing = _missing(how, place, is_trunk)
        if (verdict := _verdict(ended, curve, job.until, missing, is_trunk)) is not None:
            return replace(outcome, status=verdict[0], error=verdict[1])
        if is_trunk:
            pack_state(place.state, at.workdir.path / FINAL_STATE)
        else:
            outcome = replace(outcome, result=outcome.result | _outputs(how, place, at.workdir.path))
    rows = [{key: report.get(key) for key in COLUMNS.names} for _, report in sorted(curve.reports.items())]
    at.workdir.write(TRAJECTORY, to_parquet(rows, COLUMNS))
    return outcome


def start_script(
    at: Attempt,
    place: Place,
    config: ScriptRun,
    curve: Curve,
    *,
    stop: int | None = None,
    loaded: Path | None = None,
) -> Ended:
    """One start of the script. `stop`: save the state after that step; `loaded`: start from that state."""
    how = at.job.script
    assert how is not None
    script, state = how.script, how.script.state
    machine: dict[str, Any] = {
        "ranks": how.ranks,
        "gpus": int(how.gpus) if float(how.gpus).is_integer() else how.gpus,
        "port": _free_port(),
        "out": str(place.out),
        "run_id": config.run_id,
    }
    extra: dict[str, str] = {}
    values = {**config.values(), **machine}
    if loaded is not None and state is not None:
        extra |= {k: fill(v, {**values, "state": str(loaded), "stop": stop}) for k, v in state.load.items()}
    if stop is not None and state is not None:
        extra |= {
            k: fill(v, {**values, "state": str(place.state), "stop": stop}) for k, v in state.save.items()
        }
    env = base_environment()
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(machine["port"])}
    if threads := at.job.exec.threads or (1 if not how.gpus else None):
        env["OMP_NUM_THREADS"] = str(threads)
    if not how.gpus:
        env["CUDA_VISIBLE_DEVICES"] = ""
    env |= how.secrets | config.environment(machine, {}) | extra
    log = KeptLog(at.workdir.path / SCRIPT_LOG)
    try:
        return run_group(
            config.argv(machine),
            place.folder,
            env,
            log=log,
            curve=curve,
            silence_seconds=script.silence_minutes * 60,
            grace_seconds=script.grace_seconds,
            should_stop=at.should_stop,
            log_pattern=script.log,
        )
    finally:
        log.close()


@contextmanager
def copied(at: Attempt, name: str) -> Iterator[Place]:
    """A copy of the script's files with what it links to; gone afterwards. Raises UserError, StorageError."""
    how = at.job.script
    assert how is not None
    base = at.workdir.scratch.absolute() / "scripts" / at.job.attempt / name
    state = how.script.state.file if how.script.state else "state"
    place = Place(base / "work", base / "out", base / "saved" / state)
    try:
        for folder in (place.folder, place.out, place.state.parent):
            folder.mkdir(parents=True)
        archive = at.job.store.files.read(how.archive)
        if archive is None:
            where = at.job.store.files.describe(how.archive)
            raise StorageError(f"{where} is gone; give the same command again to put it there")
        with tarfile.open(fileobj=BytesIO(archive)) as tar:
            tar.extractall(place.folder, filter="fully_trusted")  # our own archive
        for link, target in how.links.items():
            if not Path(target).exists():
                raise UserError(f"script.links.{link}: {target} is not on {socket.gethostname()}")
            (place.folder / link).parent.mkdir(parents=True, exist_ok=True)
            (place.folder / link).symlink_to(target)
        yield place
    finally:
        shutil.rmtree(base, ignore_errors=True)


def _load(at: Attempt, place: Place) -> Path:
    """The state that the run starts from, where the script will find it."""
    assert at.job.script is not None
    return placed_state(at.job.script, at.source(), place)


def pack_state(state: Path, folder: Path) -> None:
    """A state's file or folder as one file, whatever its name."""
    folder.mkdir(parents=True)
    if state.is_dir():
        with tarfile.open(folder / "state.tar", "w") as tar:
            tar.add(state, arcname="")
    else:
        shutil.copyfile(state, folder / "state")


def placed_state(how: ScriptHow, packed: Path, place: Place) -> Path:
    """A copy of a packed state for a script to load: by `{state}`, or by its name in the working folder."""
    assert how.script.state is not None
    state = how.script.state
    by_name = not any("{state}" in value for value in state.load.values())
    target = (place.folder if by_name else place.folder.parent / "loaded") / state.file
    target.parent.mkdir(parents=True, exist_ok=True)
    if (packed / "state.tar").exists():
        with tarfile.open(packed / "state.tar") as tar:
            tar.extractall(target, filter="fully_trusted")  # as the script itself wrote it
    else:
        shutil.copyfile(packed / "state", target)
    return target


def saved_state(place: Place) -> bool:
    """Whether the script saved its state; one in the working folder is taken to its place."""
    beside = place.folder / place.state.name
    if not place.state.exists() and beside.exists():
        _keep(beside, place.state)
    return place.state.exists()


def _keep(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


def _missing(how: ScriptHow, place: Place, is_trunk: bool) -> list[str]:
    """What the script was to leave and did not."""
    if is_trunk:
        return [] if saved_state(place) else [f"the state {place.state.name}"]
    wanted = [*how.script.outputs, *([how.script.figures.file] if how.script.figures.file else [])]
    return [name for name in dict.fromkeys(wanted) if not _found(place, name)]


def _found(place: Place, pattern: str) -> list[tuple[Path, Path]]:
    """(folder, path in it) of files of that name or pattern: in {out}, or else in the working folder."""
    for folder in (place.out, place.folder):
        exact = folder / pattern
        paths = [exact] if exact.exists() else sorted(folder.glob(pattern))
        if files := [file for path in paths for file in _files_of(path)]:
            return [(folder, file.relative_to(folder)) for file in files]
    return []


def _files_of(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def _outputs(how: ScriptHow, place: Place, attempt: Path) -> dict[str, Any]:
    """Keeps the files asked for; their sizes, and the figures of the script's own JSON file."""
    result: dict[str, Any] = {}
    for pattern in how.script.outputs:
        files = _found(place, pattern)
        for folder, name in files:
            target = attempt / OUTPUTS / name
            if not target.exists():
                _keep(folder / name, target)
        size = sum((folder / name).stat().st_size for folder, name in files)
        result[f"output.{pattern}"] = size
        if pattern == how.script.artifact:
            result["artifact_bytes"] = size
    if (own := how.script.figures.file) is not None:
        folder, path = _found(place, own)[0]
        figures, notes = read_figures((folder / path).read_bytes(), own)
        result |= figures
        result["notes"] = notes
    return result


def read_figures(data: bytes, name: str) -> tuple[dict[str, float], list[str]]:
    """The columns in a JSON object, and what of it is not one. Raises UserError for anything else."""
    try:
        found = json.loads(data)
    except ValueError as error:
        raise UserError(f"{name}: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise UserError(f"{name}: not a JSON object of columns and numbers")
    figures: dict[str, float] = {}
    others = []
    for key, value in found.items():
        if key in _FIGURES and isinstance(value, (int, float)) and not isinstance(value, bool):
            if value != value or value in (float("inf"), float("-inf")):
                raise UserError(f"{name}: {key} is {value}, not a finite number")
            figures[key] = int(value) if str(RUNS.field(key).type) == "int64" else float(value)
        else:
            others.append(key)
    return figures, [f"{name}: {', '.join(others)}: no columns"] if others else []


def _result(ended: Ended, curve: Curve, start: int, stop: int) -> dict[str, Any]:
    reports = [report for _, report in sorted(curve.reports.items())]
    losses = [report["train_loss"] for report in reports if "train_loss" in report]
    # A script that goes on from a state may count from there, or from the run's first step.
    times = [] if start else [r["elapsed_seconds"] for r in reports if "elapsed_seconds" in r]
    result: dict[str, Any] = {
        "step": stop,
        "last_step_printed": curve.last_step or None,
        "steps_made": stop - start,
        "train_seconds": times[-1] if times else ended.seconds,
        "exit_code": ended.code,
        "left_behind": ended.left,
        **curve.figures,
    }
    if losses:
        result["train_loss_final"] = losses[-1]
    if curve.last_step >= stop and "val_bpb" in curve.reports[curve.last_step]:
        result["float_bpb"] = curve.reports[curve.last_step]["val_bpb"]
    return result


def _verdict(
    ended: Ended, curve: Curve, stop: int, missing: list[str], is_trunk: bool
) -> tuple[Observed, str | None] | None:
    """Status and reason of an attempt that came to nothing; None where it is complete."""
    if ended.why is not None:
        return ended.why, ended.error
    if curve.diverged or (curve.ends_broken and not is_trunk):
        return Observed.DIVERGED, f"not finite: {(curve.diverged or 'its last losses')[:200]}"
    last = last_line(ended)
    if ended.code == 0:
        if not missing:
            return None
        return Observed.BAD_INPUT, f"it ended with exit code 0 and did not leave {', '.join(missing)}; {last}"
    measured = bool(curve.finals) and curve.last_step >= stop
    if not missing and (is_trunk or measured):
        return None  # complete: what went wrong did so while it ended
    return failure(ended, last)


def failure(ended: Ended, last: str) -> tuple[Observed, str]:
    """What an exit code and the last lines say."""
    text = "\n".join(ended.tail)
    number = -ended.code if ended.code < 0 else ended.code - 128 if 128 < ended.code < 160 else 0
    if _MEMORY.search(text):
        return Observed.OUT_OF_MEMORY, f"out of memory: {last}"
    if number:
        name = f"SIG{_SIGNALS[number]}" if number in _SIGNALS else f"signal {number}"
        hint = "; short of memory, the system does that" if number == 9 else ""
        kind = Observed.LOST if number in (1, 2, 9, 15) else Observed.CRASHED
        return kind, f"the script was ended by {name}{hint}; {last}"
    if ended.code in (126, 127) or any(_USELESS_TO_REPEAT.search(line.strip()) for line in ended.tail[-5:]):
        return Observed.BAD_INPUT, f"exit code {ended.code}: {last}"
    return Observed.CRASHED, f"exit code {ended.code}: {last}"


def last_line(ended: Ended) -> str:
    return f"its last line: {ended.tail[-1].strip()[:300]}" if ended.tail else "it printed nothing"


def _device(gpus: float) -> str:
    """The GPU's name, from the driver's own files; torch is not asked, the script may use none."""
    if not gpus:
        return "cpu"
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        found = re.search(r"^Model:\s*(.+)$", path.read_text(errors="replace"), re.MULTILINE)
        if found:
            return found[1].strip()
    return "gpu"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def differences(first: Mapping[int, Mapping[str, Any]], second: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """In what two curves differ at the steps that both have; times aside."""
    found = []
    for step in sorted(first.keys() & second.keys()):
        for key in ("train_loss", "val_loss", "val_bpb", "ema_val_bpb", "lr_scale"):
            one, two = first[step].get(key), second[step].get(key)
            if one is not None and two is not None and one != two:
                found.append(f"{key} at step {step}: {one} alone, {two} shared")
    return found
