"""The scheduling loop under a fake clock: a simulated cluster, and a recorder in memory for the store."""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from gepa_core.config import ExecConfig, RunConfig
from sweeps.drive.driver import Driver, Ending, Options
from sweeps.drive.protocols import ClusterError, Ended, Event, LeaseGone, LeaseReady
from sweeps.kinds.table import USUAL_STAGES
from sweeps.plan.planner import make_plan
from sweeps.plan.tree import Plan
from sweeps.spec.sweep import Resources, Sweep
from sweeps.store.store import CommitError, Outcome
from sweeps.work.policy import Limits

# Measured with ray 2.60.0 on 2 cores: starting a lease (actor, imports), and a segment besides its work.
LEASE_SECONDS, JOB_SECONDS = 3.0, 0.3


def links(plan: Plan) -> list[tuple[str, str | None]]:
    """Every node and what it comes after, in the plan's order."""
    return [(node.id, node.after) for node in plan.nodes.values()]


@dataclass
class SimCluster:
    """`size` machines on a clock that only moves when the driver waits."""

    seconds: Callable[[str], float]
    size: int
    ending: Callable[[str, int], str] = lambda node, attempt: "finished"
    """(node, how often it was started) -> status of the outcome, or "lost"."""
    now: float = 0.0
    leases: set[str] = field(default_factory=set)
    running: dict[str, tuple[str, int]] = field(default_factory=dict)
    due: list[tuple[float, int, str, Event]] = field(default_factory=list)
    starts: dict[str, int] = field(default_factory=dict)
    log: list[tuple[float, str, str]] = field(default_factory=list)
    opened: int = 0
    stillborn: bool = False

    def room(self) -> int:
        return self.size - len(self.leases)

    def open(self) -> str:
        self.opened += 1
        name = f"lease-{self.opened}"
        self.leases.add(name)
        event = LeaseGone(name, "no such image") if self.stillborn else LeaseReady(name)
        self._later(LEASE_SECONDS, name, event)
        return name

    def start(self, lease: str, job: Any) -> None:
        node, micro_batch = job
        assert lease in self.leases and lease not in self.running
        self.starts[node] = attempt = self.starts.get(node, 0) + 1
        self.running[lease] = node, attempt
        self.log.append((self.now, lease, node))
        status = self.ending(node, attempt)
        outcome = None
        if status != "lost":
            kind = "segment"
            execution = {"micro_batch_seqs": micro_batch or 48}
            outcome = Outcome(node, str(attempt), kind, status, execution=execution)
        self._later(self.seconds(node) + JOB_SECONDS, lease, Ended(lease, outcome))

    def stop(self, lease: str) -> None:
        node, attempt = self.running[lease]
        self._later(0.1, lease, Ended(lease, Outcome(node, str(attempt), "segment", "stopped")))

    def close(self, lease: str) -> None:
        self.leases.discard(lease)
        self.running.pop(lease, None)

    def poll(self, timeout: float) -> list[Event]:
        if not self.due:
            self.now += timeout
            return []
        self.now = max(self.now, self.due[0][0])
        found = []
        while self.due and self.due[0][0] <= self.now:
            _, _, lease, event = heapq.heappop(self.due)
            if lease not in self.leases:
                continue
            if isinstance(event, Ended):
                if lease not in self.running:
                    continue
                del self.running[lease]
            found.append(event)
        return found

    def _later(self, seconds: float, lease: str, event: Event) -> None:
        heapq.heappush(self.due, (self.now + seconds, len(self.log) + self.opened, lease, event))


@dataclass
class Memory:
    """A recorder that only remembers."""

    committed: list[str] = field(default_factory=list)
    given_up: dict[str, str] = field(default_factory=dict)
    notes: list[tuple[str, str]] = field(default_factory=list)
    steps: dict[str, int] = field(default_factory=dict)
    corrupt: set[str] = field(default_factory=set)
    asked: list[tuple[int, str]] = field(default_factory=list)
    """(nodes committed before it is heard, run to stop)."""

    def job(self, node: str, micro_batch_seqs: int | None) -> Any:
        return node, micro_batch_seqs

    def commit(self, outcome: Outcome) -> None:
        if outcome.id in self.corrupt:
            self.corrupt.discard(outcome.id)
            raise CommitError("cut short")
        assert outcome.id not in self.committed
        self.committed.append(outcome.id)

    def progress_step(self, node: str) -> int | None:
        return self.steps.get(node)

    def give_up(self, node: str, status: str, error: str) -> None:
        self.given_up[node] = status

    def note(self, what: str, node: str, **facts: Any) -> None:
        self.notes.append((what, node))

    def asked_to_stop(self) -> list[str]:
        heard = [run_id for after, run_id in self.asked if len(self.committed) >= after]
        self.asked = [entry for entry in self.asked if entry[1] not in heard]
        return heard

    def tick(self) -> None:
        pass


def plan_of(configs: list[RunConfig], share: bool = True) -> Plan:
    resources = Resources(gpus_per_run=1.0)
    return make_plan(Sweep("s", "gepa-11l", tuple(configs), USUAL_STAGES, resources, ExecConfig(), share))


def small_plan(share: bool = True) -> Plan:
    return plan_of([RunConfig(steps=s, warmdown_steps=s // 5) for s in (1000, 2000, 3000)], share)


def drive(
    plan: Plan, cluster: SimCluster, *, recorder: Memory | None = None, **options: Any
) -> tuple[Ending, Driver, Memory]:
    recorder = recorder or Memory()
    wanted = list(plan.nodes)
    driver = Driver(
        plan, cluster, recorder, lambda: cluster.now, wanted, set(plan.done), Options(**options), Limits()
    )
    return driver.run(), driver, recorder


def lower_bound(plan: Plan, machines: int, seconds: Callable[[str], float]) -> float:
    """No list schedule is shorter: the work shared out evenly, or the longest chain, after one start-up."""
    cost = {node: seconds(node) + JOB_SECONDS for node in plan.nodes}
    longest: dict[str, float] = {}
    for node, after in links(plan):
        longest[node] = cost[node] + (longest[after] if after else 0.0)
    return LEASE_SECONDS + max(sum(cost.values()) / machines, max(longest.values()))


@pytest.mark.parametrize("wrong_by", [1.0, 2.0], ids=["costs as planned", "costs off by up to 2x"])
def test_1000_runs_on_64_machines_take_at_most_5_percent_more_than_the_bound(wrong_by: float) -> None:
    steps = [1000 * k for k in range(9, 29)]
    configs = [
        RunConfig(steps=s, warmdown_steps=round(s * ratio), seed=seed)
        for s in steps
        for ratio in (0.2, 0.3, 0.4, 0.5, 0.6)
        for seed in range(10)
    ]
    plan = plan_of(configs)
    rng = random.Random(0)
    error = {node: wrong_by ** rng.uniform(-1, 1) for node in plan.nodes}

    def seconds(node: str) -> float:
        return plan.seconds[node] * error[node]

    cluster = SimCluster(seconds, 64)
    ending, _, recorder = drive(plan, cluster)
    assert ending is Ending.COMPLETE
    assert len(plan.runs) == 1000
    assert sorted(recorder.committed) == sorted(plan.nodes)
    share = lower_bound(plan, 64, seconds) / cluster.now
    print(f"{share:.3f} of what no schedule can beat")
    assert share >= 0.95


def test_nothing_starts_before_what_it_needs() -> None:
    plan = small_plan()
    cluster = SimCluster(plan.seconds.__getitem__, 3)
    _, _, recorder = drive(plan, cluster)
    order = {node: i for i, node in enumerate(recorder.committed)}
    assert all(order[after] < order[node] for node, after in links(plan) if after)


def test_a_run_keeps_its_lease() -> None:
    plan = small_plan()
    cluster = SimCluster(plan.seconds.__getitem__, 2)
    drive(plan, cluster)
    lease_of = {node: lease for _, lease, node in cluster.log}
    run = plan.runs[max(plan.runs, key=lambda run_id: plan.runs[run_id].config.steps)]
    assert len({lease_of[node] for node in (run.last, *run.stages)}) == 1


def test_runs_finish_from_the_start_and_not_all_at_the_end() -> None:
    lengths, ratios = (1000, 2000, 4000, 8000), (0.2, 0.4, 0.6)
    plan = plan_of([RunConfig(steps=s, warmdown_steps=round(s * r)) for s in lengths for r in ratios])
    cluster = SimCluster(plan.seconds.__getitem__, 2)
    finished: dict[str, float] = {}

    class Clocked(Memory):
        def commit(self, outcome: Outcome) -> None:
            super().commit(outcome)
            finished[outcome.id] = cluster.now

    drive(plan, cluster, recorder=Clocked())
    ends = sorted(max(finished[node] for node in plan.nodes_of(run)) for run in plan.runs)
    assert ends[0] < 0.25 * cluster.now and ends[len(ends) // 2] < 0.7 * cluster.now
    assert lower_bound(plan, 2, plan.seconds.__getitem__) > 0.9 * cluster.now


def test_done_work_is_not_repeated_and_nothing_left_opens_no_lease() -> None:
    plan = small_plan()
    everything = set(plan.nodes)
    cluster = SimCluster(plan.seconds.__getitem__, 2)
    driver = Driver(plan, cluster, Memory(), lambda: cluster.now, everything, everything)
    assert driver.run() is Ending.COMPLETE
    assert cluster.opened == 0


def test_lost_workers_are_replaced() -> None:
    plan = small_plan()
    trunk = next(iter(plan.segments))
    cluster = SimCluster(
        plan.seconds.__getitem__, 2, lambda node, n: "lost" if node == trunk and n < 4 else "finished"
    )
    ending, _, recorder = drive(plan, cluster)
    assert ending is Ending.COMPLETE and not recorder.given_up
    assert cluster.starts[trunk] == 4
    assert set(recorder.committed) == set(plan.nodes)


def test_a_diverged_branch_leaves_its_siblings_alone() -> None:
    plan = small_plan()
    branch = next(s.id for s in plan.segments.values() if not s.trunk)
    cluster = SimCluster(
        plan.seconds.__getitem__, 2, lambda node, n: "diverged" if node == branch else "finished"
    )
    _, _, recorder = drive(plan, cluster)
    assert recorder.given_up == {branch: "diverged"}
    lost = {branch, *plan.children.get(branch, [])}
    lost |= {child for node in lost for child in plan.children.get(node, [])}
    assert set(recorder.committed) == set(plan.nodes) - lost


def test_out_of_memory_halves_the_micro_batch_for_this_and_every_later_segment() -> None:
    plan = small_plan()
    trunk = next(iter(plan.segments))
    cluster = SimCluster(
        plan.seconds.__getitem__,
        1,
        lambda node, n: "out_of_memory" if node == trunk and n == 1 else "finished",
    )
    jobs: list[tuple[str, int | None]] = []

    class Listening(Memory):
        def job(self, node: str, micro_batch_seqs: int | None) -> Any:
            jobs.append((node, micro_batch_seqs))
            return node, micro_batch_seqs

    drive(plan, cluster, recorder=Listening())
    assert jobs[0] == (trunk, None)
    assert {micro for node, micro in jobs[1:] if node in plan.segments} == {24}


def test_a_stage_that_ran_short_of_memory_changes_no_training() -> None:
    plan = small_plan()
    stage = next(iter(plan.stages))
    jobs: list[tuple[str, int | None]] = []

    class Noting(Memory):
        def job(self, node: str, micro_batch_seqs: int | None) -> Any:
            jobs.append((node, micro_batch_seqs))
            return super().job(node, micro_batch_seqs)

    cluster = SimCluster(
        plan.seconds.__getitem__,
        2,
        lambda node, attempt: "out_of_memory" if (node, attempt) == (stage, 1) else "finished",
    )
    assert drive(plan, cluster, recorder=Noting())[0] is Ending.COMPLETE
    assert (stage, 24) in jobs
    assert all(micro_batch is None for node, micro_batch in jobs if node != stage)


def test_a_segment_with_checkpoints_keeps_its_micro_batch() -> None:
    """Another segment ran short of memory meanwhile: its smaller one would make the checkpoints useless."""
    plan = small_plan()
    trunk, *_, lost = plan.segments
    recorder = Memory(steps={lost: 100})
    jobs: list[tuple[str, int | None]] = []
    recorder.job = lambda node, micro: jobs.append((node, micro)) or (node, micro)  # type: ignore[method-assign, func-returns-value]
    endings = {(trunk, 1): "out_of_memory", (lost, 1): "lost"}
    cluster = SimCluster(
        plan.seconds.__getitem__, 2, lambda node, attempt: endings.get((node, attempt), "finished")
    )
    assert drive(plan, cluster, recorder=recorder)[0] is Ending.COMPLETE
    assert [micro for node, micro in jobs if node == trunk] == [None, 24]
    assert [micro for node, micro in jobs if node == lost] == [None, None]


@pytest.mark.parametrize("status", ["bad_input", "storage", "diverged", "crashed"])
def test_work_that_failed_takes_its_lease_along(status: str) -> None:
    """A rank may still wait there for the one that failed: its next job would meet the old one's messages."""
    plan = small_plan()
    first = next(iter(plan.segments))
    cluster = SimCluster(
        plan.seconds.__getitem__,
        1,
        lambda node, attempt: status if (node, attempt) == (first, 1) else "finished",
    )
    drive(plan, cluster)
    used = [lease for _, lease, node in cluster.log if node == first]
    assert all(lease == used[0] for _, lease, node in cluster.log[:1])
    assert used[0] not in {lease for _, lease, _ in cluster.log[1:]}


def test_local_workers_are_kept() -> None:
    plan = small_plan()
    cluster = SimCluster(lambda node: 600.0, 2)
    assert drive(plan, cluster, eager=True, idle_seconds=30.0)[0] is Ending.COMPLETE
    assert cluster.opened == 2


def test_a_commit_that_fails_is_tried_again() -> None:
    plan = small_plan()
    trunk = next(iter(plan.segments))
    cluster = SimCluster(plan.seconds.__getitem__, 2)
    ending, _, recorder = drive(plan, cluster, recorder=Memory(corrupt={trunk}))
    assert ending is Ending.COMPLETE
    assert cluster.starts[trunk] == 2 and recorder.committed.count(trunk) == 1


def test_an_interrupt_drains() -> None:
    plan = small_plan()
    cluster = SimCluster(plan.seconds.__getitem__, 2)

    class Interrupting(Memory):
        def commit(self, outcome: Outcome) -> None:
            super().commit(outcome)
            driver.interrupts.count = 1

    recorder = Interrupting()
    wanted = list(plan.nodes)
    driver = Driver(plan, cluster, recorder, lambda: cluster.now, wanted, set())
    assert driver.run() is Ending.INTERRUPTED
    assert len(recorder.committed) == 1 and not cluster.leases and not recorder.given_up


def test_the_budget_is_kept_to_within_a_tick() -> None:
    plan = small_plan()
    cluster = SimCluster(plan.seconds.__getitem__, 2)
    hours = sum(plan.seconds.values()) / 3600 / 2
    cluster.poll = lambda timeout: _in_small_steps(cluster, timeout)  # type: ignore[method-assign]
    ending, driver, recorder = drive(plan, cluster, max_device_hours=hours)
    assert ending is Ending.BUDGET
    assert hours * 3600 <= driver.device_seconds <= hours * 3600 + 5
    assert 0 < len(recorder.committed) < len(plan.priority)


def _in_small_steps(cluster: SimCluster, timeout: float) -> list[Event]:
    """Wait no longer than the timeout, as a real cluster does."""
    if cluster.due and cluster.due[0][0] <= cluster.now + timeout:
        return SimCluster.poll(cluster, timeout)
    cluster.now += timeout
    return []


def test_fail_fast_stops_at_the_first_failure() -> None:
    plan = small_plan()
    trunk = next(iter(plan.segments))
    cluster = SimCluster(
        plan.seconds.__getitem__, 2, lambda node, n: "bad_input" if node == trunk else "finished"
    )
    ending, _, recorder = drive(plan, cluster, fail_fast=True)
    assert ending is Ending.FAIL_FAST and recorder.given_up == {trunk: "failed"}


def test_max_parallel_bounds_the_leases() -> None:
    plan = small_plan(share=False)
    cluster = SimCluster(plan.seconds.__getitem__, 8)
    drive(plan, cluster, max_parallel=2)
    assert len({lease for _, lease, _ in cluster.log}) == 2


def test_workers_that_never_start_end_the_sweep() -> None:
    plan = small_plan()
    with pytest.raises(ClusterError, match="no such image"):
        drive(plan, SimCluster(plan.seconds.__getitem__, 2, stillborn=True))


@pytest.mark.parametrize("after", [0, 1, 2, 4])
def test_a_stopped_run_takes_only_what_nothing_else_needs(after: int) -> None:
    """Heard before anything is done, while its trunk, its branch or its stages are at work."""
    plan = small_plan()
    short, middle, long = plan.runs
    recorder = Memory(asked=[(after, middle)])
    cluster = SimCluster(lambda node: 1.0 + plan.nodes[node].steps / 100, 2)
    ending, _, _ = drive(plan, cluster, recorder=recorder)
    assert ending is Ending.COMPLETE
    kept = {*plan.nodes_of(short), *plan.nodes_of(long)}
    own = set(plan.nodes_of(middle)) - kept
    assert kept <= set(recorder.committed)
    assert own - set(recorder.committed), "something of it was left undone"
    assert not recorder.given_up and not cluster.running
