"""Sweeps on a real Ray cluster of two nodes: ranks, faults, and what is left behind."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sweeps.drive.protocols import ClusterError
from sweeps.drive.ray_cluster import RayCluster
from sweeps.spec.load import read_sweep
from sweeps.store.store import Store
from tests.fault.local_cluster import LocalCluster, kill, ray_nodes, running, wait_until
from tests.tiny_sweep import launch, launch_here, make_data, plan_of, rows, states, sweep_text

GRID: dict[str, list[Any]] = {"steps": [60], "warmdown_ratio": [0.5]}
STAGES = ["float", "ema"]
OFTEN = {"checkpoint_every": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with ray_nodes(2) as nodes:
        yield nodes


@contextlib.contextmanager
def meanwhile(action: Callable[[], None]) -> Iterator[None]:
    """Runs `action` beside the block; what it raises is raised at the block's end."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield
    thread.join(timeout=100)
    assert not thread.is_alive()
    if raised:
        raise raised[0]


def checkpoint_beyond(output: Path, step: int) -> Callable[[], bool]:
    """Whether some attempt has written a state of more than `step` steps."""

    def reached() -> bool:
        found = output.glob("segments/*/attempts/*/checkpoints/*")
        return any(path.name.isdigit() and int(path.name) > step for path in found)

    return reached


def resumed_at(output: Path) -> list[int]:
    """The step at which each committed segment that was interrupted went on."""
    from sweeps.store.journal import events

    journals = [path.read_bytes() for path in output.glob("segments/*/attempts/*/events.jsonl")]
    steps = [e.get("resumed_at") for data in journals for e in events(data) if e["event"] == "started"]
    return [step for step in steps if step]


def left_behind() -> list[str]:
    import ray
    from ray.util.placement_group import placement_group_table

    groups = [g for g in placement_group_table().values() if g["state"] != "REMOVED"]
    assert ray.is_initialized()
    return [str(group["placement_group_id"]) for group in groups]


def test_only_workers_of_this_cluster_are_ever_hurt(cluster: LocalCluster) -> None:
    """Somebody else's Ray on this machine has processes of the same name."""
    command = ["ray::RankActor", "-c", "import time; print(flush=True); time.sleep(60)"]
    other = subprocess.Popen(command, executable=sys.executable, stdout=subprocess.PIPE)
    try:
        assert other.stdout and other.stdout.readline()  # it is up, by its new name
        assert other.pid in running("ray::RankActor") and other.pid not in cluster.workers()
    finally:
        other.kill()
        other.communicate()


def test_two_ranks_with_one_killed_give_the_bits_of_runs_alone(
    data: Path, cluster: LocalCluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shared, alone = tmp_path / "shared", tmp_path / "alone"
    text = sweep_text(data, GRID, stages=STAGES, exec={"ranks": 2, **OFTEN})

    def kill_a_rank() -> None:
        wait_until(checkpoint_beyond(shared, 7), 100, "a checkpoint")
        assert kill(cluster.workers()[-1])

    with meanwhile(kill_a_rank):
        result = launch(text, shared, address=cluster.address)
    assert result.exit_code == 0 and result.runs["done"] == 1
    told = "".join(capfd.readouterr())
    # A line of ours and the end of the log, and none of Ray's own.
    assert re.search(r"retry    .*trunk.*: process \d+ on [\d.]+ was killed or crashed", told), told
    assert re.search(r"^    \| .*\S", told, re.MULTILINE), told
    assert not re.search(r"raylet|pid=|actor_id", told), told
    assert launch(text, alone, ["share=false"], address=cluster.address).exit_code == 0
    assert rows(shared) == rows(alone)
    ends = [(run_id, 60) for run_id in rows(shared)]
    mine, theirs = states(shared, plan_of(text, shared)), states(alone, plan_of(text, alone, ["share=false"]))
    assert [mine[end] for end in ends] == [theirs[end] for end in ends]
    assert min(resumed_at(shared)) > 7


def test_a_worker_told_to_go_saves_its_state_and_a_diverged_run_stops_nothing(
    data: Path, cluster: LocalCluster, tmp_path: Path
) -> None:
    """SIGTERM, as a spot machine sends it; one rank; and the numbers are those of a process without Ray."""
    grid = GRID | {"optim.scalar_lr": [0.025, 1e38]}
    text = sweep_text(data, grid, stages=STAGES)

    def preempt() -> None:
        wait_until(
            lambda: list(tmp_path.glob("ray/segments/*/attempts/*/trajectory.parquet")), 100, "a trunk"
        )
        for pid in cluster.workers():
            kill(pid, signal.SIGTERM)

    with meanwhile(preempt):
        result = launch(text, tmp_path / "ray", address=cluster.address)
    assert result.exit_code == 3 and result.runs["done"] == 1 and result.runs["diverged"] == 1
    assert launch_here(text, tmp_path / "here").exit_code == 3
    mine, theirs = rows(tmp_path / "ray"), rows(tmp_path / "here")
    for row in (*mine.values(), *theirs.values()):
        # Saving at SIGTERM may meet the divergence a step before the loss tells of it.
        assert (row["status"] == "diverged") == ("is not finite" in str(row.pop("error")))
    assert mine == theirs
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob("checkpoints"))


def test_nothing_is_left_behind(cluster: LocalCluster) -> None:
    import ray

    wait_until(lambda: not cluster.workers(), 20, "the end of all workers")
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        assert left_behind() == []
    finally:
        ray.shutdown()


def test_a_cluster_that_is_not_there_is_said(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"no Ray cluster answers at 127\.0\.0\.1:1"):
        launch(sweep_text(data, GRID), tmp_path, address="127.0.0.1:1")
    assert Store(tmp_path).sweep("tiny").read_runs()  # the table is there, and says pending


def test_a_lease_goes_where_its_resources_and_labels_are(data: Path, cluster: LocalCluster) -> None:
    import ray

    node = cluster.add_node(resources={"fast": 1}, labels={"kind": "A100"})
    resources = {"custom": {"fast": 0.5}, "node_labels": {"kind": "A100"}}
    sweep = read_sweep(sweep_text(data, GRID, resources=resources), [], "tiny.yaml")
    try:
        with RayCluster(sweep, cluster.address) as leases:
            wait_until(lambda: leases.capacity() == 2, 20, "the node")
            lease = leases.open()
            events: list[Any] = []
            wait_until(lambda: events.extend(leases.poll(0.1)) or events, 60, "the lease")
            placed = ray.util.placement_group_table(leases._leases[lease].group)["bundles_to_node_id"]
            assert list(placed.values()) == [node.node_id]
    finally:
        cluster.kill_node(node)


def test_a_worker_that_leased_no_gpu_sees_none() -> None:
    """In a process of its own: GPUs are hidden before torch looks for them, and from nobody else."""
    look = "import os; from sweeps.drive.ray_cluster import RankActor; RankActor(0, 1, {!r}); "
    look += "print(repr(os.environ['CUDA_VISIBLE_DEVICES']))"
    for device, seen in (("cpu", ""), ("cuda", "0,1")):
        command = [sys.executable, "-c", look.format(device)]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "0,1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == repr(seen)


def test_every_end_of_an_attempt_is_told() -> None:
    from sweeps.drive.ray_cluster import _TELLING
    from sweeps.work.policy import Observed

    assert set(_TELLING) == set(Observed)
