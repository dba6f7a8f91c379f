"""The command hurt from outside: Ctrl-C, kills, a second driver, storage that goes away, a full disk."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeps.drive.launch import StoppedError
from sweeps.drive.session import folder_of
from sweeps.store.lock import read_lease
from sweeps.store.store import Store
from sweeps.work.job import Job
from tests.fault.local_cluster import wait_until
from tests.tiny_sweep import InThisProcess, launch_here, make_data, rows, sweep_text

ROOT = Path(__file__).parents[2]
PATIENCE = 300.0
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="module")
def text(data: Path) -> str:
    """Long enough to be interrupted; two runs on a trunk."""
    grid = {"steps": [300, 500], "warmdown_ratio": [0.5]}
    return sweep_text(data, grid, stages=["ema", "int6"], exec={"checkpoint_every": 20})


@pytest.fixture(scope="module")
def undisturbed(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed")
    assert launch_here(text, output).exit_code == 0
    return output


class Launch:
    """launch.py in a process group of its own, as a shell would start it."""

    def __init__(self, text: str, folder: Path, *arguments: str) -> None:
        folder.mkdir(exist_ok=True)
        file = folder / "tiny.yaml"
        file.write_text(text)
        self.output, self.log = folder / "out", folder / "log.txt"
        command = [sys.executable, "launch.py", str(file), "--output", str(self.output), "--no-report"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *arguments], cwd=ROOT, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> int:
        return self.process.wait(PATIENCE)

    def until_training(self) -> None:
        def trains() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return bool(list(self.output.glob("segments/*/attempts/*/checkpoints/[1-9]*")))

        wait_until(trains, PATIENCE, "a checkpoint")

    def ray_processes(self) -> list[int]:
        """Everything of the Ray that it started."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes()
                handles = [handle.readlink() for handle in (entry / "fd").iterdir()]
                session = self.session_folder()
                if str(session).encode() in words or any(h.is_relative_to(session) for h in handles):
                    found.append(int(entry.name))
        return [pid for pid in found if pid != self.process.pid]

    def session_folder(self) -> Path:
        return folder_of(self.process.pid)

    def assert_nothing_is_left(self) -> None:
        wait_until(lambda: not self.ray_processes(), 60, "the end of Ray's processes")
        assert not self.session_folder().exists()
        assert read_lease(Store(self.output).files, "tiny/lease.json") is None


def finish(text: str, folder: Path, undisturbed: Path) -> None:
    """The same command again, to the end and to the same bits; and once more, in seconds."""
    again = Launch(text, folder)
    assert again.wait() == 0, again.log.read_text()
    again.assert_nothing_is_left()
    assert rows(again.output) == rows(undisturbed)
    assert not list(again.output.rglob("checkpoints"))
    begun = time.monotonic()
    last = Launch(text, folder)
    assert last.wait() == 0 and time.monotonic() - begun < 15
    assert "nothing was left to do" in last.log.read_text()


def test_ctrl_c_saves_and_leaves_the_rest_for_the_same_command(
    text: str, undisturbed: Path, tmp_path: Path
) -> None:
    launch = Launch(text, tmp_path)
    launch.until_training()
    os.killpg(launch.process.pid, signal.SIGINT)  # a terminal sends it to the whole group
    assert launch.wait() == 130
    assert "saving what runs" in launch.log.read_text()
    launch.assert_nothing_is_left()
    assert list(launch.output.glob("segments/*/attempts/*/checkpoints/[1-9]*"))
    finish(text, tmp_path, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("ray_processes", [0, 1, 4])
def test_a_signal_while_ray_starts_ends_at_once(
    text: str, tmp_path: Path, number: signal.Signals, ray_processes: int
) -> None:
    launch = Launch(text, tmp_path)

    def starts() -> bool:
        assert launch.process.poll() is None, launch.log.read_text()
        is_said = "starting a local Ray" in launch.log.read_text()
        return is_said and len(launch.ray_processes()) >= ray_processes

    wait_until(starts, PATIENCE, f"{ray_processes} processes of Ray")
    os.killpg(launch.process.pid, number)
    begun = time.monotonic()
    assert launch.wait() == 130 and time.monotonic() - begun < 10
    told = launch.log.read_text().splitlines()
    assert "starting a local Ray" in launch.log.read_text() and told[-1] == "interrupted"
    launch.assert_nothing_is_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_ray_ends_at_once(text: str, tmp_path: Path, number: signal.Signals) -> None:
    launch = Launch(text, tmp_path)
    wait_until(lambda: "advice:" in launch.log.read_text(), 30, "the plan")
    launch.process.send_signal(number)
    assert launch.wait() == 130
    assert launch.log.read_text().splitlines()[-1] == "interrupted"
    launch.assert_nothing_is_left()


def test_sigterm_to_all_of_the_group_drains(text: str, undisturbed: Path, tmp_path: Path) -> None:
    """As `timeout` and `kill -- -PID` send it: Ray's own processes must outlive the draining."""
    launch = Launch(text, tmp_path)
    launch.until_training()
    os.killpg(launch.process.pid, signal.SIGTERM)
    assert launch.wait() == 130
    assert "saving what runs" in launch.log.read_text()
    launch.assert_nothing_is_left()
    finish(text, tmp_path, undisturbed)


def test_ctrl_c_twice_stops_at_once(text: str, undisturbed: Path, tmp_path: Path) -> None:
    launch = Launch(text, tmp_path)
    launch.until_training()
    launch.process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    launch.process.send_signal(signal.SIGINT)
    assert launch.wait() == 130
    launch.assert_nothing_is_left()
    finish(text, tmp_path, undisturbed)


def test_a_killed_driver_leaves_no_process_and_is_followed_at_once(
    text: str, undisturbed: Path, tmp_path: Path
) -> None:
    launch = Launch(text, tmp_path)
    launch.until_training()
    launch.process.kill()
    launch.wait()
    # Ray's agents look for its dead head for a minute or so, then end.
    wait_until(lambda: not launch.ray_processes(), 180, "the end of Ray's processes")
    finish(text, tmp_path, undisturbed)
    assert not launch.session_folder().exists()


def test_a_second_driver_is_refused(text: str, tmp_path: Path) -> None:
    first = Launch(text, tmp_path)
    first.until_training()
    second = Launch(text, tmp_path)
    assert second.wait() == 2
    assert f"another driver is working on this sweep: process {first.process.pid}" in second.log.read_text()
    first.process.send_signal(signal.SIGINT)
    assert first.wait() == 130


def test_storage_away_for_a_while_is_waited_for(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An S3 server that stops while a segment is at work, and comes back with what it had."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="away")
    text = sweep_text(data, {"steps": [8], "warmdown_ratio": [0.5]}, stages=["ema"])
    stopped: list[str] = []

    def interrupt(job: Job) -> None:
        nonlocal server
        if job.kind == "segment" and not stopped:
            stopped.append(job.id)
            server.stop()
            server = ThreadedMotoServer(ip_address=host, port=port)
            threading.Timer(4.0, server.start).start()

    try:
        assert launch_here(text, "s3://away/out", cluster=InThisProcess(interrupt)).exit_code == 0
        assert launch_here(text, tmp_path).exit_code == 0
        assert stopped and rows("s3://away/out") == rows(tmp_path)
    finally:
        server.stop()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(mount)], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"cannot mount a small disk: {made.stderr.strip()}")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_full_disk_is_told_and_the_sweep_goes_on_once_there_is_room(
    data: Path, small_disk: Path, tmp_path: Path
) -> None:
    text = sweep_text(data, {"steps": [8], "warmdown_ratio": [0.5]}, stages=["ema"])
    (small_disk / "ballast").write_bytes(b"x" * (2_900_000))
    with pytest.raises(StoppedError, match=r"disk full: cannot write .*; free some space"):
        launch_here(text, small_disk / "out")
    (small_disk / "ballast").unlink()
    assert launch_here(text, small_disk / "out").exit_code == 0
    assert launch_here(text, tmp_path / "roomy").exit_code == 0
    assert rows(small_disk / "out") == rows(tmp_path / "roomy")
    assert not list((small_disk / "out").rglob("*.tmp"))


def test_a_campaign_with_every_kind_of_kill() -> None:
    """One of each kind of kill at least. `python -m tests.fault.campaign --sweeps 30` is the whole one."""
    from tests.fault.campaign import KINDS, run

    report = run(len(KINDS), seed=1).to_dict()
    assert report["ok"], report
    assert report["kills"].keys() == set(KINDS)


def test_four_ranks_give_the_bits_of_runs_alone(data: Path, tmp_path: Path) -> None:
    grid = {"steps": [12], "warmdown_ratio": [0.5], "schedule": ["linear", "cosine", "1-sqrt"]}
    text = sweep_text(data, grid, stages=["ema"], exec={"ranks": 4}, resources={"cpus_per_run": 0.4})
    shared = Launch(text, tmp_path / "shared")
    assert shared.wait() == 0, shared.log.read_text()
    alone = Launch(text, tmp_path / "alone", "share=false")
    assert alone.wait() == 0, alone.log.read_text()
    assert rows(shared.output) == rows(alone.output) and len(rows(shared.output)) == 3
