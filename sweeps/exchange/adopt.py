"""`launch.py import`: takes a checkpoint of the constant phase into a store, for runs to start from."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gepa_core.bounded import MAX_JSON_BYTES, read_bytes
from gepa_core.config import RunConfig, digest
from gepa_core.errors import ConfigError
from sweeps.kinds.kind import FINAL_STATE
from sweeps.kinds.table import SEGMENT
from sweeps.plan.planner import trunk_id
from sweeps.spec.sweep import Sweep
from sweeps.store.journal import reports_of_training
from sweeps.store.schema import TRAJECTORY, to_parquet
from sweeps.store.store import Outcome, Store, checksums, new_attempt, sha256


@dataclass(frozen=True)
class Adopted:
    id: str
    step: int
    runs: tuple[str, ...]
    """Runs of the sweep that can start from it."""


def adopt(store: Store, sweep: Sweep, checkpoint: Path) -> Adopted:
    """Copies the checkpoint into the store and commits it as a finished trunk segment from step 0.

    `checkpoint`: its folder, or an output folder of gepa_core.train, whose newest one is meant.
    Raises CheckpointError for a damaged checkpoint, ConfigError for one that no run of the sweep could have
    passed through.
    """
    from gepa_core.training.trained import model_of, open_state, validate

    checkpoint, state = open_state(checkpoint)
    told = state.told(checkpoint)
    step, config = told.step, validate(RunConfig, told.config, checkpoint)
    for average in (False, True):  # both fit the model, or it is of no use
        model_of(state, checkpoint, average=average)
    if step > config.peak_steps:
        raise ConfigError(
            f"{checkpoint}: at step {step} its learning rate is already decaying (the constant phase ends at "
            f"{config.peak_steps}); only states of the constant phase can be branched from"
        )
    trunk = trunk_id(config)
    runs = tuple(run.run_id for run in sweep.recipe_runs if trunk_id(run) == trunk and run.peak_steps >= step)
    if not runs:
        raise ConfigError(f"{checkpoint}: no run of {sweep.name} passes through it{_why_not(config, sweep)}")
    files = checksums(checkpoint, [path.name for path in checkpoint.iterdir() if path.is_file()])
    id_ = f"0-{step}-{digest({'adopted': files, 'trunk': trunk})[:16]}"
    identity = {
        "parent": None,
        "trunk_id": trunk,
        "start": 0,
        "stop": step,
        "trunk": True,
        "config": config.model_dump(mode="json"),
        "adopted": str(checkpoint.absolute()),
    }
    tokens = {data.config.train: data.train_tokens for data in sweep.data.values()}
    result = {"step": step, "train_shard_tokens": tokens.get(config.data.train)}
    outcome = Outcome(
        id_, new_attempt(), SEGMENT, "finished", result=result, identity=identity, started_at=time.time()
    )
    if store.done(id_) is None:
        _commit(store, outcome, checkpoint, files)
    return Adopted(id_, step, runs)


def _why_not(config: RunConfig, sweep: Sweep) -> str:
    """The keys in which the nearest run's constant phase differs, with both values."""
    own = _flat(config.trunk())
    nearest = min(
        (
            [
                f"{key} (its {_shown(own.get(key))}, the sweep's {_shown(value)})"
                for key, value in _flat(run.trunk()).items()
                if own.get(key) != value
            ]
            for run in sweep.recipe_runs
        ),
        key=len,
    )
    return f": they differ in {', '.join(nearest)}" if nearest else ": its step is beyond their branch points"


def _shown(value: Any) -> str:
    return "not set" if value is None else str(value)


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {prefix + key: item}
    return flat


def _commit(store: Store, outcome: Outcome, checkpoint: Path, files: dict[str, dict[str, Any]]) -> None:
    base = store.attempt_path(outcome.id, outcome.attempt)
    store.files.upload_folder(checkpoint, f"{base}/{FINAL_STATE}")
    trajectory = to_parquet(_trajectory(checkpoint, outcome.identity["stop"]), TRAJECTORY)
    store.files.put(f"{base}/trajectory.parquet", trajectory)
    vouched = {f"{FINAL_STATE}/{name}": facts for name, facts in files.items()}
    vouched["trajectory.parquet"] = {"bytes": len(trajectory), "sha256": sha256(trajectory)}
    store.commit(replace(outcome, files=vouched))


def _trajectory(checkpoint: Path, step: int) -> list[dict[str, Any]]:
    """What the run that wrote the checkpoint reported until there, if its folder has that."""
    for folder in (checkpoint.parent.parent, checkpoint.parent):
        journal = folder / "events.jsonl"
        if journal.is_file():
            found = reports_of_training(read_bytes(journal, MAX_JSON_BYTES), str(journal))
            rows = [row for row in found if row["step"] <= step]
            return [{key: row.get(key) for key in TRAJECTORY.names} for row in rows]
    return []
