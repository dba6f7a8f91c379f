"""Kills random processes of a real cluster at random moments, sweep after sweep, and compares what comes out.

    python -m tests.fault.campaign --sweeps 30 --seed 0

Each sweep is launched, hurt some times, launched again where its driver was killed, and in the end compared
with an undisturbed one: tables, curves, blocks and artifacts must be equal to the last bit (times aside), no
step may be lost but those since the last checkpoint, and nothing may be left behind. Prints JSON.
"""

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from sweeps.store.gc import all_leases, collect, find_waste
from sweeps.store.journal import events
from sweeps.store.records import RecordError
from sweeps.store.store import Store
from tests.fault.local_cluster import LocalCluster, kill, ray_nodes, wait_until
from tests.tiny_sweep import make_data, rows, sweep_text

ROOT = Path(__file__).parents[2]
CHECKPOINT_EVERY = 4
KINDS = ("rank", "sigterm", "node", "driver", "zombie", "suspend", "altered", "truncated")
"""`suspend`: the driver is stopped for seconds. `altered`, `truncated`: so is a stored state, and the driver
is killed with it, for a driver reads a state only once."""
PATIENCE = 600.0  # seconds for one sweep with all its kills, on a busy machine
STAGES = ["ema", "int6"]


@dataclass
class Report:
    sweeps: int = 0
    launches: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    steps: int = 0
    """Of training, of all sweeps, were nothing repeated."""
    steps_lost: int = 0
    """Trained again after kills."""
    most_steps_lost_by_an_attempt: int = 0
    checkpoint_every: int = CHECKPOINT_EVERY
    differences: list[str] = field(default_factory=list)
    left_behind: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        ok = not self.differences and not self.left_behind
        ok = ok and self.most_steps_lost_by_an_attempt <= self.checkpoint_every
        return {**vars(self), "kills": dict(self.kills), "total_kills": self.kills.total(), "ok": ok}


class Watcher(threading.Thread):
    """Notes how far every attempt got, before the journals of those that lost are deleted."""

    def __init__(self, output: Path) -> None:
        super().__init__(daemon=True)
        self.output = output
        self.reached: dict[Path, tuple[int, int]] = {}
        """Attempt -> the step it began at, the last one it reported."""
        self.process: dict[Path, int] = {}
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.02):
            self.look()

    def look(self) -> None:
        for journal in self.output.glob("segments/*/attempts/*/events.jsonl"):
            try:
                told = events(journal.read_bytes())
            except (OSError, RecordError):  # read while it is linked or copied
                continue
            steps = [event["step"] for event in told if event["event"] == "report"]
            for event in told:
                if event["event"] == "started":
                    self.reached[journal.parent] = event["step"], max([*steps, event["step"]])
                    self.process[journal.parent] = event["pid"]

    @property
    def trained(self) -> int:
        return sum(last - first for first, last in self.reached.values())

    def lost(self) -> dict[Path, int]:
        """Steps of each attempt that were trained again by a later one."""
        segments: dict[Path, list[Path]] = {}
        for attempt in self.reached:
            segments.setdefault(attempt.parents[1], []).append(attempt)
        lost: dict[Path, int] = {}
        for attempts in segments.values():
            spans = sorted((self.reached[attempt], attempt) for attempt in attempts)
            for ((_, last), attempt), ((first, _), _) in itertools.pairwise(spans):
                lost[attempt] = max(0, last - first)
        return lost


class Campaign:
    def __init__(self, cluster: LocalCluster, folder: Path, seed: int, kinds: Sequence[str]) -> None:
        self.cluster, self.folder, self.kinds = cluster, folder, kinds
        self.random = random.Random(seed)
        self.report = Report()
        self.data = make_data(folder / "data")
        self.references: dict[int, Path] = {}
        self.frozen: list[int] = []
        self.altered: set[int] = set()
        """Sweeps of which a stored state was damaged: they go on by other segments."""
        self.zombies: set[int] = set()

    def sweep_file(self, ranks: int) -> Path:
        grid = {"steps": [24, 40], "warmdown_ratio": [0.5]}
        execution = {"ranks": ranks, "checkpoint_every": CHECKPOINT_EVERY}
        path = self.folder / f"ranks{ranks}.yaml"
        path.write_text(sweep_text(self.data, grid, stages=STAGES, exec=execution))
        return path

    def launch(self, file: Path, output: Path) -> subprocess.Popen[bytes]:
        self.report.launches += 1
        command = [sys.executable, "-m", "tests.tiny_sweep", str(file), str(output), self.cluster.address]
        log = (output.parent / f"{output.name}.log").open("ab")
        with log:
            return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)

    def reference(self, ranks: int) -> Path:
        """The sweep undisturbed."""
        if ranks not in self.references:
            output = self.folder / f"reference{ranks}"
            driver = self.launch(self.sweep_file(ranks), output)
            assert driver.wait(PATIENCE) == 0, (self.folder / f"{output.name}.log").read_text()
            self.references[ranks] = output
        return self.references[ranks]

    def one(self, number: int) -> None:
        ranks = 2 if number % 3 == 2 else 1
        reference, file = self.reference(ranks), self.sweep_file(ranks)
        output = self.folder / f"sweep{number}"
        watcher = Watcher(output)
        watcher.start()
        # Kinds in turn, so that a campaign of a few sweeps has them all; moments at random.
        planned = [self.kinds[number % len(self.kinds)]]
        planned += self.random.choices(self.kinds, k=self.random.randint(0, 2))
        self.random.shuffle(planned)
        steps = 12 + (20 - 12) + 12 + 20
        moments = sorted(self.random.randrange(1, steps) for _ in planned)
        driver, end = self.launch(file, output), time.monotonic() + PATIENCE
        while driver.poll() != 0:
            if time.monotonic() > end:
                self.give_up(number, driver, output)
                watcher.ended.set()
                return
            if driver.poll() is not None:
                driver = self.launch(file, output)
            if planned and watcher.trained >= moments[0] and self.hurt(planned[0], driver, number, output):
                del planned[0], moments[0]
            time.sleep(0.005)
        self.thaw()
        watcher.ended.set()
        watcher.join()
        watcher.look()
        self.account(watcher, steps)
        self.compare(number, output, reference)
        self.look_for_leftovers(number, output)

    def give_up(self, number: int, driver: subprocess.Popen[bytes], output: Path) -> None:
        """A sweep that hangs: its driver's stacks and the cluster's state say where."""
        from ray.util.placement_group import placement_group_table

        kill(driver.pid, signal.SIGUSR1)
        time.sleep(1.0)
        driver.kill()
        driver.wait()
        log = (self.folder / f"{output.name}.log").read_text()[-6000:]
        self.report.sweeps += 1
        self.report.differences.append(f"sweep {number} hung: {log}\n{placement_group_table()}")

    def hurt(self, kind: str, driver: subprocess.Popen[bytes], number: int, output: Path) -> bool:
        """Whether there was somebody to hurt."""
        ranks = self.cluster.workers()
        if kind in ("altered", "truncated"):
            states = sorted(output.glob("segments/*/attempts/*/checkpoint/state.safetensors"))
            if not states:
                return False
            driver.kill()
            driver.wait()
            self.altered.add(number)
            damage(self.random.choice(states), cut=kind == "truncated")
        elif kind == "suspend":
            if driver.poll() is not None or not kill(driver.pid, signal.SIGSTOP):
                return False
            seconds = self.random.uniform(0.5, 6.0)
            threading.Timer(seconds, lambda: kill(driver.pid, signal.SIGCONT)).start()
        elif kind == "driver":
            driver.kill()
            driver.wait()
        elif kind == "node":
            node = self.random.choice(self.cluster.nodes)
            self.cluster.kill_node(node)
            self.cluster.add_node()
        elif not ranks:
            return False
        elif kind == "rank":
            kill(self.random.choice(ranks))
        elif kind == "sigterm":
            kill(self.random.choice(ranks), signal.SIGTERM)
        else:
            self.freeze(self.random.choice(ranks))
        self.report.kills[kind] += 1
        return True

    def freeze(self, pid: int) -> None:
        """Stop a rank and end its node: it is given up for lost, and later wakes and goes on writing."""
        if kill(pid, signal.SIGSTOP):
            self.frozen.append(pid)
            self.zombies.add(pid)
        raylet = _parent(pid)
        for node in list(self.cluster.nodes):
            if raylet in [info.process.pid for infos in node.all_processes.values() for info in infos]:
                self.cluster.kill_node(node)
                self.cluster.add_node()
        threading.Timer(self.random.uniform(0.5, 6.0), self.thaw).start()

    def thaw(self) -> None:
        while self.frozen:
            kill(self.frozen.pop(), signal.SIGCONT)

    def account(self, watcher: Watcher, steps: int) -> None:
        lost = watcher.lost()
        self.report.sweeps += 1
        self.report.steps += steps
        self.report.steps_lost += sum(lost.values())
        # What a zombie goes on to train was never ours to lose.
        most = max((n for a, n in lost.items() if watcher.process[a] not in self.zombies), default=0)
        self.report.most_steps_lost_by_an_attempt = max(self.report.most_steps_lost_by_an_attempt, most)

    def compare(self, number: int, output: Path, reference: Path) -> None:
        if (mine := rows(output)) != (theirs := rows(reference)):
            differing = [
                f"{run_id}.{key}: {mine.get(run_id, {}).get(key)} and not {value}"
                for run_id, row in theirs.items()
                for key, value in row.items()
                if mine.get(run_id, {}).get(key) != value
            ]
            self.report.differences.append(f"sweep {number}: {differing}")
        compared = (("trajectory", ["elapsed_seconds"]), ("blocks", []))
        for folder, aside in compared[number in self.altered :]:
            for file in sorted((reference / "tiny" / folder).iterdir()):
                other = output / "tiny" / folder / file.name
                if not other.exists():
                    self.report.differences.append(f"sweep {number}: no {folder}/{file.name}")
                elif pq.read_table(other).drop(aside) != pq.read_table(file).drop(aside):
                    self.report.differences.append(f"sweep {number}: {folder}/{file.name}")
        for file in sorted((reference / "tiny" / "artifacts").iterdir()):
            if (output / "tiny" / "artifacts" / file.name).read_bytes() != file.read_bytes():
                self.report.differences.append(f"sweep {number}: artifacts/{file.name}")

    def look_for_leftovers(self, number: int, output: Path) -> None:
        """Files in the store, workers, placement groups."""
        from ray.util.placement_group import placement_group_table

        def groups() -> list[str]:
            return [name for name, group in placement_group_table().items() if group["state"] != "REMOVED"]

        for what, there in (("workers", self.cluster.workers), ("placement groups", groups)):
            try:
                wait_until(lambda there=there: not there(), 60, what)
            except TimeoutError:
                self.report.left_behind.append(f"sweep {number}: {what} {there()}")
        if number in self.altered:  # what was begun by a plan that another took the place of
            with all_leases(Store(output)):
                collect(Store(output), find_waste(Store(output)))
        patterns = ("*.tmp", "checkpoints", ".*.[0-9]*", "lease.json")
        found = [str(path.relative_to(output)) for pattern in patterns for path in output.rglob(pattern)]
        attempts = Counter(path.parents[1].name for path in output.glob("segments/*/attempts/*"))
        found += [f"{count} attempts of {segment}" for segment, count in attempts.items() if count > 1]
        scratch = Path(tempfile.gettempdir()) / f"gepa-sweeps-{os.getuid()}"
        # A folder whose process lives belongs to somebody else's sweep on this machine.
        found += [str(path) for path in scratch.glob("*") if not Path(f"/proc/{path.name}").exists()]
        if found:
            self.report.left_behind.append(f"sweep {number}: {found}")


def damage(state: Path, *, cut: bool) -> None:
    """A byte altered in the midst, or the second half gone; other names of the file keep it whole."""
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 1
    state.unlink()
    state.write_bytes(data[: len(data) // 2] if cut else data)


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def run(
    sweeps: int, seed: int, kinds: Sequence[str] = KINDS, say: Any = None, seconds: float = float("inf")
) -> Report:
    """Runs a campaign of `sweeps` sweeps, or as many as begin within `seconds`.

    The same seed gives the same plan of kills.
    """
    import ray

    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder, ray_nodes(4) as cluster:
        ray.init(address=cluster.address, log_to_driver=False, logging_level="critical")
        try:
            campaign = Campaign(cluster, Path(folder), seed, kinds)
            for number in range(sweeps):
                campaign.one(number)
                campaign.report.seconds = time.monotonic() - begun
                if say:
                    say(campaign.report)
                if campaign.report.seconds > seconds:
                    break
            return campaign.report
        finally:
            ray.shutdown()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sweeps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of kills (default: all)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no sweep after so many")
    args = parser.parse_args()

    def say(report: Report) -> None:
        print(
            f"{report.sweeps} sweeps, {report.kills.total()} kills, {report.seconds:.0f} s", file=sys.stderr
        )

    report = run(args.sweeps, args.seed, args.kinds, say, args.seconds).to_dict()
    print(json.dumps(report, indent=1))
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
