"""launch.py's commands beside a run: status, gc, import, and what a changed sweep file keeps."""

import argparse
import json
import shutil
from pathlib import Path

import pytest

from launch import main
from sweeps.commands.manage import gc_command
from sweeps.store.gc import find_waste
from sweeps.store.schema import TRAJECTORY, from_parquet
from sweeps.store.store import Store
from sweeps.work.policy import Observed
from tests.tiny_sweep import NUMBERS, InThisProcess, launch_here, make_data, plan_of, rows, sweep_text

GRID = {"steps": [6, 8], "warmdown_ratio": [0.5]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "text")


@pytest.fixture(scope="module")
def text(data: Path) -> str:
    return sweep_text(data, GRID)


@pytest.fixture(scope="module")
def finished(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one finished sweep; not to be changed."""
    output = tmp_path_factory.mktemp("finished") / "results"
    assert launch_here(text, output).exit_code == 0
    return output


@pytest.fixture
def store(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "results"))


def status(where: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    assert main(["status", str(where), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out.splitlines()[-1])["sweeps"]
    return dict(found)


def test_status_of_a_store_and_of_a_sweep(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = status(finished, capsys)
    assert found == status(finished / "tiny", capsys)
    assert found["runs"] == {"done": 2, "diverged": 0, "failed": 0, "pending": 0}
    assert found["nodes"] == found["nodes_done"] and found["steps"] == found["steps_done"] == 4 + 3 + 4
    assert found["driver"] is None and found["working"] == []
    assert main(["status", str(finished)]) == 0
    assert capsys.readouterr().out.startswith("tiny: 2 done runs")


def test_status_of_the_folder_one_is_in_and_of_a_url_with_a_query(
    finished: Path,
    s3_endpoint: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from sweeps.store.status import locate

    expected = status(finished, capsys)
    monkeypatch.chdir(finished / "tiny")
    assert status(Path(), capsys) == status(Path("../tiny"), capsys) == expected
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    query = f"endpoint_override={s3_endpoint.removeprefix('http://')}&scheme=http"
    Store(f"s3://bucket/located?{query}").files.put("tiny/sweep.json", b"{}")
    for where, url in (("located/tiny/", "s3://bucket/located"), ("located", "s3://bucket/located")):
        store, names = locate(f"s3://bucket/{where}?{query}")
        assert store.sweeps() == names == ["tiny"] and store.files.describe("x") == f"{url}/x"


def test_status_of_an_interrupted_sweep(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    branches: list[str] = []

    def stop_in_branches(job: object) -> Observed | None:
        trunk = job.identity.get("trunk", True)
        if not trunk:
            branches.append(job.id)
        return None if trunk else Observed.STOPPED

    launch_here(text, tmp_path / "results", cluster=InThisProcess(stop_in_branches))
    assert branches
    found = status(tmp_path / "results", capsys)
    assert found["runs"] == {"done": 0, "diverged": 0, "failed": 0, "pending": 2}
    assert found["nodes_done"] == 2 and found["left_device_seconds"]
    assert main(["status", str(tmp_path / "results")]) == 0
    assert "no driver is at work: the same launch.py command continues it" in capsys.readouterr().out


def test_gc_of_a_finished_sweep_keeps_results_and_extensions(
    text: str, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = rows(store)
    attempt = store / "segments" / next(p.name for p in (store / "segments").iterdir()) / "attempts" / "lost"
    attempt.mkdir()
    (attempt / "half").write_bytes(b"x" * 1000)
    orphan = store / "segments" / "0-9-0123456789abcdef" / "attempts" / "a"
    orphan.mkdir(parents=True)
    (orphan / "checkpoint").write_bytes(b"x" * 500)
    assert main(["gc", str(store), "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bytes"] == 1500 and not told["deleted"] and attempt.is_dir() and orphan.is_dir()
    assert main(["gc", str(store)]) == 0
    assert "deleted 1,500 bytes" in capsys.readouterr().out
    assert not attempt.exists() and not orphan.exists()
    result = launch_here(text, store)
    assert result.executed == 0 and rows(store) == before
    longer = launch_here(text, store, ["steps=[6, 8, 10]"])
    assert longer.exit_code == 0
    assert longer.executed == 2 + 6, "one trunk segment, one branch, and its stages"


def test_gc_of_states_makes_extensions_dearer_and_loses_no_result(text: str, store: Path) -> None:
    before = rows(store)
    assert plan_of(text, store, ["steps=[6, 8, 10]"]).steps_left == 1 + 5
    assert main(["gc", str(store), "--states"]) == 0
    assert launch_here(text, store).executed == 0
    assert plan_of(text, store, ["steps=[6, 8, 10]"]).steps_left == 5 + 5
    assert launch_here(text, store, ["steps=[6, 8, 10]"]).exit_code == 0
    after = rows(store)
    assert {run_id: after[run_id] for run_id in before} == before


def test_gc_leaves_a_sweep_at_work_alone(store: Path) -> None:
    from sweeps.store.lock import Lease, LeaseHeldError

    opened = Store(store)
    lease = Lease(opened.files, opened.sweep("tiny").lease_path)
    lease.acquire()
    try:
        with pytest.raises(LeaseHeldError, match="another driver is working on this sweep: process"):
            gc_command(argparse.Namespace(dir=str(store), states=False, dry_run=False, json=False))
    finally:
        lease.release()
    assert find_waste(opened) == []


def test_no_driver_starts_on_what_gc_is_deleting(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sweeps.store.lock import Lease, LeaseHeldError

    opened = Store(store)
    path = opened.sweep("tiny").lease_path
    tried = []

    def collect(*args: object) -> None:
        with pytest.raises(LeaseHeldError):
            Lease(opened.files, path).acquire()
        tried.append(True)

    monkeypatch.setattr("sweeps.store.gc.collect", collect)
    assert main(["gc", str(store)]) == 0 and tried
    assert not opened.files.exists(path)


def trunk_checkpoint(store: Path) -> Path:
    """The state after the first trunk segment."""
    done = next(o for o in Store(store).all_done().values() if o.identity.get("parent", "") is None)
    return store / "segments" / done.id / "attempts" / done.attempt / "checkpoint"


def test_import_starts_runs_from_a_checkpoint_bit_for_bit(
    text: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.yaml").write_text(text)
    checkpoint, output = trunk_checkpoint(finished), tmp_path / "results"
    trained = tmp_path / "run"  # as gepa_core.train leaves it, killed while it wrote a line
    shutil.copytree(checkpoint, trained / "checkpoints" / "3")
    (trained / "events.jsonl").write_text('{"step": 3, "lr_scale": 1.0, "train_loss": 5.5}\n{"step": 4, "lr')
    command = ["import", str(trained), str(tmp_path / "tiny.yaml"), "--output", str(output)]
    assert main(command) == 0
    assert "2 runs of tiny can start at step 3" in capsys.readouterr().out
    assert main([command[0], str(checkpoint), *command[2:]]) == 0
    (adopted,) = Store(output).all_done().values()
    (row,) = from_parquet(Store(output).read_file(adopted, "trajectory.parquet"), TRAJECTORY)
    assert (row["step"], row["train_loss"]) == (3, 5.5)
    plan = plan_of(text, output)
    assert plan.steps_left == plan.steps_shared - 3
    result = launch_here(text, output)
    assert result.exit_code == 0
    assert ["it starts from an adopted state, of which is not known how it was executed"] in list(
        result.identity_breaks.values()
    )
    expected = rows(finished)
    for run_id, row in rows(output).items():
        assert {key: row[key] for key in NUMBERS} == {key: expected[run_id][key] for key in NUMBERS}
        assert row["epochs"] == expected[run_id]["epochs"]


def test_import_refuses_what_no_run_passes_through(
    data: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "tiny.yaml"
    sweep.write_text(sweep_text(data, GRID, set={"optim.matrix_lr": 0.01}))
    checkpoint = trunk_checkpoint(finished)
    output = str(tmp_path / "results")
    assert main(["import", str(checkpoint), str(sweep), "--output", output]) == 2
    assert "they differ in optim.matrix_lr (its 0.025, the sweep's 0.01)" in capsys.readouterr().err
    assert (
        main(["import", str(checkpoint), str(sweep), "matrix_lr=.025", "steps=[4]", "--output", output]) == 2
    )
    assert "beyond their branch points" in capsys.readouterr().err
    assert main(["import", str(tmp_path), str(sweep), "--output", output]) == 2
    assert f"{tmp_path}: no checkpoint (no state.json there)" in capsys.readouterr().err
    damaged = Path(shutil.copytree(checkpoint, tmp_path / "damaged"))
    (damaged / "state.safetensors").write_bytes(b"")
    assert main(["import", str(damaged), str(sweep), "--output", output]) == 2
    assert not Path(output).exists()


def test_changed_sweep_file_says_what_changed_and_keeps_what_matches(
    text: str, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "tiny.yaml"
    sweep.write_text(text)
    arguments = [str(sweep), "steps=[8, 12]", "set.ttt.epochs=3", "--output", str(store), "--plan"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "changed since the last launch: grid.steps: [6, 8] -> [8, 12]" in shown
    assert "set.ttt.epochs: nothing -> 3" in shown
    assert "0 runs still match and are kept, 2 new, 2 left out" in shown
    assert "0 → 3  trunk, 3 steps  (done)" in shown, "training is reused all the same"
    assert main([*arguments[:2], *arguments[3:]]) == 0
    assert "1 runs still match and are kept, 1 new, 1 left out" in capsys.readouterr().out


def test_compressors_see_the_text_that_is_validated_on(data: Path) -> None:
    """The manifest's sizes for all of it, and less for the part that the sweep measures."""
    from gepa_core.data.folder import open_folder
    from sweeps.commands.baseline import MAX_TOKENS, compressed_sizes

    dataset = open_folder(data)
    paths = (dataset.paths.val, dataset.paths.tokenizer)
    assert compressed_sizes(*paths, dataset.val.total - 1) == dataset.val_text
    assert compressed_sizes(*paths, MAX_TOKENS + 1) is None
    part = compressed_sizes(*paths, 1024)
    assert part is not None and dataset.val_text is not None
    assert part["text_bytes"] < dataset.val_text["text_bytes"]
