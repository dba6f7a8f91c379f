"""Whole sweeps executed in this process: the numbers, and what is left behind.

What follows from failures is in test_failures.py, Ray's part in test_ray_cluster.py and tests/fault.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from gepa_core.errors import ConfigError
from sweeps.kinds.table import KINDS
from sweeps.store.schema import RUNS
from sweeps.store.store import Outcome, Store
from sweeps.work.job import Job
from sweeps.work.policy import Observed
from tests.tiny_sweep import NUMBERS, InThisProcess, launch_here, make_data, plan_of, rows, states, sweep_text

GRID: dict[str, list[Any]] = {
    "steps": [8, 12],
    "warmdown_ratio": [0.5],
    "schedule": ["linear", "cosine", "1-sqrt"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="module")
def shared(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep of six runs over one trunk."""
    output = tmp_path_factory.mktemp("shared")
    assert launch_here(sweep_text(data, GRID), output).exit_code == 0
    return output


def test_shared_trunks_give_the_same_bits_as_runs_alone(data: Path, shared: Path, tmp_path: Path) -> None:
    text = sweep_text(data, GRID, share=False)
    assert launch_here(text, tmp_path).exit_code == 0
    alone, together = rows(tmp_path), rows(shared)
    assert alone == together and len(alone) == 6
    assert all(row[name] is not None for row in alone.values() for name in NUMBERS)
    plan = plan_of(text, tmp_path)
    ends = {run_id: run.config.steps for run_id, run in plan.runs.items()}
    mine, theirs = states(tmp_path, plan), states(shared, plan_of(sweep_text(data, GRID), shared))
    assert {key: mine[key] for key in ends.items()} == {key: theirs[key] for key in ends.items()}
    for run_id in alone:
        name = f"tiny/artifacts/{run_id}.int6"
        assert (tmp_path / name).read_bytes() == (shared / name).read_bytes()


def test_runs_parquet_has_every_column_and_the_sum_of_the_work(data: Path, shared: Path) -> None:
    table = pq.read_table(shared / "tiny" / "runs.parquet")
    assert table.schema.names == RUNS.names
    unknown = {name for name in table.schema.names if table[name].null_count}
    optional = {kind.column for kind in KINDS.values() if kind.optional}
    assert unknown <= {"error", "commit", "val_loss"} | optional
    plan = plan_of(sweep_text(data, GRID), shared)
    for row in table.to_pylist():
        chain = [plan.segments[node] for node in plan.segments_of(row["run_id"])]
        assert sum(s.steps for s in chain) == row["steps"]
        assert row["gpu_seconds_shared"] > 0 and row["gpu_seconds_own"] > 0
        assert 0 < row["train_seconds"] < row["gpu_seconds_own"] + row["gpu_seconds_shared"]
        assert row["started_at"] < row["finished_at"]
        assert row["epochs"] == pytest.approx(row["train_tokens"] / 11_000, rel=0.5)
    assert plan.sweep.devices == 1.0


def test_trajectories_join_to_whole_curves(data: Path, shared: Path) -> None:
    plan = plan_of(sweep_text(data, GRID), shared)
    record = Store(shared).sweep("tiny").read_json("plan.json")
    assert record is not None
    for run_id, run in plan.runs.items():
        assert record["runs"][run_id]["segments"] == list(plan.segments_of(run_id))
        files = [shared / "tiny" / "trajectory" / f"{s}.parquet" for s in plan.segments_of(run_id)]
        curve = [row for file in files for row in pq.read_table(file).to_pylist()]
        assert [row["step"] for row in curve] == list(range(1, run.config.steps + 1))
        assert curve[-1]["val_bpb"] is not None and curve[-1]["ema_val_bpb"] is not None
        assert curve[run.config.peak_steps - 1]["val_bpb"] is not None
        assert curve[-1]["run_id"] == run_id and curve[0]["run_id"] is None
        assert curve[-1]["train_tokens"] == run.config.train_tokens
        assert [row["lr_scale"] for row in curve[: run.config.peak_steps]] == [1.0] * run.config.peak_steps


def test_final_evaluations_agree_with_those_while_training(data: Path, shared: Path) -> None:
    for run_id, row in rows(shared).items():
        last = plan_of(sweep_text(data, GRID), shared).runs[run_id].last
        end = pq.read_table(shared / "tiny" / "trajectory" / f"{last}.parquet").to_pylist()[-1]
        assert end["val_bpb"] == row["float_bpb"] and end["ema_val_bpb"] == row["ema_bpb"]
        assert end["train_loss"] == row["train_loss_final"]


def test_blocks_add_up_to_the_figures(shared: Path) -> None:
    import math

    for run_id, row in rows(shared).items():
        blocks = pq.read_table(shared / "tiny" / "blocks" / f"{run_id}.parquet").to_pylist()
        for stage in ("float", "ema", "int6", "int6_sliding", "ttt"):
            mine = [block for block in blocks if block["stage"] == stage]
            bpb = sum(b["nll"] for b in mine) / math.log(2) / sum(b["bytes"] for b in mine)
            assert bpb == pytest.approx(row[f"{stage}_bpb"], rel=1e-12)
            assert [b["block"] for b in mine] == list(range(len(mine))) and len(mine) == 4


def test_states_on_trunks_are_kept_and_others_deleted(data: Path, shared: Path) -> None:
    store, plan = Store(shared), plan_of(sweep_text(data, GRID), shared)
    done = store.all_done()
    kept = {node for node in plan.segments if store.final_state(done[node])}
    assert kept == {s.id for s in plan.segments.values() if s.trunk}
    assert not list(shared.rglob("checkpoints")) and not list(shared.rglob("*.tmp"))
    assert not (shared / "tiny" / "lease.json").exists()


def test_the_same_command_again_does_nothing(data: Path, shared: Path) -> None:
    def refuse(job: Job) -> Outcome | None:
        raise AssertionError("nothing was left to do")

    before = rows(shared)
    result = launch_here(sweep_text(data, GRID), shared, cluster=InThisProcess(refuse))
    assert result.exit_code == 0 and result.executed == 0 and rows(shared) == before


@pytest.mark.parametrize("where", ["trunk", "branch"])
def test_a_segment_stopped_half_way_goes_on_to_the_same_bits(
    data: Path, shared: Path, tmp_path: Path, where: str
) -> None:
    """SIGTERM to the worker after some steps, more than once."""
    preempted: list[int] = []

    def stop(job: Job) -> Observed | None:
        if job.kind == "segment" and job.identity["trunk"] == (where == "trunk") and len(preempted) < 2:
            preempted.append(job.until)
            return Observed.PREEMPTED
        return None

    # A worker told to stop before it starts still makes one step.
    cluster = InThisProcess(stop)
    text = sweep_text(data, {"steps": [12], "warmdown_ratio": [0.5]}, stages=["ema"])
    assert launch_here(text, tmp_path, cluster=cluster).exit_code == 0 and len(preempted) == 2
    ((run_id, row),) = rows(tmp_path).items()
    assert row["ema_bpb"] == rows(shared)[run_id]["ema_bpb"]
    mine = states(tmp_path, plan_of(text, tmp_path))
    theirs = states(shared, plan_of(sweep_text(data, GRID), shared))
    assert len(mine) == 2 and all(theirs[key] == value for key, value in mine.items())
    assert [job for job in cluster.jobs if job.resume]
    for node in plan_of(text, tmp_path).segments:
        steps = pq.read_table(tmp_path / "tiny" / "trajectory" / f"{node}.parquet")["step"].to_pylist()
        start, stop = node.split("-")[:2]
        assert steps == list(range(int(start) + 1, int(stop) + 1))


def test_a_second_sweep_extends_the_first_to_the_same_bits(data: Path, shared: Path, tmp_path: Path) -> None:
    """Longer runs, and a branch point between two states of the first sweep."""
    store = tmp_path / "store"
    shutil.copytree(shared, store)
    stages = ["float", "ema"]
    more = sweep_text(data, {"steps": [10, 16], "warmdown_ratio": [0.5]}, name="more", stages=stages)
    cluster = InThisProcess()
    assert launch_here(more, store, cluster=cluster).exit_code == 0
    trained = sum(job.until - job.identity["start"] for job in cluster.jobs if job.kind == "segment")
    assert trained == (5 - 4) + (10 - 5) + (8 - 6) + (16 - 8)
    assert launch_here(more, tmp_path / "alone", ["share=false"]).exit_code == 0
    assert rows(store, "more") == rows(tmp_path / "alone", "more")
    again = launch_here(sweep_text(data, GRID), store)
    assert again.executed == 0 and rows(store) == rows(shared)


def test_new_ttt_settings_need_no_training(data: Path, shared: Path, tmp_path: Path) -> None:
    shutil.copytree(shared, tmp_path / "store")
    grid = {"steps": [12], "warmdown_ratio": [0.5], "ttt.epochs": [2, 3]}
    text = sweep_text(data, grid, name="epochs")
    cluster = InThisProcess()
    assert launch_here(text, tmp_path / "store", cluster=cluster).exit_code == 0
    assert [job.kind for job in cluster.jobs] == ["ttt"]
    found = rows(tmp_path / "store", "epochs")
    assert len(found) == 2 and {row["ttt.epochs"] for row in found.values()} == {2, 3}


def test_a_row_says_how_its_run_was_executed_and_not_how_the_last_launch_was(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = sweep_text(data, {"steps": [4], "warmdown_ratio": [0.5]}, stages=["float"])
    launch_here(text, tmp_path)
    before = Store(tmp_path).sweep("tiny").read_runs()
    assert before and before[0]["ranks"] == 1 and before[0]["gpu_seconds_own"] > 0
    monkeypatch.setattr("sweeps.drive.launch._git", lambda *arguments: "of another day")
    assert launch_here(text, tmp_path, ["exec.ranks=2"]).executed == 0
    assert Store(tmp_path).sweep("tiny").read_runs() == before


def test_a_break_of_bit_identity_inside_a_segment_is_recorded(data: Path, tmp_path: Path) -> None:
    """Interrupted, then resumed with more threads, then interrupted and resumed once more."""
    text = sweep_text(data, {"steps": [6], "warmdown_ratio": [0.0]}, stages=[])
    stop = InThisProcess(lambda job: Observed.STOPPED)
    launch_here(text, tmp_path, cluster=stop)
    launch_here(text, tmp_path, ["exec.threads=2"], cluster=stop)
    result = launch_here(text, tmp_path, ["exec.threads=2"])
    assert result.exit_code == 0
    assert list(result.identity_breaks.values()) == [["threads: 1 before, then 2"]]


def test_only_some_runs(data: Path, tmp_path: Path) -> None:
    text = sweep_text(data, {"steps": [4, 6], "warmdown_ratio": [0.5]})
    result = launch_here(text, tmp_path, only="4-*")
    assert result.exit_code == 0 and result.runs == {"done": 1, "diverged": 0, "failed": 0, "pending": 1}
    assert {row["status"] for row in rows(tmp_path).values()} == {"done", "pending"}
    with pytest.raises(ConfigError, match="--only x: no run of tiny matches; its runs are 4-2-linear"):
        launch_here(text, tmp_path, only="x")


def test_a_budget_stops_with_code_4_and_the_rest_follows(data: Path, tmp_path: Path) -> None:
    text = sweep_text(data, {"steps": [4, 6], "warmdown_ratio": [0.5]})
    result = launch_here(text, tmp_path, max_gpu_hours=1e-9)
    assert result.exit_code == 4 and result.runs["pending"] == 2
    assert launch_here(text, tmp_path).exit_code == 0


def test_fresh_trains_again(data: Path, tmp_path: Path) -> None:
    text = sweep_text(data, {"steps": [4], "warmdown_ratio": [0.5]})
    launch_here(text, tmp_path)
    first, cluster = rows(tmp_path), InThisProcess()
    assert launch_here(text, tmp_path, cluster=cluster, fresh=True).exit_code == 0
    assert len(cluster.jobs) == 8 and rows(tmp_path) == first


def test_store_on_s3_gives_the_same_bits(
    data: Path, shared: Path, s3: Callable[[str], str], tmp_path: Path
) -> None:
    stopped: list[str] = []

    def stop(job: Job) -> Observed | None:
        if job.kind == "segment" and len(stopped) < 3:
            stopped.append(job.id)
            return Observed.PREEMPTED
        return None

    url = s3("sweep")
    text = sweep_text(data, {"steps": [8], "warmdown_ratio": [0.5]})
    assert launch_here(text, url, cluster=InThisProcess(stop)).exit_code == 0
    ((run_id, row),) = rows(url).items()
    assert row == rows(shared)[run_id] | {"schedule": "linear"}
    left = [e.name for e in Store(url).files.list("segments", recursive=True) if "/checkpoints/" in e.name]
    assert not left


def test_outcomes_say_how_they_were_made(shared: Path) -> None:
    for outcome in Store(shared).all_done().values():
        assert {"host", "device", "ranks", "torch_version", "micro_batch_seqs"} <= outcome.execution.keys()
        assert replace(outcome) == Outcome.from_json(outcome.to_json())
        assert outcome.seconds > 0 and outcome.files
