"""The smallest tree of segments that contains every run of a grid, and the stages after them. Pure.

Runs that agree in everything but how long the constant phase lasts and what follows share one trunk: the
states where their constant phases end are its branch points. Schedule shape, quantizer and TTT settings fork
as late as they can. What a store already has is built upon, from the nearest earlier kept state.
(The idea of merging shared prefixes: Hippo's stage tree, PVLDB 15(5), 2022.)
"""

import hashlib
import itertools
from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from pydantic import BaseModel

from gepa_core.config import Average, RunConfig, digest
from sweeps.kinds.script import ScriptRun
from sweeps.kinds.table import KINDS, SCRIPT, SEGMENT
from sweeps.plan.speeds import CPU_WORKER, H200, PUBLISHED_A100, PUBLISHED_VAL_TOKENS, Speeds
from sweeps.plan.speeds import SCRIPT as SCRIPT_SPEED
from sweeps.plan.tree import KnownSegment, Node, Plan, RunPlan
from sweeps.spec.sweep import Run, Sweep


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
        name = planner.unaveraged(config) if sweep.share else f"alone-{run_id[-10:]}"
        trunks.setdefault(name, []).append((run_id, config))
    for name, members in trunks.items():
        planner.grow(name, members)
    return Plan(
        sweep=sweep,
        runs={run_id: planner.runs[run_id] for members in trunks.values() for run_id, _ in members},
        nodes=planner.ordered(),
        done=frozenset(planner.done),
        speeds=speeds or assumed_speeds(sweep),
        val_tokens=sweep.val_tokens or PUBLISHED_VAL_TOKENS,
    )


def assumed_speeds(sweep: Sweep) -> Speeds:
    """For a sweep of which nothing was timed yet."""
    if sweep.script:
        return SCRIPT_SPEED
    if not sweep.resources.gpus_per_run:
        return CPU_WORKER
    asked = " ".join(sweep.resources.node_labels.values())
    return H200 if any(name in asked for name in ("H100", "H200")) else PUBLISHED_A100


def trunk_id(config: Run, decays: Sequence[float] = ()) -> str:
    """Names the constant phase that a run shares with all runs of the same name.

    decays: of the averages that its states hold, where they are others than the run's own alone.
    """
    return digest(config.trunk(decays))[:16]


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


def _tail(config: Run) -> list[object]:
    """What the branch of a run depends on besides its trunk: values of usual keys, pairs of others."""
    tail = list(config.tail().items())
    return [value for _, value in tail[:_USUAL]] + [list(pair) for pair in tail[_USUAL:]]


def _point(config: Run) -> int:
    """The step of the trunk at which a run's own part begins.

    A script's run always has one: what it measures at its end is not done where it only saves a state.
    """
    return 0 if isinstance(config, ScriptRun) and config.warmdown_steps == 0 else config.peak_steps


_USUAL = 4  # schedule, steps, warmdown_steps and final_lr_fraction, in every identity
_Run = tuple[str, Run]


@dataclass
class _Trunk:
    """A constant phase with what branches off it, while it grows."""

    id: str
    held: tuple[Average, ...]
    """The averages in its states."""
    averages: dict[tuple[int, str], tuple[Average, ...]]
    """Of branches, by point and tail: the same, but where some have another horizon in a warmdown."""
    available: dict[int, str | None]
    """States to start from, by step."""
    steps: list[int]
    """Of `available`, ascending."""

    def of(self, config: Run) -> tuple[Average, ...]:
        return self.averages[_point(config), str(_tail(config))]


class _Planner:
    def __init__(self, sweep: Sweep, known: Iterable[KnownSegment], done_stages: Collection[str]) -> None:
        self.sweep = sweep
        self.known = {segment.id: segment for segment in known}
        self.done_stages = frozenset(done_stages)
        # A run by itself has no trunk whose states could be merged.
        self.stages_wanted = [kind for kind in sweep.stages if sweep.share or not KINDS[kind].states]
        self.runs: dict[str, RunPlan] = {}
        self.segments: dict[str, Node] = {}
        self.stages: dict[str, Node] = {}
        self.done: set[str] = set()
        self.runs_at: dict[str, list[str]] = {}
        self.settings: dict[tuple[object, ...], str] = {}
        self.digests: dict[tuple[object, ...], str] = {}
        # Finished trunk segments by trunk and stop.
        self.finished: dict[str, dict[int, list[KnownSegment]]] = {}
        # And by what they depend on but for the averages that they hold.
        self.observed: dict[str, list[KnownSegment]] = {}
        whole: dict[str | None, bool] = {None: True}
        for segment in sorted(self.known.values(), key=lambda s: (s.stop, s.id)):
            # A chain with a missing link cannot be told to the end: not built upon.
            whole[segment.id] = segment.trunk and whole.get(segment.parent, False)
            if whole[segment.id]:
                self.finished.setdefault(segment.trunk_id, {}).setdefault(segment.stop, []).append(segment)
                self.observed.setdefault(segment.observed, []).append(segment)

    def grow(self, name: str, members: list[_Run]) -> None:
        """One trunk and the branches off it."""
        trunk = self._trunk(name, members)
        by_point: dict[int, list[_Run]] = {}
        for run_id, config in members:
            by_point.setdefault(_point(config) if self.sweep.share else 0, []).append((run_id, config))
        finished = self.finished.get(trunk.id, {})
        merging = self._merging(trunk, members)
        for point in sorted({*by_point, *merging}):
            runs = by_point.get(point, [])
            needy = [run for run in runs if not self._finished(trunk, run, finished.get(point, []))]
            if not needy and point not in merging:
                continue
            if point not in trunk.available:
                # The segment's representative validates here: a run that ends here, if there is one.
                wanting = [config for _, config in needy] or [merging[point]]
                self._extend(trunk, point, min(wanting, key=lambda config: config.steps))
            state = trunk.available[point]
            if state in self.known:
                self._adopt(trunk, state, needy[0][1] if needy else merging[point])
            for run_id, config in needy:
                self._finish(trunk, state, point, run_id, config)

    def _trunk(self, name: str, members: list[_Run]) -> _Trunk:
        """An empty one for these runs, with an average for each horizon that one of them asks for.

        Averages change nothing of the training: a finished trunk that holds more of them serves as well.
        """
        first = members[0][1]
        decays = tuple(sorted({config.ema_decay for _, config in members}))
        id_ = trunk_id(first, decays) if self.sweep.share else name
        if self.sweep.share and id_ not in self.finished:
            holding = [s for s in self.observed.get(name, ()) if {*decays} <= {*s.decays}]
            if richer := max(holding, key=lambda s: (s.stop, s.id), default=None):
                id_, decays = richer.trunk_id, richer.decays
        held = tuple(Average(decay) for decay in decays)
        asked: dict[tuple[int, str], set[Average]] = {}
        for _, config in members:
            asked.setdefault((_point(config), str(_tail(config))), set()).add(config.average)
        averages = {key: held if more <= {*held} else (*sorted(more),) for key, more in asked.items()}
        # Every point is computed from the nearest state below it.
        available: dict[int, str | None] = {0: None}
        for stop, ends in self.finished.get(id_, {}).items():
            kept = [segment.id for segment in ends if segment.kept]
            available |= {stop: kept[0]} if kept else {}
        return _Trunk(id_, held, averages, available, sorted(available))

    def _merging(self, trunk: _Trunk, members: list[_Run]) -> dict[int, Run]:
        """Steps at which the trunk is cut because a stage yet to be done merges the states there."""
        steps: dict[int, Run] = {}
        for kind in self.stages_wanted:
            if states := KINDS[kind].states:
                for _, config in members:
                    if self._stage_id(trunk, kind, "", config) not in self.done_stages:
                        steps |= dict.fromkeys(states(config), config)
        return steps

    def _finished(self, at: _Trunk, run: _Run, chains: list[KnownSegment]) -> bool:
        """Whether a run, if it follows one of these finished chains, needs nothing of the chain's state.

        It is entered into the plan then.
        """
        run_id, config = run
        for trunk in chains:
            last = trunk.id
            if trunk.stop < config.steps:
                last = self._branch_id(at, trunk.id, trunk.stop, config)
                if last not in self.known:
                    continue
            if last != trunk.id or self._measured(at, last, config):
                self._adopt(at, trunk.id, config)
                self._finish(at, trunk.id, trunk.stop, run_id, config)
                return True
        return False

    def _branch_id(self, trunk: _Trunk, state: str | None, point: int, config: Run) -> str:
        """The branch's segment: a finished one, if it is still of use to this run, or a new one.

        A result is never replaced, so work done again because its state was deleted gets an id of its own.
        """
        tail = _tail(config)
        tail += [list(map(list, trunk.of(config)))] if trunk.of(config) != trunk.held else []
        for again in itertools.count():
            branch_id = _segment_id(trunk.id, state, point, config.steps, tail, again)
            known = self.known.get(branch_id)
            if known is None or known.kept or self._measured(trunk, branch_id, config):
                return branch_id
        raise AssertionError("unreachable")

    def _measured(self, trunk: _Trunk, last: str, config: Run) -> bool:
        """Whether no stage needs the run's final state any more; int6 and later need the artifact only."""
        stages = self._stages_of(trunk, "", last, config)
        return all(stage.id in self.done_stages for stage in stages if stage.after == last)

    def _adopt(self, trunk: _Trunk, segment_id: str, config: Run) -> None:
        """Enter a finished segment and its lineage into the plan."""
        at: str | None = segment_id
        while at is not None and at not in self.done:
            segment = self.known[at]
            self._enter(trunk, at, segment.parent, segment.start, segment.stop, config)
            self.done.add(at)
            at = segment.parent

    def _extend(self, trunk: _Trunk, stop: int, config: Run) -> None:
        """A new trunk segment. `config` ends its constant phase at `stop`, so it validates there too."""
        at = bisect_left(trunk.steps, stop)
        start = trunk.steps[at - 1]
        parent = trunk.available[start]
        if parent in self.known and parent not in self.segments:
            self._adopt(trunk, parent, config)
        ids = (_segment_id(trunk.id, parent, start, stop, [], again) for again in itertools.count())
        segment_id = next(id_ for id_ in ids if id_ not in self.known)
        self._enter(trunk, segment_id, parent, start, stop, config)
        trunk.available[stop] = segment_id
        trunk.steps.insert(at, stop)

    def _enter(
        self,
        trunk: _Trunk,
        segment_id: str,
        parent: str | None,
        start: int,
        stop: int,
        config: Run,
        *,
        branch: bool = False,
    ) -> None:
        averages = trunk.of(config) if branch else trunk.held
        averages = () if averages == (config.average,) else averages
        kind = SCRIPT if isinstance(config, ScriptRun) else SEGMENT
        self.segments[segment_id] = Node(
            segment_id, kind, parent, config, (), start, stop, not branch, trunk.id, averages=averages
        )

    def _finish(self, trunk: _Trunk, state: str | None, point: int, run_id: str, config: Run) -> None:
        """The branch of a run, if it has one, and its stages."""
        last = state
        self.runs_at.setdefault(state or "", []).append(run_id)
        if point < config.steps:
            last = self._branch_id(trunk, state, point, config)
            self.runs_at.setdefault(last, []).append(run_id)
            if last not in self.segments:
                self._enter(trunk, last, state, point, config.steps, config, branch=True)
            if last in self.known:
                self.done.add(last)
        assert last is not None, "a run has at least one step"
        stages = self._stages_of(trunk, run_id, last, config)
        for stage in stages:
            self.stages.setdefault(stage.id, stage)
        self.done.update(stage.id for stage in stages if stage.id in self.done_stages)
        self.runs[run_id] = RunPlan(config, last, tuple(stage.id for stage in stages))

    def unaveraged(self, config: Run) -> str:
        """Digest of `unaveraged`, remembered for runs that differ in their length only."""
        if isinstance(config, ScriptRun):
            return digest(config.unaveraged())
        fields = {k: v for k, v in config.__dict__.items() if k not in ("steps", "warmdown_steps")}
        key = tuple(id(v) if isinstance(v, BaseModel) else v for v in fields.values())
        if key not in self.digests:
            self.digests[key] = digest(config.unaveraged())
        return self.digests[key]

    def _settings(self, config: Run, kind: str) -> str:
        """Digest of a stage's settings, remembered for the sections that runs have in common."""
        assert isinstance(config, RunConfig), "a script has no stages"
        key: tuple[object, ...] = (kind, id(config.eval), id(config.quant), id(config.ttt), id(config.merge))
        key += (config.merge_steps,) if KINDS[kind].states else ()
        if key not in self.settings:
            self.settings[key] = digest(KINDS[kind].settings(config))
        return self.settings[key]

    def _stage_id(self, trunk: _Trunk, kind: str, after: str, config: Run) -> str:
        """Of the node it comes after (of a trunk's states: of the trunk) and its settings."""
        after = trunk.id if KINDS[kind].states else after
        lineage = f"{kind} {after} {self._settings(config, kind)}"
        if KINDS[kind].averages and trunk.of(config) != (config.average,):
            lineage += f" {config.average}"
        return f"{kind}-{hashlib.sha256(lineage.encode()).hexdigest()[:16]}"

    def _stages_of(self, trunk: _Trunk, run_id: str, last: str, config: Run) -> list[Node]:
        """The stages that the sweep asks for, and those that they start from."""
        stages: dict[str, Node] = {}
        ids: dict[str, str] = {}

        def add(kind: str) -> str:
            if kind in ids:
                return ids[kind]
            needed = KINDS[kind].after
            after: str | None = last if needed is None else add(needed)
            ids[kind] = stage_id = self._stage_id(trunk, kind, after or "", config)
            sources: list[str] = []
            if states := KINDS[kind].states:
                found = [trunk.available.get(step) for step in states(config)]
                sources = [state for state in found if state in self.segments]
                after = sources[-1] if sources else None
            stages[stage_id] = Node(stage_id, kind, after, config, (run_id,), sources=tuple(sources))
            return stage_id

        for kind in self.stages_wanted:
            states = KINDS[kind].states
            if states is None or states(config):
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
