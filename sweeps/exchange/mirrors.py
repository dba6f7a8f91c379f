"""A sweep's runs as TensorBoard event files or W&B runs; extras, on request only.

Written from the tables of a sweep, finished or still running, one run a run: its curves, joined over the
trunks that it shares; its configuration; and its final figures once it is done.
"""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gepa_core.bounded import parse_json
from gepa_core.errors import ConfigError, UserError
from sweeps.kinds.stages import MEASURED
from sweeps.store.curves import joined, segment_rows
from sweeps.store.records import RecordError
from sweeps.store.schema import RUNS
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
                tables[segment] = segment_rows(store, name, segment)
        points = joined([tables[segment] for segment in chain])
        if points:
            found.append(_mirrored(row, points))
    return found


def _config(row: dict[str, Any]) -> dict[str, Any] | None:
    """The run's configuration; None where the row does not hold it."""
    with suppress(ValueError):
        config = parse_json(row["config_json"] or "null")
        return config if isinstance(config, dict) else None
    return None


def _mirrored(row: dict[str, Any], points: list[dict[str, float]]) -> Mirrored:
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
    )


def to_tensorboard(runs: list[Mirrored], out: Path) -> list[Path]:
    """Event files under OUT/<sweep>/<run_id>/: scalars by the tables' names, finals as `final/NAME`, the axes
    for the HParams tab. Earlier ones of the same runs are replaced. Returns the folders.

    Raises MissingExtraError without tensorboard.
    """
    with _extra("tensorboard"):
        event = importlib.import_module("tensorboard.compat.proto.event_pb2").Event
        summary = importlib.import_module("tensorboard.compat.proto.summary_pb2").Summary
        hparams = importlib.import_module("tensorboard.plugins.hparams.summary_v2")
        writer_of = importlib.import_module("tensorboard.summary.writer.event_file_writer").EventFileWriter
    folders = []
    for run in runs:
        folder = out / run.sweep / run.run_id
        stale = list(folder.glob(f"events.out.tfevents.*{_SUFFIX}"))
        writer = writer_of(str(folder), filename_suffix=_SUFFIX)
        session = hparams.hparams_pb(run.axes, trial_id=run.run_id, start_time_secs=run.started)
        writer.add_event(event(wall_time=run.started, step=0, summary=session))
        last = run.points[-1]
        finals = {"step": last["step"], "seconds": last["seconds"]}
        finals |= {f"final/{name}": value for name, value in run.finals.items()}
        for point in (*run.points, finals):
            values = [
                summary.Value(tag=name, simple_value=value)
                for name, value in point.items()
                if name not in ("step", "seconds")
            ]
            time = run.started + point["seconds"]
            writer.add_event(event(wall_time=time, step=int(point["step"]), summary=summary(value=values)))
        writer.close()
        for path in stale:
            path.unlink(missing_ok=True)
        folders.append(folder)
    return folders


def to_wandb(runs: list[Mirrored], project: str, folder: Path) -> list[Path]:
    """W&B runs below `folder`, grouped by sweep, with the ids of the runs; offline unless WANDB_MODE says
    otherwise. `wandb sync` uploads offline ones. Returns W&B's folders.

    Raises MissingExtraError without wandb.
    """
    with _extra("wandb"):
        wandb = importlib.import_module("wandb")
    folder.mkdir(parents=True, exist_ok=True)
    quiet = wandb.Settings(
        silent=True, console="off", save_code=False, disable_git=True, x_disable_stats=True
    )
    folders = []
    for run in runs:
        mirror = wandb.init(
            project=project,
            group=run.sweep,
            id=f"{run.sweep}-{run.run_id}",
            name=run.run_id,
            config={**run.config, "axes": run.axes},
            mode=os.environ.get("WANDB_MODE", "offline"),
            dir=str(folder),
            settings=quiet,
        )
        for point in run.points:
            mirror.log({key: value for key, value in point.items() if key != "step"}, step=int(point["step"]))
        mirror.summary.update(run.finals)
        folders.append(Path(mirror.dir).parent)
        mirror.finish()
    return folders


@contextmanager
def _extra(name: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(
            f"{name} is not installed ({error}); install the extra: pip install 'gepa-sweeps[mirrors]'"
        ) from error
