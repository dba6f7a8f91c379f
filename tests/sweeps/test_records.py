"""Records of the store: what is damaged, foreign or hostile is one line, exit code 2, and left as it is."""

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import launch
from sweeps.store.records import RecordError
from sweeps.store.store import Store, sha256
from tests.tiny_sweep import InThisProcess, launch_here, make_data, rows, sweep_text

MANY = 10**5


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="module")
def text(data: Path) -> str:
    return sweep_text(data, {"steps": [4], "warmdown_ratio": [0.5]}, stages=["ema", "int6"])


@pytest.fixture(scope="module")
def whole(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store. Left as it is by every test here."""
    store = tmp_path_factory.mktemp("store")
    assert launch_here(text, store).exit_code == 0
    return store


def one_line(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command says that ends in exit code 2: one line."""
    capsys.readouterr()
    assert launch.main(list(arguments)) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1, told
    return told.err


def done_of(store: Path, kind: str) -> Path:
    return next(
        path for path in store.glob("segments/*/DONE.json") if json.loads(path.read_bytes())["kind"] == kind
    )


def edit(**changes: Any) -> Callable[[bytes], bytes]:
    return lambda data: json.dumps(json.loads(data) | changes).encode()


GARBAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut short": lambda data: data[: len(data) // 2],
    "a list": lambda data: b"[]",
    "null": lambda data: b"null",
    "UTF-16": lambda data: data.decode().encode("utf-16"),
    "deep": lambda data: b"[" * MANY + b"]" * MANY,
    "a number of 5,000 digits": lambda data: b'{"format": ' + b"9" * 5000 + b"}",
    "another format": edit(format=2),
}
BY_RECORD: dict[str, dict[str, Callable[[bytes], bytes]]] = {
    "plan.json": {
        "segments null": edit(segments=None),
        "segments a list": edit(segments=[]),
        "runs of what is not described": edit(runs={"r": {"segments": ["0-4-x"], "stages": []}}),
        "names that lead away": edit(segments={"../../x": {}}),
        "steps beyond any": edit(steps_naive=10**30),
    },
    "sweep.json": {"no runs": edit(runs=None), "no name": edit(name=5), "a path as name": edit(name="../x")},
    "DONE.json": {
        "another's attempt": edit(attempt="../../../../home/project"),
        "another's id": edit(id="0-4-other"),
        "identity null": edit(identity=None),
        "identity a list": edit(identity=[]),
        "execution text": edit(execution="here"),
        "result null": edit(result=None),
        "files null": edit(files=None),
        "files that lead away": edit(files={"../x": {"bytes": 1, "sha256": "0" * 64}}),
        "started never": edit(started_at=1e300),
    },
}
CASES = [(record, what) for record, own in BY_RECORD.items() for what in (*GARBAGE, *own)]


@pytest.mark.parametrize(("record", "what"), CASES, ids=[f"{r}, {w}" for r, w in CASES])
def test_a_damaged_record_is_a_line_and_nothing_is_judged_by_it(
    whole: Path, capsys: pytest.CaptureFixture[str], record: str, what: str
) -> None:
    path = done_of(whole, "segment") if record == "DONE.json" else whole / "tiny" / record
    valid, files = path.read_bytes(), sorted(whole.rglob("*"))
    damaged = (GARBAGE | BY_RECORD[record])[what](valid)
    path.write_bytes(damaged)
    try:
        for command in ("status", "gc"):
            line = one_line(capsys, command, str(whole))
            assert line.startswith(f"{path}: ") and "launch.py command" in line, line
            assert ("format" if "format" in what else "damaged") in line, line
        assert path.read_bytes() == damaged and sorted(whole.rglob("*")) == files
    finally:
        path.write_bytes(valid)


def test_a_launch_writes_its_own_records_anew_and_says_so(
    text: str, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("plan.json", "sweep.json", "runs.parquet")
    for name in names:
        (whole / "tiny" / name).write_bytes(b"[]")
    assert launch_here(text, whole).exit_code == 0
    assert "runs.parquet: damaged, not Parquet" in capsys.readouterr().err
    assert Store(whole).sweep("tiny").read_json("plan.json")
    assert launch.main(["status", str(whole)]) == 0


def test_a_launch_that_meets_a_damaged_result_starts_nothing(text: str, whole: Path) -> None:
    path = done_of(whole, "ema")
    valid = path.read_bytes()
    path.write_bytes(b"{}")
    try:
        with pytest.raises(RecordError, match=r"DONE\.json: damaged or foreign.*move it away"):
            launch_here(text, whole)
    finally:
        path.write_bytes(valid)


def test_gc_refuses_where_a_sweeps_record_is_missing(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else it would take all that the sweep is made of for waste."""
    for name in ("plan.json", "sweep.json"):
        shutil.move(whole / "tiny" / name, tmp_path / name)
        try:
            assert f"{name}: missing" in one_line(capsys, "gc", str(whole))
        finally:
            shutil.move(tmp_path / name, whole / "tiny" / name)


@pytest.mark.parametrize(
    "lease",
    [
        {"driver": "x", "expires": 9e9, "machine": "", "pid": "abc", "host": "h", "process_start": None},
        {"driver": "x", "expires": 9e9, "machine": "", "pid": 3, "process_start": None},
        {"driver": "x", "expires": 1e300, "machine": "", "pid": 3, "host": "h", "process_start": None},
    ],
)
def test_a_lease_of_nobody_is_told(
    whole: Path, capsys: pytest.CaptureFixture[str], lease: dict[str, Any]
) -> None:
    path = whole / "tiny" / "lease.json"
    path.write_text(json.dumps(lease))
    try:
        for command in ("status", "gc"):
            assert "if no driver works on this sweep any more, delete it" in one_line(
                capsys, command, str(whole)
            )
        assert path.exists()
    finally:
        path.unlink()


def test_a_file_where_the_results_should_be_alters_nothing(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "store"
    shutil.copytree(whole / "tiny", copy / "tiny")
    (copy / "segments").write_bytes(b"")
    before = (copy / "tiny" / "runs.parquet").read_bytes()
    for command in ("status", "gc"):
        assert "segments: a file, where the folder of results should be" in one_line(
            capsys, command, str(copy)
        )
    assert (copy / "tiny" / "runs.parquet").read_bytes() == before


def with_bpb(table: Any, value: float) -> Any:
    import pyarrow as pa

    at = table.schema.get_field_index("float_bpb")
    return table.set_column(at, table.schema.field("float_bpb"), pa.array([value] * len(table)))


def test_tables_of_another_kind_are_not_no_runs(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = whole / "tiny" / "runs.parquet"
    valid = path.read_bytes()
    row = pq.read_table(path)
    at = row.schema.get_field_index("run_id")
    tables = {
        "no column run_id": pa.table({"a": [1]}),
        "is no name": row.set_column(at, row.schema.field("run_id"), pa.array(["../../x"])),
        "column run_id is int64": row.set_column(at, "run_id", pa.array([1])),
        "a run stands in it twice": pa.concat_tables([row, row]),
        "float_bpb -1 of": with_bpb(row, -1.0),
        "float_bpb inf of": with_bpb(row, float("inf")),
    }
    try:
        for told, table in tables.items():
            pq.write_table(table, path)
            for command in ("status", "gc"):
                line = one_line(capsys, command, str(whole))
                assert told in line and "launch.py command writes it anew" in line
        path.write_bytes(valid[:-30])
        assert "damaged, not Parquet" in one_line(capsys, "status", str(whole))
    finally:
        path.write_bytes(valid)


def test_a_journal_with_foreign_lines_is_told_by_line_and_one_cut_short_is_not(whole: Path) -> None:
    from sweeps.store.journal import reports

    journal = next(whole.glob("segments/0-*/attempts/*/events.jsonl"))
    data = journal.read_bytes()
    assert reports(data + b'{"event": "rep') == reports(data)
    for line in (
        b"hello\n",
        b"[]\n",
        b'{"event": "report", "step": "x"}\n',
        b'{"event": "report", "step": -5}\n',
    ):
        with pytest.raises(RecordError, match=r"events\.jsonl, line 2: damaged"):
            reports(data.partition(b"\n")[0] + b"\n" + line + data)


def test_nothing_is_deleted_through_a_link_that_leads_out_of_the_store(tmp_path: Path) -> None:
    store, outside = Store(tmp_path / "store"), tmp_path / "outside"
    (outside / "x").mkdir(parents=True)
    (outside / "x" / "kept").write_text("")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "segments").symlink_to(outside)
    for path in ("segments/x", "../outside", "a/../../outside/x", "/etc"):
        with pytest.raises(Exception, match=r"leads out of the store|no path inside a store"):
            store.files.delete(path)
    assert (outside / "x" / "kept").exists()
    store.files.delete("segments")  # the link itself
    assert (outside / "x" / "kept").exists() and not (tmp_path / "store" / "segments").exists()


def test_what_a_store_holds_is_writable_by_its_owner_alone(whole: Path) -> None:
    """With the usual umask; what a user's own forbids to read stays so."""
    for path in whole.rglob("*"):
        assert not stat.S_IMODE(path.lstat().st_mode) & 0o022, path


# States and artifacts that changed after they were committed


def alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)


def vouch_for(state: Path) -> None:
    """As if the state had been altered before its attempt told its checksums, and was committed so."""
    segment, attempt = state.parents[3], state.parents[1]
    for record in (segment / "DONE.json", attempt / "outcome.json"):
        told = json.loads(record.read_bytes())
        told["files"]["checkpoint/state.safetensors"]["sha256"] = sha256(state.read_bytes())
        record.write_text(json.dumps(told))


@pytest.mark.parametrize("damage", ["altered", "altered before", "cut short"])
def test_a_damaged_state_is_set_aside_and_the_sweep_goes_on_from_an_earlier_one(
    data: Path,
    tmp_path: Path,
    damage: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The state after 6 steps of a trunk; the one after 2 is whole."""
    text = sweep_text(data, {"steps": [4, 8], "warmdown_steps": [2]}, stages=["ema"])
    file = tmp_path / "tiny.yaml"
    file.write_text(text)
    assert launch_here(text, tmp_path / "out").exit_code == 0
    shutil.copytree(tmp_path / "out", tmp_path / "whole")
    state = next((tmp_path / "out").glob("segments/2-6-*/attempts/*/checkpoint/state.safetensors"))
    if damage.startswith("altered"):
        alter(state)
    if damage == "altered before":
        vouch_for(state)
    elif damage == "cut short":
        os.truncate(state, 100)
    monkeypatch.setattr("sweeps.drive.launch.run_sweep.__defaults__", (None, InThisProcess()))
    for output in ("out", "whole"):
        longer = ["steps=[4,8,12]", "--output", str(tmp_path / output), "--no-report"]
        capsys.readouterr()
        assert launch.main([str(file), *longer]) == 0
        told = capsys.readouterr().err
        said = {
            "altered": "altered since it was committed: set aside",
            "altered before": "(its checksum differs); use an earlier checkpoint: set aside",
            "cut short": "cut short or incomplete",
        }[damage]
        assert (said in told) == (output == "out"), told
        assert ("2 → 10 " in told) == (output == "out"), told
    assert rows(tmp_path / "out") == rows(tmp_path / "whole")
    assert state.exists()


def test_an_altered_artifact_is_made_again(text: str, tmp_path: Path) -> None:
    assert launch_here(text, tmp_path, ["stages=[float]"]).exit_code == 0
    store = Store(tmp_path)
    before = launch_here(text, tmp_path, ["stages=[ema,int6]"])
    assert before.exit_code == 0
    reference = rows(tmp_path)
    quantized = store.done(done_of(tmp_path, "quantize").parent.name)
    assert quantized is not None and store.set_aside(quantized) is None
    alter(next(tmp_path.glob("segments/quantize-*/attempts/*/model.int6")))
    assert "altered" in (store.set_aside(quantized) or "")
    assert store.done(quantized.id) is None
    again = launch_here(text, tmp_path, ["stages=[ema,int6]"])
    assert again.exit_code == 0 and rows(tmp_path) == reference
