"""The store on a disk and on an object store (moto's server): attempts, DONE records, tables."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sweeps.store.files import Files, StorageError
from sweeps.store.records import RecordError
from sweeps.store.schema import RUNS, runs_schema, to_parquet
from sweeps.store.store import CommitError, Outcome, Store, checksums


@pytest.fixture
def store(url: str) -> Store:
    return Store(url, patience=5.0)


def finished(store: Store, id_: str, attempt: str, data: bytes = b"result", **changes: Any) -> Outcome:
    """An attempt that ended well and is not committed."""
    base = store.attempt_path(id_, attempt)
    store.files.put(f"{base}/trajectory.parquet", data)
    store.files.put(f"{base}/checkpoint/state.json", b"{}")
    sizes = {"trajectory.parquet": len(data), "checkpoint/state.json": 2}
    files = {name: {"bytes": size, "sha256": "0" * 64} for name, size in sizes.items()}
    identity = {"parent": None, "trunk_id": "t", "start": 0, "stop": 10, "trunk": True, "config": {}}
    outcome = Outcome(id_, attempt, "segment", "finished", None, {"step": 10}, {"ranks": 1}, identity, files)
    outcome = replace(outcome, **changes)
    store.files.put(f"{base}/outcome.json", outcome.to_json())
    return outcome


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
def test_a_damaged_done_record_is_told_and_left_alone(store: Store, garbage: bytes) -> None:
    outcome = finished(store, "0-10-x", "aaaa")
    store.files.put("segments/0-10-x/DONE.json", garbage)
    for use in (lambda: store.done("0-10-x"), lambda: store.all_done(), lambda: store.commit(outcome)):
        with pytest.raises(RecordError, match=r"0-10-x/DONE\.json: (damaged|of a format).*move it away"):
            use()
    assert store.files.read("segments/0-10-x/DONE.json") == garbage


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


# Tables


def test_unknown_is_null_and_every_column_has_its_type_and_unit(store: Store) -> None:
    folder = store.sweep("s")
    axes: dict[str, list[Any]] = {
        "optim.matrix_lr": [0.1],
        "model.width": [64],
        "quant.method": ["rd"],
        "seed": [1],
    }
    folder.write_runs(
        [
            {
                "run_id": "a",
                "sweep": "s",
                "status": "done",
                "steps": 3,
                "optim.matrix_lr": 0.1,
                "model.width": 64,
            }
        ],
        axes,
    )
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


def test_a_clean_checkout_is_recorded_as_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also as earlier versions wrote it: as an empty text."""
    from sweeps.drive import launch
    from sweeps.plan.planner import make_plan
    from sweeps.spec.load import read_sweep

    monkeypatch.setattr(launch, "_git", lambda *arguments: "")
    plan = make_plan(read_sweep("name: s\ngrid: {steps: [4], warmdown_steps: [2]}"))
    record = launch.sweep_record(plan, store)
    for dirty in (False, ""):
        store.sweep("s").write_json("sweep.json", {**record, "dirty": dirty})
        assert not (store.sweep("s").read_json("sweep.json") or {})["dirty"]
    assert record["dirty"] is False
