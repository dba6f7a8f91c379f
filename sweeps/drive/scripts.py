"""What the driver does for a script: its files into the store, figures out of its log, its part of a row."""

import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

from gepa_core.errors import ConfigError
from sweeps.kinds.kind import OUTPUTS, SCRIPT_LOG, TRAJECTORY
from sweeps.kinds.script import FIGURES
from sweeps.plan.tree import Node
from sweeps.spec.sweep import Sweep
from sweeps.spec.workdir import ScriptFiles
from sweeps.store.schema import TRAJECTORY as COLUMNS
from sweeps.store.schema import from_parquet, is_bpb
from sweeps.store.store import Outcome, Store
from sweeps.work.job import ScriptHow

ReadLog = Callable[[bytes, int], dict[str, Any]]
"""(a finished log, the steps it was to make) -> columns of the run, with its `curve`, `notes` and, where it
ended before its last step, `steps`. Raises ValueError for a log without a curve."""
_EVALUATIONS = ("val_loss", "val_bpb", "ema_val_bpb")
OUTPUT_PREFIX = "output."
"""Of columns with the sizes of files that a script leaves; they are no axes."""


def archive_path(sweep: Sweep) -> str:
    """Where the script's files are in the store."""
    assert sweep.files is not None
    return f"scripts/{sweep.files.digest[:32]}.tar"


def changed_files(store: Store, files: ScriptFiles, path: str) -> list[str]:
    """What differs between the script's files and those in an archive of the store, in one line or none."""
    data = store.files.read(path)
    now = {file.name: (file.link or file.sha256, file.executable) for file in files.files}
    try:
        was = _contents(data) if data is not None else None
    except (tarfile.TarError, EOFError, OSError):
        was = None
    if was is None or was == now:
        return []
    parts = {
        "changed": [name for name in now if name in was and was[name] != now[name]],
        "new": [name for name in now if name not in was],
        "gone": [name for name in was if name not in now],
    }
    told = [f"{word} {_named(names)}" for word, names in parts.items() if names]
    return [f"the script's files: {'; '.join(told)}. All runs are new; leftovers belong under script.ignore"]


def _contents(archive: bytes) -> dict[str, tuple[str, bool]]:
    """Digest of each file, or where a link leads, and whether it may be executed, by name."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isfile() else None
            digest = hashlib.sha256(content.read()).hexdigest() if content else member.linkname
            found[member.name] = digest, content is not None and bool(member.mode & 0o100)
    return found


def _named(names: list[str], most: int = 5) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def publish_files(store: Store, sweep: Sweep) -> None:
    """Puts the script's files into the store, where they are not yet as they are here.

    Raises ConfigError if they change.
    """
    assert sweep.files is not None
    path, archive = archive_path(sweep), sweep.files.archive()
    if store.files.read(path) != archive:
        store.files.put(path, archive)


def script_how(sweep: Sweep) -> ScriptHow:
    """How a job of the sweep is to be executed."""
    assert sweep.script is not None and sweep.files is not None
    script = sweep.script
    return ScriptHow(
        script=script,
        archive=archive_path(sweep),
        links={name: str(_absolute(sweep.files.root, target)) for name, target in script.links.items()},
        gpus=sweep.resources.gpus_per_run,
        ranks=sweep.ranks,
        every=script.state.every if script.state and sweep.share else None,  # where that was found exact
        secrets={name: os.environ[name] for name in script.pass_env if name in os.environ},
    )


def check_passed_on(sweep: Sweep) -> None:
    """Raises ConfigError where a variable of `pass_env` is not set here."""
    missing = [name for name in sweep.script.pass_env if name not in os.environ] if sweep.script else []
    if missing:
        raise ConfigError(f"script.pass_env: {', '.join(missing)} not set in this environment")


def _absolute(root: Path, target: str) -> Path:
    return (root / Path(target).expanduser()).absolute()


def with_figures(store: Store, node: Node, outcome: Outcome, read_log: ReadLog) -> Outcome:
    """The outcome with what its log says, where the script's own file or lines did not say it."""
    unread = ""
    try:
        found = read_log(store.read_file(outcome, SCRIPT_LOG), node.config.steps)
    except ValueError as error:
        rows = from_parquet(store.read_file(outcome, TRAJECTORY), COLUMNS)
        last = {row["step"]: row for row in rows}.get(node.config.steps, {})
        found = {"float_bpb": last.get("val_bpb"), "notes": [f"figures: {error}"], "curve": [last]}
        unread = f"its log gives no figures: {error}"
    ended = found.get("steps", node.config.steps)
    if "warmdown_steps" in found:
        down = found["warmdown_steps"]
        found["warmdown_ratio"] = None if down is None else down / ended
    curve = [point for point in found.pop("curve") if any(point.get(key) is not None for key in _EVALUATIONS)]
    last = next((point for point in curve if point["step"] == ended), {})
    found["val_loss"] = last.get("val_loss")
    said = [*outcome.result.get("said", ()), *([unread] if unread else [])]
    if ended > node.config.steps:
        said.append(
            f"it made {ended:,} steps, where {node.config.steps:,} were planned: does it use {{steps}}?"
        )
    if curve and not last and not any(found.get(key) for key in ("float_bpb", "val_loss")):
        said.append(
            f"no validation at step {ended:,}, its last, but at {max(p['step'] for p in curve):,}: its final "
            "value is not known; let the script validate at the end"
        )
    notes = [*outcome.result.get("notes", ()), *found.pop("notes", ())]
    if outcome.result.get("exit_code"):
        notes.append(f"it ended with exit code {outcome.result['exit_code']} after it was complete")
    if left := outcome.result.get("left_behind"):
        notes.append(f"it left {left} processes behind, which were ended")
    known = {key: value for key, value in outcome.result.items() if value is not None}
    result = {**outcome.result, **found, **known}
    for name in [key for key in FIGURES if key.endswith("_bpb")]:
        if (value := result.get(name)) is not None and not is_bpb(value):
            said.append(f"{name} {value:g} is no number of bits per byte, and left out")
            result[name] = None
    return replace(outcome, result={**result, "notes": notes, "said": said})


def with_curve(
    store: Store, node: Node, outcome: Outcome, rows: list[dict[str, Any]], read_log: ReadLog
) -> list[dict[str, Any]]:
    """The rows that were read while the script ran, with evaluations as its whole log tells them.

    While it runs, a line is taken at its word; only the whole log says which steps are of the training, and
    which of an adaptation to the validation text after it.
    """
    try:
        curve = read_log(store.read_file(outcome, SCRIPT_LOG), node.config.steps)["curve"]
    except ValueError:
        return rows
    told = {int(point["step"]): point for point in curve}
    kept = {row["step"]: {key: row[key] for key in row if key not in _EVALUATIONS} for row in rows}
    for step, point in told.items():
        row = kept.setdefault(step, {"step": step})
        row |= {key: point[key] for key in _EVALUATIONS if key in point and isfinite(point[key])}
    measured = (*_EVALUATIONS, "train_loss")
    return [row for _, row in sorted(kept.items()) if any(row.get(key) is not None for key in measured)]


def script_row(store: Store, last: Outcome) -> dict[str, Any]:
    """Columns of a row that a finished script fills."""
    result = last.result
    row = {key: result[key] for key in FIGURES if result.get(key) is not None}
    row |= {key: size for key, size in result.items() if key.startswith(OUTPUT_PREFIX)}
    if any(name.startswith(f"{OUTPUTS}/") for name in last.files):
        row[f"{OUTPUT_PREFIX}folder"] = f"{store.attempt_path(last.id, last.attempt)}/{OUTPUTS}"
    for key in ("steps", "peak_steps", "warmdown_steps", "warmdown_ratio", "schedule"):
        if key in result:  # the run ended before its last step
            row[key] = result[key]
    return row
