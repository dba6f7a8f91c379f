"""The store on a disk and on an object store (moto's server): attempts, DONE records, leases, tables."""

import contextlib
import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sweeps.files import Files, StorageError
from sweeps.gc import collect, find_waste
from sweeps.lease import Lease, LeaseHeldError, LeaseLostError, read_lease
from sweeps.schema import RUNS, runs_schema, to_parquet
from sweeps.store import CommitError, Outcome, Store, checksums


@pytest.fixture(params=["disk", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return str(tmp_path / "store")
    s3: Callable[[str], str] = request.getfixturevalue("s3")
    return s3(tmp_path.name)


@pytest.fixture
def store(url: str) -> Store:
    return Store(url, patience=5.0)


def finished(store: Store, id_: str, attempt: str, data: bytes = b"result", **changes: Any) -> Outcome:
    """An attempt that ended well and is not committed."""
    base = store.attempt_path(id_, attempt)
    store.files.put(f"{base}/trajectory.parquet", data)
    store.files.put(f"{base}/checkpoint/state.json", b"{}")
    sizes = {"trajectory.parquet": len(data), "checkpoint/state.json": 2}
    files = {name: {"bytes": size, "sha256": ""} for name, size in sizes.items()}
    outcome = replace(Outcome(id_, attempt, "segment", "finished", files=files), **changes)
    store.files.put(f"{base}/outcome.json", outcome.to_json())
    return outcome


# Files


def test_files_are_whole_or_absent(url: str) -> None:
    files = Files(url)
    assert files.read("a/b") is None and not files.exists("a/b")
    files.put("a/b", b"one")
    files.put("a/b", b"two")
    assert files.read("a/b") == b"two" and files.size("a/b") == 3
    assert not files.put_new("a/b", b"three") and files.put_new("a/c", b"four")
    assert [(e.name, e.size, e.is_dir) for e in files.list("a")] == [("b", 3, False), ("c", 4, False)]
    files.delete("a/b")
    assert [entry.name for entry in files.list("a")] == ["c"]
    files.delete("a")
    files.delete("a")
    assert files.list("a") == [] and files.list("never") == []


def test_a_folder_half_deleted_has_lost_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at the second file, in whatever order the disk lists them: of several names some come last."""
    files = Files(tmp_path)
    deleted: list[Any] = []
    real = os.unlink

    def unlink(*args: Any, **kwargs: Any) -> None:
        if deleted:
            raise KeyboardInterrupt
        deleted.append(args)
        real(*args, **kwargs)

    for i in range(8):
        files.put(f"x{i}/attempts/a/log.txt", b"1")
        files.put(f"x{i}/DONE{i}.json", b"1")
        deleted.clear()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "unlink", unlink)
            files.delete(f"x{i}")
        assert [entry.name for entry in files.list(f"x{i}")] == ["attempts"]
        files.delete(f"x{i}")
    assert files.list("") == []


def test_what_cannot_be_deleted_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    for name in ("a", "b"):
        store.files.put(f"segments/{name}/attempts/x/log.txt", b"1")
    real = os.rmdir

    def rmdir(path: Any, **kwargs: Any) -> None:
        if str(path).endswith("a/attempts/x"):
            raise PermissionError(errno.EACCES, "Permission denied")
        real(path, **kwargs)

    monkeypatch.setattr(os, "rmdir", rmdir)
    with pytest.raises(StorageError, match=r"1 of 2 could not be deleted: .*segments/a: Permission denied"):
        collect(store, find_waste(store))
    assert store.ids() == ["a"]


def test_folders_travel_both_ways(url: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "file").write_bytes(b"x" * 100_000)
    files = Files(url)
    files.upload_folder(source, "copy")
    assert [e.name for e in files.list("copy", recursive=True) if not e.is_dir] == ["deep/file"]
    files.download_folder("copy", tmp_path / "back")
    assert (tmp_path / "back" / "deep" / "file").read_bytes() == b"x" * 100_000


def test_an_object_store_by_endpoint_in_the_url(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    host = s3_endpoint.removeprefix("http://")
    files = Files(f"s3://bucket/by-url?endpoint_override={host}&scheme=http")
    files.put("x", b"1")
    assert files.read("x") == b"1"
    assert files.describe("x") == "s3://bucket/by-url/x"


def test_of_many_writers_of_a_new_file_on_a_disk_one_wins(tmp_path: Path) -> None:
    files = Files(tmp_path)
    won: list[bytes] = []

    def write(data: bytes) -> None:
        if files.put_new("prize", data):
            won.append(data)

    threads = [threading.Thread(target=write, args=(str(i).encode(),)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and files.read("prize") == won[0]
    assert [entry.name for entry in files.list("")] == ["prize"]


def test_unknown_scheme_is_said() -> None:
    with pytest.raises(StorageError, match="ftp://host/x"):
        Files("ftp://host/x")


def test_storage_away_for_a_while_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = Files(tmp_path, patience=10.0)
    (tmp_path / "file").write_bytes(b"data")
    back = time.monotonic() + 0.5
    real = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if time.monotonic() < back:
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    assert files.read("file") == b"data" and time.monotonic() >= back


def test_storage_that_stays_away_is_an_error_that_says_so(s3_endpoint: str) -> None:
    files = Files("s3://bucket/x?endpoint_override=127.0.0.1:9&scheme=http", patience=1.0)
    with pytest.raises(StorageError, match=r"cannot read s3://bucket/x/file: .*try again when it is back"):
        files.read("file")


def test_a_bucket_that_is_not_there_is_an_error_at_once(s3_endpoint: str) -> None:
    begun = time.monotonic()
    with pytest.raises(StorageError, match="cannot write s3://no-such-bucket/x"):
        Files("s3://no-such-bucket", patience=60.0).put("x", b"")
    assert time.monotonic() - begun < 10


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs /dev/full")
def test_a_full_disk_is_told_and_leaves_the_old_file(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.put("runs.parquet", b"old")
    # The kernel's own answer to a write on a full device, at the place of the file written aside.
    real = os.fsync

    def full(descriptor: int) -> None:
        with Path("/dev/full").open("wb", buffering=0) as device:
            device.write(b"x")
        real(descriptor)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(StorageError, match="disk full: cannot write"):
        patch.setattr(os, "fsync", full)
        files.put("runs.parquet", b"new")
    assert files.read("runs.parquet") == b"old"
    assert [entry.name for entry in files.list("")] == ["runs.parquet"]


# Commits


def test_the_first_commit_wins(store: Store) -> None:
    first, second = finished(store, "0-10-x", "aaaa"), finished(store, "0-10-x", "bbbb", b"other")
    assert store.done("0-10-x") is None
    assert store.commit(first) == first
    assert store.commit(second) == first
    assert store.done("0-10-x") == first
    assert store.all_done() == {"0-10-x": first}
    assert store.all_done(["0-10-x", "missing"]) == {"0-10-x": first}


def test_an_attempt_cut_short_is_not_committed(store: Store) -> None:
    outcome = finished(store, "0-10-x", "aaaa")
    store.files.put(f"{store.attempt_path('0-10-x', 'aaaa')}/trajectory.parquet", b"res")
    with pytest.raises(CommitError, match="has 3 bytes and not 6"):
        store.commit(outcome)
    assert store.done("0-10-x") is None


@pytest.mark.parametrize("garbage", [b"", b"{", b"[]", b'{"format": 99}', b"null"])
def test_a_done_record_that_is_none_is_replaced(store: Store, garbage: bytes) -> None:
    outcome = finished(store, "0-10-x", "aaaa")
    store.files.put("segments/0-10-x/DONE.json", garbage)
    assert store.done("0-10-x") is None
    assert store.commit(outcome) == outcome and store.done("0-10-x") == outcome


def test_a_zombie_that_goes_on_writing_alters_nothing(store: Store) -> None:
    winner = finished(store, "0-10-x", "aaaa")
    store.commit(winner)
    finished(store, "0-10-x", "zombie", b"late and different")
    assert store.done("0-10-x") == winner
    assert store.finished_attempts("0-10-x")[0].attempt == "aaaa"
    store.prune(winner)
    finished(store, "0-10-x", "zombie", b"and again")
    assert store.done("0-10-x") == winner
    assert store.final_state(winner) == "segments/0-10-x/attempts/aaaa/checkpoint"


def test_a_result_altered_since_is_not_read(store: Store) -> None:
    data = b"result"
    outcome = finished(store, "0-10-x", "aaaa", data)
    sha = {"trajectory.parquet": {"bytes": 6, "sha256": _sha(data)}}
    outcome = replace(outcome, files={**outcome.files, **sha})
    store.commit(outcome)
    assert store.read_file(outcome, "trajectory.parquet") == data
    store.files.put(f"{store.attempt_path('0-10-x', 'aaaa')}/trajectory.parquet", b"RESULT")
    with pytest.raises(StorageError, match="was altered since it was committed"):
        store.read_file(outcome, "trajectory.parquet")


def test_a_state_that_is_dropped_leaves_its_figures(store: Store) -> None:
    done = finished(store, "0-10-x", "aaaa")
    store.commit(done)
    store.drop_state(done)
    assert store.final_state(done) is None and store.done("0-10-x") == done
    assert store.files.exists("segments/0-10-x/attempts/aaaa/trajectory.parquet")


def test_a_final_state_cut_short_is_none(store: Store) -> None:
    done = finished(store, "0-10-x", "aaaa")
    store.commit(done)
    store.files.put("segments/0-10-x/attempts/aaaa/checkpoint/state.json", b"{")
    assert store.final_state(done) is None


def test_saved_states_are_listed_furthest_first(store: Store) -> None:
    for attempt, step in (("aaaa", 5), ("bbbb", 20), ("aaaa", 100)):
        store.files.put(f"{store.attempt_path('x', attempt)}/checkpoints/{step}/state.json", b"{}")
    store.files.put(f"{store.attempt_path('x', 'aaaa')}/checkpoints/.7.1234/state.json", b"{}")
    assert [(s.attempt, s.step) for s in store.saved_states("x")] == [
        ("aaaa", 100),
        ("bbbb", 20),
        ("aaaa", 5),
    ]


def test_checksums_of_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"bb")
    found = checksums(tmp_path, ["folder", "b"])
    assert found == {
        "folder/a": {"bytes": 1, "sha256": _sha(b"a")},
        "b": {"bytes": 2, "sha256": _sha(b"bb")},
    }


def _sha(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


# Leases


def test_a_second_driver_is_told_who_is_at_work(url: str) -> None:
    files = Files(url)
    first = Lease(files, "sweep/lease.json")
    first.acquire()
    try:
        with pytest.raises(LeaseHeldError, match=rf"process {os.getpid()} on .*lease\.json"):
            Lease(files, "sweep/lease.json").acquire()
        first.check()
    finally:
        first.release()
    assert read_lease(files, "sweep/lease.json") is None
    second = Lease(files, "sweep/lease.json")
    second.acquire()
    second.release()


def test_an_expired_lease_is_taken_over_and_its_holder_stops(url: str) -> None:
    files = Files(url)
    sleeper = Lease(files, "lease.json", ttl=1.0)
    sleeper.acquire()
    sleeper._stop.set()  # as if the machine slept: nothing is renewed
    record = json.loads(files.read("lease.json") or b"")
    files.put("lease.json", json.dumps({**record, "machine": "another", "expires": time.time() - 1}).encode())
    other = Lease(files, "lease.json")
    other.acquire()
    time.sleep(1.1)
    with pytest.raises(LeaseLostError, match="took over"):
        sleeper.check()
    sleeper.release()
    assert (read_lease(files, "lease.json") or {})["driver"] == other.driver
    other.release()


def test_the_lease_of_a_driver_killed_on_this_machine_is_free_at_once(tmp_path: Path) -> None:
    program = (
        "import os, sys; from sweeps.files import Files; from sweeps.lease import Lease\n"
        f"Lease(Files({str(tmp_path)!r}), 'lease.json').acquire(); os.kill(os.getpid(), 9)"
    )
    code = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", program], cwd=code).returncode == -9
    files = Files(tmp_path)
    assert read_lease(files, "lease.json")
    lease = Lease(files, "lease.json")
    lease.acquire()
    lease.release()


def test_a_lease_is_renewed(tmp_path: Path) -> None:
    files = Files(tmp_path)
    lease = Lease(files, "lease.json", ttl=0.4)
    lease.acquire()
    first = (read_lease(files, "lease.json") or {})["expires"]
    time.sleep(0.5)
    assert (read_lease(files, "lease.json") or {})["expires"] > first
    lease.check()
    lease.release()


def test_of_drivers_that_take_over_a_stale_lease_at_once_one_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All have read the old record before the first writes its own; the disk is slow for one of them."""
    files = Files(tmp_path)
    files.put("lease.json", json.dumps({"driver": "old", "expires": 0}).encode())
    drivers, seen = [Lease(files, "lease.json") for _ in range(3)], threading.Barrier(3)
    real, held = Files.put, []

    def put(self: Files, path: str, data: bytes) -> None:
        if drivers[0].driver.encode() in data:
            time.sleep(0.3)
        real(self, path, data)

    def meet(record: dict[str, Any]) -> bool:
        seen.wait()
        return True

    monkeypatch.setattr(Files, "put", put)
    monkeypatch.setattr("sweeps.lease.is_stale", meet)

    def acquire(driver: Lease) -> None:
        with contextlib.suppress(LeaseHeldError):
            driver.acquire()
            held.append(driver)

    threads = [threading.Thread(target=acquire, args=(driver,)) for driver in drivers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert held == drivers[:1]
    held[0].release()


@pytest.mark.parametrize(
    "garbage", [b"", b"{", b"3", b'{"driver": "x"}', b'{"driver": "x", "expires": null}']
)
def test_a_lease_that_is_not_readable_is_free(tmp_path: Path, garbage: bytes) -> None:
    files = Files(tmp_path)
    files.put("lease.json", garbage)
    assert read_lease(files, "lease.json") is None
    lease = Lease(files, "lease.json")
    lease.acquire()
    lease.release()


# Tables


def test_unknown_is_null_and_every_column_has_its_type_and_unit(store: Store) -> None:
    folder = store.sweep("s")
    axes: dict[str, list[Any]] = {
        "optim.matrix_lr": [0.1],
        "model.width": [64],
        "quant.method": ["rd"],
        "seed": [1],
    }
    folder.write_runs([{"run_id": "a", "steps": 3, "optim.matrix_lr": 0.1, "model.width": 64}], axes)
    rows = folder.read_runs()
    assert rows is not None and rows[0]["steps"] == 3 and rows[0]["float_bpb"] is None
    assert rows[0]["quant.method"] is None
    schema = runs_schema(axes)
    assert [str(schema.field(a).type) for a in axes] == ["double", "int64", "string", "int64"]
    assert len(schema.names) == len(set(schema.names)) == len(RUNS.names) + 3
    assert RUNS.field("train_seconds").metadata[b"unit"] == b"s"
    assert schema.metadata[b"schema_version"] == b"1"


def test_a_column_the_schema_lacks_is_an_error_and_not_lost() -> None:
    with pytest.raises(KeyError, match="bpb_float"):
        to_parquet([{"bpb_float": 1.0}], RUNS)


def test_readers_see_whole_tables_while_they_are_rewritten(tmp_path: Path) -> None:
    folder = Store(tmp_path).sweep("s")
    rows = [{"run_id": str(i), "steps": i} for i in range(2000)]
    folder.write_runs(rows, {})
    stop = threading.Event()

    def rewrite() -> None:
        while not stop.is_set():
            folder.write_runs(rows, {})

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        for _ in range(50):
            assert pq.read_table(tmp_path / "s" / "runs.parquet").num_rows == 2000
    finally:
        stop.set()
        writer.join()
    assert [entry.name for entry in Files(tmp_path).list("s")] == ["runs.parquet"]
