"""`launch.py gc`: deletes from a store what neither a result nor the extension of a sweep needs.

That is: what killed drivers left half written; attempts that were not committed, of finished segments and
stages, and the checkpoints on their way; final states of finished runs; segments and stages that no sweep's
plan names any more. With `states`, also the states on the trunks of finished runs, and what a sweep file's
`keep` kept: extending the sweep then costs more.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sweeps.kinds.kind import FINAL_STATE
from sweeps.kinds.table import KINDS
from sweeps.store.files import TEMPORARY_SUFFIX, StorageError
from sweeps.store.lock import Lease
from sweeps.store.records import RecordError
from sweeps.store.store import Outcome, Store


@dataclass(frozen=True)
class Waste:
    """A file or folder to delete: its path in the store, its size, and why it is not needed."""

    path: str
    bytes: int
    why: str


@contextlib.contextmanager
def all_leases(store: Store) -> Iterator[None]:
    """Holds the lease of every sweep, so that no driver starts on what is about to be deleted.

    Raises LeaseHeldError while a driver works on one.
    """
    with contextlib.ExitStack() as stack:
        for sweep in store.sweeps():
            lease = Lease(store.files, store.sweep(sweep).lease_path)
            lease.acquire()
            stack.callback(lease.release)
        yield


def find_waste(store: Store, *, states: bool = False) -> list[Waste]:
    """What could be deleted; to be asked while `all_leases` are held.

    Raises RecordError where a record that it has to judge by is damaged.
    """
    plans = [_plan(store, sweep) for sweep in store.sweeps()]
    named = {id_ for plan in plans for part in ("segments", "stages") for id_ in plan.get(part, {})}
    done = store.all_done()
    needed = _needed(plans, done)
    kept = {keep: _kept(store, keep) for keep in ("final", "all")}
    found = list(_half_written(store))
    for id_ in store.ids():
        if id_ not in named and not (id_ in done and done[id_].identity.get("adopted")):
            found.append(_waste(store, f"segments/{id_}", "no sweep's plan names it"))
        elif id_ in done:
            found += _beside(store, done[id_], checkpoints=states or id_ not in kept["all"])
            trunk = done[id_].identity.get("trunk", False)
            stays = id_ in kept["final"] or id_ in kept["all"]
            if KINDS[done[id_].kind].trains and id_ not in needed and (states or not (trunk or stays)):
                path = f"{store.attempt_path(id_, done[id_].attempt)}/{FINAL_STATE}"
                found.append(
                    _waste(store, path, f"state {'on the trunk' if trunk else 'at the end'} of finished runs")
                )
    launched = (store.sweep(sweep).read_json("sweep.json") or {} for sweep in store.sweeps())
    used = {record.get("script_files") for record in launched}
    for entry in store.files.list("scripts"):
        if f"scripts/{entry.name}" not in used:
            found.append(Waste(f"scripts/{entry.name}", entry.size, "files of a script that no sweep runs"))
    return [waste for waste in found if waste.bytes]


def _plan(store: Store, sweep: str) -> dict[str, Any]:
    folder = store.sweep(sweep)
    folder.read_runs()
    found = {name: folder.read_json(name) for name in ("sweep.json", "plan.json")}
    for name, record in found.items():
        if record is None:
            where = store.files.describe(f"{sweep}/{name}")
            raise RecordError(
                f"{where}: missing, so that it cannot be told what the sweep needs; its launch.py command "
                f"writes it anew, or delete {store.files.describe(sweep)} with all its results"
            )
    return found["plan.json"] or {}


def collect(store: Store, waste: list[Waste]) -> None:
    """Raises StorageError, when all else is deleted, saying what could not be."""
    refused: list[StorageError] = []
    for item in waste:
        try:
            store.files.delete(item.path)
        except StorageError as error:
            refused.append(error)
    if refused:
        raise StorageError(f"{len(refused)} of {len(waste)} could not be deleted: {refused[0]}")


def _waste(store: Store, path: str, why: str) -> Waste:
    size = store.files.size(path)
    if size is None:
        size = sum(entry.size for entry in store.files.list(path, recursive=True) if not entry.is_dir)
    return Waste(path, size, why)


def _half_written(store: Store) -> Iterator[Waste]:
    for sweep in store.sweeps():
        for entry in store.files.list(sweep, recursive=True):
            if not entry.is_dir and entry.name.endswith(TEMPORARY_SUFFIX):
                yield Waste(f"{sweep}/{entry.name}", entry.size, "half written")


def _kept(store: Store, keep: str) -> set[str]:
    """Segments of the sweeps whose file says `keep`."""
    kept: set[str] = set()
    for sweep in store.sweeps():
        record = store.sweep(sweep).read_json("sweep.json") or {}
        if (record.get("document") or {}).get("keep") == keep:
            kept.update(_plan(store, sweep).get("segments", {}))
    return kept


def _beside(store: Store, done: Outcome, *, checkpoints: bool) -> Iterator[Waste]:
    """Other attempts at something finished, and the checkpoints on the way of the committed one."""
    attempts = store.attempts(done.id)
    if attempts and done.attempt not in attempts:
        where = store.files.describe(f"segments/{done.id}/DONE.json")
        raise RecordError(f"{where}: names an attempt that is not there; move it away")
    for attempt in attempts:
        if attempt != done.attempt:
            yield _waste(store, store.attempt_path(done.id, attempt), "not the attempt that was committed")
    if checkpoints:
        yield _waste(store, f"{store.attempt_path(done.id, done.attempt)}/checkpoints", "on the way")


def _needed(plans: list[dict[str, Any]], done: dict[str, Outcome]) -> set[str]:
    """Segments of the runs, in any sweep, that are not finished."""
    runs = (run for plan in plans for run in plan.get("runs", {}).values())
    unfinished = (run for run in runs if not done.keys() >= {*run["segments"], *run["stages"]})
    return {node for run in unfinished for node in run["segments"]}
