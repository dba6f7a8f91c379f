"""launch.py export: a run out of a real store as a folder that reproduces its figure, or one error."""

import json
import shutil
from pathlib import Path

import pytest

from analysis.logs.importing import read_log
from gepa_core.config import CAP_BYTES
from launch import main
from sweeps.store.store import Store
from tests.tiny_sweep import InThisProcess, launch_here, make_data, rows, sweep_text

GRID = {"steps": [6, 8], "warmdown_ratio": [0.5]}
FILES = {"train_gpt.py", "model.int6", "submission.json", "README.md", "train.log"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "text")


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one finished sweep; not to be changed."""
    output = tmp_path_factory.mktemp("finished") / "results"
    assert launch_here(sweep_text(data, GRID), output).exit_code == 0
    return output


@pytest.fixture
def store(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as `results` of the current folder."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(finished, tmp_path / "results"))


def run_of(store: Path, steps: int = 8) -> str:
    return next(run_id for run_id in rows(store) if run_id.startswith(f"{steps}-"))


def test_a_run_id_is_all_it_takes(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_id = run_of(store)
    row = rows(store)[run_id]
    assert main(["export", run_id]) == 0
    out, err = capsys.readouterr()
    folder = Path("submissions", run_id)
    assert {path.name for path in folder.iterdir()} == FILES
    claim = json.loads((folder / "submission.json").read_text())
    assert claim["val_bpb"] == round(row["ttt_bpb"], 8) and claim["stage"] == "ttt"
    sizes = [(folder / name).stat().st_size for name in ("train_gpt.py", "model.int6")]
    assert (claim["bytes_code"], claim["bytes_model"], claim["bytes_total"]) == (*sizes, sum(sizes))
    assert sizes[1] == row["artifact_bytes"] and abs(sizes[0] - row["code_bytes"]) < 50
    figures = f"val_loss:{claim['val_loss']:.8f} val_bpb:{claim['val_bpb']:.8f}"
    assert out.splitlines()[-1] == f"reproduced to the last digit: ttt {figures}"
    assert f"script and model {sum(sizes):,} bytes of {CAP_BYTES:,}" in out
    assert "lacks author or github_id" in out and "in a fresh process" in err
    readme = (folder / "README.md").read_text()
    for stage in ("float", "ema", "int6", "int6_sliding", "ttt"):
        assert f"{row[f'{stage}_bpb']:.8f}" in readme
    assert main(["export", run_id]) == 2
    assert f"{folder}: not empty" in capsys.readouterr().err


def test_the_log_is_the_runs_whole_curve(store: Path) -> None:
    run_id = run_of(store)
    assert main(["export", run_id, "--no-verify"]) == 0
    log = read_log(Path("submissions", run_id, "train.log"), warmdown_steps=4)
    row = rows(store)[run_id]
    assert log.run["run_id"] == run_id and log.run["steps"] == 8
    assert log.run["float_bpb"] == pytest.approx(row["float_bpb"], abs=1e-4)
    for column in ("ema_bpb", "int6_bpb", "int6_sliding_bpb", "ttt_bpb"):
        assert log.run[column] == pytest.approx(row[column], abs=1e-8)
    assert log.trajectory["step"].tolist() == [3, 4, 8], "two trunk segments and the branch"
    times = log.trajectory["train_time_ms"]
    assert (times.diff().dropna() > 0).all(), "counted on over the segments"


def test_words_and_json(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--author", "A. Uthor", "--github-id", "uthor", "--name", "Small", "--blurb", "eight steps"]
    assert main(["export", run_of(store), "--to", "out", "--json", *words]) == 0
    told = json.loads(capsys.readouterr().out)
    claim = json.loads(Path("out", "submission.json").read_text())
    assert [claim[key] for key in ("author", "github_id", "name", "blurb")] == words[1::2]
    assert told == {"folder": "out", "verified": told["verified"], "not_verified": None, **claim}
    assert told["verified"].startswith("ttt val_loss:")
    assert Path("out", "README.md").read_text().startswith("# Small\n\neight steps\n")


def test_the_last_stage_that_was_measured_is_claimed(data: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "results"
    launch_here(sweep_text(data, GRID, stages=["int6"]), output, ["steps=[6]"])
    run_id = run_of(output, 6)
    where = ["--output", str(output), "--to", str(tmp_path / "out"), "--no-verify"]
    assert main(["export", run_id, *where]) == 0
    assert f"plain val_bpb {rows(output)[run_id]['int6_bpb']:.8f}" in capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of an export that writes nothing."""
    capsys.readouterr()
    assert main(["export", *arguments, "--to", "out"]) == 2
    out, err = capsys.readouterr()
    assert not out and not Path("out").exists() and len(err.splitlines()) == 1
    return err


def test_unknown_runs(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_id = run_of(store)
    assert f"did you mean {run_id}" in refused(capsys, run_id[:-1] + "x")
    assert "???: no such run" in (told := refused(capsys, "???")) and "launch.py ls" in told
    assert "nowhere: neither a store of sweeps nor a sweep's folder" in refused(
        capsys, run_id, "--output", "nowhere"
    )


def test_runs_without_int6(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = sweep_text(data, GRID, stages=["float"])
    launch_here(text, "results", ["steps=[6, 8]"], only="6-*")
    assert "no int6 stage of this run was measured (stages: float)" in refused(
        capsys, run_of(Path("results"), 6)
    )
    assert "is not done; its launch.py command continues it" in refused(capsys, run_of(Path("results")))
    diverging = sweep_text(data, GRID, name="bad", set={"optim.matrix_lr": 1e30, "optim.embed_lr": 1e30})
    launch_here(diverging, "results", ["steps=[6]"], cluster=InThisProcess())
    (run_id,) = rows("results", "bad")
    assert "the run diverged (" in refused(capsys, run_id)


def test_an_artifact_that_is_gone_or_altered(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_id = run_of(store)
    copy = store / "tiny" / "artifacts" / f"{run_id}.int6"
    copy.write_bytes(b"altered")
    assert main(["export", run_id, "--to", "from-segments", "--no-verify"]) == 0
    (own,) = (
        path
        for path in store.glob("segments/*/attempts/*/model.int6")
        if path.read_bytes() == Path("from-segments", "model.int6").read_bytes()
    )
    own.unlink()
    assert f"{own} is gone since it was committed" in refused(capsys, run_id)
    shutil.rmtree(store / "segments")
    copy.unlink()
    assert f"{copy} is gone" in refused(capsys, run_id)


def test_a_sweeps_folder_and_data_given_suffice(
    data: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = run_of(store)
    shutil.rmtree(store / "segments")
    moved = json.loads((store / "tiny" / "sweep.json").read_text())
    moved["data"][0]["paths"]["val"] = "/moved/val_*.bin"
    (store / "tiny" / "sweep.json").write_text(json.dumps(moved))
    assert main(["export", run_id, "--output", "results/tiny", "--data", str(data)]) == 0
    assert f"val_bpb:{rows(store)[run_id]['ttt_bpb']:.8f}" in capsys.readouterr().out.splitlines()[-1]


def test_without_the_validation_data(
    data: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id, record = run_of(store), store / "tiny" / "sweep.json"
    moved = json.loads(record.read_text())
    moved["data"][0]["paths"]["val"] = "/moved/val_*.bin"
    record.write_text(json.dumps(moved))
    assert main(["export", run_id]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(
        "not verified: the validation data is not at hand (no shards match '/moved/val_*.bin'"
    )
    other = make_data(tmp_path / "other")
    (other / "val_000000.bin").write_bytes((data / "train_000000.bin").read_bytes())
    assert "other" in refused(capsys, run_id, "--data", str(other))
    assert "cannot be done here: the validation data is not at hand" in refused(capsys, run_id, "--remeasure")
    assert main(["export", run_id, "--to", "unseen", "--no-verify"]) == 0
    assert "not verified: as asked" in capsys.readouterr().out


def test_a_figure_that_the_script_does_not_print(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_id, folder = run_of(store), Store(store).sweep("tiny")
    table = folder.read_runs() or []
    for row in table:
        row["ttt_bpb"] += 1e-7
    folder.write_runs(table, {})
    assert main(["export", run_id, "--to", "out"]) == 3
    err = capsys.readouterr().err.splitlines()[-1]
    assert "its script prints 'ttt val_loss:" in err and "measured on cpu, ranks 1, threads 1, torch" in err
    assert "--remeasure claims what its script prints here" in err
    assert {path.name for path in Path("out").iterdir()} == FILES
    assert main(["export", run_id, "--to", "again", "--remeasure"]) == 0
    claim = json.loads(Path("again", "submission.json").read_text())
    assert claim["val_bpb"] == round(table[-1]["ttt_bpb"] - 1e-7, 8)
    assert f"legal_ttt_exact val_loss:{claim['val_loss']:.8f}" in Path("again", "train.log").read_text()
    assert f"val_bpb:{claim['val_bpb']:.8f}" in capsys.readouterr().out.splitlines()[-1]
    for row in table:
        row["ttt_bpb"] += 0.01
    folder.write_runs(table, {})
    assert main(["export", run_id, "--to", "far", "--remeasure"]) == 3
    assert "more than rounding" in capsys.readouterr().err
