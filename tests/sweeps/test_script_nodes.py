"""A script that runs on several nodes at once: where each is started, and what becomes of it if one fails."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from gepa_core.errors import ConfigError
from launch import read_log
from sweeps.drive.launch import RunOptions, SweepResult, run_sweep
from sweeps.drive.ray_cluster import RayCluster
from sweeps.plan.estimate import Machine, places, refusal
from sweeps.work.job import Job
from tests.fault.local_cluster import LocalCluster, ray_nodes
from tests.script_sweep import log, plan_of, read, result, rows, sweep_text, write_script

BY_SOCKET = """
    import socket
    rank, marker = int(sys.argv[1]), sys.argv[2]
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if rank == 0:
        with socket.create_server(place) as server:
            peer = server.accept()[0]
            first = peer.recv(1)
        curve()
        peer.sendall(b"done" if first else b"")
        sys.exit(0 if first else 1)
    for _ in range(100):
        try:
            peer = socket.create_connection(place)
            break
        except OSError:
            time.sleep(0.1)
    if not os.path.exists(marker):
        open(marker, "w").close()
        os.kill(os.getpid(), 9)
    peer.sendall(b"1")
    print("heard", peer.recv(9), "over", os.environ["NODES"], "nodes with", os.environ["EACH"], "each")
    time.sleep(100)
"""
BY_TORCHRUN = """
    import torch, torch.distributed as dist
    dist.init_process_group("gloo")
    total = torch.ones(1)
    dist.all_reduce(total)
    if dist.get_rank() == 0:
        curve()
        print(f"final_int6_roundtrip val_loss:1.0 val_bpb:{total.item():.4f}")
    dist.destroy_process_group()
"""
TORCHRUN = (
    "torchrun --nnodes={nodes} --node-rank={node_rank} --nproc-per-node={ranks_per_node} "
    "--master-addr={master_addr} --master-port={port} train.py"
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with ray_nodes(2) as nodes:
        yield nodes


def sweep(folder: Path, command: str, source: str) -> str:
    env = {"NODES": "{nodes}", "EACH": "{ranks_per_node}"}
    script = {"command": command, "nodes": 2, "env": env}
    return sweep_text(write_script(folder / "script", source), script, exec={"ranks": 2, "threads": 1})


def launch(text: str, output: Path, cluster: LocalCluster) -> SweepResult:
    options = RunOptions(plain=True, read_log=read_log, address=cluster.address)
    return run_sweep(plan_of(text, output), str(output), options)


def test_a_node_that_fails_ends_the_run_on_all_and_it_is_made_again(
    cluster: LocalCluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The second node stays at work after the first is done, and is ended then."""
    text = sweep(tmp_path, f"python train.py {{node_rank}} {tmp_path}/killed", BY_SOCKET)
    assert launch(text, tmp_path / "out", cluster).exit_code == 0
    (row,) = rows(tmp_path / "out")
    assert (row["status"], row["float_bpb"]) == ("done", 0.5)
    assert "(attempt 2)" in "".join(capfd.readouterr())
    assert "step:4/4" in log(tmp_path / "out")
    (second,) = (tmp_path / "out").glob(f"segments/*/attempts/{result(tmp_path / 'out').attempt}/node1.txt")
    assert "heard b'done' over 2 nodes with 1 each" in second.read_text()


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_stop_is_heard_by_a_job_that_has_not_begun(
    nodes: int, cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = RayCluster.start

    def start_and_stop(leases: RayCluster, lease: str, job: Job) -> None:
        start(leases, lease, job)
        leases._leases[lease].placed_at = -1e9  # a lease of long ago may wait for its nodes to meet
        assert leases._overdue() == []
        leases.stop(lease)

    monkeypatch.setattr(RayCluster, "start", start_and_stop)
    command = "python train.py {node_rank} {master_addr} {port}" if nodes > 1 else "python train.py"
    work = write_script(tmp_path / "script", "time.sleep(1000)")
    text = sweep_text(work, {"nodes": nodes, "command": command}, exec={"ranks": nodes, "threads": 1})
    result = launch(text, tmp_path / "out", cluster)
    assert (result.runs["pending"], result.executed) == (1, 0)


@pytest.mark.slow
def test_torchrun_on_two_nodes(cluster: LocalCluster, tmp_path: Path) -> None:
    text = sweep(tmp_path, TORCHRUN, BY_TORCHRUN)
    assert launch(text, tmp_path / "out", cluster).exit_code == 0
    (row,) = rows(tmp_path / "out")
    assert (row["int6_bpb"], row["ranks"]) == (2.0, 2)


def test_a_spread_run_needs_as_many_nodes(tmp_path: Path) -> None:
    spread = read(sweep(tmp_path, TORCHRUN, BY_TORCHRUN))
    assert refusal(spread, [Machine({"CPU": 64})]) == (
        "a run asks for 2 x (1 CPU), each on a node of its own, which no set of nodes here has (1 node(s), "
        "at most 64 CPU each)"
    )
    for cpus, leases in (((4, 1), 1), ((4, 3, 2), 4), ((1,), 0)):
        assert places(spread, [Machine({"CPU": each}) for each in cpus]) == leases


def test_a_spread_run_is_made_whole(tmp_path: Path) -> None:
    text = sweep(tmp_path, TORCHRUN, BY_TORCHRUN)
    state = "script.state={save: {A: b}, load: {A: b}}"
    with pytest.raises(ConfigError, match="a run on several nodes is made whole: leave out state, or nodes"):
        read(text, (state,))
