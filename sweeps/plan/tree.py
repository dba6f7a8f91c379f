"""The tree of segments and stages that a sweep is planned as, and what can be read off it. Pure data.

A segment joins two states of training; its id is a digest of its whole lineage, so equal ids mean equal
numbers, in this sweep or any other over the same store. Stages (evaluations, quantization) hang below.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from gepa_core.config import RunConfig
from sweeps.plan.speeds import (
    PUBLISHED_A100,
    PUBLISHED_VAL_TOKENS,
    Speeds,
    plain_flops,
    sliding_flops,
    step_flops,
    ttt_flops,
)
from sweeps.spec.sweep import Sweep

StageKind = Literal["float", "ema", "quantize", "int6", "int6_sliding", "ttt"]


@dataclass(frozen=True, slots=True)
class Segment:
    """Training from the state at `start` to the state at `stop`, both counts of steps done."""

    id: str
    parent: str | None
    """Segment whose final state this one starts from; None = the initial weights (or it was adopted)."""
    start: int
    stop: int
    config: RunConfig
    """A run through this segment; on a trunk one that branches off (or ends) at `stop`."""
    runs: tuple[str, ...]
    """Runs that branch off or end at `stop`; all that pass through: `Plan.runs_through`."""
    trunk: bool
    trunk_id: str
    """Digest of what the constant phase depends on; ties segments of different sweeps together."""
    final: bool
    """Some run ends at `stop`."""

    @property
    def steps(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class KnownSegment:
    """A finished segment in the store, of this sweep or another: what its DONE record must say."""

    id: str
    parent: str | None
    trunk_id: str
    start: int
    stop: int
    trunk: bool
    kept: bool
    """Whether its final state is still there."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Evaluation or quantization of a finished run; shared by all runs that agree in what it depends on."""

    id: str
    run_id: str
    """One of the runs it serves."""
    kind: StageKind
    after: str
    """Segment or stage whose output it needs."""
    config: RunConfig


@dataclass(frozen=True, slots=True)
class RunPlan:
    config: RunConfig
    last: str
    """Segment that ends the run; `Plan.segments_of` gives the whole chain."""
    stages: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """`segments` and `stages` are in an order in which they could be executed one by one."""

    sweep: Sweep
    runs: dict[str, RunPlan]
    segments: dict[str, Segment]
    stages: dict[str, Stage]
    done: frozenset[str] = frozenset()
    """Segments and stages that the store already has."""
    speeds: Speeds = PUBLISHED_A100
    val_tokens: int = PUBLISHED_VAL_TOKENS
    """Target tokens of a validation, for the estimates of time."""

    def segments_of(self, run_id: str) -> tuple[str, ...]:
        """The chain of segments that makes up a run, from its first step to its last."""
        chain: list[str] = []
        at: str | None = self.runs[run_id].last
        while at is not None:
            chain.append(at)
            at = self.segments[at].parent
        return tuple(reversed(chain))

    def runs_through(self, node: str) -> tuple[str, ...]:
        """Runs that need a segment or stage, in plan order."""
        needed = self._below(node)
        return tuple(
            run_id
            for run_id, run in self.runs.items()
            if run.last in needed or not needed.isdisjoint(run.stages)
        )

    def _below(self, node: str) -> set[str]:
        below, waiting = {node}, [node]
        while waiting:
            fresh = [child for child in self.children.get(waiting.pop(), ()) if child not in below]
            below.update(fresh)
            waiting += fresh
        return below

    def nodes(self) -> Iterator[tuple[str, str | None]]:
        """Every segment and stage with what it waits for, in executable order."""
        for segment in self.segments.values():
            yield segment.id, segment.parent
        for stage in self.stages.values():
            yield stage.id, stage.after

    @cached_property
    def children(self) -> dict[str, list[str]]:
        """What becomes ready when a segment or stage is done."""
        children: dict[str, list[str]] = {}
        for node, after in self.nodes():
            if after is not None:
                children.setdefault(after, []).append(node)
        return children

    def ready(self, done: Collection[str]) -> list[str]:
        """What could start now, the longest remaining path first."""
        ids = [node for node, after in self.nodes() if node not in done and (after is None or after in done)]
        return sorted(ids, key=lambda node: (-self.priority[node], node))

    @cached_property
    def seconds(self) -> dict[str, float]:
        """Estimated device-seconds of every segment and stage (GPU-seconds, or those of CPU workers)."""
        return {segment.id: self._segment_seconds(segment) for segment in self.segments.values()} | {
            stage.id: self._stage_seconds(stage) for stage in self.stages.values()
        }

    @cached_property
    def priority(self) -> dict[str, float]:
        """Device-seconds of the longest path from a node to a leaf, itself included."""
        longest: dict[str, float] = {}
        for node, after in reversed(list(self.nodes())):
            longest[node] = longest.get(node, 0.0) + self.seconds[node]
            if after is not None:
                longest[after] = max(longest.get(after, 0.0), longest[node])
        return longest

    @property
    def steps_naive(self) -> int:
        return sum(run.config.steps for run in self.runs.values())

    @property
    def steps_shared(self) -> int:
        return sum(segment.steps for segment in self.segments.values())

    @property
    def steps_left(self) -> int:
        return sum(segment.steps for segment in self.segments.values() if segment.id not in self.done)

    @property
    def critical_path_steps(self) -> int:
        """Steps that must follow one another: however many machines, a sweep takes as long."""
        return max((run.config.steps for run in self.runs.values()), default=0)

    def _segment_seconds(self, segment: Segment) -> float:
        return self.train_seconds(segment.config, segment.steps) + self.validation_seconds(
            segment.config, segment.start, segment.stop
        )

    def train_seconds(self, config: RunConfig, steps: int) -> float:
        return steps * step_flops(config) / self.speeds.train

    def validation_seconds(self, config: RunConfig, start: int, stop: int) -> float:
        """Validations while training between two steps."""
        times = sum(stop // every - start // every for every in (config.eval.every, config.eval.ema_every))
        return times * plain_flops(config, self.tokens(config)) / self.speeds.evaluate

    def tokens(self, config: RunConfig) -> int:
        return min(self.val_tokens, config.data.val_tokens or self.val_tokens)

    def _stage_seconds(self, stage: Stage) -> float:
        config, tokens = stage.config, self.tokens(stage.config)
        match stage.kind:
            case "ttt":
                return ttt_flops(config, tokens) / self.speeds.ttt
            case "int6_sliding":
                return sliding_flops(config, tokens) / self.speeds.evaluate
            case "quantize":
                return 0.0  # seconds on one CPU core, whatever the data
            case _:
                return plain_flops(config, tokens) / self.speeds.evaluate

    def record(self) -> dict[str, Any]:
        """What plan.json says: the segments and stages each run is made of, and their estimated seconds."""
        return {
            "sweep": self.sweep.name,
            "steps_naive": self.steps_naive,
            "steps_shared": self.steps_shared,
            "segments": {
                s.id: {
                    "parent": s.parent,
                    "start": s.start,
                    "stop": s.stop,
                    "trunk": s.trunk,
                    "trunk_id": s.trunk_id,
                    "estimated_device_seconds": self.seconds[s.id],
                }
                for s in self.segments.values()
            },
            "stages": {
                s.id: {"kind": s.kind, "after": s.after, "estimated_device_seconds": self.seconds[s.id]}
                for s in self.stages.values()
            },
            "runs": {
                run_id: {"segments": list(self.segments_of(run_id)), "stages": list(run.stages)}
                for run_id, run in self.runs.items()
            },
        }
