"""How a running sweep stands: what is done, what it has cost, the best run so far, and when it will end."""

import heapq
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from sweeps.kinds.stages import MEASURED
from sweeps.kinds.table import KINDS, SCRIPT
from sweeps.plan.tree import Plan
from sweeps.store.store import Outcome

VAL_LOSS = "val_loss"
"""Of a script that tells no bits per byte."""
_LAST_STAGES = ("ttt", "int6_sliding", "int6", "ema", "float")
"""What a run is judged by: the first of these that is measured."""
_SIMULATED_NODES = 3000
"""Above that, time left is bounded by the work and the longest path, not played through."""


def _figures(outcome: Outcome) -> dict[str, float]:
    """What it measured, by stage, and a script's validation loss."""
    result = outcome.result
    if outcome.kind != SCRIPT:
        columns = {outcome.kind: KINDS[outcome.kind].column or ""}
    else:
        columns = {kind.name: f"{kind.name}_bpb" for kind in MEASURED} | {VAL_LOSS: VAL_LOSS}
    return {stage: result[column] for stage, column in columns.items() if result.get(column) is not None}


@dataclass
class Running:
    """A node at work."""

    attempt: str
    worker: int
    """Number of its worker, from 1."""
    since: float
    """On the tally's clock."""
    since_wall: float
    """Seconds since 1970."""
    fresh: bool
    """The first thing its worker does: it loads torch and the data first."""
    reports: Sequence[dict[str, Any]] = ()

    @property
    def step(self) -> int | None:
        return int(self.reports[-1]["step"]) if self.reports else None

    @property
    def pace(self) -> float | None:
        """Seconds a step, between reports of this attempt; those it took over from another do not count."""
        own = [report for report in self.reports if report.get("time", 0.0) >= self.since_wall]
        steps = own[-1]["step"] - own[0]["step"] if own else 0
        return float((own[-1]["time"] - own[0]["time"]) / steps) if steps else None

    def last(self, key: str) -> Any:
        """The newest value of a figure that not every report has."""
        return next((r[key] for r in reversed(self.reports) if r.get(key) is not None), None)


@dataclass
class Tally:
    """Counts what a launch does.

    runs: those it is about; None = all of the plan. workers: how many will work at a time,
    as far as is known beforehand.
    """

    plan: Plan
    runs: Collection[str] | None = None
    workers: int = 1
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    running: dict[str, Running] = field(default_factory=dict)
    device_seconds: float = 0.0
    """Of what ended in this launch."""
    best: tuple[float, str, str] | None = None
    """BPB, run and stage."""

    def __post_init__(self) -> None:
        plan = self.plan
        self.begun = self.clock()
        self.done = set(plan.done)
        self.lost: set[str] = set()
        self.finals: dict[str, dict[str, float]] = defaultdict(dict)
        """Run -> stage -> BPB, of this launch."""
        self._workers: dict[str, int] = {}
        wanted = plan.runs if self.runs is None else self.runs
        self._nodes_of = {id_: plan.nodes_of(id_) for id_ in wanted}
        self.runs_of: dict[str, list[str]] = defaultdict(list)
        for run_id, nodes in self._nodes_of.items():
            for node in nodes:
                self.runs_of[node].append(run_id)
        self._open = {id_: sum(n not in self.done for n in nodes) for id_, nodes in self._nodes_of.items()}
        self._devices = plan.sweep.devices
        self.final_stage = next((stage for stage in _LAST_STAGES if stage in plan.sweep.stages), None)
        self._took: dict[str, list[float]] = defaultdict(list)
        self._expected: dict[str, float] = defaultdict(float)

    # What happens

    def started(self, node: str, attempt: str, lease: str) -> None:
        fresh = lease not in self._workers
        worker = self._workers.setdefault(lease, len(self._workers) + 1)
        self.running[node] = Running(attempt, worker, self.clock(), self.wall(), fresh)

    def ended(self, node: str) -> None:
        """Without a result."""
        if at := self.running.pop(node, None):
            self.device_seconds += (self.clock() - at.since) * self._devices

    def finished(self, node: str, outcome: Outcome) -> list[str]:
        """Runs that are complete now."""
        self.ended(node)
        if node in self.done:
            return []
        self.done.add(node)
        self._took[self._group(node)].append(outcome.seconds)
        self._expected[self._group(node)] += self.plan.seconds[node] / self._devices
        self.measured(outcome)
        for run_id in self.runs_of[node]:
            self._open[run_id] -= 1
        return [run_id for run_id in self.runs_of[node] if not self._open[run_id]]

    def measured(self, outcome: Outcome) -> None:
        """A stage's figure, or all of a script's, of this launch or an earlier one."""
        figures, runs = _figures(outcome), self.runs_of.get(outcome.id)
        if not figures or not runs or self.plan.nodes[outcome.id].trunk:
            return
        for run_id in runs:
            self.finals[run_id] |= figures
        last = self.final_stage or next(stage for stage in (*_LAST_STAGES, VAL_LOSS) if stage in figures)
        if last in figures and (self.best is None or self._better(figures[last], last)):
            self.best = figures[last], runs[0], last

    def _better(self, value: float, stage: str) -> bool:
        """Than the best so far, which may be of an earlier stage."""
        assert self.best is not None
        order = (*_LAST_STAGES, VAL_LOSS)
        return (order.index(stage), value) < (order.index(self.best[2]), self.best[0])

    def gave_up(self, node: str) -> None:
        self.ended(node)
        self.lost.update(self.runs_of[node])

    # How it stands

    @property
    def runs_done(self) -> int:
        return sum(not left for left in self._open.values())

    @property
    def runs_all(self) -> int:
        return len(self._open)

    @property
    def steps_all(self) -> int:
        return sum(self.plan.nodes[node].steps for node in self.runs_of)

    @property
    def steps_done(self) -> int:
        both = self.done & self.runs_of.keys()
        whole = sum(self.plan.nodes[node].steps for node in both)
        return whole + sum(self._steps_under_way(node) for node in self.running)

    def _steps_under_way(self, node: str) -> int:
        work, step = self.plan.nodes[node], self.running[node].step
        return max(0, step - work.start) if work.trains and step is not None else 0

    @property
    def cost_seconds(self) -> float:
        """Device-seconds of this launch so far."""
        now = self.clock()
        return self.device_seconds + sum((now - at.since) * self._devices for at in self.running.values())

    @property
    def work_done(self) -> float:
        """Share of all estimated work, that of earlier launches included."""
        seconds = self.plan.seconds
        total = sum(seconds[node] for node in self.runs_of)
        done = sum(seconds[node] for node in self.done & self.runs_of.keys())
        done += sum(seconds[node] * self.share(node) for node in self.running)
        return done / total if total else 1.0

    def share(self, node: str) -> float:
        """Of a running node that is done; of a stage by time, as nothing else tells."""
        if (work := self.plan.nodes[node]).trains:
            return self._steps_under_way(node) / max(1, work.steps)
        expected = self._seconds(node)
        return min(0.95, (self.clock() - self.running[node].since) / expected) if expected else 0.0

    @property
    def is_measured(self) -> bool:
        """Whether the time left rests on work that was seen here, and not on the plan's estimates alone."""
        return bool(self._took) or any(at.step is not None for at in self.running.values())

    def seconds_left(self) -> float:
        """Until the last node ends: what was seen of each kind of work corrects the plan's estimates."""
        left = self._waiting()
        remaining = {node: self._remaining(node) for node in self.running}
        workers = max(self.workers, len(self.running), 1)
        if len(left) > _SIMULATED_NODES:
            work = sum(map(self._seconds, left)) + sum(remaining.values())
            paths = [self.plan.priority[n] / self._devices for n in (*left, *self.running)]
            return max(work / workers, max(paths, default=0.0))
        return _play(self.plan, left, remaining, self._seconds, workers)

    def _waiting(self) -> list[str]:
        over = self.done | self.running.keys()
        return [
            node for node, runs in self.runs_of.items() if node not in over and not self.lost.issuperset(runs)
        ]

    def _remaining(self, node: str) -> float:
        at = self.running[node]
        whole, work = self._seconds(node), self.plan.nodes[node]
        if not work.trains:
            return max(0.0, whole - (self.clock() - at.since))
        if at.step is None:
            return whole
        left = work.stop - at.step
        return at.pace * left if at.pace is not None else whole * left / max(1, work.steps)

    def _seconds(self, node: str) -> float:
        """Expected wall seconds of a node."""
        group = self._group(node)
        expected = self.plan.seconds[node] / self._devices
        took = self._took.get(group, [])
        if took and not self._expected[group]:  # nothing was estimated for its kind: as long as its like
            return sum(took) / len(took)
        return expected * self._factor(group)

    def _factor(self, group: str) -> float:
        if self._expected.get(group):
            return sum(self._took[group]) / self._expected[group]
        if KINDS[group].trains and (pace := self._running_factor()) is not None:
            return pace
        every = sum(self._expected.values())
        return sum(map(sum, self._took.values())) / every if every else self._running_factor() or 1.0

    def _running_factor(self) -> float | None:
        """Of training that no segment has finished yet: its pace against the plan's."""
        for node, at in self.running.items():
            work = self.plan.nodes[node]
            expected = self.plan.seconds[node] / self._devices / work.steps if work.steps else 0.0
            if at.pace is not None and expected > 0:
                return at.pace / expected
        return None

    def _group(self, node: str) -> str:
        return self.plan.nodes[node].kind


def _play(
    plan: Plan,
    left: Sequence[str],
    remaining: dict[str, float],
    seconds: Callable[[str], float],
    workers: int,
) -> float:
    """Wall time of a schedule of `left` behind what runs: the longest remaining path first."""
    waiting_for = set(left)
    blocked = waiting_for | remaining.keys()
    ready = [(-plan.priority[node], node) for node in left if plan.nodes[node].after not in blocked]
    heapq.heapify(ready)
    running = [(time_left, node) for node, time_left in remaining.items()]
    heapq.heapify(running)
    now = 0.0
    while ready or running:
        while ready and len(running) < workers:
            _, node = heapq.heappop(ready)
            heapq.heappush(running, (now + seconds(node), node))
        now, ended = heapq.heappop(running)
        for child in plan.children.get(ended, ()):
            if child in waiting_for:
                heapq.heappush(ready, (-plan.priority[child], child))
    return now
