"""Carries a plan out: the sweep's lease, Ray where there is anything to do, the driver, the records."""

import contextlib
import fnmatch
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gepa_core.errors import ConfigError, UserError
from sweeps.drive.driver import Driver, Ending, Interrupts, Options
from sweeps.drive.fresh import forget
from sweeps.drive.notify import Notifier, NotifyingView
from sweeps.drive.protocols import Cluster, ClusterError
from sweeps.drive.record import SweepRecorder
from sweeps.drive.scripts import ReadLog, archive_path, check_passed_on, publish_files
from sweeps.drive.session import remove_dead
from sweeps.drive.views import make_view
from sweeps.plan.tree import Plan
from sweeps.spec.sweep import Sweep
from sweeps.store.files import StorageError
from sweeps.store.lock import Lease, LeaseLostError
from sweeps.store.records import RecordError
from sweeps.store.store import Store


@dataclass(frozen=True)
class RunOptions:
    """What the command line may ask for."""

    address: str | None = None
    """Ray cluster to join; None = a local Ray of our own."""
    only: str | None = None
    """Glob of run ids."""
    retry_failed: bool = False
    fail_fast: bool = False
    fresh: bool = False
    max_gpu_hours: float | None = None
    max_parallel: int | None = None
    workers: int = 1
    """How many will work at a time, as far as is known: for the time left."""
    notify: Notifier | None = None
    """Called when a run fails."""
    plain: bool = False
    """Lines rather than a live table, also on a terminal."""
    nodes: frozenset[str] | None = None
    """Only these; None = all that the runs need."""
    read_log: ReadLog | None = None
    """Finds the figures in a script's log."""


class StoppedError(UserError):
    """A sweep at work had to stop: the store went away, or another driver took over. Resumable."""

    exit_code = 3


@dataclass(frozen=True)
class SweepResult:
    """How a launch ended. `exit_code`: 0, 3, 4 or 130, as launch.py documents them."""

    exit_code: int
    ending: str
    sweep: str
    folder: str
    runs: dict[str, int]
    """Number of runs by status."""
    failures: dict[str, str]
    """Run -> why it failed or diverged."""
    seconds: float
    device_seconds: float
    """Of this launch, attempts that came to nothing included."""
    executed: int
    """Segments and stages that were done in this launch."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Final states that this launch deleted: their number, bytes, and the steps to make them again."""
    fault: str = ""
    """What was found damaged and set aside, where `ending` is "damaged": a new plan does without it."""
    identity_breaks: dict[str, list[str]] = field(default_factory=dict)
    """Segment -> in what its execution differs from that of the state it started from."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


ClusterFactory = Callable[[Sweep, str | None], AbstractContextManager[Cluster]]
"""(sweep, address) -> where its work is executed."""


def ray_cluster(sweep: Sweep, address: str | None) -> AbstractContextManager[Cluster]:
    from sweeps.drive.ray_cluster import RayCluster  # seconds, and only needed where there is something to do

    return RayCluster(sweep, address)


def run_sweep(
    plan: Plan,
    store_url: str,
    options: RunOptions,
    record: Mapping[str, Any] | None = None,
    cluster: ClusterFactory = ray_cluster,
) -> SweepResult:
    """Does what of `plan` is not done in the store. `record`: entries of sweep.json besides the usual ones.

    Raises UserError: another driver's lease, a cluster out of reach, `only` that matches nothing;
    StoppedError once at work.
    """
    begun = time.monotonic()
    store = Store(store_url)
    check_passed_on(plan.sweep)
    if options.fresh:
        if options.only is not None:
            raise ConfigError("--fresh forgets the whole sweep and does not go with --only; leave one out")
        assert not plan.done, "a plan for --fresh is made without the store's history"
    lease = Lease(store.files, store.sweep(plan.sweep.name).lease_path)
    selected = _selected(plan, options.only)
    lease.acquire()
    try:
        if options.fresh:
            forget(store, plan)
        view = make_view(plan, store, plain=options.plain, runs=selected, workers=options.workers)
        if options.notify is not None:
            view = NotifyingView(view, options.notify, plan.sweep.name)
        facts = {"commit": _git("rev-parse", "HEAD")}
        recorder = SweepRecorder(store, plan, lease, view, facts, options.read_log)
        try:
            ending, driver = _carry_out(plan, recorder, selected, options, record or {}, cluster)
        except (StorageError, LeaseLostError) as error:
            raise StoppedError(str(error)) from error
        finally:
            view.close()
        return _result(recorder, selected, ending, driver, time.monotonic() - begun)
    finally:
        lease.release()
        remove_dead()


def _carry_out(
    plan: Plan,
    recorder: SweepRecorder,
    selected: list[str],
    options: RunOptions,
    record: Mapping[str, Any],
    start_cluster: ClusterFactory,
) -> tuple[Ending, Driver | None]:
    try:
        recorder.folder.remove_temporaries()
        recorder.load(options.retry_failed)
        recorder.folder.write_json("sweep.json", {**sweep_record(plan, recorder.store), **record})
        recorder.folder.write_json("plan.json", plan.record())
        recorder.write_runs()
    except StorageError as error:
        raise UserError(f"{error}; nothing was started") from error
    wanted = {
        node for run_id in selected if run_id not in recorder.given_up for node in plan.nodes_of(run_id)
    }
    if options.nodes is None:
        left = _left(plan, wanted, set(recorder.done))
    else:
        left = set(options.nodes) - recorder.done.keys()
    if not left:
        return Ending.COMPLETE, None
    if plan.sweep.script:
        publish_files(recorder.store, plan.sweep)
    recorder.note("say", "", text="joining the cluster" if options.address else "starting a local Ray")
    with _counted_interrupts() as interrupts, start_cluster(plan.sweep, options.address) as cluster:
        interrupts.is_starting = False
        driver = Driver(
            plan,
            cluster,
            recorder,
            time.monotonic,
            left,
            set(recorder.done),
            Options(
                max_parallel=options.max_parallel,
                max_device_hours=options.max_gpu_hours,
                fail_fast=options.fail_fast,
                devices=plan.sweep.devices,
                eager=options.address is None,
            ),
            interrupts=interrupts,
        )
        try:
            ending = driver.run()
        except (ClusterError, RecordError) as error:
            if not driver.started:
                raise
            raise StoppedError(f"{error}; what was finished is kept, the same command continues") from error
        finally:
            with contextlib.suppress(*([StorageError] if driver.fault else [])):  # of a full disk
                recorder.write_runs()
    if ending is Ending.DISK_FULL:
        raise StoppedError(driver.fault)
    return ending, driver


def _left(plan: Plan, wanted: set[str], done: set[str]) -> set[str]:
    """What of `wanted` is not done and something not done depends on."""
    left: set[str] = set()
    needed = {node for node in wanted if not plan.nodes[node].trains}
    needed |= {run.last for run in plan.runs.values() if run.last in wanted}
    while needed:
        at = needed.pop()
        if at not in done and at not in left:
            left.add(at)
            needed.update(plan.nodes[at].needs)
    return left


def _selected(plan: Plan, only: str | None) -> list[str]:
    if only is None:
        return list(plan.runs)
    found = fnmatch.filter(plan.runs, only)
    if not found:
        names = ", ".join(list(plan.runs)[:8]) + (", ..." if len(plan.runs) > 8 else "")
        raise ConfigError(f"--only {only}: no run of {plan.sweep.name} matches; its runs are {names}")
    return found


def _result(
    recorder: SweepRecorder, selected: list[str], ending: Ending, driver: Driver | None, seconds: float
) -> SweepResult:
    statuses = {run_id: recorder.status(run_id) for run_id in recorder.plan.runs}
    counts = Counter(statuses.values())
    bad = any(statuses[run_id] != "done" for run_id in selected)
    codes = {Ending.INTERRUPTED: 130, Ending.BUDGET: 4}
    breaks = {id_: o.execution.get("breaks") or [] for id_, o in recorder.done.items()}
    return SweepResult(
        exit_code=codes.get(ending, 3 if bad else 0),
        ending=ending.value,
        sweep=recorder.plan.sweep.name,
        folder=recorder.store.files.describe(recorder.plan.sweep.name),
        runs={status: counts[status] for status in ("done", "diverged", "failed", "pending")},
        failures={run_id: error for run_id, (_, error) in recorder.given_up.items()},
        seconds=seconds,
        device_seconds=driver.device_seconds if driver else 0.0,
        executed=driver.executed if driver else 0,
        dropped=_price(recorder),
        fault=driver.fault if driver else "",
        identity_breaks={id_: lines for id_, lines in breaks.items() if lines},
    )


def _price(recorder: SweepRecorder) -> dict[str, int]:
    """Of the states that were deleted: what they held, and what remaking them takes."""
    sizes = (facts["bytes"] for o in recorder.dropped for name, facts in o.files.items() if "/" in name)
    steps = sum(recorder.plan.nodes[outcome.id].steps for outcome in recorder.dropped)
    return {"states": len(recorder.dropped), "bytes": sum(sizes), "steps": steps}


@dataclass
class _Signals(Interrupts):
    """Ctrl-C and SIGTERM from here on: once drains, twice stops at once."""

    is_starting: bool = True
    """Nothing runs yet: there is nothing to drain."""


@contextmanager
def _counted_interrupts() -> Iterator[_Signals]:
    signals = _Signals()

    def heard(number: int, frame: Any) -> None:
        signals.count += 1
        if signals.is_starting:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, heard) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def sweep_record(plan: Plan, store: Store) -> dict[str, Any]:
    """sweep.json: what was launched, with what, on what."""
    sweep = plan.sweep
    return {
        "name": sweep.name,
        "file": sweep.file,
        "document": dict(sweep.document or {}),
        "recipe": sweep.recipe,
        **({"script_files": archive_path(sweep)} if sweep.script else {}),
        "stages": list(sweep.stages),
        "share": sweep.share,
        "resources": sweep.resources.model_dump(mode="json"),
        "exec": sweep.exec.model_dump(mode="json"),
        "runs": {run_id: _reproduce(plan, store, run_id) for run_id in plan.runs},
        "argv": sys.argv,
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if (changed := _git("status", "--porcelain")) is None else bool(changed),
        "versions": {"python": platform.python_version(), **_versions()},
        "hardware": {
            "host": platform.node(),
            "machine": platform.machine(),
            "processor": _processor(),
        },
    }


def _reproduce(plan: Plan, store: Store, run_id: str) -> str:
    """The command that makes this run again, alone."""
    where = store.files.describe("").rstrip("/")
    sweep = plan.sweep
    parts = ["python", "launch.py", sweep.file or f"{sweep.name}.yaml", *sweep.overrides]
    return shlex.join([*parts, "share=false", "--only", run_id, "--output", f"{where}-again"])


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in ("gepa-sweeps", "torch", "ray", "numpy", "pyarrow", "sentencepiece", "zstandard"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _processor() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def _git(*arguments: str) -> str | None:
    """Output of git on this code; None where it is not a checkout."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
