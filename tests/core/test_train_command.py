"""`python -m gepa_core.train`: job files, torchrun, signals and kills, what is said of mistakes."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from gepa_core.commands.train import train_command
from gepa_core.config import NUMERICS_VERSION, DataPaths
from gepa_core.training import checkpoint
from gepa_core.training.trained import open_run
from tests.training import (
    RUN,
    assert_close,
    assert_same,
    state,
    train,
)


def job(paths: DataPaths, folder: Path, **run: object) -> Path:
    content = {
        "run": RUN.model_dump(mode="json") | run,
        "data": paths.model_dump(),
        "exec": {"device": "cpu"},
    }
    folder.mkdir(exist_ok=True)
    (folder / "job.json").write_text(json.dumps(content))
    return folder / "job.json"


def test_command_trains_and_does_nothing_the_second_time(
    paths: DataPaths, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [str(job(paths, tmp_path)), "--out", str(tmp_path / "out")]
    assert train_command(args) == 0
    events = [json.loads(line) for line in (tmp_path / "out/events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events] == [3, 4, 6, 8, 9, 12]
    assert train_command(args) == 0
    assert len((tmp_path / "out/events.jsonl").read_text().splitlines()) == len(events)
    found, wanted = state(tmp_path / "out/checkpoints/12"), state(whole)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert "done: step 12" in capsys.readouterr().out


def start_command(job_file: Path, out: Path, *launcher: str) -> subprocess.Popen[str]:
    command = [sys.executable, *launcher, "-m", "gepa_core.train", str(job_file), "--out", str(out)]
    root = Path(__file__).parents[2]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(file: Path, lines: int) -> None:
    deadline = time.monotonic() + 120
    while not file.exists() or len(file.read_text().splitlines()) < lines:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_terminated_and_killed_it_ends_as_if_undisturbed(paths: DataPaths, tmp_path: Path) -> None:
    watch = RUN.eval.model_dump() | {"log_every": 1}
    length = {"steps": 400, "warmdown_steps": 200, "eval": watch}
    job_file, out = job(paths, tmp_path, **length), tmp_path / "out"
    with start_command(job_file, out) as first:
        wait_for(out / "events.jsonl", 20)
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 130
    (stopped,) = checkpoint.in_order(out / "checkpoints")
    step = int(stopped.name)
    assert 20 <= step < 400
    with start_command(job_file, out) as second:
        wait_for(out / "events.jsonl", step + 20)
        second.kill()
        assert second.wait(60) == -signal.SIGKILL
    with start_command(job_file, out) as third:
        assert third.wait(120) == 0
    run = RUN.model_copy(
        update=length | {"eval": RUN.eval.model_copy(update={"log_every": 1}), "data": open_run(out).run.data}
    )
    assert_same(out / "checkpoints/400", train(paths, tmp_path / "alone", run)[0].path)
    events = [json.loads(line)["step"] for line in (out / "events.jsonl").read_text().splitlines()]
    assert events == list(range(1, 401))


@pytest.mark.slow
def test_torchrun(paths: DataPaths, whole: Path, tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    with start_command(job(paths, tmp_path), tmp_path / "out", *launcher) as process:
        assert process.wait(120) == 0, process.stdout and process.stdout.read()
    assert_close(tmp_path / "out/checkpoints/12", whole, 3e-2)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("run: {steps: 4}", "must have the keys run and data"),
        ("run: [\ndata: x", "job.yaml, line 2, column 8: not YAML"),
        ("run: {steps: 4, recipe: [gepa-nano]}\ndata: x", "['gepa-nano'] is not one of gepa-11l, gepa-nano"),
        ("run: {steps: 4, recipe: gepa-13l}\ndata: x", "'gepa-13l' is not one of gepa-11l, gepa-nano"),
        ("run: {steps: 4}\ndata: /nowhere", "/nowhere: does not exist"),
        ("run: {steps: 4}\ndata: {train: a}", "data.val: Field required"),
    ],
)
def test_bad_jobs_end_with_one_message(
    text: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.yaml").write_text(text)
    assert train_command([str(tmp_path / "job.yaml")]) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("run", "complaint"),
    [
        ({"stepz": 3}, "run.stepz: Extra inputs are not permitted"),
        ({"steps": "many"}, "run.steps: Input should be a valid integer"),
        ({"warmdown_steps": 13}, "warmdown_steps 13 exceeds steps 12"),
        ({"numerics_version": NUMERICS_VERSION + 1}, "run.numerics_version: Input should be less than"),
        ({"data": {"val_tokens": 5}}, "data.val_tokens 5 are less than one window"),
        ({"quant": {"method": "rd", "calibration_tokens": 5}}, "calibration_tokens 5 are less than one"),
        ({"model": {"vocab_size": 1024}}, "the tokenizer has 64 pieces, model.vocab_size is 1024"),
        (
            {"data": {"train": "sha256:00"}},
            "run.data.train is sha256:00, but the train data at hand is sha256:",
        ),
    ],
)
def test_bad_runs_name_the_key(
    run: dict[str, object],
    complaint: str,
    paths: DataPaths,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train_command([str(job(paths, tmp_path, **run)), "--out", str(tmp_path / "out")]) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_ranks_need_their_processes(
    paths: DataPaths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = job(paths, tmp_path)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"exec": {"device": "cpu", "ranks": 4}}))
    assert train_command([str(file), "--out", str(tmp_path / "out")]) == 2
    assert "torchrun --nproc-per-node 4" in capsys.readouterr().err


def test_lines_and_files_cut_by_a_kill(
    paths: DataPaths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    args = [str(job(paths, tmp_path)), "--out", str(out)]
    assert train_command(args) == 0
    events = (out / "events.jsonl").read_text()
    shutil.rmtree(out / "checkpoints")
    (out / "events.jsonl").write_text(events + '{"step": 13, "lr_')
    assert train_command(args) == 0  # all over again
    assert [json.loads(line)["step"] for line in (out / "events.jsonl").read_text().splitlines()] == [
        json.loads(line)["step"] for line in events.splitlines()
    ]
    (out / "job.json").write_text('{"run": {')
    assert train_command(args) == 2
    assert "job.json: unreadable" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert train_command([args[0], "--out", str(tmp_path / "file")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_an_output_folder_belongs_to_one_run(
    paths: DataPaths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_command([str(job(paths, tmp_path, steps=6)), "--out", str(tmp_path / "out")]) == 0
    assert train_command([str(job(paths, tmp_path, seed=2)), "--out", str(tmp_path / "out")]) == 2
    assert "holds another run" in capsys.readouterr().err


def test_divergence_has_its_exit_code(
    paths: DataPaths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    optim = RUN.optim.model_dump() | {"matrix_lr": 1e30, "scalar_lr": 1e30}
    assert train_command([str(job(paths, tmp_path, optim=optim)), "--out", str(tmp_path / "out")]) == 3
    assert "training loss is not finite at step 2" in capsys.readouterr().err
