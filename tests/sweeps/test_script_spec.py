"""What is wrong with a `script` is said with its line, what is allowed, and a near miss."""

from pathlib import Path

import pytest

from sweeps.kinds.script import fill, placeholders
from sweeps.spec.load import read_sweep
from sweeps.spec.sweep import SpecError

LINES = {
    "name": "name: x",
    "script": "script:",
    "workdir": "  workdir: work",
    "command": "  command: python train_gpt.py",
    "env": '  env: {ITERATIONS: "{steps}", WARMDOWN_ITERS: "{warmdown_steps}"}',
    "more": "",
    "grid": "grid: {steps: [4], warmdown_ratio: [.5]}",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("specs")
    (path / "work").mkdir()
    source = (
        'import os\nfor name in ("ITERATIONS", "WARMDOWN_ITERS", "SEED", "LR", "N"): os.environ.get(name)\n'
    )
    (path / "work" / "train_gpt.py").write_text(source + 'os.environ.get("MUON_WD")\n')
    return path


def problems(folder: Path, **changed: str) -> list[str]:
    text = "\n".join({**LINES, **changed}.values())
    try:
        return list(read_sweep(text, (), str(folder / "x.yaml")).notices)
    except SpecError as error:
        return [str(problem) for problem in error.problems]


@pytest.mark.parametrize(
    ("key", "line", "said"),
    [
        (
            "command",
            "  command: python train_gtp.py",
            "line 4, script.command: no train_gtp.py in work; did you mean t",
        ),
        ("command", "  command: ''", "line 4, script.command: missing"),
        (
            "command",
            "  command: python train_gpt.py {state}",
            "line 4, script.command: {state} belongs under",
        ),
        ("env", '  env: {ITERATIONS: "{stpes}"}', "script.env.ITERATIONS: {stpes} has no value: give stpes"),
        ("env", '  env: {N: "{steps}", "A B": 1}', "script.env.A B: 'A B' cannot name a variable"),
        ("env", '  env: {N: "{steps}", MOUN_WD: 1}', "mentions the variable MOUN_WD; did you mean MUON_WD?"),
        ("env", "  env: [a]", "line 5, script.env: list ['a'] is not allowed; it must be a mapping of names"),
        ("workdir", "  workdir: wrok", "line 3, script.workdir: 'wrok': no such folder (in "),
        ("more", "  outptus: [a]", "line 6, script.outptus: unknown key; did you mean outputs?"),
        (
            "more",
            "  outputs: [../x]",
            "line 6, script.outputs[0]: '../x' must lie inside the script's folder",
        ),
        ("more", "  artifact: b", "line 6, script.artifact: 'b' is not one of outputs"),
        (
            "more",
            "  state: {laod: {A: b}, save: {A: b}, load: {A: b}}",
            "line 6, script.state.laod: unknown key; did you mean load?",
        ),
        ("more", "  links: {data: nowhere}", "script.links.data: 'nowhere': no such file or folder"),
        ("more", "  figures: {lines: {in6_bpb: x}}", "not a column of a BPB; did you mean int6_bpb"),
        ("more", "  data: ['*.bin']", "line 6, script.data: *.bin: no such file"),
        ("more", "  silence_minutes: 0", "int 0 is not allowed; it must be a number > 0"),
        (
            "more",
            "  max_workdir_mb: 0.0001",
            "train_gpt.py (0.0 MB); leave out what the script does not need",
        ),
        (
            "more",
            "  nodes: 2\nexec: {ranks: 2}",
            "line 6, script.nodes: every node would be started the same way: give the command {node_rank}",
        ),
        (
            "command",
            "  command: python train_gpt.py {node_rank}\n  nodes: 2",
            "line 5, script.nodes: 1 ranks do not divide among 2 nodes",
        ),
        ("more", "recipe: gepa-nano", "line 6, recipe: does not go with script: leave it out"),
        ("more", "exec: {compile: true}", "line 6, exec.compile: has no effect on a script"),
        (
            "grid",
            "grid: {steps: [4], warmdown_ratio: [.5], seed: [1, 2]}",
            "line 7, grid.seed: changes nothing",
        ),
        (
            "grid",
            "grid: {steps: [4], warmdown_ratio: [.5], MUON_WD: [1]}",
            "of the environment is written env.NAME",
        ),
        ("grid", "grid: {steps: [4]}", "line 7, grid: no warmdown: give warmdown_ratio or warmdown_steps"),
    ],
)
def test_what_is_wrong_is_said(folder: Path, key: str, line: str, said: str) -> None:
    assert problems(folder) == []
    told = problems(folder, **{key: line})
    assert len(told) == 1 and said in told[0], told


def test_placeholders_leave_shell_and_json_alone() -> None:
    template = 'run {steps} {y} ${HOME} {{steps}} {"a": {"b": 1}}'
    assert placeholders(template) == ["steps", "y"]
    filled = fill(template, {"steps": 3, "y": "a b"}, quote=True)
    assert filled == 'run 3 \'a b\' ${HOME} {steps} {"a": {"b": 1}}'
