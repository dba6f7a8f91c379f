"""Grids, points and shared settings become the runs they say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gepa_core.config import RunConfig
from gepa_core.data.folder import Dataset
from gepa_core.recipes import PRESETS
from sweeps.spec.grid import BadCell, Expander, cells
from sweeps.spec.load import read_sweep
from tests.tiny_sweep import opened


def test_cells_are_the_product_then_the_points() -> None:
    grid = {"steps": [1, 2], "seed": [7, 8]}
    expected = [(1, 7), (1, 8), (2, 7), (2, 8)]
    found = list(cells(grid, [{"steps": 3}]))
    assert [(cell["steps"], cell["seed"]) for cell in found[:-1]] == expected
    assert found[-1] == {"steps": 3}
    assert list(cells({}, [{"steps": 3}])) == [{"steps": 3}]


@given(st.integers(1, 10**6), st.floats(0, 1))
def test_warmdown_ratio_is_rounded_to_steps(steps: int, ratio: float) -> None:
    run = Expander({}, {}).run({"steps": steps, "warmdown_ratio": ratio})
    assert not isinstance(run, BadCell)
    assert run[0].warmdown_steps == round(ratio * steps)


def test_what_a_cell_says_of_the_warmdown_wins() -> None:
    expander = Expander({}, {"warmdown_ratio": 0.5})
    lengths = [expander.run(cell) for cell in ({"steps": 10, "warmdown_steps": 3}, {"steps": 10})]
    assert [run[0].warmdown_steps for run in lengths if not isinstance(run, BadCell)] == [3, 5]


def test_constant_schedule_needs_no_warmdown() -> None:
    sweep = read_sweep("grid: {steps: [10]}\nset: {schedule: constant}")
    assert sweep.runs[0].warmdown_steps == 0
    sweep = read_sweep("grid: {steps: [10], warmdown_ratio: [.2, .5], schedule: [linear, constant]}")
    assert [(run.schedule, run.warmdown_steps) for run in sweep.runs] == [
        ("linear", 2),
        ("constant", 0),
        ("linear", 5),
    ]


def test_any_key_is_an_axis_with_a_column_of_its_own() -> None:
    sweep = read_sweep(
        "grid: {steps: [10], warmdown_ratio: [.5], matrix_lr: [1e-3, 1e-2], method: [per_row], "
        "keep_float_max_numel: [10, 20], model.ve_layers: [[9], [8, 9]], eval: {stride: [32]}}\n"
        "points: [{steps: 20, warmdown_steps: 0, ttt.lr: 0.1}]"
    )
    assert len(sweep.runs) == 9
    axes = (
        "model.ve_layers",
        "optim.matrix_lr",
        "eval.stride",
        "quant.method",
        "quant.keep_float_max_numel",
        "ttt.lr",
    )
    assert sweep.axes == axes
    assert sweep.axis_values(sweep.runs[0]) == dict(
        zip(axes, [(9,), 0.001, 32, "per_row", 10, 0.002], strict=True)
    )
    assert sweep.axis_values(sweep.runs[-1])["ttt.lr"] == 0.1


def test_duplicates_merge_and_are_told() -> None:
    text = "grid: {steps: [100], warmdown_ratio: [.5, .5, .501]}\npoints: [{steps: 100, warmdown_steps: 50}]"
    sweep = read_sweep(text)
    assert [run.warmdown_steps for run in sweep.runs] == [50]
    assert "3 duplicate runs merged" in sweep.notices[0]
    assert not read_sweep("grid: {steps: [100], warmdown_ratio: [.5]}").notices


def test_presets_lie_between_defaults_and_settings() -> None:
    sweep = read_sweep(
        "recipe: gepa-nano\ngrid: {steps: [9], warmdown_ratio: [.5]}\n"
        "set: {model.num_kv_heads: 1, ema_decay: .5}"
    )
    run, nano = sweep.runs[0], PRESETS["gepa-nano"]
    assert run.model.width == nano["model"]["width"] and run.batch.seq_len == nano["batch"]["seq_len"]
    assert run.model.num_kv_heads == 1 and run.ema_decay == 0.5
    assert run.optim.matrix_lr == RunConfig(steps=1, warmdown_steps=0).optim.matrix_lr


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_run_configurations(preset: str) -> None:
    run = Expander(PRESETS[preset], {}).run({"steps": 1000, "warmdown_ratio": 0.5})
    assert not isinstance(run, BadCell)
    assert RunConfig.model_validate_json(run[0].model_dump_json()).run_id == run[0].run_id


def test_bad_combinations_are_told_once_each_with_an_example() -> None:
    from sweeps.spec.sweep import SpecError

    with pytest.raises(SpecError) as caught:
        read_sweep("grid:\n  steps: [10, 20, 30]\n  warmdown_steps: [25]\n  seed: [1, 2, 3]")
    first, second = caught.value.problems
    assert str(first).startswith("line 3, grid.warmdown_steps: warmdown_steps 25 exceeds steps 10")
    assert "run with steps 10, warmdown_steps 25, seed 1 and 2 more" in str(first)
    assert "exceeds steps 20" in str(second)


def test_a_grid_too_large_to_plan_is_refused_at_once() -> None:
    from sweeps.spec.sweep import SpecError

    seeds = list(range(2000))
    with pytest.raises(SpecError, match="4,000,000 combinations"):
        read_sweep(
            f"grid: {{steps: [9], warmdown_ratio: [.5], seed: {seeds}, optim.adam_beta1: "
            f"{[s / 2000 for s in seeds]}}}"
        )


def test_data_can_be_an_axis() -> None:
    from gepa_core.config import DataPaths
    from gepa_core.sections import DataConfig

    sweep = read_sweep("grid: {steps: [10], warmdown_ratio: [.5], data.dir: [one, two]}")
    assert [str(source) for source in sweep.sources] == ["one", "two"]
    assert len({run.run_id for run in sweep.runs}) == 2

    def found(name: str) -> Dataset:
        paths = DataPaths(train=name, val=name, tokenizer=name)
        return opened(paths, DataConfig(train=name, val=name, tokenizer=name))

    resolved = sweep.with_data({source: found(f"sha256:{source}") for source in sweep.sources})
    assert [resolved.paths_of(run).train for run in resolved.runs] == ["sha256:one", "sha256:two"]
    same = sweep.with_data({source: found("sha256:same") for source in sweep.sources})
    assert len(same.runs) == 1, "folders of the same data make the same run"
    half = sweep.with_data({sweep.sources[0]: found("sha256:one")})
    assert not half.resolved and "two" in half.runs[1].data.train
    for some in (sweep, resolved, half):
        assert [some.axis_values(run) for run in some.runs] == [{"data.dir": "one"}, {"data.dir": "two"}]


@pytest.mark.parametrize("key", ["data.tokenizer", "data.val"])
def test_any_part_of_the_data_can_be_an_axis(key: str) -> None:
    from gepa_core.config import DataPaths
    from gepa_core.sections import DataConfig

    sweep = read_sweep(
        f"grid: {{steps: [10], warmdown_ratio: [.5], {key}: [a, b]}}\nset: {{data.train: x_train_*}}"
    )
    assert len(sweep.runs) == 2 and not sweep.notices
    part = key.removeprefix("data.")
    found = {}
    for source in sweep.sources:
        named = {"train": "x", "val": "y", "tokenizer": "z", part: getattr(source, part)}
        found[source] = opened(DataPaths(**named), DataConfig(**named))
    resolved = sweep.with_data(found)
    assert [getattr(run.data, part) for run in resolved.runs] == ["a", "b"]
    assert [getattr(resolved.paths_of(run), part) for run in resolved.runs] == ["a", "b"]
    assert resolved.axes == (key,)
    assert [resolved.axis_values(run)[key] for run in resolved.runs] == ["a", "b"]
