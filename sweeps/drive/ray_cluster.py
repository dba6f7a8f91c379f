"""Leases on a Ray cluster. The only file that imports ray.

A lease is one placement group with a bundle a rank, and an actor in each; the actors of a lease are one
torch.distributed group (nccl on GPUs, gloo on CPUs; a plain process where there is one rank) and execute one
job after another, so that imports and group are paid for once. A script has an actor a node, and its ranks
form their group themselves, at a place that is new for every job. Ray restarts and retries nothing.
"""

import contextlib
import functools
import logging
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Before ray is imported: it reads these once.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",  # Ray's default of 15 starves workers wherever anything else runs
    # Of the log of a raylet that died, which would go to stdout: the driver tells in a line what was lost.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "(?s).",
    # Else its handler answers a SIGTERM first, with a stack trace and an abort 3 s later.
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",
}
for _name, _value in _QUIET.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402
import ray._raylet as raylet  # noqa: E402
from ray._private import ray_constants  # noqa: E402
from ray._private import worker as ray_worker  # noqa: E402
from ray.exceptions import ActorDiedError, RayError, RayTaskError  # noqa: E402
from ray.util.placement_group import (  # noqa: E402
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy  # noqa: E402

from sweeps.drive.protocols import ClusterError, Ended, Event, LeaseGone, LeaseReady  # noqa: E402
from sweeps.drive.service_thread import ServiceThread  # noqa: E402
from sweeps.drive.session import LOOPBACK, change_environment, new_folder, private_environment  # noqa: E402
from sweeps.plan.estimate import Machine, places, refusal  # noqa: E402
from sweeps.spec.sweep import Sweep  # noqa: E402
from sweeps.store.store import Outcome  # noqa: E402
from sweeps.work.job import Job  # noqa: E402
from sweeps.work.policy import Observed  # noqa: E402
from sweeps.work.worker import Worker  # noqa: E402

_OBJECT_STORE_BYTES = 100 << 20  # outcomes are all that passes through it
_PROBE_SECONDS = 10.0
_START_SECONDS = 300.0  # for workers to import and join; they take 5 to 20
_NOTICED_SECONDS = 10.0  # for a call to Ray to come back once a server is gone
_GRACE_SECONDS = 10.0  # for the other ranks to tell what happened, once one has failed
# What most explains a failed group comes first: the other ranks only see a connection break.
_TELLING = (
    Observed.DIVERGED,
    Observed.OUT_OF_MEMORY,
    Observed.PREEMPTED,
    Observed.BAD_INPUT,
    Observed.DAMAGED,
    Observed.DISK_FULL,
    Observed.STORAGE,
    Observed.STOPPED,
    Observed.LOST,
    Observed.HUNG,
    Observed.CRASHED,
)


class RankActor(Worker):
    """A worker as a Ray actor, with a second thread for `stop`."""

    def __init__(self, rank: int, world: int, device: str, torch: bool = True) -> None:
        """Hides the node's GPUs from a worker that has leased none, before torch looks for them."""
        if device == "cpu":
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        super().__init__(rank, world, torch)

    def hello(self) -> tuple[int, str, int]:
        """(rank, address of this node, a port free on it), once the worker is ready for jobs."""
        return self.rank, *self.meeting()

    def meeting(self) -> tuple[str, int]:
        """(address of this node, a port free on it): where a job's processes may meet."""
        return ray.util.get_node_ip_address(), self.prepare()


@dataclass
class _Lease:
    group: Any
    workers: list[Any]
    job: Job | None = None
    outcomes: list[Outcome | str] = field(default_factory=list)
    """Of the ranks that ended the present job: what they say, or why they cannot."""
    failed_at: float | None = None
    placed_at: float = 0.0
    """When it was last seen without a place, or asked for."""


class RayCluster:
    """A driver's Cluster. A context manager: leaving it removes every lease, and Ray if it was started."""

    def __init__(self, sweep: Sweep, address: str | None = None) -> None:
        """Raises ClusterError where Ray cannot be reached or started."""
        self.sweep, self.bundles = sweep, sweep.bundles()
        self._leases: dict[str, _Lease] = {}
        self._waiting: dict[Any, tuple[str, str]] = {}
        """Object reference -> lease and what it answers: hello, join or run."""
        self._opened = 0
        self.is_local = address is None
        self._before: dict[str, str | None] = {}
        """The environment, while that of a local Ray is in its place."""
        self._servers: dict[str, Any] = {}
        self._left = threading.Event()
        """A local Ray's processes without which it is none, by name."""
        if address is None:
            self._ray = self._start_local()
        else:
            code = Path(__file__).parents[2]
            self._ray = _connect(
                address,
                runtime_env={
                    "py_modules": [str(code / name) for name in ("gepa_core", "sweeps")],
                    "excludes": ["**/__pycache__"],
                    "env_vars": _passed_on(),
                },
            )
        self._actor: Any = ray.remote(RankActor)

    def __enter__(self) -> "RayCluster":
        return self

    def __exit__(self, *exception: object) -> None:
        self._left.set()
        if self._lost() is None:
            for lease in list(self._leases):
                self.close(lease)
            self._ray.close()
        else:
            self._ray.kill()
        if self.is_local:
            _set_environment(self._before)

    def _start_local(self) -> ServiceThread:
        self._before = _set_environment(private_environment(Path(__file__).parents[2]))
        try:
            folder = new_folder()
            thread = _ray(folder, include_dashboard=False, object_store_memory=_OBJECT_STORE_BYTES)
        except BaseException as error:
            _set_environment(self._before)
            if isinstance(error, Exception):  # ray raises all sorts here
                raise ClusterError(f"a local Ray did not start: {_one_line(error)}") from error
            raise
        node: Any = ray_worker._global_node
        for name, started in node.all_processes.items():
            if name in (ray_constants.PROCESS_TYPE_GCS_SERVER, ray_constants.PROCESS_TYPE_RAYLET):
                self._servers[name] = started[0].process
        threading.Thread(target=self._watch, args=(thread,), name="watch", daemon=True).start()
        return thread

    def _watch(self, service: ServiceThread) -> None:
        """Ends this process where a server of the local Ray is gone and a call to Ray hangs because of it.

        Most calls come back and `_check` tells; those that ask the GCS end the process after a minute, in
        Ray's own words.
        """
        while not self._left.wait(1.0):
            if (lost := self._lost_words()) and not self._left.wait(_NOTICED_SECONDS):
                print(f"{lost}; what was finished is kept, the same command continues", file=sys.stderr)
                service.end_now()

    def _lost_words(self) -> str | None:
        if name := self._lost():
            return (
                f"the local Ray is lost: its process {name} was killed or crashed "
                "(short of memory, the system does that)"
            )
        return None

    def _lost(self) -> str | None:
        """Which of a local Ray's servers is gone; no call to Ray returns then."""
        gone = (name for name, server in self._servers.items() if server.poll() is not None)
        return next(gone, None)

    def room(self) -> int:
        """Leases that fit beside those held; one more is asked for elsewhere, to let a cluster grow."""
        fits = self.capacity() - len(self._leases)
        starting = any(what != "run" for _, what in self._waiting.values())
        return max(fits, 0 if starting or self.is_local else 1)

    def capacity(self) -> int:
        """Leases that the nodes as they are can hold. Raises ClusterError where this machine holds none."""
        self._check()
        nodes = _nodes()
        if self.is_local and (why := refusal(self.sweep, nodes)):
            raise ClusterError(
                f"this machine cannot hold a run: {why}; lower resources or exec.threads, "
                "or give --address of a cluster"
            )
        return places(self.sweep, nodes)

    def _check(self) -> None:
        """Raises ClusterError where the local Ray is gone."""
        if lost := self._lost_words():
            raise ClusterError(lost)

    def open(self) -> str:
        self._opened += 1
        name = f"lease-{self._opened}"
        labels = self.sweep.resources.node_labels
        selector = [labels] * len(self.bundles) if labels else None
        strategy = "STRICT_SPREAD" if self.sweep.spread else "PACK"
        group = placement_group(self.bundles, strategy=strategy, bundle_label_selector=selector)
        workers: list[Any] = []
        for rank, bundle in enumerate(self.bundles):
            custom = {k: v for k, v in bundle.items() if k not in ("CPU", "GPU", "memory")}
            options: dict[str, Any] = {
                "max_restarts": 0,
                "max_task_retries": 0,
                "max_concurrency": 2,
                "num_cpus": bundle.get("CPU", 0.0),
                "num_gpus": bundle.get("GPU", 0.0),
                "resources": custom,
                "scheduling_strategy": PlacementGroupSchedulingStrategy(group, rank),
            }
            if "memory" in bundle:
                options["memory"] = bundle["memory"]
            workers.append(
                self._actor.options(**options).remote(
                    rank, len(self.bundles), self.sweep.exec.device, self.sweep.script is None
                )
            )
        self._leases[name] = _Lease(group, workers, placed_at=time.monotonic())
        self._expect(name, "hello", [worker.hello.remote() for worker in workers])
        return name

    def start(self, lease: str, job: Job) -> None:
        held = self._leases[lease]
        held.job, held.outcomes, held.failed_at = job, [], None
        if self.sweep.spread:
            self._expect(lease, "meeting", [held.workers[0].meeting.remote()])
        else:
            self._run(lease, held)

    def _run(self, lease: str, held: _Lease, meeting: tuple[str, int] | None = None) -> None:
        self._expect(lease, "run", [worker.run.remote(held.job, meeting) for worker in held.workers])

    def stop(self, lease: str) -> None:
        self._stop(self._leases[lease])

    def _stop(self, held: _Lease) -> list[Any]:
        if held.job is None:  # it has ended, which the driver is about to hear
            return []
        return [worker.stop.remote(held.job.attempt) for worker in held.workers]

    def close(self, lease: str) -> None:
        held = self._leases.pop(lease)
        if self._lost():
            return
        self._waiting = {ref: what for ref, what in self._waiting.items() if what[0] != lease}
        if held.job is None:  # at rest: it can tidy up
            with contextlib.suppress(RayError):
                ray.wait([worker.leave.remote() for worker in held.workers], timeout=1.0)
        for worker in held.workers:
            with contextlib.suppress(RayError):
                ray.kill(worker)
        with contextlib.suppress(RayError):
            remove_placement_group(held.group)

    def poll(self, timeout: float) -> list[Event]:
        self._check()
        if not self._waiting:
            time.sleep(timeout)
            return []
        ready, _ = ray.wait(list(self._waiting), timeout=timeout, fetch_local=False)
        if ready:  # and whatever else is there by now
            ready, _ = ray.wait(
                list(self._waiting), num_returns=len(self._waiting), timeout=0, fetch_local=False
            )
        events = [event for ref in ready for event in self._answered(ref)]
        events += self._overdue()
        for name, held in list(self._leases.items()):
            if held.failed_at is not None and time.monotonic() - held.failed_at > _GRACE_SECONDS:
                events += self._end(name)
        return events

    def _overdue(self) -> list[Event]:
        """Leases that have their place and whose workers still do not answer."""
        events: list[Event] = []
        starting = {lease for lease, what in self._waiting.values() if what in ("hello", "join")}
        now = time.monotonic()
        for name in starting:
            held = self._leases[name]
            if now - held.placed_at < _START_SECONDS:
                continue
            if placement_group_table(held.group)["state"] != "CREATED":
                held.placed_at = now  # a cluster may take its time to grow
                continue
            self._forget(name)
            events.append(LeaseGone(name, f"workers did not start within {_START_SECONDS:.0f} s"))
        return events

    def _expect(self, lease: str, what: str, refs: list[Any]) -> None:
        self._waiting.update(dict.fromkeys(refs, (lease, what)))

    def _answered(self, ref: Any) -> list[Event]:
        if ref not in self._waiting:  # its lease ended on an answer just before
            return []
        lease, what = self._waiting.pop(ref)
        held = self._leases[lease]
        try:
            answer: Any = ray.get(ref)
        except RayError as error:
            answer = _one_line(error)
        if what == "run" or (what == "meeting" and isinstance(answer, str)):
            return self._rank_ended(lease, held, answer)
        if what == "meeting":
            self._run(lease, held, answer)
            return []
        if isinstance(answer, str):
            self._forget(lease)
            return [LeaseGone(lease, answer)]
        if what == "hello" and answer is not None:
            held.outcomes.append(answer)
        if any(name == lease for name, _ in self._waiting.values()):
            return []
        if what == "hello" and len(held.workers) > 1 and self.sweep.script is None:
            address, port = _master(held.outcomes)
            self._expect(lease, "join", [worker.join.remote(address, port) for worker in held.workers])
            return []
        return [LeaseReady(lease)]

    def _forget(self, lease: str) -> None:
        self._waiting = {ref: what for ref, what in self._waiting.items() if what[0] != lease}

    def _rank_ended(self, lease: str, held: _Lease, answer: Outcome | str) -> list[Event]:
        held.outcomes.append(answer)
        if len(held.outcomes) == len(held.workers):
            return self._end(lease)
        if isinstance(answer, str) or answer.status not in ("finished", Observed.STOPPED):
            held.failed_at = held.failed_at or time.monotonic()
        elif self.sweep.spread and answer.files:  # a script's first node speaks for all
            with contextlib.suppress(RayError):
                ray.get(self._stop(held), timeout=_GRACE_SECONDS)
        return []

    def _end(self, lease: str) -> list[Event]:
        """What the ranks of a lease say, taken together."""
        held = self._leases[lease]
        self._forget(lease)
        told = [outcome for outcome in held.outcomes if isinstance(outcome, Outcome)]
        lost = [error for error in held.outcomes if isinstance(error, str)]
        job, held.job, held.failed_at = held.job, None, None
        assert job is not None
        writer = next((outcome for outcome in told if outcome.files), None)
        if self.sweep.spread and writer:
            return [Ended(lease, writer)]
        for status in _TELLING:
            if status is Observed.CRASHED and lost:
                break  # the others crashed because one was lost
            if found := [outcome for outcome in told if outcome.status == status]:
                return [Ended(lease, found[0])]
        if lost or len(told) < len(held.workers):
            return [Ended(lease, None, "; ".join(lost) or "a rank did not answer")]
        return [Ended(lease, writer)]


def _ray(folder: Path | None = None, **options: Any) -> ServiceThread:
    """Ray, started or joined. `folder`: of a local Ray. Raises what ray.init raises."""
    if folder:
        options["_temp_dir"] = str(folder / "r")
    start = functools.partial(ray.init, log_to_driver=False, logging_level=logging.ERROR, **options)
    return ServiceThread.started(start, ray.shutdown, folder)


def cluster_nodes(address: str) -> list[Machine]:
    """The nodes of a running cluster. Raises ClusterError where none answers."""
    thread = _connect(address)
    try:
        return _nodes()
    finally:
        thread.close()


def _connect(address: str, **options: Any) -> ServiceThread:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if host and port.isdigit():  # Ray itself would try for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_SECONDS).close()
        return _ray(address=address, **options)
    except Exception as error:  # ray raises all sorts here
        raise ClusterError(
            f"no Ray cluster answers at {address}: {_one_line(error)}; see `ray status` there, "
            "or leave --address out to use this machine"
        ) from error


def _nodes() -> list[Machine]:
    return [Machine(n["Resources"], n.get("Labels") or {}) for n in ray.nodes() if n["Alive"]]


def _master(answers: list[Any]) -> tuple[str, int]:
    """Where the group's ranks meet: rank 0's node, by the loopback if all are there."""
    (_, address, port), *others = sorted(answers)
    return ("127.0.0.1" if all(other == address for _, other, _ in others) else address), port


def _set_environment(changes: dict[str, str | None]) -> dict[str, str | None]:
    """Changes the environment, what Ray has read of it included; returns what it was."""
    before = change_environment(changes)
    switch, loopback = next(iter(LOOPBACK.items()))
    ray_constants.ENABLE_RAY_CLUSTER = os.environ.get(switch) != loopback
    known: Any = raylet
    if not hasattr(known, "AuthenticationTokenLoader"):
        raise ClusterError(f"Ray {ray.__version__} knows no tokens; install the one of constraints.txt")
    known.Config.initialize("")
    known.AuthenticationTokenLoader.instance().reset_cache()
    return before


def _passed_on() -> dict[str, str]:
    """Where an S3 store is: workers need to know; credentials are the nodes' own."""
    names = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")
    return {name: os.environ[name] for name in names if name in os.environ}


def _one_line(error: BaseException) -> str:
    """What an error of Ray says, in words for those who do not know Ray."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    facts = dict(line.partition(": ")[::2] for line in lines)
    text = " ".join(lines)
    process = f"process {facts.get('pid')} on {facts.get('ip')}"
    if "its node has died" in text:
        return f"the node of {process} is gone ({lines[-1]})"[:300]
    if "NODE_OUT_OF_MEMORY" in text:
        return f"{process} was killed by Ray: its node is short of memory"
    if "its worker process has died" in text:
        return f"{process} was killed or crashed; short of memory, the system does that"
    if isinstance(error, (RayTaskError, ActorDiedError)) and lines:
        return lines[-1][:500]  # of a traceback
    return " ".join(lines[:3])[:500] or type(error).__name__
