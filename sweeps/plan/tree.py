"""The tree of nodes that a sweep is planned as, and what can be read off it. Pure data.

A node is one piece of work: a stretch of training, which joins two states, or a stage (an evaluation,
quantization) that follows from one. A trunk is the constant phase that several runs share; their warmdowns
branch off it. A node's id is a digest of its whole lineage, so equal ids mean equal numbers, in this sweep or
any other over the same store. What its kind implies is in `sweeps.kinds`.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from gepa_core.config import Average, RunConfig
from sweeps.kinds.kind import Kind, Rate
from sweeps.kinds.table import KINDS
from sweeps.plan.speeds import PUBLISHED_A100, PUBLISHED_VAL_TOKENS, Speeds
from sweeps.spec.sweep import Run, Sweep


@dataclass(frozen=True, slots=True)
class Node:
    """A piece of work, committed to the store whole or not at all.

    One that trains goes from the state after `start` steps to the state after `stop`; for stages both are 0.
    """

    id: str
    kind: str
    """Its entry in `sweeps.kinds.table.KINDS`."""
    after: str | None
    """Node whose output it starts from; None = the initial weights."""
    config: Run
    """That of a run which needs the node; on a trunk, of a run that branches off or ends at `stop`."""
    runs: tuple[str, ...]
    """Of training nodes, runs that branch off or end at `stop`; of stages, the run that first asked for it.
    `Plan.runs_of` has all the runs that need a node."""
    start: int = 0
    stop: int = 0
    trunk: bool = False
    trunk_id: str = ""
    """Digest of what the constant phase depends on: equal for the nodes of one trunk, also across sweeps."""
    final: bool = False
    """Some run ends at `stop`."""
    averages: tuple[Average, ...] = ()
    """Of training nodes, the averages of the weights that its states hold; if empty, the config's own."""
    sources: tuple[str, ...] = ()
    """Of a stage that merges states, the nodes which those come from, `after` among them."""

    @property
    def needs(self) -> tuple[str, ...]:
        """All nodes that must be done before."""
        return tuple(dict.fromkeys((*((self.after,) if self.after else ()), *self.sources)))

    @property
    def steps(self) -> int:
        return self.stop - self.start

    @property
    def trains(self) -> bool:
        return KINDS[self.kind].trains

    def identity(self) -> dict[str, Any]:
        """What its DONE record says of its place in the tree."""
        config = self.config.model_dump(mode="json")
        if not self.trains:
            return {"kind": self.kind, "after": self.after, "config": config}
        place = {
            "parent": self.after,
            "trunk_id": self.trunk_id,
            "start": self.start,
            "stop": self.stop,
            "trunk": self.trunk,
            "config": config,
        }
        return place | ({"averages": [list(average) for average in self.averages]} if self.averages else {})

    def record(self) -> dict[str, Any]:
        """What plan.json says of it."""
        if not self.trains:
            return {"kind": self.kind, "after": self.after}
        place = self.identity()
        del place["config"]
        return place


@dataclass(frozen=True, slots=True)
class KnownSegment:
    """A finished stretch of training in the store, of this sweep or another, as its DONE record says."""

    id: str
    parent: str | None
    trunk_id: str
    start: int
    stop: int
    trunk: bool
    kept: bool
    """Whether its final state is still there."""
    observed: str = ""
    """Digest of all that it depends on except the averages that its states hold."""
    decays: tuple[float, ...] = ()
    """EMA decays of those averages."""


@dataclass(frozen=True, slots=True)
class RunPlan:
    """A run and its nodes."""

    config: Run
    last: str
    """Node that ends its training; `Plan.segments_of` gives the whole chain."""
    stages: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """`nodes` are in an order in which they could be executed one by one, training before stages."""

    sweep: Sweep
    runs: dict[str, RunPlan]
    nodes: dict[str, Node]
    done: frozenset[str] = frozenset()
    """Nodes that the store already has."""
    speeds: Speeds = PUBLISHED_A100
    val_tokens: int = PUBLISHED_VAL_TOKENS
    """Target tokens of one validation, for the estimates of time."""

    def kind(self, node: str) -> Kind:
        return KINDS[self.nodes[node].kind]

    @cached_property
    def segments(self) -> dict[str, Node]:
        """The nodes that train."""
        return {id_: node for id_, node in self.nodes.items() if node.trains}

    @cached_property
    def stages(self) -> dict[str, Node]:
        """The nodes that do not."""
        return {id_: node for id_, node in self.nodes.items() if not node.trains}

    def setting(self, run_id: str) -> str:
        """A run's values on the sweep's own axes, which its id does not show; '' where it has none."""
        values = self.sweep.axis_values(self.runs[run_id].config) if self.sweep.axes else {}
        return ", ".join(f"{axis} {value}" for axis, value in values.items() if value is not None)

    def named(self, run_id: str) -> str:
        """A run by its id, and what that does not show."""
        setting = self.setting(run_id)
        return f"{run_id} ({setting})" if setting else run_id

    def segments_of(self, run_id: str) -> tuple[str, ...]:
        """The chain of training nodes that makes up a run, from its first step to its last."""
        chain: list[str] = []
        at: str | None = self.runs[run_id].last
        while at is not None:
            chain.append(at)
            at = self.nodes[at].after
        return tuple(reversed(chain))

    def nodes_of(self, run_id: str) -> tuple[str, ...]:
        """All nodes that a run needs, each once."""
        stages = self.runs[run_id].stages
        nodes: dict[str, None] = dict.fromkeys(self.segments_of(run_id))
        for source in (source for stage in stages for source in self.nodes[stage].sources):
            at: str | None = source
            while at is not None and at not in nodes:
                nodes[at] = None
                at = self.nodes[at].after
        return (*nodes, *stages)

    @cached_property
    def runs_of(self) -> Mapping[str, list[str]]:
        """The runs that need each node, in plan order."""
        runs: dict[str, list[str]] = defaultdict(list)
        for run_id in self.runs:
            for node in self.nodes_of(run_id):
                runs[node].append(run_id)
        return runs

    @cached_property
    def children(self) -> dict[str, list[str]]:
        """What becomes ready when a node is done."""
        children: dict[str, list[str]] = {}
        for node in self.nodes.values():
            for needed in node.needs:
                children.setdefault(needed, []).append(node.id)
        return children

    def can_start(self, node: str, done: Collection[str]) -> bool:
        """Whether all that it needs is done."""
        return all(needed in done for needed in self.nodes[node].needs)

    def ready(self, done: Collection[str]) -> list[str]:
        """What could start now, the longest remaining path first."""
        ids = [node for node in self.nodes if node not in done and self.can_start(node, done)]
        return sorted(ids, key=lambda node: (-self.priority[node], node))

    def cost(self, node: Node) -> dict[Rate, float]:
        """Estimated device-seconds (GPU-seconds, or those of CPU workers), by what they are spent on."""
        tokens = self.tokens(node.config)
        averages = (len(node.averages) or 1,) if node.trains else ()
        cost = KINDS[node.kind].cost(node.config, tokens, node.start, node.stop, *averages)
        return self.speeds.seconds(cost, self.sweep.devices)

    @cached_property
    def seconds(self) -> dict[str, float]:
        """Estimated device-seconds of every node."""
        return {id_: sum(self.cost(node).values(), 0.0) for id_, node in self.nodes.items()}

    @cached_property
    def priority(self) -> dict[str, float]:
        """Device-seconds of the longest path from a node to a leaf, itself included."""
        longest: dict[str, float] = {}
        for node in reversed(self.nodes.values()):
            longest[node.id] = longest.get(node.id, 0.0) + self.seconds[node.id]
            for needed in node.needs:
                longest[needed] = max(longest.get(needed, 0.0), longest[node.id])
        return longest

    @property
    def steps_naive(self) -> int:
        return sum(run.config.steps for run in self.runs.values())

    @property
    def steps_shared(self) -> int:
        return sum(node.steps for node in self.nodes.values())

    @property
    def steps_left(self) -> int:
        return sum(node.steps for node in self.nodes.values() if node.id not in self.done)

    @property
    def critical_path_steps(self) -> int:
        """Steps that must follow one another: no number of machines makes a sweep shorter."""
        return max((run.config.steps for run in self.runs.values()), default=0)

    def tokens(self, config: Run) -> int:
        """Target tokens of a validation of such a run."""
        if not isinstance(config, RunConfig):
            return 0  # a script's validations are part of its steps
        return min(self.val_tokens, config.data.val_tokens or self.val_tokens)

    def alone(self, run_id: str) -> list[Node]:
        """The nodes that a run would be made of if it were trained and measured alone."""
        run = self.runs[run_id]
        last = self.nodes[run.last]
        return [
            replace(last, config=run.config, start=0, averages=()),
            *(self.nodes[stage] for stage in run.stages),
        ]

    def record(self) -> dict[str, Any]:
        """What plan.json says: the nodes each run is made of, and their estimated seconds."""

        def of(nodes: Mapping[str, Node]) -> dict[str, Any]:
            return {
                id_: {**node.record(), "estimated_device_seconds": self.seconds[id_]}
                for id_, node in nodes.items()
            }

        return {
            "sweep": self.sweep.name,
            "steps_naive": self.steps_naive,
            "steps_shared": self.steps_shared,
            "segments": of(self.segments),
            "stages": of(self.stages),
            "runs": {
                run_id: {"segments": list(self.segments_of(run_id)), "stages": list(run.stages)}
                for run_id, run in self.runs.items()
            },
        }
