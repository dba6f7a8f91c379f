"""What running a sweep costs besides its work: start-up, and overhead a segment, on real local Ray nodes.

    python -m benchmarks.orchestration [--nodes 4] [--lengths 20]

Trains a sweep of small real segments (two a length) through sweeps/drive/ray_cluster.py and prints JSON. A
segment's overhead is split into what its worker spends besides training and validating (building the model,
reading and writing states and tables), the way from driver to worker and back, and the lease's wait for the
next job (commit, tables, scheduling).
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from sweeps.commands.sweep import open_data, over_store
from sweeps.drive.launch import RunOptions, run_sweep
from sweeps.drive.protocols import Ended, Event, LeaseReady
from sweeps.drive.ray_cluster import RayCluster
from sweeps.kinds.table import SEGMENT
from sweeps.plan.planner import make_plan
from sweeps.spec.load import read_sweep
from sweeps.spec.sweep import Sweep
from sweeps.store.store import Store
from sweeps.work.job import Job


class TimedCluster(RayCluster):
    """Notes when leases come up and jobs begin and end, as the driver sees it."""

    def __init__(self, sweep: Sweep, address: str | None = None) -> None:
        begun = time.monotonic()
        super().__init__(sweep, address)
        self.connect_seconds = time.monotonic() - begun
        self.lease_seconds: list[float] = []
        self.jobs: list[dict[str, Any]] = []
        self.waits: list[float] = []
        self._asked: dict[str, float] = {}
        self._running: dict[str, tuple[Job, float]] = {}
        self._idle: dict[str, float] = {}

    def open(self) -> str:
        name = super().open()
        self._asked[name] = time.monotonic()
        return name

    def start(self, lease: str, job: Job) -> None:
        now = time.monotonic()
        if lease in self._idle:
            self.waits.append(now - self._idle.pop(lease))
        self._running[lease] = job, now
        super().start(lease, job)

    def poll(self, timeout: float) -> list[Event]:
        events = super().poll(timeout)
        now = time.monotonic()
        for event in events:
            if isinstance(event, LeaseReady):
                self.lease_seconds.append(now - self._asked[event.lease])
            elif isinstance(event, Ended) and event.outcome:
                job, begun = self._running.pop(event.lease)
                self._idle[event.lease] = now
                self.jobs.append({"id": job.id, "kind": job.kind, "seconds": now - begun})
        return events


def sweep_text(data: Path, lengths: int) -> str:
    """Two segments a length: a piece of the trunk, and a branch."""
    steps = [20 + 4 * i for i in range(lengths)]
    return yaml.safe_dump(
        {
            "name": "orchestration",
            "recipe": "gepa-nano",
            "grid": {"steps": steps, "warmdown_ratio": [0.5]},
            "set": {"data.dir": str(data), "data.corpus": "docstrings", "data.val_tokens": 2048},
            "stages": ["float"],
            "exec": {"device": "cpu", "threads": 1},
        }
    )


def measure(nodes: int, lengths: int, data: Path) -> dict[str, Any]:
    from ray._common.utils import get_default_ray_temp_dir
    from ray.cluster_utils import Cluster

    sweep = read_sweep(sweep_text(data, lengths), [], "orchestration.yaml")
    timed: list[TimedCluster] = []

    def connect(sweep: Sweep, address: str | None) -> TimedCluster:
        timed.append(TimedCluster(sweep, address))
        return timed[0]

    with tempfile.TemporaryDirectory(prefix="o", dir="/tmp") as folder:
        arguments: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 << 20}
        head = {"include_dashboard": False, "temp_dir": f"{folder}/r"}
        Path(get_default_ray_temp_dir()).mkdir(parents=True, exist_ok=True)  # Cluster expects it
        ray_nodes = Cluster(initialize_head=True, head_node_args={**arguments, **head})
        try:
            for _ in range(nodes - 1):
                ray_nodes.add_node(**arguments)
            output = f"{folder}/out"
            plan = over_store(open_data(sweep, lambda line: None), output)
            begun = time.monotonic()
            result = run_sweep(
                plan, output, RunOptions(address=ray_nodes.address, plain=True), cluster=connect
            )
            wall = time.monotonic() - begun
            if result.exit_code:
                raise SystemExit(f"the sweep failed: {result.failures}")
            return {"nodes": nodes, "wall_seconds": wall, **figures(timed[0], Store(output))}
        finally:
            ray_nodes.shutdown()


def figures(cluster: TimedCluster, store: Store) -> dict[str, Any]:
    done = store.all_done()
    segments = [job for job in cluster.jobs if job["kind"] == SEGMENT]
    worker = [done[job["id"]].seconds - done[job["id"]].result["train_seconds"] for job in segments]
    way = [job["seconds"] - done[job["id"]].seconds for job in cluster.jobs]
    return {
        "segments": len(segments),
        "stages": len(cluster.jobs) - len(segments),
        "leases": len(cluster.lease_seconds),
        "connect_seconds": cluster.connect_seconds,
        "lease_start_seconds": spread(cluster.lease_seconds),
        "train_seconds": sum(done[job["id"]].result["train_seconds"] for job in segments),
        "in_worker_besides_training_seconds": spread(worker),
        "driver_to_worker_and_back_seconds": spread(way),
        "lease_waits_for_next_job_seconds": spread(cluster.waits),
        "overhead_seconds_a_segment": statistics.median(worker)
        + statistics.median(way)
        + statistics.median(cluster.waits),
    }


def spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "median": statistics.median(ordered),
        "p90": ordered[int(0.9 * (len(ordered) - 1))],
        "max": ordered[-1],
    }


def plan_seconds() -> dict[str, float]:
    """Processor seconds to plan a thousand runs, and ten thousand, with their ratio."""
    seconds: dict[str, float] = {}
    for name, lengths in (("1000_runs", 10), ("10000_runs", 100)):
        sweep = read_sweep(
            f"grid: {{steps: {[1000 + 100 * i for i in range(lengths)]}, "
            f"warmdown_ratio: {[round(0.05 + 0.04 * i, 2) for i in range(20)]}, seed: [0, 1, 2, 3, 4]}}"
        )
        begun = time.process_time()
        assert make_plan(sweep).priority
        seconds[name] = time.process_time() - begun
    return seconds | {"ratio": seconds["10000_runs"] / seconds["1000_runs"]}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--lengths", type=int, default=20, help="two segments each")
    parser.add_argument("--plan", action="store_true", help="time the plan of 1,000 and 10,000 runs instead")
    parser.add_argument("--data", type=Path, default=Path("data/quickstart"), help="prepared on first use")
    args = parser.parse_args()
    figures = plan_seconds() if args.plan else measure(args.nodes, args.lengths, args.data)
    print(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
