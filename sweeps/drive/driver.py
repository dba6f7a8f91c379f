"""The scheduling loop: which node goes on which lease, and what follows from how it ended.

It knows neither Ray nor the store: a Cluster runs things, a Recorder keeps what came of them, a clock
tells the time. A lease is a set of workers that executes one node after another. The longest
remaining path goes first; a lease goes on with the run it has at hand unless a waiting path is long
enough to decide when the sweep ends.
"""

import heapq
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from enum import StrEnum

from sweeps.drive.protocols import Cluster, ClusterError, Event, LeaseGone, LeaseReady, Recorder
from sweeps.plan.tree import Plan
from sweeps.store.store import CommitError, Outcome
from sweeps.work.policy import Action, Failure, Limits, Observed, decide


class Ending(StrEnum):
    """Why the loop ended."""

    COMPLETE = "complete"  # nothing is left that could be done
    INTERRUPTED = "interrupted"
    BUDGET = "budget"
    FAIL_FAST = "fail_fast"
    DAMAGED = "damaged"  # something it had to start from: another plan goes on without it
    DISK_FULL = "disk_full"


@dataclass(frozen=True)
class Options:
    max_parallel: int | None = None
    """Leases at a time."""
    max_device_hours: float | None = None
    fail_fast: bool = False
    devices: float = 1.0
    """Devices of a lease: GPUs, or CPU workers where there are none."""
    eager: bool = False
    """Ask at once for as many leases as the sweep will have paths, for start-up to overlap
    with work, and keep them."""
    idle_seconds: float = 30.0
    """A lease with nothing to do is given back after this, unless `eager`."""
    tick_seconds: float = 0.5
    lease_failures: int = 5
    """Leases in a row that never came up before the sweep is stopped."""


@dataclass
class Interrupts:
    """How often the sweep was asked to stop, by a signal handler: once drains, twice stops at once."""

    count: int = 0


@dataclass
class _Lease:
    ready: bool = False
    node: str | None = None
    """What it executes."""
    last: str | None = None
    since: float = 0.0
    """When its present work, or idleness, began."""


@dataclass
class Driver:
    """Executes the nodes of `plan` in `wanted` that are not in `done`."""

    plan: Plan
    cluster: Cluster
    recorder: Recorder
    clock: Callable[[], float]
    wanted: Collection[str]
    done: set[str]
    options: Options = Options()
    limits: Limits = field(default_factory=Limits)
    device_seconds: float = 0.0
    executed: int = 0
    """Nodes finished here."""
    started: int = 0
    """Attempts begun here."""
    fault: str = ""
    """Of DAMAGED and DISK_FULL: what and where."""
    interrupts: Interrupts = field(default_factory=Interrupts)
    _leases: dict[str, _Lease] = field(default_factory=dict)
    _ready: list[tuple[float, str]] = field(default_factory=list)
    _later: list[tuple[float, str]] = field(default_factory=list)
    _history: dict[str, list[Failure]] = field(default_factory=dict)
    _micro_batch: dict[str, int] = field(default_factory=dict)
    _smallest: int | None = None
    _left_seconds: float = 0.0
    _paths: int = 0
    """Leaves of what is left: no more leases than these can ever be busy."""
    _stillborn: int = 0
    _ending: Ending | None = None
    _stopped: set[str] = field(default_factory=set)
    """Runs that a user ended."""

    def run(self) -> Ending:
        """Until nothing is left, or an interrupt, a budget or a failure ends it.

        Raises ClusterError where no lease comes up, and what the recorder raises where the store is away.
        """
        wanted = set(self.wanted)
        self._left_seconds = sum(self.plan.seconds[node] for node in wanted - self.done)
        for node in self.plan.nodes.values():
            if node.id in wanted and node.id not in self.done and self.plan.can_start(node.id, self.done):
                self._make_ready(node.id)
        self._wanted = wanted
        children = self.plan.children
        self._paths = sum(wanted.isdisjoint(children.get(node, ())) for node in wanted - self.done)
        try:
            while self._step():
                pass
        finally:
            for lease in list(self._leases):
                self._close(lease)
        if self.interrupts.count:
            return Ending.INTERRUPTED
        return self._ending or Ending.COMPLETE

    def _step(self) -> bool:
        self._check_limits()
        running = any(lease.node for lease in self._leases.values())
        if self.interrupts.count > 1 or (self._ending and not running):
            return False
        for run_id in self.recorder.asked_to_stop():
            self._stop_run(run_id)
        if not self._ending:
            self._wake()
            if not (running or self._ready or self._later):
                return False
            self._assign()
            self._resize()
        for event in self.cluster.poll(self.options.tick_seconds):
            self._handle(event)
        self.recorder.tick()
        return True

    def _check_limits(self) -> None:
        if self._ending:
            return
        if self.interrupts.count:
            self._drain(Ending.INTERRUPTED)
        elif self.options.max_device_hours is not None:
            now = self.clock()
            running = sum(now - lease.since for lease in self._leases.values() if lease.node)
            if self.device_seconds + running * self.options.devices >= self.options.max_device_hours * 3600:
                self._drain(Ending.BUDGET)

    def _drain(self, why: Ending) -> None:
        """Start nothing more, and end what is at work."""
        self._ending = why
        if self._leases:
            self.recorder.note("draining", "", why=why.value)
        for name, lease in list(self._leases.items()):
            self._end_work(name, lease)

    def _stop_run(self, run_id: str) -> None:
        """Do no more of what only this run, and others that were stopped, need."""
        self._stopped.add(run_id)
        runs_of = self.plan.runs_of
        over = {node for node in self.plan.nodes_of(run_id) if self._stopped.issuperset(runs_of[node])}
        over &= self._wanted - self.done
        self._wanted -= over
        self._left_seconds -= sum(self.plan.seconds[node] for node in over)
        children = self.plan.children
        self._paths = sum(
            self._wanted.isdisjoint(children.get(node, ())) for node in self._wanted - self.done
        )
        self._ready = [entry for entry in self._ready if entry[1] not in over]
        self._later = [entry for entry in self._later if entry[1] not in over]
        heapq.heapify(self._ready)
        heapq.heapify(self._later)
        for name, lease in list(self._leases.items()):
            if lease.node in over:
                self._end_work(name, lease)

    def _end_work(self, name: str, lease: _Lease) -> None:
        """Training writes a checkpoint and ends, a stage has nothing to keep."""
        if lease.node and self.plan.nodes[lease.node].trains:
            self.cluster.stop(name)
        else:
            self._account(lease)
            self._close(name)

    def _wake(self) -> None:
        now = self.clock()
        while self._later and self._later[0][0] <= now:
            self._make_ready(heapq.heappop(self._later)[1])

    def _make_ready(self, node: str) -> None:
        heapq.heappush(self._ready, (-self.plan.priority[node], node))

    def _assign(self) -> None:
        """Give every idle lease something to do, as far as there is."""
        idle = {name: lease for name, lease in self._leases.items() if lease.ready and lease.node is None}
        if not idle or not self._ready:
            return
        chosen: dict[str, str] = {}
        # A path this long decides when the sweep ends: nothing may go before it.
        bound = self._left_seconds / len(self._leases)
        if -self._ready[0][0] < bound:
            waiting = {node for _, node in self._ready}
            # With twice the time to spare, costs may be off by a factor of two: then runs are finished first.
            spare = -self._ready[0][0] < bound / 2
            for name, lease in idle.items():
                if node := self._early(waiting, lease.last, spare):
                    chosen[name] = node
                    waiting.remove(node)
            self._ready = [entry for entry in self._ready if entry[1] in waiting]
            heapq.heapify(self._ready)
        rest = [name for name in idle if name not in chosen]
        longest = [heapq.heappop(self._ready)[1] for _ in range(min(len(rest), len(self._ready)))]
        # Where it is free, a branch goes where its checkpoint was written.
        for name in [*rest]:
            if near := [node for node in longest if node in self._following(idle[name].last)]:
                chosen[name] = near[0]
                longest.remove(near[0])
                rest.remove(name)
        chosen.update(zip(rest, longest, strict=False))
        for name, node in chosen.items():
            self._start(name, node)

    def _early(self, waiting: set[str], last: str | None, spare: bool) -> str | None:
        """What a lease does next where the longest path can wait: what follows its last node or, with time to
        spare, the branch that is over soonest."""
        priority = self.plan.priority
        if nodes := waiting.intersection(self._following(last)):
            return max(nodes, key=lambda node: (priority[node], node))
        branches = [node for node in waiting if not self.plan.nodes[node].trunk] if spare else []
        return min(branches, key=lambda node: (priority[node], node), default=None)

    def _following(self, last: str | None) -> list[str]:
        """What uses the output of the node before; after a branch, whatever its runs lack."""
        if last is None:
            return []
        if self.plan.nodes[last].trunk:
            return self.plan.children.get(last, [])
        return [node for run_id in self.plan.runs_of[last] for node in self.plan.nodes_of(run_id)]

    def _start(self, name: str, node: str) -> None:
        lease = self._leases[name]
        lease.node, lease.since = node, self.clock()
        micro_batch = self._micro_batch.get(node)
        if micro_batch is None and self._smallest is not None and self.plan.nodes[node].trains:
            # A checkpoint is only good for the micro-batch it was made with.
            micro_batch = self._smallest if self.recorder.progress_step(node) is None else None
        job = self.recorder.job(node, micro_batch)
        self.started += 1
        self.recorder.note("started", node, lease=name, attempts=len(self._history.get(node, ())))
        self.cluster.start(name, job)

    def _resize(self) -> None:
        """Ask for leases while there is more to do than there are, and give back those long idle."""
        now = self.clock()
        free = [name for name, lease in self._leases.items() if lease.node is None]
        for name in () if self._ready or self.options.eager else free:
            lease = self._leases[name]
            if lease.ready and now - lease.since > self.options.idle_seconds:
                self._close(name)
        limit = self.options.max_parallel or len(self._wanted)
        busy = len(self._leases) - len(free)  # each on one of the paths
        wanted = max(len(self._ready), self._paths - busy if self.options.eager else 0)
        more = min(wanted - len(free), limit - len(self._leases), self.cluster.room())
        for _ in range(max(0, more)):
            self._leases[self.cluster.open()] = _Lease(since=now)

    def _close(self, name: str) -> None:
        self.cluster.close(name)
        del self._leases[name]

    def _handle(self, event: Event) -> None:
        lease = self._leases.get(event.lease)
        if lease is None:  # closed meanwhile
            return
        if isinstance(event, LeaseReady):
            lease.ready, lease.since, self._stillborn = True, self.clock(), 0
            return
        if isinstance(event, LeaseGone):
            self.recorder.note("lease_lost", "", lease=event.lease, error=event.error)
            self._stillborn += not lease.ready
            self._close(event.lease)
            if self._stillborn >= self.options.lease_failures:
                raise ClusterError(f"{self._stillborn} workers in a row did not start: {event.error}")
            return
        assert lease.node is not None
        node, outcome = lease.node, event.outcome
        self._account(lease)
        lease.node, lease.last, lease.since = None, node, self.clock()
        if outcome is not None and outcome.status == "finished":
            self._finished(node, outcome)
            return
        # A machine about to go, memory that may stay taken, a rank that still waits for the one that failed.
        self._close(event.lease)
        self._failed(node, outcome, event.error)

    def _account(self, lease: _Lease) -> None:
        if lease.node:
            self.device_seconds += (self.clock() - lease.since) * self.options.devices

    def _finished(self, node: str, outcome: Outcome) -> None:
        try:
            self.recorder.commit(outcome)
        except CommitError as error:
            self._failed(node, replace(outcome, status=Observed.CRASHED, error=str(error)), "")
            return
        self.done.add(node)
        self.executed += 1
        self._paths -= self._wanted.isdisjoint(self.plan.children.get(node, ()))
        self._left_seconds -= self.plan.seconds[node]
        for child in self.plan.children.get(node, []):
            waits = child in self._wanted and child not in self.done
            if waits and self.plan.can_start(child, self.done):
                self._make_ready(child)

    def _failed(self, node: str, outcome: Outcome | None, error: str) -> None:
        if node not in self._wanted:  # its runs were stopped
            self.recorder.note(Action.LEAVE.value, node)
            return
        observed = Observed(outcome.status) if outcome else Observed.LOST
        error = (outcome.error if outcome else None) or error
        micro_batch = outcome.execution.get("micro_batch_seqs") if outcome else None
        history = self._history.setdefault(node, [])
        history.append(Failure(observed, self.recorder.progress_step(node), micro_batch))
        decision = decide(history, self.limits)
        if observed is Observed.DAMAGED and (fault := self.recorder.set_aside(node, error)):
            self._stop_for(Ending.DAMAGED, fault)
            return
        self.recorder.note(decision.action.value, node, observed=observed.value, error=error)
        match decision.action:
            case Action.RETRY:
                heapq.heappush(self._later, (self.clock() + decision.pause_seconds, node))
            case Action.RESTART_SMALLER:
                assert decision.micro_batch_seqs is not None
                self._micro_batch[node] = decision.micro_batch_seqs
                if self.plan.nodes[node].trains:  # what did not fit here will not fit elsewhere either
                    known = self._smallest or decision.micro_batch_seqs
                    self._smallest = min(known, decision.micro_batch_seqs)
                self._make_ready(node)
            case Action.DIVERGE | Action.FAIL:
                self.recorder.give_up(
                    node,
                    "diverged" if decision.action is Action.DIVERGE else "failed",
                    error or observed.value,
                )
                if self.options.fail_fast and not self._ending:
                    self._drain(Ending.FAIL_FAST)
            case Action.STOP:
                self._stop_for(Ending.DISK_FULL, error or observed.value)
            case Action.LEAVE:
                pass

    def _stop_for(self, why: Ending, fault: str) -> None:
        if not self._ending:
            self.fault = fault
            self._drain(why)
