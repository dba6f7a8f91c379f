"""Averages, merges and further stages as axes of a sweep: what they share, and that sharing is exact."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from gepa_core.config import Average, RunConfig, digest
from gepa_core.errors import ConfigError
from gepa_core.sections import QuantConfig
from sweeps.kinds.table import KINDS, USUAL_STAGES
from sweeps.plan.estimate import shared_hours
from sweeps.plan.planner import make_plan
from sweeps.plan.tree import KnownSegment, Plan
from sweeps.spec.load import read_sweep
from sweeps.store.curves import joined
from sweeps.store.schema import RUNS, TRAJECTORY, from_parquet, to_parquet
from sweeps.store.store import Store
from tests.tiny_sweep import launch_here, make_data, plan_of, rows, states, sweep_text

GRID = "grid: {{steps: [1000, 2000], warmdown_ratio: [.2, .4]{more}}}\nstages: [{stages}]\n"


def planned(
    more: str = "", stages: str = "float, ema, int6", known: list[KnownSegment] | None = None
) -> Plan:
    sweep = read_sweep(GRID.format(more=f", {more}" if more else "", stages=stages))
    return make_plan(sweep, known or ())


def without_decay(text: str) -> str:
    """The tiny sweep's own setting, where it is an axis."""
    return text.replace("  ema_decay: 0.5\n", "")


def known_of(plan: Plan) -> list[KnownSegment]:
    """As history.py reads them back."""
    found = []
    for node in plan.segments.values():
        identity = node.identity()
        config = RunConfig.model_validate(identity["config"], strict=False)
        held = identity.get("averages") or [[config.ema_decay]]
        decays = tuple(sorted({average[0] for average in held}))
        place = (node.id, node.after, node.trunk_id, node.start, node.stop, node.trunk)
        found.append(KnownSegment(*place, True, digest(config.unaveraged()), decays))
    return found


def test_averages_retrain_nothing() -> None:
    plain, several = planned(), planned("ema_decay: [.99, .997], ema_horizon: [fixed, lr]")
    assert len(several.runs) == 4 * len(plain.runs)
    assert several.steps_shared == plain.steps_shared
    trunk = next(node for node in several.segments.values() if node.trunk)
    branch = next(node for node in several.segments.values() if not node.trunk)
    assert trunk.averages == (Average(0.99), Average(0.997))
    assert len(branch.averages) == 4
    kinds = [node.kind for node in several.stages.values()]
    assert kinds.count("float") == len(plain.runs) and kinds.count("ema") == len(several.runs)
    assert kinds.count("quantize") == len(several.runs)


def test_one_average_leaves_no_trace_in_a_plan() -> None:
    plan = make_plan(read_sweep("points: [{steps: 25000, warmdown_steps: 13000}]"))
    assert all(not node.averages for node in plan.nodes.values())
    assert all("averages" not in node.identity() for node in plan.nodes.values())


def test_states_that_hold_more_averages_serve_and_those_that_lack_one_do_not() -> None:
    both = planned("ema_decay: [.99, .997]")
    known = known_of(both)
    assert planned("ema_decay: [.99]", known=known).steps_left == 0
    assert planned("ema_decay: [.997, .99]", known=known).steps_left == 0
    other = planned("ema_decay: [.98, .99]", known=known)
    assert other.steps_left == other.steps_shared == both.steps_shared
    longer = make_plan(read_sweep("points: [{steps: 3000, warmdown_steps: 600, ema_decay: .99}]"), known)
    assert longer.steps_left == 3000 - 1600  # from the furthest state of the trunk


def test_shapes_floors_and_own_warmdowns_share_the_constant_phase() -> None:
    axes = "schedule: [power], schedule_power: [1, 2], lr_floor: [0, .1], adam_warmdown_ratio: [.2]"
    plan = planned(axes)
    assert len({node.trunk_id for node in plan.segments.values()}) == 1
    assert len(plan.runs) == 16
    # A warmdown of Adam's longer than the matrices' ends the constant phase; both ratios here are >= .2.
    assert {run.config.peak_steps for run in plan.runs.values()} == {800, 600, 1600, 1200}
    assert len({node.id for node in plan.segments.values() if not node.trunk}) == 16


def test_keys_that_a_shape_does_not_heed_make_no_runs_of_their_own() -> None:
    plan = planned("schedule: [linear, power], schedule_power: [1, 2]")
    assert len(plan.runs) == 4 * 3
    constant = read_sweep("points: [{steps: 100, schedule: constant, adam_warmdown_ratio: .5}]").runs[0]
    assert constant.peak_steps == 100 and constant.adam_warmdown_steps is None


def test_merges_cost_no_step() -> None:
    stages = ", ".join((*USUAL_STAGES, "merged"))
    plain, merging = planned(stages=", ".join(USUAL_STAGES)), planned(stages=stages)
    assert merging.steps_shared == plain.steps_shared
    merged = [node for node in merging.stages.values() if node.kind == "merged"]
    assert len(merged) == 4  # one for each end of a constant phase
    for node in merged:
        stops = [merging.nodes[source].stop for source in node.sources]
        assert tuple(stops) == node.config.merge_steps and node.after == node.sources[-1]
        assert not merging.can_start(node.id, set(node.sources[:-1]))
    cheaper = shared_hours(plain).eval
    assert shared_hours(merging).eval > cheaper


def test_merges_over_a_finished_trunk_make_the_states_that_are_missing() -> None:
    known = known_of(planned())
    plan = planned(stages="merged", known=known)
    cut = {node.stop for node in plan.segments.values() if node.id not in plan.done}
    assert cut and cut < {step for node in plan.stages.values() for step in node.config.merge_steps}
    for node in plan.stages.values():
        assert [plan.nodes[s].stop for s in node.sources] == list(node.config.merge_steps)
        assert {*node.sources} <= {*plan.nodes_of(node.runs[0])}


def test_what_cannot_be_merged_is_said() -> None:
    with pytest.raises(ConfigError, match="merged takes states of a trunk; it needs share: true"):
        read_sweep(GRID.format(more="", stages="merged") + "share: false")
    short = make_plan(read_sweep("points: [{steps: 10, warmdown_steps: 8}]\nstages: [float, merged]"))
    assert [node.kind for node in short.stages.values()] == ["float"]


def test_looks_at_int6_are_in_the_price() -> None:
    plain, looking = planned(), planned("int6_every: [100]")
    assert shared_hours(looking).eval > shared_hours(plain).eval
    assert looking.steps_shared == plain.steps_shared
    slower = planned("int6_every: [100], int6_method: [gptq]")
    assert shared_hours(slower).eval > shared_hours(looking).eval, "the quantizer's own seconds count"
    both = planned("int6_every: [100], quant.method: [reference, gptq]")
    assert both.steps_shared == plain.steps_shared  # quantizers fork after the training still


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "prepared")


def test_everything_at_once_is_what_each_is_alone(data: Path, tmp_path: Path) -> None:
    """Averages, a merge, taxes along the way and on float, quantizers: shared in one sweep, or run alone."""
    stages = ["float", "ema", "ema_sliding", "ema_ttt", "int6", "ttt"]
    settings: dict[str, Any] = {
        "eval.int6_every": 6,
        "merge.checkpoints": 2,
        "merge.ratio": 0.5,
        "quant.calibration_tokens": 256,
    }
    grid = {"steps": [12], "warmdown_ratio": [0.5], "ema_decay": [0.5, 0.8], "ema_horizon": ["fixed", "lr"]}
    text = sweep_text(data, grid, stages=[*stages, "merged"], set=settings | {"quant.method": "gptq"})
    text = without_decay(text)
    launch_here(text, tmp_path / "shared")
    shared = rows(tmp_path / "shared")
    assert len(shared) == 4 and all(row["status"] == "done" for row in shared.values())
    plan = plan_of(text, tmp_path / "shared")
    assert plan.steps_left == 0 and plan.done == plan.nodes.keys()
    alone_text = sweep_text(data, grid, stages=stages, set=settings | {"quant.method": "gptq"}, share=False)
    launch_here(without_decay(alone_text), tmp_path / "alone")
    columns = [f"{stage}_bpb" for stage in stages] + ["artifact_bytes"]
    for run_id, row in rows(tmp_path / "alone").items():
        assert {c: row[c] for c in columns} == {c: shared[run_id][c] for c in columns}
        assert row["merged_bpb"] is None and shared[run_id]["merged_bpb"] > 0
    assert len({row["ema_bpb"] for row in shared.values()}) >= 3
    assert len({row["float_bpb"] for row in shared.values()}) == 1

    store = Store(tmp_path / "shared")
    branch = next(node for node in plan.segments.values() if not node.trunk)
    table = store.files.read(f"tiny/trajectory/{branch.id}.parquet")
    curve = from_parquet(table or b"", TRAJECTORY)
    last = curve[-1]
    by_average = json.loads(last["ema_val_bpb_by_average"])
    assert by_average.keys() == {"0.5", "0.5 lr", "0.8", "0.8 lr"}
    assert last["raw_int6_val_bpb"] > 0 and last["raw_artifact_bytes"] > 0
    blocks = store.sweep("tiny").block_stages(next(iter(shared)))
    assert blocks == {*stages, "merged"}


def test_tables_of_before_are_still_read() -> None:
    """Without the columns that came with further stages and looks at int6."""
    later = {
        "ema_val_bpb_by_average",
        "int6_val_bpb",
        "artifact_bytes",
        "raw_int6_val_bpb",
        "raw_artifact_bytes",
    }
    old = pa.schema([f for f in TRAJECTORY if f.name not in later], metadata=TRAJECTORY.metadata)
    (row,) = from_parquet(to_parquet([{"step": 1, "val_bpb": 2.0}], old), TRAJECTORY)
    assert row["val_bpb"] == 2.0 and not later & row.keys()
    (point,) = joined([[row]])
    assert point == {"step": 1, "seconds": 0.0, "val_bpb": 2.0}
    optional = {kind.column for kind in KINDS.values() if kind.optional}
    old = pa.schema([f for f in RUNS if f.name not in optional], metadata=RUNS.metadata)
    written = [{"run_id": "a", "sweep": "s", "status": "done"}]
    assert optional and not optional & from_parquet(to_parquet(written, old), RUNS)[0].keys()


def test_gptq_forks_after_training_and_needs_the_text(data: Path, tmp_path: Path) -> None:
    grid = {
        "steps": [4],
        "warmdown_ratio": [0.5],
        "quant.method": ["reference", "gptq"],
        "clip_sigmas": [6, 12],
    }
    text = sweep_text(data, grid, stages=["int6"], set={"quant.calibration_tokens": 256})
    launch_here(text, tmp_path)
    found = rows(tmp_path)
    sizes = {(row["quant.method"], row["quant.clip_sigmas"]): row["artifact_bytes"] for row in found.values()}
    assert sizes["gptq", 6] > sizes["gptq", 12]
    assert sizes["reference", 6] == sizes["reference", 12]
    assert len(set(states(tmp_path, plan_of(text, tmp_path)).values())) == 2  # trunk and branch


def test_identities_of_quantizers_leave_out_what_they_do_not_heed() -> None:
    assert QuantConfig().identity() == {"method": "reference", "keep_float_max_numel": 65_536}
    assert QuantConfig(method="gptq").identity().keys() == {
        "method",
        "keep_float_max_numel",
        "calibration_tokens",
        "clip_sigmas",
    }
