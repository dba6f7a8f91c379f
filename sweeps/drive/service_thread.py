"""A thread that starts a service of several processes, and lives as long as it does.

Not the main thread, for there the service would put its signal handlers in place of ours. The thread stays
because the kernel may end the service's processes with the thread that started them.
"""

import atexit
import contextlib
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil


class ServiceThread(threading.Thread):
    """`start` and `stop` are the service's; `folder`, where it keeps its files, is deleted at its end."""

    def __init__(self, start: Callable[[], object], stop: Callable[[], object], folder: Path | None) -> None:
        super().__init__(name="service", daemon=True)
        self._start_service, self._stop_service, self.folder = start, stop, folder
        self.error: Exception | None = None
        self.is_up, self.is_over = threading.Event(), threading.Event()

    @classmethod
    def started(
        cls, start: Callable[[], object], stop: Callable[[], object], folder: Path | None = None
    ) -> "ServiceThread":
        """Raises what `start` raises, and KeyboardInterrupt where a signal handler does meanwhile."""
        thread = cls(start, stop, folder)
        thread.start()
        try:
            thread.is_up.wait()
        except KeyboardInterrupt:
            atexit.register(thread.abandon)  # before what the service has registered
            raise
        if thread.error:
            thread.close()
            raise thread.error
        return thread

    def run(self) -> None:
        os.register_at_fork(after_in_child=self._leave_group)
        try:
            self._start_service()
        except Exception as error:
            self.error = error
        self.is_up.set()
        self.is_over.wait()

    def _leave_group(self) -> None:
        """In a process of the service: a signal to our process group is not for it, for we drain first."""
        # An ident may be used again: a service that is over has no processes to come.
        if threading.get_ident() == self.ident and not self.is_over.is_set():
            os.setsid()

    def close(self) -> None:
        self._stop_service()
        self.is_over.set()
        self.join()
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def kill(self) -> None:
        """Ends a service that does not answer any more. Its library would wait for it, or crash, when this
        process ends: that ends without it, by exit code 3.
        """
        _kill_children(f"self/task/{self.native_id}")
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)
        atexit.register(_end_at_once)

    def end_now(self) -> None:
        """`kill`, and the end of this process with it, from whatever thread."""
        _kill_children(f"self/task/{self.native_id}")
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)
        _end_at_once()

    def abandon(self) -> None:
        """Ends this process where the service is half up: nothing but the kernel can undo that."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        with Path(os.devnull).open("w") as nowhere:  # the service's threads will miss its processes
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        _kill_children(f"self/task/{self.native_id}")
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)
        os._exit(128 + signal.SIGINT)


def _end_at_once() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(3)


def _kill_children(task: str) -> None:
    """Kills the processes that a thread started (its path under /proc), and theirs; where there is no /proc
    (macOS), all that this process started."""
    if not Path("/proc").is_dir():
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                process.kill()
        return
    with contextlib.suppress(OSError):  # gone meanwhile
        for child in map(int, Path("/proc", task, "children").read_text().split()):
            os.kill(child, signal.SIGSTOP)  # so that it starts no more of them
            for thread in Path(f"/proc/{child}/task").iterdir():
                _kill_children(f"{child}/task/{thread.name}")
            os.kill(child, signal.SIGKILL)
