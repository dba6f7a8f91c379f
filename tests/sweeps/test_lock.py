"""One driver at a time: leases on a disk and on an object store (moto's server)."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from sweeps.store.files import Files
from sweeps.store.lock import Lease, LeaseHeldError, LeaseLostError, read_lease
from sweeps.store.records import RecordError


def test_a_second_driver_is_told_who_is_at_work(url: str) -> None:
    files = Files(url)
    first = Lease(files, "sweep/lease.json")
    first.acquire()
    try:
        with pytest.raises(LeaseHeldError, match=rf"process {os.getpid()} on .*lease\.json"):
            Lease(files, "sweep/lease.json").acquire()
        first.check()
    finally:
        first.release()
    assert read_lease(files, "sweep/lease.json") is None
    second = Lease(files, "sweep/lease.json")
    second.acquire()
    second.release()


def test_an_expired_lease_is_taken_over_and_its_holder_stops(url: str) -> None:
    files = Files(url)
    sleeper = Lease(files, "lease.json", ttl=1.0)
    sleeper.acquire()
    sleeper._stop.set()  # as if the machine slept: nothing is renewed
    record = json.loads(files.read("lease.json") or b"")
    files.put("lease.json", json.dumps({**record, "machine": "another", "expires": time.time() - 1}).encode())
    other = Lease(files, "lease.json")
    other.acquire()
    time.sleep(1.1)
    with pytest.raises(LeaseLostError, match="took over"):
        sleeper.check()
    sleeper.release()
    assert (read_lease(files, "lease.json") or {})["driver"] == other.driver
    other.release()


def test_the_lease_of_a_driver_killed_on_this_machine_is_free_at_once(tmp_path: Path) -> None:
    program = (
        "import os, sys; from sweeps.store.files import Files; from sweeps.store.lock import Lease\n"
        f"Lease(Files({str(tmp_path)!r}), 'lease.json').acquire(); os.kill(os.getpid(), 9)"
    )
    code = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", program], cwd=code).returncode == -9
    files = Files(tmp_path)
    assert read_lease(files, "lease.json")
    lease = Lease(files, "lease.json")
    lease.acquire()
    lease.release()


def test_a_lease_is_renewed(tmp_path: Path) -> None:
    files = Files(tmp_path)
    lease = Lease(files, "lease.json", ttl=0.4)
    lease.acquire()
    first = (read_lease(files, "lease.json") or {})["expires"]
    time.sleep(0.5)
    assert (read_lease(files, "lease.json") or {})["expires"] > first
    lease.check()
    lease.release()


def test_of_drivers_that_take_over_a_stale_lease_at_once_one_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All have read the old record before the first writes its own; the disk is slow for one of them."""
    files = Files(tmp_path)
    files.put("lease.json", Lease(files, "lease.json", ttl=-1.0)._record())
    drivers, seen = [Lease(files, "lease.json") for _ in range(3)], threading.Barrier(3)
    real, held = Files.put, []

    def put(self: Files, path: str, data: bytes) -> None:
        if drivers[0].driver.encode() in data:
            time.sleep(0.3)
        real(self, path, data)

    def meet(record: dict[str, Any]) -> bool:
        seen.wait()
        return True

    monkeypatch.setattr(Files, "put", put)
    monkeypatch.setattr("sweeps.store.lock.is_stale", meet)

    def acquire(driver: Lease) -> None:
        with contextlib.suppress(LeaseHeldError):
            driver.acquire()
            held.append(driver)

    threads = [threading.Thread(target=acquire, args=(driver,)) for driver in drivers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert held == drivers[:1]
    held[0].release()


@pytest.mark.parametrize(
    "garbage", [b"", b"{", b"3", b'{"driver": "x"}', b'{"driver": "x", "expires": null}']
)
def test_a_lease_that_is_damaged_is_nobodys_and_everybodys(tmp_path: Path, garbage: bytes) -> None:
    files = Files(tmp_path)
    files.put("lease.json", garbage)
    for use in (lambda: read_lease(files, "lease.json"), Lease(files, "lease.json").acquire):
        with pytest.raises(RecordError, match=r"lease\.json: damaged.*if no driver works.*delete it"):
            use()
    assert files.read("lease.json") == garbage
