"""What a plan costs, where it fits, and what it advises."""

import argparse
import json
from pathlib import Path

import pytest

from gepa_core.config import RunConfig
from gepa_core.device import ProductSpeeds
from gepa_core.sizes import measure_flops, num_params, parameter_numels, step_flops
from sweeps.commands.capacity import capacity, emulated, unused_gpus
from sweeps.kinds.table import KINDS, SEGMENT
from sweeps.plan.advice import advise
from sweeps.plan.estimate import Machine, places, refusal, summary
from sweeps.plan.planner import assumed_speeds, make_plan
from sweeps.plan.speeds import (
    CPU_WORKER,
    H200,
    PUBLISHED_A100,
    PUBLISHED_VAL_TOKENS,
    Measurement,
    Speeds,
)
from sweeps.spec.load import read_sweep
from sweeps.spec.sweep import Sweep

REFERENCE = RunConfig(steps=25_000, warmdown_steps=13_000)
SOUND = """\
grid: {steps: [9000, 12000, 15000], warmdown_ratio: [.2, .6], seed: [1, 2]}
resources: {gpus_per_run: 4}
"""


def test_arithmetic_of_the_reference_size() -> None:
    """Against the figures of the published run: parameters, FLOPs a step, of sliding scores and of TTT."""
    assert num_params(REFERENCE.model) == 27_030_107
    large = [n for n in parameter_numels(REFERENCE.model).values() if n > 65_536]
    assert len(large) == 69
    assert step_flops(REFERENCE) == pytest.approx(179.9e12, rel=0.001)
    plain, sliding, ttt = (
        measure_flops(way, REFERENCE, PUBLISHED_VAL_TOKENS) for way in ("plain", "sliding", "ttt")
    )
    assert sliding == pytest.approx(151e15, rel=0.005) == plain * 32
    assert ttt == pytest.approx(287e15, rel=0.005)


def test_published_speeds_give_back_the_published_times() -> None:
    plan = make_plan(
        read_sweep("points: [{steps: 25000, warmdown_steps: 13000}]\nresources: {gpus_per_run: 4}")
    )
    figures = summary(plan, leases=1, leases_basis="")
    assert figures["gpu_hours_train_naive"] * 3600 / 4 == pytest.approx(12_509, rel=0.002)
    assert figures["gpu_hours_ttt_naive"] * 3600 / 4 == pytest.approx(2074, rel=0.005)
    assert figures["hours_of"] == "GPU" and "published" in figures["speeds"]


def test_cost_follows_the_price_and_what_is_done_is_not_left() -> None:
    sweep = read_sweep(SOUND.replace("4}", "4, price_per_gpu_hour: 3}"))
    plan = make_plan(sweep)
    figures = summary(plan, leases=2, leases_basis="8 GPUs")
    assert figures["cost_naive"] == pytest.approx(3 * figures["gpu_hours_naive"])
    assert figures["cost_naive"] > figures["cost_shared"] == figures["cost_left"]
    assert figures["critical_path_hours"] < figures["eta_hours"] < figures["gpu_hours_left"] / 4
    assert json.loads(json.dumps(figures)) == figures
    free = summary(make_plan(read_sweep(SOUND)), leases=1, leases_basis="")
    assert free["cost_naive"] is None and free["price_per_gpu_hour"] is None


def test_measured_speeds_replace_published_ones_by_kind() -> None:
    speeds = CPU_WORKER.measured(
        [
            Measurement("train", 1e12, 10.0, 2),
            Measurement("train", 3e12, 10.0, 2),
            Measurement("ttt", 5e9, 1.0, 1),
        ]
    )
    assert speeds.train == pytest.approx(1e11) and speeds.ttt == 5e9
    assert speeds.evaluate == CPU_WORKER.evaluate
    assert speeds.source.startswith("measured in this store (train, ttt); evaluate: ")
    assert PUBLISHED_A100.measured([]) is PUBLISHED_A100


def asking(resources: str, execution: str = "") -> Sweep:
    return read_sweep(
        f"grid: {{steps: [9], warmdown_ratio: [.5]}}\nresources: {resources}\nexec: {{{execution}}}"
    )


A100 = Machine({"CPU": 64, "GPU": 8, "memory": 512e9}, {"gpu": "A100"})
H100 = Machine({"CPU": 16, "GPU": 8, "memory": 512e9}, {"gpu": "H100"})


@pytest.mark.parametrize(
    ("resources", "nodes", "leases"),
    [
        ("{gpus_per_run: 4}", [A100], 2),
        ("{gpus_per_run: 4}", [A100, H100], 4),
        ("{gpus_per_run: 4, node_labels: {gpu: H100}}", [A100, H100], 2),
        ("{gpus_per_run: 16}", [A100, H100], 1),
        ("{gpus_per_run: 0.25}", [A100], 32),
        ("{gpus_per_run: 0.1, cpus_per_run: .1}", [A100], 80),
        ("{gpus_per_run: 1, cpus_per_run: 4}", [H100], 4),
        ("{gpus_per_run: 1, memory_gb_per_run: 100}", [A100], 5),
        ("{gpus_per_run: 1, custom: {fast: 1}}", [A100], 0),
        ("{gpus_per_run: 8, node_labels: {gpu: H200}}", [A100, H100], 0),
        ("{}", [A100], 64),
    ],
)
def test_places(resources: str, nodes: list[Machine], leases: int) -> None:
    sweep = asking(resources)
    assert places(sweep, nodes) == leases
    assert (refusal(sweep, nodes) is None) == (leases > 0)


def test_refusal_names_what_is_missing() -> None:
    why = refusal(asking("{gpus_per_run: 16, node_labels: {gpu: A100}}"), [A100, H100])
    assert why is not None
    assert (
        "16 x (1 CPU, 1 GPU) on nodes with labels {'gpu': 'A100'}" in why
        and "at most 64 CPU, 8 GPU each" in why
    )


def options(**given: object) -> argparse.Namespace:
    return argparse.Namespace(**{"address": None, "max_parallel": None, **given})


def test_stated_gpus_stand_for_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    leases, basis, cannot = capacity(asking("{gpus_per_run: 4, cluster_gpus: 64}"), options())
    assert (leases, cannot) == (16, []) and basis.startswith("64 GPUs, 16 runs")
    assert capacity(asking("{gpus_per_run: 4, cluster_gpus: 64}"), options(max_parallel=3))[0] == 3
    leases, _, cannot = capacity(asking("{gpus_per_run: 8, cluster_gpus: 4}"), options())
    assert leases == 1 and "the cluster has 4" in cannot[0]
    leases, basis, cannot = capacity(asking("{gpus_per_run: 4, custom: {nowhere: 1}}"), options())
    assert leases == 1 and cannot[0].startswith("not on this machine: ")


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ("steps=[9000]", "one run length only"),
        ("steps=[9000, 12000]", "two run lengths only"),
        ("warmdown_ratio=[.2, .4]", "no long warmdown in the grid (the longest is 0.40"),
        ("seed=1", "no replicate seeds"),
        (
            "ema_decay=.9996",
            "EMA horizon too long for 4 of 12 runs: with ema_decay 0.9996 over 9000 steps, 3%",
        ),
        ("resources.gpus_per_run=3", "8 spans a step do not divide among 3 ranks"),
        ("muon_momentum_warmup_steps=9001", "Muon's momentum warms up for 9001 steps, longer than 4 of"),
        ("keep_float_max_numel=300000", "int6 reaches only"),
    ],
)
def test_advice_is_given_where_it_is_due_and_only_there(change: str, advice: str) -> None:
    assert advise(read_sweep(SOUND)) == []
    given = advise(read_sweep(SOUND, [change]))
    assert len(given) == 1 and given[0].startswith(advice), given


def test_ema_advice_fits_the_run_it_is_given_for() -> None:
    """The decay that is proposed leaves less than 1 % of the initial weights: 41 % of .997 over 300 steps."""
    settings = ["steps=[300, 9000, 12000]", "muon_momentum_warmup_steps=0", "eval.every=10"]
    (advice,) = advise(read_sweep(SOUND, settings))
    assert "41% of the EMA is still the initial weights" in advice
    proposed = float(advice.rpartition("ema_decay ")[2].split()[0])
    assert proposed**300 <= 0.01 < (proposed + 0.002) ** 300


@pytest.mark.parametrize(
    ("labels", "speeds"),
    [("{}", PUBLISHED_A100), ("{gpu: A100}", PUBLISHED_A100), ("{gpu: NVIDIA-H100}", H200)],
)
def test_the_gpu_asked_for_says_what_speed_is_assumed(labels: str, speeds: Speeds) -> None:
    asked = f"resources={{gpus_per_run: 1, node_labels: {labels}}}"
    assert assumed_speeds(read_sweep(SOUND, [asked])) is speeds


def test_a_finished_sweep_tells_its_own_speed(tmp_path: Path) -> None:
    from sweeps.plan.history import read_history
    from sweeps.store.store import Store
    from tests.tiny_sweep import launch_here, make_data, plan_of, sweep_text

    text = sweep_text(make_data(tmp_path / "data"), {"steps": [4], "warmdown_ratio": [0.5]})
    assert plan_of(text, tmp_path / "results").speeds is CPU_WORKER
    assert launch_here(text, tmp_path / "results").exit_code == 0
    history = read_history(Store(tmp_path / "results"))
    assert {timed.kind for timed in history.on(gpu=False)} == {"train", "evaluate", "ttt"}
    assert history.on(gpu=True) == []
    plan = plan_of(text, tmp_path / "results")
    assert plan.done == set(plan.nodes)
    assert plan.speeds.source == "measured in this store (train, evaluate, ttt)"
    trained = [done for done in Store(tmp_path / "results").all_done().values() if done.kind == "segment"]
    seconds = sum(done.result["train_seconds"] for done in trained)
    estimate = sum(plan.cost(segment)["train"] for segment in plan.segments.values())
    assert estimate == pytest.approx(seconds, rel=0.05)


def test_a_measurement_that_took_as_long_as_estimated_changes_no_estimate() -> None:
    """Runs that share a GPU hold a share of one; whole GPUs, one a rank; CPU workers, one a rank."""
    from sweeps.plan.history import measurement
    from sweeps.store.store import Outcome

    for resources in ("{gpus_per_run: 0.25}", "{gpus_per_run: 4}", "{}"):
        plan = make_plan(asking(resources, "ranks: 2" if resources == "{}" else ""))
        devices = {"gpus": plan.sweep.resources.gpus_per_run, "ranks": plan.sweep.ranks}
        node = next(iter(plan.segments.values()))
        seconds = plan.cost(node)["train"] / plan.sweep.devices
        tokens = node.steps * node.config.batch.tokens_per_step
        result = {"train_seconds": seconds, "tokens_per_second": tokens / seconds}
        done = Outcome(
            node.id, "a", node.kind, "finished", result=result, execution=devices, identity=node.identity()
        )
        timed = measurement(done)
        assert timed is not None
        speeds = plan.speeds.measured([timed])
        assert make_plan(plan.sweep, speeds=speeds).cost(node)["train"] == pytest.approx(
            plan.cost(node)["train"]
        )


def test_validations_of_a_warmdown_are_counted_with_its_branch() -> None:
    """Eight parts of a warmdown of 40 steps, besides the period's own: in the branch, none on the trunk."""
    grid = "grid: {steps: [100], warmdown_ratio: [.4]}\nset: {eval.every: 20, eval.ema_every: 1000"
    plain, seen = (read_sweep(f"{grid}{more}}}").runs[0] for more in ("", ", eval.warmdown_points: 8"))
    cost = KINDS[SEGMENT].cost
    for start, stop, more in ((0, 60, 0), (60, 100, 8), (60, 80, 4), (40, 80, 4)):
        found = cost(seen, 1000, start, stop)["evaluate"] - cost(plain, 1000, start, stop)["evaluate"]
        assert found == pytest.approx(more * measure_flops("plain", plain, 1000)), (start, stop)


def test_a_cpu_sweep_on_a_machine_with_gpus_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine({"CPU": 8, "GPU": 2, "memory": 1e9})
    monkeypatch.setattr("sweeps.commands.capacity.local_node", lambda: machine)
    (said,) = unused_gpus(asking("{}"), options())
    assert "has 2 GPUs" in said
    assert not unused_gpus(asking("{gpus_per_run: 1}"), options())


def test_emulated_bf16_is_told_where_it_would_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gepa_core.device.product_speeds", lambda: ProductSpeeds(fp32=3e10, bf16=1e9))
    (said,) = emulated(asking("{}"), options())
    assert "30 times as long" in said
    assert not emulated(asking("{gpus_per_run: 1}"), options())
    assert not emulated(read_sweep("recipe: gepa-nano\ngrid: {steps: [9], warmdown_ratio: [.5]}"), options())


def test_equal_parts_of_a_warmdown_are_enough_to_measure_it() -> None:
    grid = "grid: {steps: [100, 200, 400], warmdown_ratio: [.5]}\nset: {ema_decay: .9, eval.every: 100"
    plain, seen = (read_sweep(f"{grid}{more}}}") for more in ("", ", eval.warmdown_points: 6"))
    said = [line for line in advise(plain) if "fewer than 6 evaluations" in line]
    assert said and "or eval.warmdown_points: 6" in said[0]
    assert not [line for line in advise(seen) if "evaluations" in line]
