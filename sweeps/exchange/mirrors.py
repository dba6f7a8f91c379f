"""A sweep's runs as TensorBoard event files or W&B runs; extras, on request only.

Written from the tables of a sweep, finished or still running, one run a run: its curves, joined over the
trunks that it shares; its configuration; and its final figures once it is done. What is under way is read
from the journals of the attempts at work. A mirror can be written again and again: it adds what is new.
"""

import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gepa_core.bounded import parse_json
from gepa_core.errors import ConfigError, UserError
from sweeps.kinds.stages import MEASURED
from sweeps.store.curves import joined, segment_rows
from sweeps.store.journal import reports
from sweeps.store.records import RecordError
from sweeps.store.schema import RUNS, TRAJECTORY
from sweeps.store.store import Store

FINALS = (
    *(f"{kind.name}_bpb" for kind in MEASURED),
    *("artifact_bytes", "code_bytes", "quant_rows_at_floor", "quantized_fraction"),
    *("train_loss_final", "train_seconds", "gpu_seconds_own", "gpu_seconds_shared"),
)
AXES = ("steps", "warmdown_steps", "schedule", "seed")
_SUFFIX = ".gepa-sweeps"


class MissingExtraError(UserError):
    """A mirror's library is not installed."""


@dataclass(frozen=True)
class Mirrored:
    """A run as it is mirrored."""

    sweep: str
    run_id: str
    started: float
    """Seconds since 1970."""
    axes: dict[str, Any]
    """The values that tell it from the sweep's other runs."""
    config: dict[str, Any]
    points: list[dict[str, float]]
    """By step, as `curves.joined` gives them."""
    finals: dict[str, float]
    trunk: str = ""
    """Of the constant phase it shares; "" where it is trained alone."""
    peak_steps: int = 0
    """Last step on the trunk."""


def read_runs(store: Store, name: str) -> list[Mirrored]:
    """The runs of a sweep of which anything is known. Raises ConfigError where the sweep has no tables."""
    folder = store.sweep(name)
    plan, rows = folder.read_json("plan.json"), folder.read_runs()
    if plan is None or rows is None:
        raise ConfigError(
            f"{store.files.describe(name)}: no plan.json and runs.parquet, so nothing to mirror"
        )
    tables: dict[str, list[dict[str, Any]]] = {}
    found = []
    for row in rows:
        if row["run_id"] not in plan["runs"] or _config(row) is None:
            where = store.files.describe(f"{name}/runs.parquet")
            raise RecordError(
                f"{where}: damaged or foreign (run {row['run_id']} is not one of plan.json, or without its "
                "configuration); the sweep's launch.py command writes both anew"
            )
        chain = plan["runs"][row["run_id"]]["segments"]
        for segment in chain:
            if segment not in tables:
                tables[segment] = segment_rows(store, name, segment) or under_way(store, segment)
        points = joined([tables[segment] for segment in chain])
        if points:
            first = plan["segments"].get(chain[0], {})
            found.append(_mirrored(row, points, str(first.get("trunk_id", ""))))
    return found


def _config(row: dict[str, Any]) -> dict[str, Any] | None:
    """The run's configuration; None where the row does not hold it."""
    with suppress(ValueError):
        config = parse_json(row["config_json"] or "null")
        return config if isinstance(config, dict) else None
    return None


def under_way(store: Store, segment: str) -> list[dict[str, Any]]:
    """What the furthest attempt at a segment has reported so far, by step."""
    found: list[dict[str, Any]] = []
    for attempt in store.attempts(segment):
        path = f"{store.attempt_path(segment, attempt)}/events.jsonl"
        told = reports(store.files.read(path) or b"", store.files.describe(path))
        rows = [{name: report.get(name) for name in TRAJECTORY.names} for report in told]
        if rows and (not found or rows[-1]["step"] > found[-1]["step"]):
            found = rows
    return found


def _mirrored(row: dict[str, Any], points: list[dict[str, float]], trunk: str) -> Mirrored:
    further = [name for name in row if name not in RUNS.names]
    axes = {name: row[name] for name in (*AXES, *further) if row[name] is not None}
    return Mirrored(
        sweep=row["sweep"],
        run_id=row["run_id"],
        started=row["started_at"].timestamp() if row["started_at"] else 0.0,
        axes=axes,
        config=_config(row) or {},
        points=points,
        finals={n: row[n] for n in FINALS if row[n] is not None} if row["status"] == "done" else {},
        trunk=trunk,
        peak_steps=row["peak_steps"] or 0,
    )


class TensorBoard:
    """Event files under OUT/<sweep>/<run_id>/: scalars by the tables' names, finals as `final/NAME`, the axes
    for the HParams tab. Earlier ones of the same runs are replaced."""

    def __init__(self, out: Path) -> None:
        """Raises MissingExtraError without tensorboard."""
        with _extra("tensorboard"):
            self._event = importlib.import_module("tensorboard.compat.proto.event_pb2").Event
            self._summary = importlib.import_module("tensorboard.compat.proto.summary_pb2").Summary
            self._hparams = importlib.import_module("tensorboard.plugins.hparams.summary_v2")
            files = importlib.import_module("tensorboard.summary.writer.event_file_writer")
        self._writer_of = files.EventFileWriter
        self.out = out
        self._writers: dict[Path, Any] = {}
        self._written: dict[Path, float] = {}
        self._final: set[Path] = set()

    def write(self, runs: Sequence[Mirrored]) -> list[Path]:
        """Adds what is new; returns the folders."""
        return [self._write(run) for run in runs]

    def _write(self, run: Mirrored) -> Path:
        folder = self.out / run.sweep / run.run_id
        stale: list[Path] = []
        if folder not in self._writers:
            stale = list(folder.glob(f"events.out.tfevents.*{_SUFFIX}"))
            self._writers[folder] = self._writer_of(str(folder), filename_suffix=_SUFFIX)
            session = self._hparams.hparams_pb(run.axes, trial_id=run.run_id, start_time_secs=run.started)
            self._writers[folder].add_event(self._event(wall_time=run.started, step=0, summary=session))
        for point in new_points(run.points, self._written.get(folder)):
            self._add(folder, run, point)
        last = run.points[-1]
        self._written[folder] = last["step"]
        if run.finals and folder not in self._final:
            self._final.add(folder)
            finals = {f"final/{name}": value for name, value in run.finals.items()}
            self._add(folder, run, {"step": last["step"], "seconds": last["seconds"], **finals})
        self._writers[folder].flush()
        for path in stale:
            path.unlink(missing_ok=True)
        return folder

    def _add(self, folder: Path, run: Mirrored, point: Mapping[str, float]) -> None:
        values = [
            self._summary.Value(tag=name, simple_value=value)
            for name, value in point.items()
            if name not in ("step", "seconds")
        ]
        time, step = run.started + point["seconds"], int(point["step"])
        summary = self._summary(value=values)
        self._writers[folder].add_event(self._event(wall_time=time, step=step, summary=summary))

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


class WandB:
    """W&B runs below `folder`, grouped by sweep, with the ids of the runs; offline unless WANDB_MODE says
    otherwise. `wandb sync` uploads offline ones.

    forks: a trunk is a run of its own, and the runs that share it fork from it (W&B's `fork_from`), so that a
    shared curve is sent once. W&B itself resolves a fork, when the runs reach its server.
    """

    def __init__(self, project: str, folder: Path, *, forks: bool = False) -> None:
        """Raises MissingExtraError without wandb."""
        with _extra("wandb"):
            self._wandb = importlib.import_module("wandb")
        folder.mkdir(parents=True, exist_ok=True)
        self.project, self.folder, self.forks = project, folder, forks
        self._open: dict[str, Any] = {}
        self._written: dict[str, float] = {}

    def write(self, runs: Sequence[Mirrored]) -> list[Path]:
        """Adds what is new; returns W&B's folders."""
        runs = list(runs)
        if self.forks:
            runs = [*trunks_of(runs), *runs]
        return [self._write(run) for run in runs]

    def _write(self, run: Mirrored) -> Path:
        id_ = f"{run.sweep}-{run.run_id}"
        fork = self.forks and run.trunk and run.run_id != _trunk_name(run.trunk)
        if fork:
            on_trunk = [point["step"] for point in run.points if point["step"] <= run.peak_steps]
            self._written.setdefault(id_, on_trunk[-1] if on_trunk else float("-inf"))
        if id_ not in self._open:
            begun = self._written.get(id_, float("-inf"))
            start = f"{run.sweep}-{_trunk_name(run.trunk)}?_step={begun:.0f}"
            forked = {"fork_from": start} if fork and begun >= 0 else {}
            self._open[id_] = self._wandb.init(
                project=self.project,
                group=run.sweep,
                id=id_,
                name=run.run_id,
                config={**run.config, "axes": run.axes},
                mode=os.environ.get("WANDB_MODE", "offline"),
                dir=str(self.folder),
                reinit="create_new",
                settings=self._wandb.Settings(
                    silent=True, console="off", save_code=False, disable_git=True, x_disable_stats=True
                ),
                **forked,
            )
        mirror = self._open[id_]
        for point in new_points(run.points, self._written.get(id_)):
            mirror.log({key: value for key, value in point.items() if key != "step"}, step=int(point["step"]))
        self._written[id_] = max(run.points[-1]["step"], self._written.get(id_, float("-inf")))
        mirror.summary.update(run.finals)
        return Path(mirror.dir).parent

    def close(self) -> None:
        for mirror in self._open.values():
            mirror.finish()


def new_points(points: Sequence[dict[str, float]], written: float | None) -> list[dict[str, float]]:
    """Those after the last step that was written."""
    return [point for point in points if written is None or point["step"] > written]


def trunks_of(runs: Sequence[Mirrored]) -> list[Mirrored]:
    """The constant phases that runs share, each as a run of its own, as far as any run has gone along it."""
    longest: dict[str, Mirrored] = {}
    for run in runs:
        points = [point for point in run.points if point["step"] <= run.peak_steps]
        known = longest.get(run.trunk)
        if run.trunk and points and (known is None or points[-1]["step"] > known.points[-1]["step"]):
            longest[run.trunk] = replace(
                run,
                run_id=_trunk_name(run.trunk),
                axes={"seed": run.axes.get("seed")},
                points=points,
                finals={},
            )
    return list(longest.values())


def _trunk_name(trunk: str) -> str:
    return f"trunk-{trunk}"


def to_tensorboard(runs: list[Mirrored], out: Path) -> list[Path]:
    """Once, as `TensorBoard` does it. Raises MissingExtraError without tensorboard."""
    mirror = TensorBoard(out)
    try:
        return mirror.write(runs)
    finally:
        mirror.close()


def to_wandb(runs: list[Mirrored], project: str, folder: Path, *, forks: bool = False) -> list[Path]:
    """Once, as `WandB` does it. Raises MissingExtraError without wandb."""
    mirror = WandB(project, folder, forks=forks)
    try:
        return mirror.write(runs)
    finally:
        mirror.close()


@contextmanager
def _extra(name: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(
            f"{name} is not installed ({error}); install the extra: pip install 'gepa-sweeps[mirrors]'"
        ) from error
