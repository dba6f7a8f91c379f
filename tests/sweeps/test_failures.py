"""Sweeps executed in this process where something fails or is gone: what is tried again, remade, given up."""

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from safetensors import SafetensorError

from gepa_core.errors import CheckpointError, DivergedError
from gepa_core.training import checkpoint
from sweeps.drive.launch import StoppedError
from sweeps.store.gc import find_waste
from sweeps.store.journal import reports
from sweeps.store.store import Outcome, Store
from sweeps.work.execute import observed
from sweeps.work.job import Job
from sweeps.work.policy import Observed
from sweeps.work.workdir import Workdir
from tests.tiny_sweep import InThisProcess, launch_here, make_data, plan_of, rows, sweep_text

WITH_LITTLE_MEMORY = """
import json, resource, sys
from pathlib import Path
from sweeps.work.execute import warm_up
from tests.tiny_sweep import InThisProcess, launch_here
warm_up()
used = int(Path("/proc/self/status").read_text().partition("VmData:")[2].split()[0]) * 1024
def limit(job):
    most = used + (64 << 20) if job.kind == "segment" else resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_DATA, (most, resource.RLIM_INFINITY))
text, output = Path(sys.argv[1]).read_text(), sys.argv[2]
print(json.dumps(launch_here(text, output, cluster=InThisProcess(limit)).to_dict()))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "tiny")


def test_a_run_that_diverges_ends_as_such_and_its_siblings_go_on(data: Path, tmp_path: Path) -> None:
    grid: dict[str, list[Any]] = {"steps": [4], "warmdown_ratio": [0.5], "optim.scalar_lr": [0.025, 1e38]}
    result = launch_here(sweep_text(data, grid), tmp_path)
    assert result.exit_code == 3 and result.runs == {"done": 1, "diverged": 1, "failed": 0, "pending": 0}
    by_lr = {row["optim.scalar_lr"]: row for row in rows(tmp_path).values()}
    assert by_lr[0.025]["status"] == "done" and by_lr[0.025]["ttt_bpb"] is not None
    assert by_lr[1e38]["status"] == "diverged" and "not finite at step" in by_lr[1e38]["error"]
    assert by_lr[1e38]["float_bpb"] is None
    cluster = InThisProcess()
    assert launch_here(sweep_text(data, grid), tmp_path, cluster=cluster).exit_code == 3
    assert not cluster.jobs
    assert launch_here(sweep_text(data, grid), tmp_path, cluster=cluster, retry_failed=True).exit_code == 3
    assert len(cluster.jobs) == 1


def test_out_of_memory_restarts_smaller_and_records_the_break(data: Path, tmp_path: Path) -> None:
    def lack(job: Job) -> Outcome | None:
        if job.kind != "segment" or (job.exec.micro_batch_seqs or 2) < 2 or not job.identity["parent"]:
            return None
        execution = {"micro_batch_seqs": 2}
        return Outcome(job.id, job.attempt, job.kind, Observed.OUT_OF_MEMORY, execution=execution)

    text = sweep_text(data, {"steps": [8], "warmdown_ratio": [0.5]})
    result = launch_here(text, tmp_path, cluster=InThisProcess(lack))
    assert result.exit_code == 0
    (lines,) = result.identity_breaks.values()
    assert lines == ["micro_batch_seqs: 2 before, then 1"]


def test_memory_that_is_really_short_ends_in_a_micro_batch_that_fits(data: Path, tmp_path: Path) -> None:
    settings = {"batch.seqs_per_span": 1024, "batch.spans": 1}
    grid: dict[str, list[Any]] = {"steps": [2], "warmdown_ratio": [0.0]}
    text = sweep_text(data, grid, stages=["float"], set=settings, exec={"micro_batch_seqs": 1024})
    (tmp_path / "tiny.yaml").write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", WITH_LITTLE_MEMORY, str(tmp_path / "tiny.yaml"), str(tmp_path / "out")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["exit_code"] == 0
    assert "out of memory; from its start with a smaller micro-batch" in done.stderr
    sizes = {
        outcome.execution["micro_batch_seqs"]
        for outcome in Store(tmp_path / "out").all_done().values()
        if outcome.kind == "segment"
    }
    assert len(sizes) == 1 and max(sizes) < 1024


def test_data_that_is_damaged_fails_the_run_with_the_reason(data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    text = sweep_text(copy, {"steps": [4], "warmdown_ratio": [0.5]})

    def damage(job: Job) -> None:
        shard = next(copy.glob("train_*.bin"))
        shard.write_bytes(shard.read_bytes()[:-3])

    result = launch_here(text, tmp_path / "out", cluster=InThisProcess(damage))
    assert result.exit_code == 3 and result.runs["failed"] == 1
    (reason,) = result.failures.values()
    assert "train_000000.bin" in reason


def test_a_damaged_checkpoint_is_passed_over(data: Path, tmp_path: Path) -> None:
    """The newest of an interrupted attempt; the one before it serves."""
    text = sweep_text(data, {"steps": [12], "warmdown_ratio": [0.0]}, exec={"checkpoint_every": 2})
    tampered: list[Path] = []

    def interfere(job: Job) -> Observed | None:
        if job.kind != "segment":
            return None
        if len(job.resume) < 2:
            return Observed.PREEMPTED
        newest = tmp_path / "out" / job.resume[0]
        if not tampered:
            tampered.append(newest)
            (newest / checkpoint.TENSORS).write_bytes(b"garbage")
        return None

    assert launch_here(text, tmp_path / "out", cluster=InThisProcess(interfere)).exit_code == 0
    assert launch_here(text, tmp_path / "clean").exit_code == 0
    assert tampered and rows(tmp_path / "out") == rows(tmp_path / "clean")


def test_checkpoints_of_two_steps_are_taken_over_and_the_journal_of_the_first(tmp_path: Path) -> None:
    """The furthest was pruned meanwhile; the next is there in two attempts, which is one file."""
    store = Store(tmp_path / "store")
    for attempt, steps in (("a", (2, 4)), ("b", (4,))):
        base = store.attempt_path("x", attempt)
        store.files.put(f"{base}/events.jsonl", "".join(report_line(i) for i in range(1, 6)).encode())
        for step in steps:
            store.files.put(f"{base}/checkpoints/{step}/state.json", b"{}")
    saved = [store.attempt_path("x", "a") + "/checkpoints/5", *(s.path for s in store.saved_states("x"))]
    workdir = Workdir(store, store.attempt_path("x", "new"), tmp_path / "scratch")
    assert workdir.adopt(saved) == 4
    assert sorted(path.name for path in (workdir.path / "checkpoints").iterdir()) == ["2", "4"]
    assert [event["step"] for event in reports((workdir.path / "events.jsonl").read_bytes())] == [1, 2, 3, 4]


def test_a_second_checkpoint_that_is_gone_takes_no_journal_along(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    base = store.attempt_path("x", "a")
    store.files.put(f"{base}/events.jsonl", "".join(report_line(i) for i in range(1, 5)).encode())
    store.files.put(f"{base}/checkpoints/4/state.json", b"{}")
    workdir = Workdir(store, store.attempt_path("x", "new"), tmp_path / "scratch")
    assert workdir.adopt([f"{base}/checkpoints/4", f"{base}/checkpoints/2"]) == 4
    assert len(reports((workdir.path / "events.jsonl").read_bytes())) == 4


def report_line(step: int) -> str:
    return json.dumps({"event": "report", "step": step}) + "\n"


def test_a_result_that_no_driver_saw_is_committed_later(data: Path, tmp_path: Path) -> None:
    text = sweep_text(data, {"steps": [4], "warmdown_ratio": [0.5]})
    launch_here(text, tmp_path)
    first = rows(tmp_path)
    for record in tmp_path.glob("segments/*/DONE.json"):
        if record.parent.name.startswith(("0-", "ttt")):
            record.unlink()
    cluster = InThisProcess()
    assert launch_here(text, tmp_path, cluster=cluster).exit_code == 0
    assert not cluster.jobs and rows(tmp_path) == first


def test_what_a_driver_killed_after_its_last_commit_left_undone_is_made_up_for(
    data: Path, tmp_path: Path
) -> None:
    """Blocks that lack the last stage, a final state that nothing needs any more."""
    text = sweep_text(data, {"steps": [4], "warmdown_ratio": [0.5]}, stages=["float", "ema"])
    launch_here(text, tmp_path)
    (blocks,) = tmp_path.glob("tiny/blocks/*.parquet")
    whole = blocks.read_bytes()
    Store(tmp_path).sweep("tiny").write_blocks(
        blocks.stem, [row for row in pq.read_table(blocks).to_pylist() if row["stage"] == "float"]
    )
    branch = next(o for o in Store(tmp_path).all_done().values() if o.identity.get("trunk") is False)
    state = tmp_path / "segments" / branch.id / "attempts" / branch.attempt / "checkpoint"

    def left_behind() -> None:
        state.mkdir()
        for name in ("state.json", "state.safetensors"):
            size = branch.files[f"checkpoint/{name}"]["bytes"]
            (state / name).write_bytes(bytes(size))

    left_behind()
    assert launch_here(text, tmp_path).executed == 0
    assert blocks.read_bytes() == whole and not state.exists()
    blocks.write_bytes(whole[:100])
    assert launch_here(text, tmp_path).executed == 0
    assert blocks.read_bytes() == whole
    left_behind()
    (waste,) = find_waste(Store(tmp_path))
    assert waste.path == str(state.relative_to(tmp_path))


def test_a_state_that_is_gone_is_remade(data: Path, tmp_path: Path) -> None:
    text = sweep_text(data, {"steps": [4, 8], "warmdown_ratio": [0.5]}, stages=["float"])
    launch_here(text, tmp_path)
    first, plan = rows(tmp_path), plan_of(text, tmp_path)
    branch = next(s for s in plan.segments.values() if s.start == 4)
    shutil.rmtree(tmp_path / "segments" / branch.id)
    shutil.rmtree(next((tmp_path / "segments" / str(branch.after)).glob("attempts/*/checkpoint")))
    for stage in (s.id for s in plan.stages.values() if s.after == branch.id):
        shutil.rmtree(tmp_path / "segments" / stage)
    cluster = InThisProcess()
    assert launch_here(text, tmp_path, cluster=cluster).exit_code == 0
    trained = [(job.identity["start"], job.until) for job in cluster.jobs if job.kind == "segment"]
    assert trained == [(2, 4), (4, 8)] and rows(tmp_path) == first
    assert launch_here(text, tmp_path).executed == 0


def test_gpus_that_torch_does_not_see_end_the_run_with_the_reason(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    grid = {"steps": [8], "warmdown_ratio": [0.5]}
    cluster = InThisProcess()
    leased = sweep_text(data, grid, resources={"gpus_per_run": 1}, exec={"device": "cuda"})
    result = launch_here(leased, tmp_path, cluster=cluster)
    assert result.exit_code == 3
    assert all("a GPU is asked for" in reason for reason in result.failures.values()) and result.failures
    assert len(cluster.jobs) == 1, "another try would find no more"


def test_a_crash_is_retried_and_then_given_up_with_the_log(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("cosmic ray")

    import gepa_core.training.segment

    monkeypatch.setattr(gepa_core.training.segment, "train_segment", broken)
    text = sweep_text(data, {"steps": [4], "warmdown_ratio": [0.5]})
    cluster = InThisProcess()
    result = launch_here(text, tmp_path, cluster=cluster)
    assert result.exit_code == 3 and len(cluster.jobs) == 3
    assert list(result.failures.values()) == ["RuntimeError: cosmic ray"]
    told = capfd.readouterr().err
    assert (
        "failed" in told
        and "| RuntimeError: cosmic ray" in told
        and 'raise RuntimeError("cosmic ray")' in told
    )


def test_a_full_disk_stops_the_sweep_at_once_and_fails_no_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As safetensors tells it: nothing is trained again for nothing, and the same command goes on."""
    real, failures = checkpoint.save_file, iter(range(1))

    def full(*args: Any) -> None:
        if next(failures, None) is not None:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        real(*args)

    monkeypatch.setattr(checkpoint, "save_file", full)
    text = sweep_text(data, {"steps": [2], "warmdown_ratio": [0.0]}, stages=[])
    cluster = InThisProcess()
    with pytest.raises(StoppedError, match=r"^disk full: .*; free some space, then give the same command"):
        launch_here(text, tmp_path, cluster=cluster)
    assert len(cluster.jobs) == 1
    assert launch_here(text, tmp_path).exit_code == 0


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), Observed.DISK_FULL),
        (OSError(errno.ESTALE, "Stale file handle"), Observed.STORAGE),
        (caused(CheckpointError("unreadable"), OSError(errno.EIO, "Input/output error")), Observed.STORAGE),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), Observed.CRASHED),
        (PermissionError(errno.EACCES, "Permission denied"), Observed.CRASHED),
        (SafetensorError("invalid header"), Observed.CRASHED),
        (CheckpointError("of another model"), Observed.BAD_INPUT),
        (DivergedError("not finite"), Observed.DIVERGED),
        (RuntimeError("can't allocate memory"), Observed.OUT_OF_MEMORY),
    ],
)
def test_what_an_exception_says(error: Exception, status: Observed) -> None:
    assert observed(error) is status
