"""A local Ray is for its launch alone: each port is the loopback's, an intruder is refused, a loss told."""

import contextlib
import os
import signal
import stat
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import grpc
import pytest

from tests.fault.local_cluster import wait_until
from tests.fault.test_launch import PATIENCE, Launch
from tests.tiny_sweep import make_data, sweep_text

pytestmark = pytest.mark.slow
_LISTENS = "0A"
_LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F")
SERVICES = {
    "CoreWorkerService": "PushTask",
    "NodeManagerService": "RequestWorkerLease",
    "JobInfoGcsService": "AddJob",
    "InternalKVGcsService": "InternalKVPut",
    "ReporterService": "ReportOCMetrics",
    "ObjectManagerService": "Push",
}
"""What would run code or change a state; a service answers UNIMPLEMENTED for those that are not its own."""
REFUSED = {
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNAVAILABLE,  # speaks something else
    grpc.StatusCode.DEADLINE_EXCEEDED,
}


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    """A sweep of two ranks at work on a local Ray."""
    folder = tmp_path_factory.mktemp("private")
    data = make_data(folder / "data")
    grid = {"steps": [100_000], "warmdown_ratio": [0.5]}
    execution = {"ranks": 2, "checkpoint_every": 20}
    text = sweep_text(data, grid, stages=["ema"], exec=execution, resources={"cpus_per_run": 0.2})
    launch = Launch(text, folder / "run")
    launch.until_training()
    yield launch
    with contextlib.suppress(ProcessLookupError):
        os.killpg(launch.process.pid, signal.SIGKILL)
    launch.process.wait()


def ports(launch: Launch) -> dict[int, str]:
    """Every port that the launch and its Ray listen on, and the address it is bound to."""
    sockets = set()
    for pid in (launch.process.pid, *launch.ray_processes()):
        with contextlib.suppress(OSError):
            links = [str(handle.readlink()) for handle in Path(f"/proc/{pid}/fd").iterdir()]
            sockets |= {link[8:-1] for link in links if link.startswith("socket:[")}
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == _LISTENS and words[9] in sockets:
                address, _, port = words[1].rpartition(":")
                found[int(port, 16)] = address
    return found


def test_nobody_gets_in_and_a_loss_is_told(launched: Launch) -> None:
    """One launch for all of it: Ray takes seconds to start."""
    open_ports = ports(launched)
    assert len(open_ports) >= 8 and set(open_ports.values()) <= {*_LOOPBACK}, open_ports
    folder = launched.session_folder()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700 and folder.stat().st_uid == os.getuid()
    answers = {port: knock(port) for port in open_ports}
    told = [code for codes in answers.values() for code in codes]
    assert set(told) <= REFUSED, answers
    # The driver, two ranks, the raylet and the GCS ask for the token.
    assert told.count(grpc.StatusCode.UNAUTHENTICATED) >= 5, answers
    for port in open_ports:
        assert http(port) in (None, 401, 403) or metrics_only(port), port
    gcs = next(pid for pid in launched.ray_processes() if b"gcs_server" in command(pid))
    os.kill(gcs, signal.SIGKILL)
    assert launched.wait() == 3
    lines = launched.log.read_text().splitlines()
    assert lines[-1].startswith("the local Ray is lost: its process gcs_server was killed"), lines[-3:]
    assert lines[-1].endswith("what was finished is kept, the same command continues")
    wait_until(lambda: not launched.ray_processes(), PATIENCE, "the end of Ray's processes")
    assert not folder.exists()


def command(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def knock(port: int) -> list[grpc.StatusCode | str]:
    """What a caller without the token, and with a wrong one, is answered by each service."""
    found: list[grpc.StatusCode | str] = []
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for service, method in SERVICES.items():
            for token in (None, "Bearer " + "0" * 64):
                call = channel.unary_unary(f"/ray.rpc.{service}/{method}")
                try:
                    call(b"", timeout=2.0, metadata=[("authorization", token)] if token else None)
                    found.append(f"{service} answered")
                except grpc.RpcError as error:
                    found.append(error.code())
            if found[-1] in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                break  # no gRPC there
    return found


def http(port: int, path: str = "/api/jobs/") -> int | None:
    """Status of a request without a token; None where nothing speaks HTTP."""
    connection = HTTPConnection("127.0.0.1", port, timeout=2.0)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, HTTPException):
        return None
    finally:
        connection.close()


def metrics_only(port: int) -> bool:
    """Prometheus' figures for every path, and nothing to be changed."""
    connection = HTTPConnection("127.0.0.1", port, timeout=2.0)
    try:
        connection.request("GET", "/any/path")
        return connection.getresponse().read(7) == b"# HELP "
    finally:
        connection.close()
