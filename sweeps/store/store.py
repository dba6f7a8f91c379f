"""The store: what is done, and where it lies. The only file that writes results.

    segments/<id>/attempts/<attempt>/   everything one attempt at a segment or stage writes, and nobody else
    segments/<id>/DONE.json             the driver's word that one attempt is the result: all readers trust
    <sweep>/                            sweep.json, plan.json, runs.parquet, trajectory/, blocks/, artifacts/

An attempt ends by writing outcome.json with the checksums of its files. Committing it is one atomic put of
DONE.json, only where there is none: the first valid one wins and is never replaced, so that neither a worker
that was given up for lost nor a second driver can alter a result.
"""

import contextlib
import hashlib
import json
import re
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from sweeps.kinds.kind import FINAL_STATE
from sweeps.kinds.lease import devices
from sweeps.store import records
from sweeps.store.files import TEMPORARY_SUFFIX, Files, StorageError
from sweeps.store.records import FORMAT, MAX_RECORD_BYTES, NAME
from sweeps.store.redact import redacted
from sweeps.store.schema import BLOCKS, RUNS, TRAJECTORY, from_parquet, runs_schema, to_parquet

DAMAGED = "damaged.txt"
"""In a final state's folder: it was found altered, and is not used any more; says in what."""
_THREADS = 16
_SWEEP_FILES = {"sweep.json", "plan.json", "runs.parquet"}
_STEP = re.compile(r"[0-9]{1,9}")
_AGAIN = "the sweep's launch.py command writes it anew"
_REMEDY = {
    "DONE.json": "move it away, and the sweep's launch.py command commits it again, or trains it again",
    "outcome.json": "delete its attempt's folder, and the sweep's launch.py command trains it again",
}
_MODELS: dict[str, type[BaseModel]] = {"sweep.json": records.SweepRecord, "plan.json": records.PlanRecord}


class CommitError(StorageError):
    """An attempt's files are not what its outcome says."""


@dataclass(frozen=True)
class Outcome:
    """What an attempt at a segment or stage came to; `files` only what a commit vouches for."""

    id: str
    attempt: str
    kind: str
    """`segment`, or the stage's kind."""
    status: str
    """finished | stopped | preempted | diverged | out_of_memory | bad_input | storage | crashed"""
    error: str | None = None
    result: dict[str, Any] = field(default_factory=dict)
    """Measured values, by the names of runs.parquet where there is one."""
    execution: dict[str, Any] = field(default_factory=dict)
    """How it was executed: host, device, ranks, micro-batch, torch version, resumed from."""
    identity: dict[str, Any] = field(default_factory=dict)
    """The place in the tree: parent, trunk_id, start, stop, trunk, config."""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Path in the attempt's folder -> bytes and sha256."""
    started_at: float = 0.0
    seconds: float = 0.0
    format: int = FORMAT

    @property
    def devices(self) -> float | None:
        """Devices its attempt occupied; None where the record, an old one, does not say."""
        if "gpus" not in self.execution or "ranks" not in self.execution:
            return None
        return devices(self.execution["gpus"], self.execution["ranks"])

    def to_json(self) -> bytes:
        record = asdict(self) | {"error": redacted(self.error)}
        return json.dumps(record, indent=1, allow_nan=False).encode()

    @staticmethod
    def from_json(data: bytes, where: str = "outcome.json") -> "Outcome":
        """Raises RecordError for anything but a whole record of this format."""
        done = records.read(records.Done, data, where, _REMEDY[where.rpartition("/")[2]])
        facts = done.model_dump(exclude={"execution"})
        return Outcome(**facts, execution=done.execution.model_dump(exclude_unset=True))


@dataclass(frozen=True)
class SavedState:
    """A checkpoint inside an attempt."""

    attempt: str
    step: int
    path: str


def new_attempt() -> str:
    return uuid.uuid4().hex[:12]


class Store:
    """Results under one path or URL."""

    def __init__(self, url: str | Path, patience: float = 300.0) -> None:
        self.files = Files(url, patience)

    def attempt_path(self, id_: str, attempt: str) -> str:
        return f"segments/{id_}/attempts/{attempt}"

    def attempts(self, id_: str) -> list[str]:
        return self._folders(f"segments/{id_}/attempts")

    def _folders(self, path: str) -> list[str]:
        """Those whose names are of a kind that this project gives."""
        return [e.name for e in self.files.list(path) if e.is_dir and NAME.fullmatch(e.name)]

    def done(self, id_: str) -> Outcome | None:
        """The committed outcome of a segment or stage; None where it is not done. Raises RecordError."""
        return self._outcome(f"segments/{id_}/DONE.json", id_)

    def _outcome(self, path: str, id_: str) -> Outcome | None:
        data = self.files.read(path, MAX_RECORD_BYTES)
        if data is None:
            return None
        where = self.files.describe(path)
        outcome = Outcome.from_json(data, where)
        if outcome.id != id_:
            told = f"damaged or foreign (the record of {outcome.id})"
            raise records.RecordError(f"{where}: {told}; {_REMEDY[path.rpartition('/')[2]]}")
        return outcome

    def ids(self) -> list[str]:
        """Every segment and stage the store has a folder of. Raises RecordError where that is none."""
        if self.files.local and (self.files.local / "segments").is_file():
            where = self.files.describe("segments")
            raise records.RecordError(f"{where}: a file, where the folder of results should be; move it away")
        return self._folders("segments")

    def all_done(self, ids: Iterable[str] | None = None) -> dict[str, Outcome]:
        """The committed ones among `ids` (default: all there are), read in parallel."""
        there = set(self.ids())
        wanted = [id_ for id_ in (there if ids is None else ids) if id_ in there]
        with ThreadPoolExecutor(_THREADS) as pool:
            found = zip(wanted, pool.map(self.done, wanted), strict=True)
            return {id_: outcome for id_, outcome in found if outcome}

    def commit(self, outcome: Outcome) -> Outcome:
        """Make a finished attempt the result, unless another one is already; returns the one that is.

        Raises CommitError where files of the attempt are missing or cut short, RecordError where the result
        that is there already is damaged.
        """
        base = self.attempt_path(outcome.id, outcome.attempt)
        for name, facts in outcome.files.items():
            size = self.files.size(f"{base}/{name}")
            if size != facts["bytes"]:
                where = self.files.describe(f"{base}/{name}")
                if size is None:
                    hint = "if the workers' machines share no file system, give a URL as the store"
                    raise CommitError(f"{where} is not there and cannot be committed; {hint}")
                raise CommitError(f"{where} has {size} bytes and not {facts['bytes']}: it is not committed")
        path = f"segments/{outcome.id}/DONE.json"
        while not self.files.put_new(path, outcome.to_json()):
            if winner := self.done(outcome.id):
                return winner
        return outcome

    def finished_attempts(self, id_: str) -> list[Outcome]:
        """Attempts that ended well but were not committed: their driver died first."""
        found = (
            self._outcome(f"{self.attempt_path(id_, attempt)}/outcome.json", id_)
            for attempt in self.attempts(id_)
        )
        return [outcome for outcome in found if outcome and outcome.status == "finished"]

    def altered(self, outcome: Outcome) -> str | None:
        """The first file of an attempt that is not as its outcome says; None where all are."""
        base = self.attempt_path(outcome.id, outcome.attempt)
        name = next((name for name in outcome.files if not self._is_as_committed(outcome, name)), None)
        return None if name is None else self.files.describe(f"{base}/{name}")

    def saved_states(self, id_: str) -> list[SavedState]:
        """Checkpoints inside the segment's attempts, the furthest first."""
        found = [
            SavedState(
                attempt, int(entry.name), f"{self.attempt_path(id_, attempt)}/checkpoints/{entry.name}"
            )
            for attempt in self.attempts(id_)
            for entry in self.files.list(f"{self.attempt_path(id_, attempt)}/checkpoints")
            if entry.is_dir and _STEP.fullmatch(entry.name)
        ]
        return sorted(found, key=lambda state: (-state.step, state.attempt))

    def final_state(self, done: Outcome) -> str | None:
        """Path of a committed segment's final state; None once it was deleted, cut short or set aside."""
        return self.look_at_state(done)[0]

    def look_at_state(self, done: Outcome) -> tuple[str | None, str | None]:
        """(path of a segment's final state where it is of use, what is wrong with what is there)."""
        path = f"{self.attempt_path(done.id, done.attempt)}/{FINAL_STATE}"
        wanted = {n: facts["bytes"] for n, facts in done.files.items() if n.startswith(f"{FINAL_STATE}/")}
        there = {f"{FINAL_STATE}/{entry.name}": entry.size for entry in self.files.list(path)}
        where = self.files.describe(path)
        if f"{FINAL_STATE}/{DAMAGED}" in there:
            return None, None  # was told when it was found
        if wanted and wanted.items() <= there.items():
            return path, None
        return None, f"{where}: cut short or incomplete" if wanted.keys() & there.keys() else None

    def set_aside(self, done: Outcome, told: str | None = None) -> str | None:
        """Looks whether what is done still is what was committed; if not, it does not count any more.

        Returns what is wrong, None where nothing is. Nothing is deleted: an altered state stays where it is,
        under a note; of anything else the records stay, under other names.

        `told`: what a worker found wrong with its state. Where that is as it was committed, it was altered
        before, and the worker's word is taken: once for each segment, lest a reader at fault train for ever.
        """
        base = self.attempt_path(done.id, done.attempt)
        altered = [name for name in done.files if not self._is_as_committed(done, name)]
        if not altered:
            is_state = any(name.startswith(f"{FINAL_STATE}/") for name in done.files)
            if told is None or not is_state or self._has_damaged_state(done.id):
                return None
            self.files.put(f"{base}/{FINAL_STATE}/{DAMAGED}", f"{told}\n".encode())
            return told
        where = self.files.describe(f"{base}/{altered[0]}")
        what = f"{where}: gone, cut short or altered since it was committed"
        if all(name.startswith(f"{FINAL_STATE}/") for name in altered):
            self.files.put(f"{base}/{FINAL_STATE}/{DAMAGED}", f"{what}\n".encode())
            return what
        for record in (f"{base}/outcome.json", f"segments/{done.id}/DONE.json"):
            if (data := self.files.read(record, MAX_RECORD_BYTES)) is not None:
                self.files.put(f"{record}.{new_attempt()}.damaged", data)
                self.files.delete(record)
        return what

    def _has_damaged_state(self, id_: str) -> bool:
        """Whether a state of the segment was set aside before."""
        notes = (f"{self.attempt_path(id_, name)}/{FINAL_STATE}/{DAMAGED}" for name in self.attempts(id_))
        return any(self.files.exists(note) for note in notes)

    def _is_as_committed(self, done: Outcome, name: str) -> bool:
        path = f"{self.attempt_path(done.id, done.attempt)}/{name}"
        if self.files.size(path) != done.files[name]["bytes"]:
            return False
        return self.files.sha256(path) == done.files[name]["sha256"]

    def drop_state(self, done: Outcome) -> None:
        """Delete a committed segment's final state; its figures stay."""
        with contextlib.suppress(StorageError):  # gc finds what is left
            self.files.delete(f"{self.attempt_path(done.id, done.attempt)}/{FINAL_STATE}")

    def prune(self, done: Outcome) -> None:
        """Delete other attempts of a committed segment or stage, and the checkpoints on its way."""
        base = self.attempt_path(done.id, done.attempt)
        others = [self.attempt_path(done.id, name) for name in self.attempts(done.id) if name != done.attempt]
        for path in (*others, f"{base}/checkpoints"):
            with contextlib.suppress(StorageError):  # a worker given up for lost writes on; gc finds it
                self.files.delete(path)

    def read_file(self, done: Outcome, name: str) -> bytes:
        """A file the commit vouches for. Raises StorageError where it is gone or altered."""
        path = f"{self.attempt_path(done.id, done.attempt)}/{name}"
        data = self.files.read(path)
        if data is None or sha256(data) != done.files.get(name, {}).get("sha256"):
            what = "is gone" if data is None else "was altered"
            raise StorageError(f"{self.files.describe(path)} {what} since it was committed")
        return data

    def sweep(self, name: str) -> "SweepFolder":
        return SweepFolder(self.files, name)

    def sweeps(self) -> list[str]:
        """Names of the sweeps in this store: folders with a sweep's record, be it only one of them."""
        names = [name for name in self._folders("") if name != "segments"]
        return [name for name in names if _SWEEP_FILES & {e.name for e in self.files.list(name)}]


class SweepFolder:
    """The files of one sweep, written by its driver alone."""

    def __init__(self, files: Files, name: str) -> None:
        self.files, self.name = files, name
        self.lease_path = f"{name}/lease.json"

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """sweep.json or plan.json, without the credentials that may stand in commands and addresses."""
        record = redacted({"format": FORMAT, **value})
        self.files.put(f"{self.name}/{name}", json.dumps(record, indent=1, allow_nan=False).encode())

    def read_json(self, name: str) -> dict[str, Any] | None:
        """sweep.json or plan.json; None where there is none. Raises RecordError where it is damaged."""
        data = self.files.read(f"{self.name}/{name}", MAX_RECORD_BYTES)
        if data is None:
            return None
        where = self.files.describe(f"{self.name}/{name}")
        return records.read(_MODELS[name], data, where, _AGAIN).model_dump()

    def write_runs(self, rows: list[dict[str, Any]], axes: Mapping[str, Iterable[Any]]) -> None:
        """runs.parquet: one row a run; `axes`: further grid axes and the values they take."""
        self.files.put(f"{self.name}/runs.parquet", to_parquet(rows, runs_schema(axes)))

    def read_runs(self) -> list[dict[str, Any]] | None:
        """Rows of runs.parquet; None where there is none. Raises RecordError where it is damaged."""
        data = self.files.read(f"{self.name}/runs.parquet", MAX_RECORD_BYTES)
        where = self.files.describe(f"{self.name}/runs.parquet")
        return None if data is None else from_parquet(data, RUNS, where, _AGAIN)

    def write_trajectory(self, segment_id: str, run_id: str | None, rows: list[dict[str, Any]]) -> None:
        rows = [{**row, "segment_id": segment_id, "run_id": run_id} for row in rows]
        self.files.put(f"{self.name}/trajectory/{segment_id}.parquet", to_parquet(rows, TRAJECTORY))

    def write_blocks(self, run_id: str, rows: list[dict[str, Any]]) -> None:
        self.files.put(f"{self.name}/blocks/{run_id}.parquet", to_parquet(rows, BLOCKS))

    def block_stages(self, run_id: str) -> set[str]:
        """The stages that the blocks of a run are there of."""
        data = self.files.read(f"{self.name}/blocks/{run_id}.parquet")
        with contextlib.suppress(records.RecordError):  # the driver will write it anew
            return {row["stage"] for row in from_parquet(data, BLOCKS)} if data else set()
        return set()

    def write_artifact(self, run_id: str, data: bytes) -> None:
        self.files.put(f"{self.name}/artifacts/{run_id}.int6", data)

    def has(self, name: str) -> bool:
        return self.files.exists(f"{self.name}/{name}")

    def remove_temporaries(self) -> None:
        """Delete what a killed driver had half written; only for the holder of the sweep's lease."""
        for entry in self.files.list(self.name, recursive=True):
            if not entry.is_dir and entry.name.endswith(TEMPORARY_SUFFIX):
                self.files.delete(f"{self.name}/{entry.name}")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def checksums(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """bytes and sha256 of local files; a name may be a folder, whose files are all taken."""
    files: dict[str, dict[str, Any]] = {}
    for name in names:
        top = folder / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file():
                with path.open("rb") as stream:
                    digest = hashlib.file_digest(stream, "sha256").hexdigest()
                files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": digest}
    return files
