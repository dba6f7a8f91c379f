"""The smallest tree of segments that contains every run of a grid, and the stages after them. Pure.

Runs that agree in everything but how long the constant phase lasts and what follows share one trunk: the
states where their constant phases end are its branch points. Schedule shape, quantizer and TTT settings fork
as late as they can. What a store already has is built upon, from the nearest earlier kept state.
(The idea of merging shared prefixes: Hippo's stage tree, PVLDB 15(5), 2022.)
"""

import hashlib
import itertools
from bisect import bisect_left
from collections.abc import Collection, Iterable
from dataclasses import replace

from pydantic import BaseModel

from gepa_core.config import RunConfig, digest
from sweeps.kinds.table import KINDS, SEGMENT
from sweeps.plan.speeds import CPU_WORKER, PUBLISHED_A100, PUBLISHED_VAL_TOKENS, Speeds
from sweeps.plan.tree import KnownSegment, Node, Plan, RunPlan
from sweeps.spec.sweep import Sweep


def make_plan(
    sweep: Sweep,
    known: Iterable[KnownSegment] = (),
    done_stages: Collection[str] = (),
    *,
    speeds: Speeds | None = None,
) -> Plan:
    """Plan `sweep.runs` over a store that has the `known` segments and the `done_stages`.

    A finished segment whose state is gone counts as done as long as nothing has to start from it.
    `speeds` only serve the estimates of time.
    """
    planner = _Planner(sweep, known, done_stages)
    trunks: dict[str, list[_Run]] = {}
    for config in sweep.runs:
        run_id = config.run_id
        trunk_id = planner.trunk_id(config) if sweep.share else f"alone-{run_id[-10:]}"
        trunks.setdefault(trunk_id, []).append((run_id, config))
    for trunk_id, members in trunks.items():
        planner.grow(trunk_id, members)
    return Plan(
        sweep=sweep,
        runs={run_id: planner.runs[run_id] for members in trunks.values() for run_id, _ in members},
        nodes=planner.ordered(),
        done=frozenset(planner.done),
        speeds=speeds or (PUBLISHED_A100 if sweep.resources.gpus_per_run else CPU_WORKER),
        val_tokens=sweep.val_tokens or PUBLISHED_VAL_TOKENS,
    )


def trunk_id(config: RunConfig) -> str:
    """Names the constant phase that a run shares with all runs of the same name."""
    return digest(config.trunk())[:16]


def _segment_id(
    trunk_id: str, parent: str | None, start: int, stop: int, tail: list[object], again: int = 0
) -> str:
    lineage: dict[str, object] = {
        "trunk": trunk_id,
        "parent": parent,
        "start": start,
        "stop": stop,
        "tail": tail,
    }
    lineage |= {"again": again} if again else {}
    return f"{start}-{stop}-{digest(lineage)[:16]}"


def _tail(config: RunConfig) -> list[object]:
    """What the branch of a run depends on besides its trunk."""
    return [config.schedule, config.steps, config.warmdown_steps, config.final_lr_fraction]


_Run = tuple[str, RunConfig]


class _Planner:
    def __init__(self, sweep: Sweep, known: Iterable[KnownSegment], done_stages: Collection[str]) -> None:
        self.sweep = sweep
        self.known = {segment.id: segment for segment in known}
        self.done_stages = frozenset(done_stages)
        self.runs: dict[str, RunPlan] = {}
        self.segments: dict[str, Node] = {}
        self.stages: dict[str, Node] = {}
        self.done: set[str] = set()
        self.runs_at: dict[str, list[str]] = {}
        self.settings: dict[tuple[object, ...], str] = {}
        self.trunk_ids: dict[tuple[object, ...], str] = {}
        # Finished trunk segments by trunk and stop.
        self.finished: dict[str, dict[int, list[KnownSegment]]] = {}
        whole: dict[str | None, bool] = {None: True}
        for segment in sorted(self.known.values(), key=lambda s: (s.stop, s.id)):
            # A chain with a missing link cannot be told to the end: not built upon.
            whole[segment.id] = segment.trunk and whole.get(segment.parent, False)
            if whole[segment.id]:
                self.finished.setdefault(segment.trunk_id, {}).setdefault(segment.stop, []).append(segment)

    def grow(self, trunk_id: str, members: list[_Run]) -> None:
        """One trunk and the branches off it."""
        by_point: dict[int, list[_Run]] = {}
        for run_id, config in members:
            by_point.setdefault(config.peak_steps if self.sweep.share else 0, []).append((run_id, config))
        finished = self.finished.get(trunk_id, {})
        # States to start from, by step; every point is computed from the nearest one below it.
        available: dict[int, str | None] = {0: None}
        for stop, ends in finished.items():
            kept = [segment.id for segment in ends if segment.kept]
            available |= {stop: kept[0]} if kept else {}
        steps = sorted(available)
        for point in sorted(by_point):
            needy = [run for run in by_point[point] if not self._finished(run, finished.get(point, []))]
            if not needy:
                continue
            if point not in available:
                at = bisect_left(steps, point)
                start = steps[at - 1]
                # The segment's representative validates here: a run that ends here, if there is one.
                config = min((config for _, config in needy), key=lambda config: config.steps)
                available[point] = self._extend(trunk_id, available[start], start, point, config)
                steps.insert(at, point)
            state = available[point]
            if state in self.known:
                self._adopt(state, needy[0][1])
            for run_id, config in needy:
                self._finish(trunk_id, state, point, run_id, config)

    def _finished(self, run: _Run, chains: list[KnownSegment]) -> bool:
        """Whether a run, if it follows one of these finished chains, needs nothing of the chain's state.

        It is entered into the plan then.
        """
        run_id, config = run
        for trunk in chains:
            last = trunk.id
            if trunk.stop < config.steps:
                last = self._branch_id(trunk.trunk_id, trunk.id, trunk.stop, config)
                if last not in self.known:
                    continue
            if last != trunk.id or self._measured(last, config):
                self._adopt(trunk.id, config)
                self._finish(trunk.trunk_id, trunk.id, trunk.stop, run_id, config)
                return True
        return False

    def _branch_id(self, trunk_id: str, state: str | None, point: int, config: RunConfig) -> str:
        """The branch's segment: a finished one, if it is still of use to this run, or a new one.

        A result is never replaced, so work done again because its state was deleted gets an id of its own.
        """
        for again in itertools.count():
            branch_id = _segment_id(trunk_id, state, point, config.steps, _tail(config), again)
            known = self.known.get(branch_id)
            if known is None or known.kept or self._measured(branch_id, config):
                return branch_id
        raise AssertionError("unreachable")

    def _measured(self, last: str, config: RunConfig) -> bool:
        """Whether no stage needs the run's final state any more; int6 and later need the artifact only."""
        stages = self._stages_of("", last, config)
        return all(stage.id in self.done_stages for stage in stages if stage.after == last)

    def _adopt(self, segment_id: str, config: RunConfig) -> None:
        """Enter a finished segment and its lineage into the plan."""
        at: str | None = segment_id
        while at is not None and at not in self.done:
            segment = self.known[at]
            self._enter(at, segment.parent, segment.start, segment.stop, config, segment.trunk_id, trunk=True)
            self.done.add(at)
            at = segment.parent

    def _extend(self, trunk_id: str, parent: str | None, start: int, stop: int, config: RunConfig) -> str:
        """A new trunk segment. `config` ends its constant phase at `stop`, so it validates there too."""
        if parent in self.known and parent not in self.segments:
            self._adopt(parent, config)
        ids = (_segment_id(trunk_id, parent, start, stop, [], again) for again in itertools.count())
        segment_id = next(id_ for id_ in ids if id_ not in self.known)
        self._enter(segment_id, parent, start, stop, config, trunk_id, trunk=True)
        return segment_id

    def _enter(
        self,
        segment_id: str,
        parent: str | None,
        start: int,
        stop: int,
        config: RunConfig,
        trunk_id: str,
        *,
        trunk: bool,
    ) -> None:
        self.segments[segment_id] = Node(
            segment_id, SEGMENT, parent, config, (), start, stop, trunk, trunk_id
        )

    def _finish(self, trunk_id: str, state: str | None, point: int, run_id: str, config: RunConfig) -> None:
        """The branch of a run, if it has one, and its stages."""
        last = state
        self.runs_at.setdefault(state or "", []).append(run_id)
        if point < config.steps:
            last = self._branch_id(trunk_id, state, point, config)
            self.runs_at.setdefault(last, []).append(run_id)
            if last not in self.segments:
                self._enter(last, state, point, config.steps, config, trunk_id, trunk=False)
            if last in self.known:
                self.done.add(last)
        assert last is not None, "a run has at least one step"
        stages = self._stages_of(run_id, last, config)
        for stage in stages:
            self.stages.setdefault(stage.id, stage)
        self.done.update(stage.id for stage in stages if stage.id in self.done_stages)
        self.runs[run_id] = RunPlan(config, last, tuple(stage.id for stage in stages))

    def trunk_id(self, config: RunConfig) -> str:
        """Digest of `RunConfig.trunk`, remembered for runs that differ in their length only."""
        fields = {k: v for k, v in config.__dict__.items() if k not in ("steps", "warmdown_steps")}
        key = tuple(id(v) if isinstance(v, BaseModel) else v for v in fields.values())
        if key not in self.trunk_ids:
            self.trunk_ids[key] = trunk_id(config)
        return self.trunk_ids[key]

    def _settings(self, config: RunConfig, kind: str) -> str:
        """Digest of a stage's settings, remembered for the sections that runs have in common."""
        key = (kind, id(config.eval), id(config.quant), id(config.ttt))
        if key not in self.settings:
            self.settings[key] = digest(KINDS[kind].settings(config))
        return self.settings[key]

    def _stages_of(self, run_id: str, last: str, config: RunConfig) -> list[Node]:
        """The stages that the sweep asks for, and those that they start from."""
        stages: dict[str, Node] = {}
        ids: dict[str, str] = {}

        def add(kind: str) -> str:
            if kind in ids:
                return ids[kind]
            needed = KINDS[kind].after
            after = last if needed is None else add(needed)
            lineage = f"{kind} {after} {self._settings(config, kind)}"
            ids[kind] = stage_id = f"{kind}-{hashlib.sha256(lineage.encode()).hexdigest()[:16]}"
            stages[stage_id] = Node(stage_id, kind, after, config, (run_id,))
            return stage_id

        for kind in self.sweep.stages:
            add(kind)
        return list(stages.values())

    def ordered(self) -> dict[str, Node]:
        """Training with its runs, parents first: trunk by trunk, branches after their trunk; then stages."""
        ends = {run.last for run in self.runs.values()}
        rank = {
            trunk_id: i
            for i, trunk_id in enumerate(dict.fromkeys(s.trunk_id for s in self.segments.values()))
        }
        in_order = sorted(
            self.segments.values(), key=lambda s: (rank[s.trunk_id], not s.trunk, s.start, s.stop, s.id)
        )
        training = {
            s.id: replace(s, runs=tuple(self.runs_at.get(s.id, ())), final=s.id in ends) for s in in_order
        }
        return training | self.stages
