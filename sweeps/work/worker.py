"""A rank of a lease, in a process of its own: joins its group, executes jobs, hears stop signs."""

import contextlib
import os
import shutil
import signal
import socket
import tempfile
import threading
from pathlib import Path

import psutil

from sweeps.kinds.table import KINDS
from sweeps.store.store import Outcome
from sweeps.work.execute import execute, warm_up
from sweeps.work.job import Job
from sweeps.work.policy import Observed


class Worker:
    """Executes one job after another. `stop` is called from another thread while `run` is at work."""

    def __init__(self, rank: int, world: int, torch: bool = True) -> None:
        """In the process's main thread, where signal handlers are set. `torch`: whether its jobs need it."""
        self.rank, self.world, self.torch = rank, world, torch
        self._preempted = False
        self._stopped: str | None = None
        """The attempt that is to end, which may not have begun."""
        self._at_stage = False
        self._watch_sigterm()

    def prepare(self) -> int:
        """Imports what jobs need, so that none waits for it; returns a free port of this node."""
        if self.torch:
            warm_up()
        with socket.socket() as probe:
            probe.bind(("", 0))
            port: int = probe.getsockname()[1]
            return port

    def join(self, address: str, port: int) -> None:
        """Join the lease's process group, whose rank 0 listens there."""
        import torch
        import torch.distributed as dist

        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        if address != LOOPBACK:
            place = f"tcp://{address}:{port}"
            dist.init_process_group(backend, init_method=place, rank=self.rank, world_size=self.world)
            return
        # All are here: what they open is for nobody else.
        loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = loopback
        listener = _listen(port) if self.rank == 0 else None
        store = dist.TCPStore(LOOPBACK, port, self.world, self.rank == 0, master_listen_fd=listener)
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.world)

    def run(self, job: Job, meeting: tuple[str, int] | None = None) -> Outcome:
        """Executes a job; this rank's outcome. `meeting`: address and port for a script on several nodes."""
        self._at_stage = not KINDS[job.kind].trains
        try:
            return execute(job, self.rank, self.world, lambda: self._wish(job), own_scratch(), meeting)
        finally:
            self._at_stage = False

    def _wish(self, job: Job) -> Observed | None:
        if self._preempted:
            return Observed.PREEMPTED
        return Observed.STOPPED if job.attempt == self._stopped else None

    def stop(self, attempt: str) -> None:
        """Have training write a checkpoint and end. May be heard before the attempt is."""
        self._stopped = attempt

    def leave(self) -> None:
        """Delete what this worker keeps on its node."""
        shutil.rmtree(own_scratch(), ignore_errors=True)

    def _watch_sigterm(self) -> None:
        """A machine about to be taken away sends SIGTERM: training then writes a checkpoint and ends.

        Jobs do not run in the main thread, where Python would call a handler; a pipe wakes a thread instead.
        """
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        signal.set_wakeup_fd(write)

        def wait() -> None:
            while signal.SIGTERM not in os.read(read, 64):
                pass
            self._preempted = True
            if self._at_stage:  # has nothing to save
                self.leave()
                os._exit(128 + signal.SIGTERM)

        threading.Thread(target=wait, name="sigterm", daemon=True).start()


LOOPBACK = "127.0.0.1"


def _listen(port: int) -> int:
    """A listening socket, by its number, which is the receiver's to close."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((LOOPBACK, port))
    listener.listen(1024)
    return listener.detach()


def own_scratch() -> Path:
    """This process's folder on this node, made only if something is put there (the store is remote)."""
    base = Path(tempfile.gettempdir()) / f"gepa-sweeps-{os.getuid()}"
    for folder in base.iterdir() if base.is_dir() else ():
        if folder.name.isdigit() and not psutil.pid_exists(int(folder.name)):  # its process was killed
            with contextlib.suppress(OSError):
                shutil.rmtree(folder)
    return base / str(os.getpid())
