"""The tree of segments: exact, minimal, and built upon what a store has."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gepa_core.config import ExecConfig, RunConfig, digest
from gepa_core.schedule import lr_multiplier
from gepa_core.sections import EvalConfig, QuantConfig, TTTConfig
from sweeps.kinds.table import USUAL_STAGES
from sweeps.plan.estimate import eta_seconds, naive_hours, shared_hours
from sweeps.plan.planner import make_plan
from sweeps.plan.tree import KnownSegment, Plan
from sweeps.spec.load import load_sweep, read_sweep
from sweeps.spec.sweep import Resources, Sweep

PUBLISHED = [(9000, 4000), (12000, 5000), (15000, 6000), (20000, 8000), (25000, 13000)]


def links(plan: Plan) -> list[tuple[str, str | None]]:
    """Every node and what it comes after, in the plan's order."""
    return [(node.id, node.after) for node in plan.nodes.values()]


def sweep_of(*runs: RunConfig, share: bool = True, stages: tuple[str, ...] = USUAL_STAGES) -> Sweep:
    unique = tuple(dict.fromkeys(runs))
    return Sweep("test", "gepa-11l", unique, stages, Resources(), ExecConfig(), share)


def known_of(plan: Plan, kept: bool = True, ids: set[str] | None = None) -> list[KnownSegment]:
    return [
        KnownSegment(s.id, s.after, s.trunk_id, s.start, s.stop, s.trunk, kept)
        for s in plan.segments.values()
        if ids is None or s.id in ids
    ]


@st.composite
def run_configs(draw: st.DrawFn) -> RunConfig:
    steps = draw(st.integers(1, 14))
    return RunConfig(
        steps=steps,
        warmdown_steps=draw(st.integers(0, steps)),
        schedule=draw(st.sampled_from(["linear", "cosine", "1-sqrt", "constant"])),
        seed=draw(st.integers(0, 1)),
        quant=QuantConfig(method=draw(st.sampled_from(["reference", "per_row"]))),
        ttt=TTTConfig(epochs=draw(st.integers(0, 1))),
        eval=EvalConfig(stride=draw(st.sampled_from([32, 64]))),
    )


grids = st.lists(run_configs(), min_size=1, max_size=12)


def unit_steps(run: RunConfig) -> set[tuple[object, ...]]:
    """The single steps a run is made of, named by all that they depend on."""
    trunk = run.seed
    branch = (run.schedule, run.steps, run.warmdown_steps)
    return {(trunk, step) if step < run.peak_steps else (trunk, step, *branch) for step in range(run.steps)}


def check_coherent(plan: Plan) -> None:
    """Chains join up, cover each run exactly, and follow the schedule of every run through them."""
    for run_id, run in plan.runs.items():
        config, at = run.config, 0
        for segment in (plan.segments[id_] for id_ in plan.segments_of(run_id)):
            assert segment.start == at < segment.stop
            at = segment.stop
            for step in range(segment.start, segment.stop):
                assert multiplier(config, step) == multiplier(segment.config, step)
            assert run_id in plan.runs_of[segment.id]
        assert at == config.steps
        assert plan.segments[run.last].final and run_id in plan.segments[run.last].runs
    seen: set[str] = set()
    for node, after in links(plan):
        assert after is None or after in seen
        seen.add(node)


def multiplier(config: RunConfig, step: int) -> float:
    return lr_multiplier(
        step, steps=config.steps, warmdown_steps=config.warmdown_steps, schedule=config.schedule
    )


@given(grids)
def test_tree_is_exact_and_minimal(runs: list[RunConfig]) -> None:
    plan = make_plan(sweep_of(*runs))
    check_coherent(plan)
    planned = [
        (segment.trunk_id, step, None if segment.trunk else segment.id)
        for segment in plan.segments.values()
        for step in range(segment.start, segment.stop)
    ]
    assert len(planned) == len(set(planned)), "a step is planned twice"
    assert plan.steps_shared == len(set().union(*map(unit_steps, runs)))
    assert plan.steps_naive == sum(run.steps for run in set(runs))


@given(grids)
def test_unshared_runs_have_nothing_in_common(runs: list[RunConfig]) -> None:
    plan = make_plan(sweep_of(*runs, share=False))
    check_coherent(plan)
    assert plan.steps_shared == plan.steps_naive
    assert len(plan.segments) == len(plan.runs)
    shared = make_plan(sweep_of(*runs))
    assert not plan.segments.keys() & shared.segments.keys()
    assert not plan.stages.keys() & shared.stages.keys()


@given(grids, grids)
def test_more_runs_build_on_a_finished_sweep(first: list[RunConfig], more: list[RunConfig]) -> None:
    old = make_plan(sweep_of(*first))
    plan = make_plan(sweep_of(*first, *more), known_of(old), old.stages)
    check_coherent(plan)
    assert plan.done >= old.segments.keys() | old.stages.keys()
    for run_id in old.runs:
        assert plan.segments_of(run_id) == old.segments_of(run_id)
    states = {(s.config.seed, s.stop) for s in old.segments.values() if s.trunk}
    assert plan.steps_left == brute_force_left(set(more) - set(first), states, first)


@given(grids, grids, st.data())
def test_what_is_left_is_minimal_whatever_states_were_kept(
    first: list[RunConfig], more: list[RunConfig], data: st.DataObject
) -> None:
    """Also with half-finished sweeps: any subset closed under ancestry, any of its states deleted."""
    old = make_plan(sweep_of(*first))
    done: set[str] = set()
    known = []
    for segment in old.segments.values():
        if (segment.after is None or segment.after in done) and data.draw(st.booleans()):
            done.add(segment.id)
            known += [replace_kept(s, data.draw(st.booleans())) for s in known_of(old, ids={segment.id})]
    plan = make_plan(sweep_of(*more), known)
    check_coherent(plan)
    kept = {s.id for s in known if s.kept}
    for node, after in links(plan):
        if node not in plan.done:
            assert after is None or after not in plan.done or after in kept, "starts from a deleted state"
            assert node not in {s.id for s in known}, "a result would be replaced"
    states = {(s.config.seed, s.stop) for s in old.segments.values() if s.trunk and s.id in kept}
    finished = [
        run
        for run in more
        if any(
            s.id in kept and not s.trunk and unit_steps(run) >= unit_steps(s.config) >= unit_steps(run)
            for s in old.segments.values()
        )
    ]
    assert plan.steps_left == brute_force_left(set(more), states, finished)


def replace_kept(segment: KnownSegment, kept: bool) -> KnownSegment:
    return replace(segment, kept=kept)


def brute_force_left(runs: set[RunConfig], states: set[tuple[int, int]], finished: list[RunConfig]) -> int:
    """Single steps to be taken for `runs`, given trunk states (seed, step) and wholly finished runs."""
    done = set().union(*map(unit_steps, finished)) if finished else set()
    needed: set[tuple[object, ...]] = set()
    for run in runs:
        steps = unit_steps(run)
        branch = {step for step in steps if len(step) > 2}
        if branch and branch <= done:
            continue
        trunk = len(steps) - len(branch)
        start = max((at for seed, at in states if seed == run.seed and at <= trunk), default=0)
        needed |= branch | {step for step in steps - branch if step[1] >= start}  # type: ignore[operator]
    return len(needed)


@given(grids)
def test_half_finished_sweep_plans_the_same_tree(runs: list[RunConfig]) -> None:
    plan = make_plan(sweep_of(*runs))
    half = set(list(plan.segments)[: len(plan.segments) // 2])
    again = make_plan(sweep_of(*runs), known_of(plan, ids=half))
    assert again.segments.keys() == plan.segments.keys()
    assert again.done == half


@given(grids)
def test_everything_can_be_executed_in_ready_order(runs: list[RunConfig]) -> None:
    plan = make_plan(sweep_of(*runs))
    done: set[str] = set()
    while ready := plan.ready(done):
        assert [plan.priority[node] for node in ready] == sorted(
            (plan.priority[node] for node in ready), reverse=True
        )
        done.add(ready[0])
    assert done == set(plan.nodes)


def test_published_points_and_a_longer_one() -> None:
    runs = [RunConfig(steps=s, warmdown_steps=w) for s, w in [*PUBLISHED, (30000, 18000)]]
    plan = make_plan(sweep_of(*runs))
    assert (plan.steps_naive, plan.steps_shared) == (111_000, 66_000)
    assert plan.critical_path_steps == 30_000
    trunk = [(s.start, s.stop) for s in plan.segments.values() if s.trunk]
    assert trunk == [(0, 5000), (5000, 7000), (7000, 9000), (9000, 12000)]


def test_five_by_five_grid() -> None:
    sweep = read_sweep(
        "grid: {steps: [9000, 12000, 15000, 20000, 25000], warmdown_ratio: [.2, .3, .4, .5, .6]}\n"
        "resources: {gpus_per_run: 4}"
    )
    plan = make_plan(sweep)
    assert (plan.steps_naive, plan.steps_shared) == (405_000, 182_000)
    # 500.4 ms a step on 4 A100s, 2,074 s of TTT on the same: the published run's own figures.
    assert naive_hours(plan).train == pytest.approx(225, abs=1)
    assert shared_hours(plan).train == pytest.approx(101, abs=1)
    assert shared_hours(plan).ttt == naive_hours(plan).ttt == pytest.approx(58, abs=1)


def test_stages_fork_as_late_as_they_can() -> None:
    run = RunConfig(steps=100, warmdown_steps=40)
    same = {"quant": QuantConfig(calibration_tokens=7)}  # of no effect on this quantizer
    runs = [run.model_copy(update=change) for change in ({}, same, {"ttt": TTTConfig(epochs=3)})]
    runs.append(run.model_copy(update={"quant": QuantConfig(method="per_row")}))
    plan = make_plan(sweep_of(*runs))
    assert plan.steps_shared == 100
    kinds = [stage.kind for stage in plan.stages.values()]
    counts = {kind: kinds.count(kind) for kind in kinds}
    assert counts == {"float": 1, "ema": 1, "quantize": 2, "int6": 2, "int6_sliding": 2, "ttt": 3}
    first, second, third, fourth = plan.runs.values()
    assert first.stages == second.stages
    assert first.stages[:-1] == third.stages[:-1]
    assert first.stages[:2] == fourth.stages[:2]


def test_an_artifact_that_fills_the_cap_belongs_to_its_script() -> None:
    """The TTT settings are in the script, and their digits in its length."""
    rd = QuantConfig(method="rd")
    for quant, artifacts in ((rd, 2), (rd.model_copy(update={"budget_bytes": 15_900_000}), 1)):
        run = RunConfig(steps=100, warmdown_steps=40, quant=quant)
        plan = make_plan(sweep_of(run, run.model_copy(update={"ttt": TTTConfig(lr=0.00213)})))
        assert len([stage for stage in plan.stages.values() if stage.kind == "quantize"]) == artifacts


def test_a_sweep_may_choose_its_stages() -> None:
    run = RunConfig(steps=10, warmdown_steps=4)
    kinds = [s.kind for s in make_plan(sweep_of(run, stages=("ema", "int6"))).stages.values()]
    assert kinds == ["ema", "quantize", "int6"]
    assert not make_plan(sweep_of(run, stages=())).stages


def test_new_branch_starts_from_the_nearest_earlier_state() -> None:
    old = make_plan(sweep_of(*(RunConfig(steps=s, warmdown_steps=w) for s, w in PUBLISHED)))
    plan = make_plan(sweep_of(RunConfig(steps=10_000, warmdown_steps=2_000)), known_of(old), old.stages)
    chain = [plan.segments[id_] for id_ in plan.segments_of(next(iter(plan.runs)))]
    assert [(s.start, s.stop) for s in chain] == [(0, 5000), (5000, 7000), (7000, 8000), (8000, 10000)]
    assert plan.steps_left == 1000 + 2000


def test_adopted_checkpoint_is_a_state_to_start_from() -> None:
    run = RunConfig(steps=100, warmdown_steps=40)
    trunk_id = next(iter(make_plan(sweep_of(run)).segments.values())).trunk_id
    adopted = KnownSegment("adopted", None, trunk_id, 0, 50, trunk=True, kept=True)
    plan = make_plan(sweep_of(run), [adopted])
    assert [(s.start, s.stop) for s in plan.segments.values()] == [(0, 50), (50, 60), (60, 100)]
    assert plan.steps_left == 50


def test_more_test_time_training_needs_the_artifact_only() -> None:
    run = RunConfig(steps=100, warmdown_steps=40)
    old = make_plan(sweep_of(run))
    # What a finished sweep leaves: the trunk's state, and no state of the run itself.
    known = [replace(s, kept=s.trunk) for s in known_of(old)]
    plan = make_plan(sweep_of(run.model_copy(update={"ttt": TTTConfig(epochs=2)})), known, old.stages)
    assert [plan.stages[node].kind for node in plan.nodes if node not in plan.done] == ["ttt"]


def test_eta_is_between_the_critical_path_and_all_work_in_turn() -> None:
    plan = make_plan(sweep_of(*(RunConfig(steps=s, warmdown_steps=w) for s, w in PUBLISHED)))
    total = sum(plan.seconds.values())
    assert eta_seconds(plan, 1) == pytest.approx(total)
    assert eta_seconds(plan, 1000) == pytest.approx(max(plan.priority.values()))
    assert max(plan.priority.values()) < eta_seconds(plan, 2) < total
    assert eta_seconds(replace(plan, done=frozenset(plan.nodes)), 1) == 0.0


def calls_to_plan(lengths: int, ratios: int) -> tuple[int, int]:
    """(runs, calls of Python functions, resumed generators among them) of a grid's plan."""
    sweep = read_sweep(
        f"grid: {{steps: {[1000 + 100 * i for i in range(lengths)]}, "
        f"warmdown_ratio: {[round(0.05 + 0.04 * i, 2) for i in range(ratios)]}}}"
    )
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        plan = make_plan(sweep)
        priority = plan.priority
    finally:
        sys.setprofile(None)
    assert len(priority) == len(plan.segments) + len(plan.stages)
    return len(plan.runs), calls


def test_the_work_of_a_plan_grows_with_its_runs() -> None:
    """Ten thousand runs take seconds (benchmarks.orchestration --plan says how many)."""
    few, many = calls_to_plan(10, 10), calls_to_plan(40, 10)
    assert many[0] == 4 * few[0]
    assert many[1] < 5 * few[1]


@pytest.mark.parametrize(
    ("sweep", "ids"),
    [("published", "dd74d4633ea6e3e4"), ("schedules", "011c518e09432e1c"), ("quantizer", "d223e92e9981c91d")],
)
def test_ids_are_those_of_stores_made_before(sweep: str, ids: str) -> None:
    """Ids name results on disk. Where one has to move, raise `numerics_version` and say so.

    They moved with version 3 (Newton-Schulz of one arithmetic on every CPU).
    """
    folder = Path(__file__).parents[2] / "sweeps"
    overrides = ("quant.method=[reference,per_row,rd]", "stages=[float,ema,int6,int6_sliding]")
    found = load_sweep(folder / f"{sweep}.yaml", overrides if sweep == "quantizer" else ())
    assert digest(sorted(make_plan(found).nodes))[:16] == ids
