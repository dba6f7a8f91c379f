"""One driver a sweep: a record with an expiry, renewed while the driver lives.

A lease is taken where there is none, where it has expired, or where its holder was a process of this
machine that is no longer there (so that a killed driver's sweep continues at once). It relies on clocks that
agree to well within `ttl`. A driver that slept through its expiry finds another's name in the record and
stops; what it might still write harms nothing, for a DONE record is never replaced.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import psutil

from gepa_core.errors import UserError
from sweeps.store.files import Files, StorageError
from sweeps.store.records import MAX_RECORD_BYTES, LeaseRecord, RecordError, read

_OBJECT_STORE_SETTLE_SECONDS = 1.0  # there is no exclusive put there
_TAKEOVER_SECONDS = 1.0
"""Between writing over a record and checking it: others may have read the old one at the same moment."""


class LeaseHeldError(UserError):
    """Another driver works on this sweep."""


class LeaseLostError(UserError):
    """Another driver took this sweep over while this one was cut off."""


class Lease:
    """Held from `acquire` to `release`; a background thread renews it."""

    def __init__(self, files: Files, path: str, ttl: float = 60.0, settle: float | None = None) -> None:
        """`settle`: seconds between writing and checking the record; None = as the store's puts need it."""
        self.files, self.path, self.ttl = files, path, ttl
        self.settle = (0.0 if files.local else _OBJECT_STORE_SETTLE_SECONDS) if settle is None else settle
        self.driver = uuid.uuid4().hex[:12]
        self._renewed = float("-inf")
        self._lost: str | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Raises LeaseHeldError while another driver holds it, RecordError where its record is damaged."""
        settle = self.settle
        if not self.files.put_new(self.path, self._record()):
            held = read_lease(self.files, self.path)
            if held and not is_stale(held):
                raise LeaseHeldError(_held_message(self.files.describe(self.path), held))
            self.files.put(self.path, self._record())  # in place of one expired or orphaned
            settle = max(settle, _TAKEOVER_SECONDS)
        time.sleep(settle)
        now = read_lease(self.files, self.path)
        if now is None or now["driver"] != self.driver:
            raise LeaseHeldError(_held_message(self.files.describe(self.path), now or {}))
        self._renewed = time.monotonic()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises LeaseLostError once the sweep is another driver's, or may have become so."""
        if self._lost is None and time.monotonic() - self._renewed > self.ttl:
            self._verify()  # the renewing thread was held up: look before giving up
        if self._lost is not None:
            raise LeaseLostError(self._lost)

    def release(self) -> None:
        """Give the sweep up, if it is still ours."""
        self._stop.set()
        if self._thread:
            self._thread.join(timeout=10)
        with contextlib.suppress(StorageError, RecordError):
            now = read_lease(self.files, self.path)
            if now and now["driver"] == self.driver:
                self.files.delete(self.path)

    def _renew(self) -> None:
        while not self._stop.wait(self.ttl / 4):
            # Away, or damaged: the next turn, or check(), will tell.
            with contextlib.suppress(StorageError, RecordError):
                self._verify()
            if self._lost is not None:
                return

    def _verify(self) -> None:
        now = read_lease(self.files, self.path)
        if now is not None and now["driver"] != self.driver:
            who = f"{now.get('host')} (process {now.get('pid')})"
            self._lost = f"another driver on {who} took over {self.files.describe(self.path)}; this one stops"
            return
        if now is None and self._stop.is_set():
            return
        self.files.put(self.path, self._record())
        self._renewed = time.monotonic()

    def _record(self) -> bytes:
        record = {"driver": self.driver, "expires": time.time() + self.ttl, **_this_process()}
        return json.dumps(record, indent=1).encode()


def read_lease(files: Files, path: str) -> dict[str, Any] | None:
    """The record; None where there is none. Raises RecordError where it cannot be told whose it is."""
    data = files.read(path, MAX_RECORD_BYTES)
    if data is None:
        return None
    remedy = "if no driver works on this sweep any more, delete it"
    return read(LeaseRecord, data, files.describe(path), remedy).model_dump()


def is_stale(record: dict[str, Any]) -> bool:
    """Expired, or its process was on this machine and is gone."""
    if time.time() > float(record["expires"]):
        return True
    here = _this_process()
    if any(record.get(key) != here[key] for key in ("host", "machine")):
        return False
    return _process_start(int(record["pid"])) != record.get("process_start")


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": pid,
        "process_start": _process_start(pid),
    }


def _machine() -> str:
    """One boot of one machine, and one space of process numbers on it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # no /proc (macOS), and one space of process numbers
        return f"{socket.gethostname()} {psutil.boot_time():.0f}"


def _process_start(pid: int) -> str | None:
    """Start time of a process in clock ticks, which tells it from a later one of the same number."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None if Path("/proc").is_dir() else _start_without_proc(pid)
    return None if fields[0] == "Z" else fields[19]


def _start_without_proc(pid: int) -> str | None:
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    except psutil.Error:
        return None


def _held_message(where: str, held: dict[str, Any]) -> str:
    left = max(0.0, float(held.get("expires", time.time())) - time.time())
    return (
        f"another driver is working on this sweep: process {held.get('pid')} on {held.get('host')} "
        f"holds {where}; wait for it, stop it with Ctrl-C, or, if it is gone, try again in {left:.0f} s "
        "when its lease runs out"
    )
