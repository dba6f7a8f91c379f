"""Where an attempt's files are written.

The store's own folder where that is a local path, else a local one that is copied to the store meanwhile.
"""

import contextlib
import errno
import os
import shutil
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from gepa_core import files
from sweeps.store.files import StorageError
from sweeps.store.journal import reports_up_to
from sweeps.store.store import Store

_COPY_SECONDS = 5.0
_STATES_KEPT = 2
_STATES_ADOPTED = 2


class Workdir:
    """`path`: the local folder to write to. `scratch`: a folder of this worker alone."""

    def __init__(self, store: Store, attempt_path: str, scratch: Path) -> None:
        self.store, self.attempt_path, self.scratch = store, attempt_path, scratch
        self._cache = scratch / "states"
        local = store.files.local
        self.is_remote = local is None
        self.path = local / attempt_path if local else scratch / "work" / attempt_path
        self._copied: dict[str, tuple[int, int]] = {}
        self.path.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, data: bytes) -> None:
        """A small result file, whole or not at all."""
        files.write(self.path / name, data)

    def adopt(self, saved: Sequence[str]) -> int | None:
        """Take over the furthest checkpoints of earlier attempts, and the events up to there.

        Returns the steps of the furthest. Those of two steps are taken, should one turn out damaged.
        """
        steps: list[int] = []
        for path in saved:
            folder, _, step = path.rpartition("/")
            target = self.path / "checkpoints" / step
            if target.exists():
                continue
            if len(steps) == _STATES_ADOPTED:
                break
            aside = target.with_name(f".{step}.{uuid.uuid4().hex[:8]}")
            with contextlib.suppress(
                OSError
            ):  # deleted meanwhile, by an attempt still at work: take the next
                if self.store.files.local:
                    _link_folder(self.store.files.local / path, aside)
                else:
                    self.store.files.download_folder(path, aside)
                aside.rename(target)
                steps.append(int(step))
            shutil.rmtree(aside, ignore_errors=True)
            if steps == [int(step)]:
                self._adopt_events(folder.rpartition("/")[0], int(step))
        return max(steps, default=None)

    def _adopt_events(self, attempt_path: str, step: int) -> None:
        path = f"{attempt_path}/events.jsonl"
        journal = self.store.files.read(path) or b""
        kept = reports_up_to(journal, step, self.store.files.describe(path))
        (self.path / "events.jsonl").write_bytes(kept)

    def fetch(self, path: str) -> Path:
        """A local copy of a file or folder of the store, kept for what follows on this worker."""
        local = self.store.files.local
        if local:
            return local / path
        target = self._cache / path.replace("/", "~")
        if not target.exists():
            aside = target.with_name(f".{uuid.uuid4().hex[:8]}")
            data = self.store.files.read(path) if self.store.files.exists(path) else None
            if data is not None:
                aside.parent.mkdir(parents=True, exist_ok=True)
                aside.write_bytes(data)
            else:
                self.store.files.download_folder(path, aside)
            if not aside.exists():
                raise StorageError(f"{self.store.files.describe(path)} is gone")
            aside.rename(target)
        for old in sorted(self._cache.iterdir(), key=lambda p: p.stat().st_mtime)[:-_STATES_KEPT]:
            if old != target:
                _remove(old)
        return target

    @contextlib.contextmanager
    def mirrored(self) -> Iterator[None]:
        """Copy the folder to a remote store every few seconds and at the end."""
        if not self.is_remote:
            yield
            return
        stop = threading.Event()

        def copy_now_and_then() -> None:
            while not stop.wait(_COPY_SECONDS):
                with contextlib.suppress(StorageError, FileNotFoundError):  # the end will tell
                    self._copy()

        thread = threading.Thread(target=copy_now_and_then, name="mirror", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self._copy()
            self._keep_final_state()
            shutil.rmtree(self.path, ignore_errors=True)

    def _copy(self) -> None:
        """Bring the store's copy up to date: outcome.json last, it vouches for the others."""
        there: set[str] = set()
        files = [path for path in self.path.rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda p: (p.name == "outcome.json", p.name == "state.json", str(p))):
            name = path.relative_to(self.path).as_posix()
            if any(part.startswith(".") for part in name.split("/")):  # not whole yet
                continue
            there.add(name)
            stat = path.stat()
            if self._copied.get(name) != (stat.st_size, stat.st_mtime_ns):
                self.store.files.upload(path, f"{self.attempt_path}/{name}")
                self._copied[name] = (stat.st_size, stat.st_mtime_ns)
        for gone in self._copied.keys() - there:
            self.store.files.delete(f"{self.attempt_path}/{gone}")
            del self._copied[gone]

    def _keep_final_state(self) -> None:
        """The next segment on this worker most likely starts from the state just written."""
        final = self.path / "checkpoint"
        if final.is_dir():
            self._cache.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):
                final.rename(self._cache / f"{self.attempt_path}/checkpoint".replace("/", "~"))


@contextlib.contextmanager
def captured_output(log: Path) -> Iterator[None]:
    """Everything this process prints, C libraries included, goes to the end of `log` meanwhile."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with log.open("a", encoding="utf-8", buffering=1) as stream:
        try:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
            with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
                yield
        finally:
            for descriptor, number in zip(saved, (1, 2), strict=True):
                os.dup2(descriptor, number)
                os.close(descriptor)


def _link_folder(source: Path, target: Path) -> None:
    """Copy a folder by hard links; its files are never changed in place."""
    target.mkdir(parents=True)
    for file in source.iterdir():
        try:
            os.link(file, target / file.name)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EEXIST):
                raise
            shutil.copyfile(file, target / file.name)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
