"""A real Ray cluster of several nodes on this machine, and ways to hurt it, process by process."""

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sweeps.drive.ray_cluster  # noqa: F401 - sets Ray's environment, before Ray reads it

# A dead node is noticed in seconds, and a slow answer of a busy machine is none.
_NOTICE_SOON = {
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 5,
    "health_check_timeout_ms": 20_000,
}


@contextlib.contextmanager
def ray_nodes(count: int, cpus: int = 2, **head: Any) -> Iterator["LocalCluster"]:
    """`count` nodes with `cpus` each; gone with all their processes and files at the end."""
    temp = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # short: Ray's sockets lie in it
    cluster = LocalCluster(temp, cpus, head)
    try:
        for _ in range(count - 1):
            cluster.add_node()
        yield cluster
    finally:
        cluster.shutdown()
        shutil.rmtree(temp, ignore_errors=True)


class LocalCluster:
    """The first node holds the cluster's head and is never hurt."""

    def __init__(self, temp: Path, cpus: int, head: dict[str, Any]) -> None:
        self.temp = temp
        self.node_args = {"num_cpus": cpus, "object_store_memory": 80 << 20}
        arguments = {
            "include_dashboard": False,
            "temp_dir": str(temp),
            "_system_config": _NOTICE_SOON,
            **self.node_args,
            **head,
        }
        from ray._common.utils import get_default_ray_temp_dir
        from ray.cluster_utils import Cluster

        # Cluster writes its address there whatever `temp_dir` says, and expects the folder to be there.
        Path(get_default_ray_temp_dir()).mkdir(parents=True, exist_ok=True)

        self.cluster = Cluster(initialize_head=True, head_node_args=arguments)
        self.nodes: list[Any] = []

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add_node(self, **arguments: Any) -> Any:
        node = self.cluster.add_node(wait=False, **{**self.node_args, **arguments})
        self.nodes.append(node)
        return node

    def kill_node(self, node: Any) -> None:
        """End a node's raylet at once; its workers find out by themselves."""
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)

    def workers(self) -> list[int]:
        """Processes that are ranks of leases on this cluster, even if their node, their parent, is gone."""
        return [pid for pid in running("ray::RankActor") if self._is_ours(pid)]

    def _is_ours(self, pid: int) -> bool:
        """Whether it has a file of this cluster open, such as its log: nobody else's process may be hurt."""
        with contextlib.suppress(OSError):
            files = [handle.readlink() for handle in Path(f"/proc/{pid}/fd").iterdir()]
            return any(file.is_relative_to(self.temp) for file in files)
        return False

    def shutdown(self) -> None:
        self.cluster.shutdown()


def running(command: str) -> list[int]:
    """All processes of this machine whose command line begins so."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if (entry / "cmdline").read_bytes().startswith(command.encode()):
                    found.append(int(entry.name))
    return found


def kill(pid: int, number: int = signal.SIGKILL) -> bool:
    """False where the process is gone already."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition: Any, seconds: float, what: str) -> None:
    """Raises TimeoutError, naming `what`, unless `condition()` becomes true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.01)
