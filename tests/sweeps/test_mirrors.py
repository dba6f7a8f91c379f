"""TensorBoard and W&B mirrors of a real sweep, read back from their files."""

import json
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import launch
from gepa_core.errors import ConfigError
from sweeps.exchange.mirrors import (
    FINALS,
    Mirrored,
    MissingExtraError,
    TensorBoard,
    new_points,
    read_runs,
    to_tensorboard,
    to_wandb,
    trunks_of,
)
from sweeps.store.curves import CURVES
from sweeps.store.schema import TRAJECTORY, from_parquet
from sweeps.store.store import Store
from tests.tiny_sweep import launch as launch_sweep
from tests.tiny_sweep import make_data, sweep_text

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs on one trunk, of which the longer one was left out of the launch."""
    folder = tmp_path_factory.mktemp("mirrors")
    text = sweep_text(
        make_data(folder / "data"), {"steps": [8, 16], "warmdown_ratio": [0.5], "optim.matrix_lr": [0.03]}
    )
    assert launch_sweep(text, folder / "store", only="8-*").runs["done"] == 1
    return folder / "store"


@pytest.fixture(scope="module")
def run(store: Path) -> Mirrored:
    runs = read_runs(Store(store), "tiny")
    return next(run for run in runs if run.axes["steps"] == 8)


def test_an_unfinished_run_has_what_is_known_of_it(store: Path, run: Mirrored) -> None:
    (other,) = (found for found in read_runs(Store(store), "tiny") if found.run_id != run.run_id)
    assert other.points == [point for point in run.points if point["step"] <= 4], "the trunk they share"
    assert not other.finals


def test_curves_are_joined_over_the_trunk(store: Path, run: Mirrored) -> None:
    steps = [point["step"] for point in run.points]
    assert steps == sorted(set(steps)) and steps[-1] == 8
    segments = json.loads((store / "tiny" / "plan.json").read_text())["runs"][run.run_id]["segments"]
    assert len(segments) == 2
    tables = [
        from_parquet((store / "tiny" / "trajectory" / f"{segment}.parquet").read_bytes(), TRAJECTORY)
        for segment in segments
    ]
    raw = [row for table in tables for row in table]
    for name in CURVES:
        kept = [point[name] for point in run.points if name in point]
        assert kept == [row[name] for row in raw if row[name] is not None]
    seconds = [point["seconds"] for point in run.points]
    assert seconds == sorted(seconds)
    trunk, branch = (max(row["elapsed_seconds"] for row in table) for table in tables)
    assert seconds[-1] == pytest.approx(trunk + branch)


def test_what_tells_a_run_from_others_and_its_finals(store: Path, run: Mirrored) -> None:
    assert run.axes == {
        "steps": 8,
        "warmdown_steps": 4,
        "schedule": "linear",
        "seed": 42,
        "optim.matrix_lr": 0.03,
    }
    rows = Store(store).sweep("tiny").read_runs() or []
    (row,) = (row for row in rows if row["status"] == "done")
    assert run.finals == {name: row[name] for name in FINALS if row[name] is not None}
    assert {"ttt_bpb", "artifact_bytes"} <= run.finals.keys()
    assert run.config == json.loads(row["config_json"])


def test_event_files_read_back(run: Mirrored, tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (folder,) = to_tensorboard([run], tmp_path)
    assert to_tensorboard([run], tmp_path) == [folder], "a second time replaces the first"
    assert len(list(folder.iterdir())) == 1
    assert folder == tmp_path / "tiny" / run.run_id
    read = events.EventAccumulator(str(folder))
    read.Reload()
    assert set(read.Tags()["scalars"]) == {
        *(name for name in CURVES if any(name in point for point in run.points)),
        *(f"final/{name}" for name in run.finals),
    }
    for name in ("train_loss", "val_bpb", "lr_scale"):
        expected = [(point["step"], pytest.approx(point[name])) for point in run.points if name in point]
        assert [(event.step, event.value) for event in read.Scalars(name)] == expected
    first, last = read.Scalars("train_loss")[0], read.Scalars("train_loss")[-1]
    # Times of day are doubles of 1.8e9 s: a quarter of a microsecond is lost.
    assert last.wall_time - first.wall_time == pytest.approx(
        run.points[-1]["seconds"] - run.points[0]["seconds"], abs=1e-6
    )
    (ttt,) = read.Scalars("final/ttt_bpb")
    assert (ttt.step, ttt.value) == (8, pytest.approx(run.finals["ttt_bpb"]))
    plugin = read.summary_metadata["_hparams_/session_start_info"].plugin_data
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    hparams = HParamsPluginData.FromString(plugin.content).session_start_info.hparams
    assert hparams["steps"].number_value == 8 and hparams["schedule"].string_value == "linear"


def test_wandb_offline_reads_back(store: Path, run: Mirrored, tmp_path: Path) -> None:
    """In a process of its own: wandb leaves hooks behind."""
    pytest.importorskip("wandb", reason="wandb is not installed")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    command = [sys.executable, str(ROOT / "launch.py"), "mirror", str(store / "tiny"), "--wandb", "a-project"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    folders = [tmp_path / line for line in done.stdout.splitlines()]
    assert len(folders) == 2
    (log,) = next(folder for folder in folders if run.run_id in folder.name).glob("*.wandb")
    records = wandb_records(log.read_bytes())
    (started,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
    assert (started.project, started.run_group, started.display_name) == ("a-project", "tiny", run.run_id)
    config = {item.key: json.loads(item.value_json) for item in started.config.update}
    assert config["steps"] == 8 and config["axes"] == run.axes
    history = [named(record.history.item) for record in records if record.HasField("history")]
    curve = [(row["_step"], row["val_bpb"]) for row in history if "val_bpb" in row]
    assert curve == [(point["step"], point["val_bpb"]) for point in run.points if "val_bpb" in point]
    summary: dict[str, Any] = {}
    for record in records:
        if record.HasField("summary"):
            summary |= named(record.summary.update)
    assert {name: summary[name] for name in run.finals} == run.finals


def named(items: Any) -> dict[str, Any]:
    return {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}


def wandb_records(data: bytes) -> list[Any]:
    """Records of an offline run's log: 7 bytes of header, then LevelDB's log format in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    records, partial, at = [], b"", 7
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # a block's rest that holds no record's header
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        partial += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # full, last
            records.append(Record.FromString(partial))
            partial = b""
    return records


def test_what_is_new_is_added_and_trunks_are_forked_from(store: Path, run: Mirrored, tmp_path: Path) -> None:
    """Written twice, a run that has grown meanwhile; its trunk as a W&B run of its own."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    half = replace(run, points=run.points[: len(run.points) // 2], finals={})
    mirror = TensorBoard(tmp_path)
    (folder,) = mirror.write([half])
    mirror.write([half])
    mirror.write([run])
    mirror.close()
    read = EventAccumulator(str(folder))
    read.Reload()
    steps = [scalar.step for scalar in read.Scalars("val_bpb")]
    assert steps == [point["step"] for point in run.points if "val_bpb" in point]
    assert len(read.Scalars("final/ttt_bpb")) == 1
    others = [found for found in read_runs(Store(store), "tiny") if found.run_id != run.run_id]
    (trunk,) = trunks_of([run, *others])
    assert trunk.run_id == f"trunk-{run.trunk}" and trunk.points[-1]["step"] == 4 and not trunk.finals
    assert new_points(run.points, 4.0)[0]["step"] > 4


def test_command_line(store: Path, run: Mirrored, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["mirror", str(store / "tiny"), "--tensorboard", str(tmp_path)]) == 0
    assert f"{tmp_path / 'tiny' / run.run_id}\n" in capsys.readouterr().out
    assert launch.main(["mirror", str(tmp_path), "--tensorboard", str(tmp_path)]) == 2
    assert "neither a store" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        launch.main(["mirror", str(store)])


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_missing_library_names_the_extra(
    name: str, run: Mirrored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [m for m in sys.modules if m.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)  # as where it is not installed
    with pytest.raises(MissingExtraError, match=rf"{name} is not installed.*gepa-sweeps\[mirrors\]"):
        to_tensorboard([run], tmp_path) if name == "tensorboard" else to_wandb([run], "p", tmp_path)


def test_a_folder_without_tables_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to mirror"):
        read_runs(Store(tmp_path), "absent")


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    code = "import sys, sweeps.exchange.mirrors; print(*sorted(m.partition('.')[0] for m in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"tensorboard", "wandb"} & set(loaded.split())
