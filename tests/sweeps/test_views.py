"""What a running sweep shows, by a clock that the test moves: counts, time left, lines and bars."""

import io
from dataclasses import dataclass
from typing import Any

import pytest
from rich.console import Console

from sweeps.drive.live import LiveView
from sweeps.drive.progress import HEARTBEAT_SECONDS, PlainView, Watched
from sweeps.drive.tally import Tally
from sweeps.plan.planner import make_plan
from sweeps.plan.tree import Plan
from sweeps.spec.load import read_sweep
from sweeps.store.store import Outcome, Store

SWEEP = """
name: small
recipe: gepa-nano
grid: {steps: [100, 200], warmdown_ratio: [0.5], seed: [1, 2]}
set: {data.dir: nowhere, data.val_tokens: 4096}
stages: [ema, ttt]
resources: {price_per_gpu_hour: 3.0}
"""


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def plan() -> Plan:
    return make_plan(read_sweep(SWEEP))


def tally_of(plan: Plan, clock: Clock, **options: Any) -> Tally:
    return Tally(plan, clock=clock, wall=clock, **options)


def done(node: str, kind: str, seconds: float, **result: float) -> Outcome:
    return Outcome(node, "a", kind, "finished", result=result, seconds=seconds)


def reports(tally: Tally, node: str, pace: float, steps: int) -> list[dict[str, Any]]:
    """Of a training at `pace` seconds a step that has begun when its node did."""
    start, since = tally.plan.nodes[node].start, tally.running[node].since_wall
    return [{"step": start + n, "time": since + pace * n, "val_bpb": 3.0} for n in range(1, steps + 1)]


def test_time_left_is_that_of_the_steps_seen_and_not_of_rays_start() -> None:
    plan, clock = make_plan(read_sweep(SWEEP.replace("[ema, ttt]", "[]"))), Clock()
    tally = tally_of(plan, clock, workers=2)
    clock.now += 60  # Ray starts
    node = plan.ready(())[0]
    tally.started(node, "a", "one")
    assert not tally.is_measured
    clock.now += 10
    tally.running[node].reports = reports(tally, node, 0.5, 20)
    assert tally.is_measured and (tally.steps_done, tally.steps_all) == (20, 500)
    even = 0.5 * 480 / 2
    assert even <= tally.seconds_left() < 1.3 * even, "two workers share the steps left"
    alone = tally_of(plan, clock, runs=[next(iter(plan.runs))])
    assert alone.steps_all == 100 and alone.runs_all == 1


def test_what_is_lost_or_done_is_not_waited_for(plan: Plan) -> None:
    clock = Clock()
    tally = tally_of(plan, clock)
    for id_, node in plan.nodes.items():
        tally.started(id_, "a", "one")
        clock.now += 2
        if node.kind == "ttt" and node.runs[0] == next(iter(plan.runs)):
            tally.gave_up(id_)
            continue
        value = {f"{node.kind}_bpb": 2.0 + node.config.steps / 1000} if not node.trains else {}
        tally.finished(id_, done(id_, node.kind, 2.0, **value))
    assert tally.runs_done == 3 and tally.lost == {next(iter(plan.runs))}
    assert tally.seconds_left() == 0 and tally.work_done < 1
    assert tally.best == (2.1, next(r for r in list(plan.runs)[1:] if r.startswith("100-")), "ttt")
    assert tally.cost_seconds == 2.0 * len(plan.nodes)


def test_a_large_sweep_is_not_played_through() -> None:
    text = SWEEP.replace("[1, 2]", str(list(range(800))))
    plan, clock = make_plan(read_sweep(text)), Clock()
    tally = tally_of(plan, clock, workers=10)
    total = sum(plan.seconds.values())
    assert tally.seconds_left() == pytest.approx(total / 10, rel=0.01)


def view_of(plan: Plan, clock: Clock, tmp_path: Any) -> Watched:
    return Watched(plan, Store(tmp_path), tally_of(plan, clock))


def play(view: Any, plan: Plan, clock: Clock) -> None:
    """Everything of a sweep happens, a second a node."""
    view.show("say", "", text="starting a local Ray")
    for id_, node in plan.nodes.items():
        view.show("started", id_, attempt="a", lease="one", attempts=0)
        clock.now += 1
        view.refresh()
        result = {f"{node.kind}_bpb": 2.5} if not node.trains else {"tokens_per_second": 1e4}
        view.show("finished", id_, outcome=done(id_, node.kind, 1.0, **result))


def test_plain_lines_are_few_and_a_heartbeat_comes_by_the_minute(plan: Plan, tmp_path: Any) -> None:
    clock, lines = Clock(), []
    view = PlainView(view_of(plan, clock, tmp_path), lines.append)
    play(view, plan, clock)
    trained = sum(node.trains for node in plan.nodes.values())
    assert len(lines) == 2 + trained + len(plan.runs), "no line for a stage of a second"
    assert "Ray takes some 10 s" in lines[1]
    assert f"run 4 of 4 {list(plan.runs)[-1]}: EMA 2.5000, TTT 2.5000 BPB" in lines[-1]
    quiet = len(lines)
    for _ in range(3 * 120):
        clock.now += HEARTBEAT_SECONDS / 120
        view.refresh()
    assert len(lines) == quiet + 3
    assert "500 of 500 steps" in lines[-1] and "4 of 4 runs" in lines[-1] and "$" in lines[-1]
    view.show("retry", "", observed="lost", error="gone", log=["last words"])
    assert lines[-1] == "    | last words"


@pytest.mark.parametrize("width", [80, 120])
def test_the_live_view_fits_and_names_work_as_the_plan_does(width: int, plan: Plan, tmp_path: Any) -> None:
    clock, out = Clock(), io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, height=24, legacy_windows=False)
    view = LiveView(view_of(plan, clock, tmp_path), console)
    try:
        first = rendered(view, width)
        assert "Ray takes some 10 s" in first
        node = next(id_ for id_, n in plan.nodes.items() if n.trains and not n.trunk)
        view.show("started", node, attempt="a", lease="one", attempts=0)
        assert "loading torch" in rendered(view, width)
        tally = view.watched.tally
        tally.running[node].reports = reports(tally, node, 0.1, 5)
        shown = rendered(view, width)
        work = plan.nodes[node]
        assert f"{work.start:,} → {work.stop:,}" in shown and work.runs[0] in shown
        assert "3.0000 BPB" in shown and "left" in shown
        assert ("linear over" in shown) == (width == 120)
        assert max(map(len, shown.splitlines())) <= width
    finally:
        view.close()


def rendered(view: LiveView, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, height=24, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(view.render())
    return capture.get()
