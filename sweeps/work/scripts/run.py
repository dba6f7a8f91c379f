"""A training script as a node: a whole run, or a part of one that starts from a state or ends in one.

Every attempt works in a copy of the script's folder on this machine, which is deleted afterwards. What stays
is the log, the curve, the files that the sweep file asks for and, at the end of a trunk, the state.
"""

import json
import math
import os
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from gepa_core import files
from gepa_core.errors import UserError
from sweeps.kinds.kind import FINAL_STATE, OUTPUTS, SCRIPT_LOG, TRAJECTORY
from sweeps.kinds.script import FIGURES, ScriptRun, fill
from sweeps.store.journal import emit
from sweeps.store.schema import RUNS, to_parquet
from sweeps.store.schema import TRAJECTORY as COLUMNS
from sweeps.store.store import Outcome
from sweeps.work.job import Attempt, ScriptHow
from sweeps.work.scripts.log import Curve, KeptLog
from sweeps.work.scripts.place import Place, copied, found, keep, missing, pack_state, placed_state
from sweeps.work.scripts.process import Ended, base_environment, run_group
from sweeps.work.scripts.stretches import forget, furthest, save, stops
from sweeps.work.scripts.verdict import verdict

_FIGURES = {*FIGURES, "train_loss_final", "train_seconds"}
"""Columns that a script's own JSON file may fill: of its training too, which a log is timed by."""
_SYNONYMS = {"val_bpb": "float_bpb", "val_loss": "val_loss"}
_ENDLESS = 1e18
"""No figure is as large, and no NaN is smaller."""


def execution(at: Attempt) -> dict[str, Any]:
    """How it was executed, for the record."""
    assert at.job.script is not None
    how = at.job.script
    return {"device": _device(how.gpus), "ranks": how.ranks, "threads": at.job.exec.threads}


def run(at: Attempt) -> Outcome:
    """Runs the script, in as many starts as it has stretches, and says what came of it."""
    job, how = at.job, at.job.script
    assert how is not None and isinstance(job.config, ScriptRun)
    if at.rank:
        return _run_beside(at, job.config)
    is_trunk, start = bool(job.identity["trunk"]), int(job.identity["start"])
    journal = at.workdir.path / "events.jsonl"
    at.workdir.adopt(job.resume)
    resumed = furthest(at.workdir.path)
    begun_at = resumed.step if resumed else start
    emit(journal, "started", pid=os.getpid(), step=begun_at, until=job.until)
    before, begun = resumed.seconds if resumed else 0.0, time.monotonic()
    in_one_go = not start and not how.every

    def on_report(report: dict[str, Any]) -> None:
        if not in_one_go or "elapsed_seconds" not in report:
            report["elapsed_seconds"] = before + time.monotonic() - begun
        emit(journal, "report", **report)

    curve = Curve(how.script.figures.lines)
    if resumed:
        for line in resumed.continue_log(at.workdir.path / SCRIPT_LOG):
            curve.read(line)
    curve.on_report = on_report
    packed = resumed.state if resumed else _as_committed(at) if job.start else None
    for stop in stops(begun_at, job.until, how.every):
        saves = is_trunk or stop < job.until
        with copied(at, "run") as place:
            loaded = placed_state(how, packed, place) if packed else None
            ended = start_script(at, place, job.config, curve, stop=stop if saves else None, loaded=loaded)
            seconds = before + time.monotonic() - begun
            lacking = missing(how, place, saves)
            outcome = replace(at.outcome, result=_result(ended, curve, start, stop, in_one_go, seconds))
            if (wrong := verdict(ended, curve, stop, lacking, saves)) is not None:
                return replace(outcome, status=wrong[0], error=wrong[1])
            if stop < job.until:
                packed = save(at.workdir.path, stop, place.state, seconds).state
            elif is_trunk:
                pack_state(place.state, at.workdir.path / FINAL_STATE)
            else:
                outcome = replace(outcome, result=outcome.result | _outputs(how, place, at.workdir.path))
    forget(at.workdir.path)
    rows = [{key: report.get(key) for key in COLUMNS.names} for _, report in sorted(curve.reports.items())]
    at.workdir.write(TRAJECTORY, to_parquet(rows, COLUMNS))
    return outcome


def _as_committed(at: Attempt) -> Path:
    """A copy of the state that the job starts from. Raises DamagedError where it was altered since."""
    folder, segment = at.source(), (at.job.start or "").split("/")[1]
    done = at.job.store.done(segment)
    for name, facts in done.files.items() if done else ():
        if name.startswith(f"{FINAL_STATE}/"):
            path = folder / name.removeprefix(f"{FINAL_STATE}/")
            if not path.is_file() or files.sha256(path) != facts["sha256"]:
                from gepa_core.training.checkpoint import DamagedError

                where = at.job.store.files.describe(f"{at.job.start}/{path.name}")
                raise DamagedError(f"{where}: altered since it was committed")
    return folder


def _run_beside(at: Attempt, config: ScriptRun) -> Outcome:
    """The script on another node than the first, which prints the curve and leaves the files."""
    curve = Curve({})
    with copied(at, "run") as place:
        ended = start_script(at, place, config, curve)
    wrong = verdict(ended, curve, at.job.until, [], is_trunk=False)
    return replace(at.outcome, status=wrong[0], error=wrong[1]) if wrong else at.outcome


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
    address, port = at.meeting or ("127.0.0.1", _free_port())
    machine: dict[str, Any] = {
        "ranks": how.ranks,
        "ranks_per_node": how.ranks // script.nodes,
        "nodes": script.nodes,
        "node_rank": at.rank,
        "master_addr": address,
        "gpus": int(how.gpus) if float(how.gpus).is_integer() else how.gpus,
        "port": port,
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
    env |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
    if threads := at.job.exec.threads or (1 if not how.gpus else None):
        env["OMP_NUM_THREADS"] = str(threads)
    if not how.gpus:
        env["CUDA_VISIBLE_DEVICES"] = ""
    env |= how.secrets | config.environment(machine, {}) | extra
    log = KeptLog(at.workdir.path / (f"node{at.rank}.txt" if at.rank else SCRIPT_LOG))
    try:
        return run_group(
            config.argv(machine),
            place.folder,
            env,
            log=log,
            curve=curve,
            # The first node's silence tells for all: others may print nothing for hours.
            silence_seconds=math.inf if at.rank else script.silence_minutes * 60,
            grace_seconds=script.grace_seconds,
            should_stop=at.should_stop,
            log_pattern=script.log,
        )
    finally:
        log.close()


def _outputs(how: ScriptHow, place: Place, attempt: Path) -> dict[str, Any]:
    """Keeps the files asked for; their sizes, and the figures of the script's own JSON file."""
    result: dict[str, Any] = {}
    for pattern in how.script.outputs:
        files = found(place, pattern)
        for folder, name in files:
            target = attempt / OUTPUTS / name
            if not target.exists():
                keep(folder / name, target)
        size = sum((folder / name).stat().st_size for folder, name in files)
        result[f"output.{pattern}"] = size
        if pattern == how.script.artifact:
            result["artifact_bytes"] = size
    if (own := how.script.figures.file) is not None:
        folder, path = found(place, own)[0]
        figures, notes = read_figures((folder / path).read_bytes(), own)
        result |= figures
        result["notes"] = result["said"] = notes
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
    unread = []
    for said, value in found.items():
        key = _SYNONYMS.get(str(said), str(said))
        if key != said and key in found:
            continue
        if key not in _FIGURES:
            near = get_close_matches(key, _FIGURES, n=1)
            unread.append(f"{key} is no column" + (f"; did you mean {near[0]}?" if near else ""))
        elif isinstance(value, bool) or not isinstance(value, (int, float)):
            unread.append(f"{key} is no number")
        elif not abs(value) < _ENDLESS:
            raise UserError(f"{name}: {key} is {str(value)[:20]}, not a finite number")
        else:
            figures[key] = int(value) if str(RUNS.field(key).type) == "int64" else float(value)
    return figures, [f"{name}: {', '.join(unread)}"] if unread else []


def _result(
    ended: Ended, curve: Curve, start: int, stop: int, in_one_go: bool, seconds: float
) -> dict[str, Any]:
    reports = [report for _, report in sorted(curve.reports.items())]
    losses = [report["train_loss"] for report in reports if "train_loss" in report]
    # A script that goes on from a state may count from there, or from the run's first step.
    times = [r["elapsed_seconds"] for r in reports if "elapsed_seconds" in r] if in_one_go else []
    result: dict[str, Any] = {
        "step": stop,
        "last_step_printed": curve.last_step or None,
        "steps_made": stop - start,
        "train_seconds": times[-1] if times else seconds,
        "exit_code": ended.code,
        "left_behind": ended.left,
        **curve.figures,
    }
    if losses:
        result["train_loss_final"] = losses[-1]
    return result


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
