"""Sweep files: every problem at once, with its line, its key and what is allowed."""

from pathlib import Path

import pytest

from gepa_core.config import ExecConfig, RunConfig
from gepa_core.errors import ConfigError
from gepa_core.yamlfile import parse
from sweeps.spec.load import load_sweep, read_sweep
from sweeps.spec.source import DataSource
from sweeps.spec.sweep import TOP_KEYS, Resources, SpecError, Sweep
from tests.tiny_sweep import opened

GRID = "grid: {steps: [100, 200], warmdown_ratio: [.5]}\n"


def problems(text: str, *overrides: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        read_sweep(text, overrides, "x.yaml")
    lines = str(caught.value).splitlines()
    count = len(lines) - 1
    assert lines[0] == f"x.yaml: {count} problem" + "s" * (count > 1)
    return [line.strip() for line in lines[1:]]


def test_a_sweep_file_in_full() -> None:
    sweep = read_sweep(
        "name: warmdown\n"
        "recipe: gepa-11l\n"
        "grid: {steps: [9000, 12000], warmdown_ratio: [0.2, 0.4], seed: [42]}\n"
        "points: [{steps: 25000, warmdown_steps: 13000}]\n"
        'set: {data.train: "shards/train_*.bin", ema_decay: .99, optim: {matrix_lr: 2e-2}}\n'
        "stages: [ttt, float]\n"
        "resources: {gpus_per_run: 4, price_per_gpu_hour: 2, node_labels: {gpu: A100}}\n"
        "exec: {deterministic: true}\n"
        "share: true\n"
    )
    lengths = [(9000, 1800), (9000, 3600), (12000, 2400), (12000, 4800), (25000, 13000)]
    assert [(run.steps, run.warmdown_steps) for run in sweep.runs] == lengths
    assert all(run.ema_decay == 0.99 and run.optim.matrix_lr == 0.02 for run in sweep.runs)
    assert all("shards/train_*" in run.data.train and not sweep.resolved for run in sweep.runs)
    assert sweep.stages == ("float", "ttt")
    assert sweep.exec == ExecConfig(device="cuda", deterministic=True, ranks=4)
    assert sweep.bundles() == [{"CPU": 1.0, "GPU": 1.0}] * 4
    assert sweep.resources.node_labels == {"gpu": "A100"}


def test_every_problem_is_told_at_once() -> None:
    text = """\
name: ../evil
recipe: gepa-11
grid:
  stepss: [100]
  steps: [100, 0, x, 2.5]
  seq_len: [3]
  ranks: [1]
  steps: [7]
points:
  - {steps: 10, warmdown_ratio: .3, warmdown_steps: 3}
  - 5
set: {schedule: linaer, ema_dcay: .9, optim: {embed_lr: -1}}
stages: [float, tt]
resources: {gpus_per_run: yes, prise: 2}
exec: {deterministic: on}
share: no
sed: 3
"""
    found = problems(text)
    expected = [
        ("line 1, name: ", "must name a folder inside the output"),
        ("line 2, recipe: ", "did you mean gepa-11l"),
        ("line 4, grid.stepss: unknown key", "did you mean steps?"),
        ("line 5, grid.steps[1]: int 0", "whole number >= 1"),
        ("line 5, grid.steps[2]: text 'x'", "whole number >= 1"),
        ("line 5, grid.steps[3]: float 2.5", "whole number >= 1"),
        ("line 6, grid.seq_len: ambiguous", "batch.seq_len or eval.seq_len"),
        ("line 7, grid.ranks: ", "set exec.ranks"),
        ("line 8, grid.steps: given twice", "first on line 5"),
        ("line 10, points[0].warmdown_ratio: ", "either warmdown_ratio or warmdown_steps"),
        ("line 11, points[1]: ", "a point is a mapping"),
        ("line 12, set.ema_dcay: unknown key", "did you mean ema_decay?"),
        ("line 12, set.optim.embed_lr: int -1", "a number > 0"),
        ("line 12, set.schedule: text 'linaer'", "one of linear, cosine, 1-sqrt"),
        ("line 13, stages[1]: 'tt'", "did you mean ttt?"),
        ("line 14, resources.gpus_per_run: text 'yes'", "a number >= 0"),
        ("line 14, resources.prise: unknown key", "price_per_gpu_hour"),
        ("line 15, exec.deterministic: text 'on'", "true or false"),
        ("line 16, share: text 'no'", "true or false"),
        ("line 17, sed: unknown key", "did you mean s"),
    ]
    assert len(found) == len(expected)
    for start, inside in expected:
        assert any(line.startswith(start) and inside in line for line in found), (start, found)
    numbers = [int(line.split(",")[0].removeprefix("line ")) for line in found]
    assert numbers == sorted(numbers)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("[1, 2]", "a sweep file is a mapping"),
        ("just text", "a sweep file is a mapping"),
        ("grid: [1", "line 1, column 9: not YAML"),
        ("grid:\n\tsteps: [1]", "line 2, column 1: not YAML"),
        ("grid: {steps: [1]}\n---\ngrid: {}", "not YAML"),
        ("grid: !!python/object:os.system {}", "line 1, grid: tag !!python/object:os.system is not allowed"),
        ("grid: {steps: &a [*a]}", "an alias that contains itself"),
        ("name: x", "line 1, grid: nothing to run"),
        ("grid: {}", "line 1, grid: nothing to run"),
        ("grid: {steps: []}", "line 1, grid.steps: an axis needs at least one value"),
        ("grid: {steps: 5}", "write [5]"),
        ("grid: {steps: [5]}", "no warmdown: give warmdown_ratio or warmdown_steps"),
        ("grid: {warmdown_ratio: [.5]}", "no run length: give steps"),
        ("grid: {steps: [0], warmdown_ratio: [.5]}", "line 1, grid.steps[0]: int 0 is not allowed"),
        ("grid: {steps: [9], warmdown_ratio: [1.5]}", "a number >= 0 and <= 1"),
        ("grid: {steps: [9, 20], warmdown_steps: [10]}", "grid.warmdown_steps: warmdown_steps 10 exceeds"),
        ("points: [{steps: 9, warmdown_steps: 10}]", "points[0].warmdown_steps: warmdown_steps 10"),
        ("grid: {steps: [true], warmdown_steps: [0]}", "bool True is not allowed"),
        ("grid: {steps: [null], warmdown_steps: [0]}", "nothing is not allowed"),
        (GRID + "name: ''", "must name a folder"),
        (GRID + "name: a/b", "must name a folder"),
        (GRID + "name: ..", "must name a folder"),
        (GRID + "name: 5", "is not text; quote it"),
        (GRID + "name: segments", "a folder the store itself uses"),
        (GRID + "set: {steps: 100}", "also an axis of the grid"),
        (GRID + "set: {warmdown_steps: 10}", "no effect beside the grid's own warmdown"),
        (GRID + "set: {ema_decay: .9, ema_decay: .8}", "set.ema_decay: given twice (first on line 2)"),
        (GRID + "set: {optim.matrix_lr: .1, matrix_lr: .2}", "same key as set.optim.matrix_lr"),
        (GRID + "set: {model.width: 100}", "width 100 must be a multiple of num_heads 8"),
        (GRID + "set: {model.ve_layers: [10, 9]}", "line 2, set.model.ve_layers: ve_layers (10, 9)"),
        (GRID + "set: {data.dir: a, data.train: b}", "leave out data.train"),
        (GRID + "set: {data.corpus: docstrings}", "data.corpus needs data.dir"),
        (GRID + "set: {data.corpus: wiki}", "one of docstrings"),
        (GRID + "resources: {gpus_per_run: 1.5}", "neither a whole number nor below 1"),
        (GRID + "resources: {gpus_per_run: 2}\nexec: {ranks: 3}", "3 does not go with gpus_per_run 2"),
        (GRID + "resources: {gpus_per_run: 1}\nexec: {device: cpu}", "must be 0 (or left out)"),
        (GRID + "exec: {device: cuda}", "needs resources.gpus_per_run above 0"),
        (GRID + "exec: {device: auto}", "auto is no choice in a sweep: resources.gpus_per_run decides"),
        (GRID + "exec: [1]", "must be a mapping"),
        (GRID + "points: {steps: 1}", "must be a list of mappings"),
        (GRID + "recipe: [gepa-11l]", "['gepa-11l'] is not a recipe"),
        (GRID + "set: {seed: 9223372036854775808}", "whole number >= 0 and <= 9,223,372,036,854,775,807"),
        (GRID + "resources: {price_per_gpu_hour: 1e400}", "must be a number (or null) >= 0"),
        (GRID + "resources: {custom: {x: -1}}", "a mapping of names (CPU, GPU and memory have keys"),
        (GRID + "resources: {custom: {CPU: 4}}", "a mapping of names (CPU, GPU and memory have keys"),
        (GRID + "points: [{steps: 9, schedule: constant, warmdown_steps: 5}]", "has no warmdown; leave it"),
        (GRID + "points: [{steps: 9, warmdown_ratio: .5}]\nset: {schedule: constant}", "has no warmdown"),
        ("grid: {steps: [9223372036854775807], warmdown_steps: [0]}", "number >= 1 and <= 100,000,000"),
        (GRID + "stages: float", "must be a list"),
        ("grid: {steps: [1e400], warmdown_steps: [0]}", "is not allowed"),
    ],
)  # fmt: skip
def test_one_problem(text: str, message: str) -> None:
    found = problems(text)
    assert len(found) == 1 and message in found[0], found


def test_a_wrong_list_of_points_beside_a_combination_that_no_run_can_have() -> None:
    first, second = problems("points: 5\ngrid: {steps: [5], warmdown_steps: [9]}")
    assert "must be a list of mappings" in first and "warmdown_steps 9 exceeds steps 5" in second


def test_scalars_are_those_of_yaml_1_2() -> None:
    text = (
        "[1e-3, 1.5E4, .5, 5., -2, 1_000, no, off, y, 12:30, 0x10, null, ~, true, '5', .inf, 2020-01-01, =]"
    )
    values = parse(text).value
    assert values[:6] == [0.001, 15000.0, 0.5, 5.0, -2, 1000]
    assert values[6:11] == ["no", "off", "y", "12:30", "0x10"]
    assert values[11:] == [None, None, True, "5", ".inf", "2020-01-01", "="]


def test_numbers_become_what_the_key_is() -> None:
    sweep = read_sweep("grid: {steps: [1e3], warmdown_steps: [0], optim.matrix_lr: [1e-3, 1]}")
    assert [type(run.steps) for run in sweep.runs] == [int, int]
    assert [run.optim.matrix_lr for run in sweep.runs] == [0.001, 1.0]
    with_int = read_sweep("grid: {steps: [1000], warmdown_steps: [0], optim.matrix_lr: [1]}")
    assert with_int.runs[0].run_id == sweep.runs[1].run_id


def test_overrides_are_typed_and_placed_like_the_file() -> None:
    text = GRID + "set: {ema_decay: .9}\nresources: {gpus_per_run: 1}\n"
    sweep = read_sweep(
        text,
        ["steps=50", "schedule=[linear, 1-sqrt]", "ema_decay=1e-1", "resources.gpus_per_run=.5", "name=other",
         "set.optim.matrix_lr=.1", "exec.deterministic=true", "share=false",
         "points=[{steps: 7, warmdown_steps: 0}]",
         'data.dir="a b"', "model.ve_layers=[1, 2]"],
    )  # fmt: skip
    runs = [(run.steps, run.warmdown_steps, run.schedule) for run in sweep.runs]
    assert runs == [(50, 25, "linear"), (50, 25, "1-sqrt"), (7, 0, "linear")]
    first = sweep.runs[0]
    assert (first.ema_decay, first.optim.matrix_lr, first.model.ve_layers) == (0.1, 0.1, (1, 2))
    assert (sweep.name, sweep.share, sweep.resources.gpus_per_run) == ("other", False, 0.5)
    assert sweep.exec.deterministic and sweep.exec.ranks == 1
    assert sweep.sources[0].dir == "a b"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps", "an override is written key.path=value"),
        ("=5", "an override is written key.path=value"),
        ("steps=0", "int 0 is not allowed"),
        ("stps=5", "stps: unknown key; did you mean"),
        ("ranks=2", "set exec.ranks"),
        ("exec.rnks=2", "exec.rnks: unknown key; did you mean ranks?"),
        ("share=no", "must be true or false"),
        ("steps=[1, 2", "not YAML"),
        ("seq_len=64", "ambiguous"),
        ("name=../x", "must name a folder"),
        ("name.x=5", "unknown key; did you mean name?"),
        ("resources.gpus_per_run.x=5", "goes below a key that is not a mapping"),
    ],
)
def test_a_wrong_override_names_itself(override: str, message: str) -> None:
    found = problems("name: y\n" + GRID + "resources: {gpus_per_run: 0}", override)
    assert len(found) == 1 and message in found[0], found
    assert found[0].startswith(f"argument {override!r}")


def test_missing_file_and_near_miss(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text(GRID)
    with pytest.raises(ConfigError, match=r"no such file.*did you mean .*quickstart\.yaml"):
        load_sweep(tmp_path / "quickstrat.yaml")
    with pytest.raises(ConfigError, match="is a folder"):
        load_sweep(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(SpecError, match="byte 6: not UTF-8"):
        load_sweep(tmp_path / "latin.yaml")
    assert load_sweep(tmp_path / "quickstart.yaml").name == "quickstart"


def test_name_defaults_to_the_files(tmp_path: Path) -> None:
    path = tmp_path / "my sweep (2).yaml"
    path.write_text(GRID)
    assert load_sweep(path).name == "my-sweep-2"


def test_document_reads_back_as_the_same_sweep() -> None:
    import yaml

    sweep = read_sweep(GRID + "set: {optim.matrix_lr: 1e-3}\nresources: {gpus_per_run: 2}", ["seed=[1, 2]"])
    assert sweep.document is not None
    again = read_sweep(yaml.safe_dump(dict(sweep.document), sort_keys=False))
    assert again.runs == sweep.runs and again.document == sweep.document
    assert again.exec == sweep.exec and again.resources == sweep.resources


def test_with_data_puts_fingerprints_in_and_keeps_the_rest() -> None:
    from gepa_core.config import DataPaths
    from gepa_core.sections import DataConfig

    sweep = read_sweep(GRID + "set: {data.dir: corpus, data.val_tokens: 4000}")
    assert not sweep.resolved
    (source,) = sweep.sources
    paths = DataPaths(train="corpus/train_*.bin", val="corpus/val_*.bin", tokenizer="corpus/tokenizer.model")
    config = DataConfig(train="sha256:1", val="sha256:2", tokenizer="sha256:3")
    found: Sweep = sweep.with_data({source: opened(paths, config)})
    assert found.resolved
    for run in found.runs:
        assert run.data == DataConfig(train="sha256:1", val="sha256:2", tokenizer="sha256:3", val_tokens=4000)
        assert found.paths_of(run) == paths
        assert RunConfig.model_validate_json(run.model_dump_json()) == run


def test_the_documented_sweep_file_is_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "sweep-files.md").read_text()
    sweep = read_sweep(page.partition("```yaml\n")[2].partition("```")[0], ["resources.gpus_per_run=1"])
    assert len(sweep.runs) == 13 and sweep.exec.ranks == 1
    for name in (*Resources.model_fields, *TOP_KEYS):
        assert name in page


@pytest.mark.parametrize(("resources", "device"), [("", "cpu"), ("{gpus_per_run: 4}", "cuda")])
def test_resources_decide_the_device(resources: str, device: str) -> None:
    assert read_sweep(f"{GRID}resources: {resources}\n").exec.device == device


def test_a_data_folder_named_on_the_command_line_is_meant_as_it_is() -> None:
    """The corpus that the file would prepare in its own folder is not prepared in a misspelt one."""
    text = (
        "{name: a, grid: {steps: [10]}, set: {warmdown_steps: 5, data.dir: data/a, data.corpus: docstrings}}"
    )
    for overrides, source in (
        ((), DataSource("data/a", "docstrings")),
        (("data.dir=data/mine",), DataSource("data/mine")),
        (("data.dir=data/mine", "data.corpus=docstrings"), DataSource("data/mine", "docstrings")),
    ):
        assert read_sweep(text, overrides).sources == (source,)
