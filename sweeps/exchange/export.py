"""`launch.py export`: a run out of a store as the challenge's folder, and proof that it stands alone."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gepa_core.config import DataPaths, ExecConfig, RunConfig
from gepa_core.errors import ArtifactError, ConfigError, DataError
from sweeps.kinds.script import is_script
from sweeps.spec.keys import near_miss
from sweeps.store.curves import joined, segment_rows
from sweeps.store.records import MAX_RECORD_BYTES, AttemptRecord, read
from sweeps.store.store import Outcome, Store, sha256

SUBMISSIONS = "submissions"
"""Where submissions are written unless another folder is named."""
ROUNDING_BPB = 1e-3
"""Beyond what bf16 on another device, or another number of ranks, can make of a figure."""
_ARTIFACT = "model.int6"


@dataclass(frozen=True)
class Finished:
    """A run of which an int6 stage was measured, with what a submission is made of."""

    run: RunConfig
    row: dict[str, Any]
    """Of runs.parquet, and the loss of each int6 stage where the store knows it."""
    record: dict[str, Any]
    """sweep.json."""
    points: list[dict[str, float]]
    artifact: bytes
    exec: ExecConfig
    """How the claimed stage was measured, for one process."""
    measured: Outcome | None
    """The claimed stage's record; None where only the sweep's own folder is left."""


def find(store: Store, sweeps: Sequence[str], run_id: str) -> Finished:
    """The run in the first of `sweeps` that measured an int6 stage of it.

    Raises ConfigError where no sweep has the run; ArtifactError where none has its int6 figures, or its
    artifact is gone or altered.
    """
    from gepa_core.submission.folder import KINDS, claimed_stage

    name, row = _row(store, sweeps, run_id)
    folder = store.sweep(name)
    record, plan = (
        folder.read_json("sweep.json") or {},
        folder.read_json("plan.json") or {"runs": {}, "stages": {}},
    )
    if is_script(row):
        where = f"; its files are in {row['output.folder']}" if row.get("output.folder") else ""
        raise ConfigError(f"{run_id}: a run of a script, and only the recipe's runs are exported{where}")
    stage = claimed_stage(row)
    if stage is None:
        raise ArtifactError(f"{run_id}: {_why_unmeasured(row, record)}")
    nodes = plan["runs"].get(run_id, {"segments": [], "stages": []})
    done = {found.kind: found for id_ in nodes["stages"] if (found := store.done(id_))}
    losses = {f"{kind}_loss": _loss(done[kind]) for kind in KINDS.values() if kind in done}
    measured = done.get(KINDS[stage])
    try:
        run = RunConfig.model_validate_json(row["config_json"])
        exec_cfg = ExecConfig.model_validate_json(json.dumps(record.get("exec", {})))
    except ValidationError as error:
        raise ConfigError(f"{run_id}: its configuration is not one of this version ({error})") from error
    return Finished(
        run=run,
        row=row | losses,
        record=record,
        points=joined([segment_rows(store, name, segment) for segment in nodes["segments"]]),
        artifact=_artifact(store, name, run_id, done.get("quantize")),
        exec=_as_measured(store, exec_cfg, measured),
        measured=measured,
    )


def export(found: Finished, to: Path, **words: str) -> dict[str, Any]:
    """Writes the folder; returns what its submission.json claims. `words`: author, github_id, name, blurb.

    Raises ArtifactError: `to` holds something, or the model with its script is over the cap.
    """
    from gepa_core.submission.folder import export

    points = [{**point, "elapsed_seconds": point["seconds"]} for point in found.points]
    return export(found.run, found.artifact, found.row, points, to, exec_cfg=found.exec, **words)


def validation_data(found: Finished, given: str | None = None) -> DataPaths:
    """The data the run was measured on: in the prepared folder `given`, or where the sweep found it.

    Raises DataError where it is not there, or is other data.
    """
    from gepa_core.data.folder import cached_fingerprint, open_folder
    from gepa_core.data.shards import file_sha256, open_shards

    run = found.run.data
    if given:
        paths = open_folder(given).paths
    else:
        places = [entry for entry in found.record.get("data", []) if entry.get("fingerprint") == run.train]
        if not places or "paths" not in places[0]:
            raise DataError("the store does not say where the run's data lies; name its folder with --data")
        paths = DataPaths(**places[0]["paths"])
    where = given or paths.val
    try:
        same = (
            cached_fingerprint(open_shards(paths.val)) == run.val
            and f"sha256:{file_sha256(Path(paths.tokenizer))}" == run.tokenizer
        )
    except OSError as error:
        raise DataError(f"{error.filename or where}: {error.strerror}") from error
    if not same:
        raise DataError(f"{where}: not the validation data and tokenizer that the run was measured with")
    return paths


def out_of_reach(found: Finished) -> str | None:
    """Why the run's figure cannot be had again on this machine."""
    import torch

    if found.exec.device == "cpu" or torch.cuda.is_available() or found.measured is None:
        return None
    return f"it was measured on {found.measured.execution.get('device')}, and torch sees no GPU here"


def verify(found: Finished, folder: Path, data: DataPaths) -> str:
    """`gepa_core.submission.folder.verify`, with how the figure was measured in the error."""
    from gepa_core.submission.folder import NotReproducedError, verify

    try:
        return verify(folder, data)
    except NotReproducedError as error:
        how = found.measured.execution if found.measured else found.row
        facts = [
            f"{word} {how[key]}"
            for key, word in (
                ("device", "on"),
                ("ranks", "ranks"),
                ("threads", "threads"),
                ("torch_version", "torch"),
            )
            if how.get(key) is not None
        ]
        raise NotReproducedError(
            f"{error}; measured {', '.join(facts)}. The folder was left for a look; --remeasure claims what "
            "its script prints here"
        ) from None


def remeasured(found: Finished, folder: Path, data: DataPaths) -> Finished:
    """The run with its claimed stage as the folder's script measures it on this machine.

    Raises NotReproducedError where that is not the sweep's figure up to rounding.
    """
    from gepa_core.submission.folder import KINDS, NotReproducedError, printed

    stage, *pairs = printed(folder, data).split(" ")
    figures = {key: float(value) for key, value in (pair.split(":") for pair in pairs)}
    column = f"{KINDS[stage]}_bpb"
    if not abs(figures["val_bpb"] - found.row[column]) < ROUNDING_BPB:
        raise NotReproducedError(
            f"{folder}: its script measures {figures['val_bpb']:.8f} BPB, the sweep {found.row[column]:.8f}: "
            "more than rounding"
        )
    new = {column: figures["val_bpb"], f"{KINDS[stage]}_loss": figures["val_loss"]}
    return replace(found, row=found.row | new)


def _row(store: Store, sweeps: Sequence[str], run_id: str) -> tuple[str, dict[str, Any]]:
    from gepa_core.submission.folder import claimed_stage

    rows = [(name, row) for name in sweeps for row in store.sweep(name).read_runs() or []]
    found = [(name, row) for name, row in rows if row["run_id"] == run_id]
    if not found:
        ids = [row["run_id"] for _, row in rows]
        begun = [id_ for id_ in dict.fromkeys(ids) if run_id and id_.startswith(run_id)]
        hint = f"; did you mean {' or '.join(begun[:3])}?" if begun else near_miss(run_id, ids)
        hint = hint or f"; it has {', '.join(list(dict.fromkeys(ids))[:3]) or 'none'}" + ", ..." * (
            len(ids) > 3
        )
        raise ConfigError(f"{run_id}: no such run in {store.files.describe('')}{hint}")
    return next((item for item in found if claimed_stage(item[1]) is not None), found[0])


def _why_unmeasured(row: dict[str, Any], record: dict[str, Any]) -> str:
    if row["status"] in ("failed", "diverged"):
        return f"the run {row['status']} ({row['error']}); nothing can be claimed"
    if row["status"] == "pending":
        return "the run is not done; its launch.py command continues it"
    stages = ", ".join(record.get("stages") or ["none"])
    return f"no int6 stage of this run was measured (stages: {stages}); add one of int6, int6_sliding, ttt"


def _artifact(store: Store, sweep: str, run_id: str, quantized: Outcome | None) -> bytes:
    """The sweep's copy, or the store's own where that one is gone or altered."""
    path = f"{sweep}/artifacts/{run_id}.int6"
    copy = store.files.read(path)
    if quantized is None:
        if copy is None:
            raise ArtifactError(
                f"{store.files.describe(path)} is gone; the sweep's launch.py command remakes it"
            )
        return copy
    if copy is not None and sha256(copy) == quantized.files.get(_ARTIFACT, {}).get("sha256"):
        return copy
    return store.read_file(quantized, _ARTIFACT)


def _loss(measured: Outcome) -> float:
    """Nats a token, from bits a byte."""
    result = measured.result
    return float(result[f"{measured.kind}_bpb"] * math.log(2) * result["bytes"] / result["tokens"])


def _as_measured(store: Store, exec_cfg: ExecConfig, measured: Outcome | None) -> ExecConfig:
    """One process on the device, with the threads and batches, that the stage had."""
    update: dict[str, Any] = {"ranks": 1}
    if measured is not None:
        how = measured.execution
        on_cpu = how.get("device") == "cpu"
        update |= {"device": "cpu" if on_cpu else "cuda", "threads": how.get("threads") if on_cpu else None}
        path = f"{store.attempt_path(measured.id, measured.attempt)}/attempt.json"
        attempt, where = store.files.read(path, MAX_RECORD_BYTES), store.files.describe(path)
        remedy = "delete it, if all of the sweep was measured as its file says"
        limit = read(AttemptRecord, attempt, where, remedy).micro_batch_seqs if attempt else None
        if limit is not None and limit != exec_cfg.micro_batch_seqs:  # memory was short
            update["eval_batch_seqs"] = limit
    return exec_cfg.model_copy(update=update)
