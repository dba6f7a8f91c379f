"""The command line as people meet it: help, near misses, commands to paste, doctor, schema, completion."""

import argparse
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import analysis.__main__
import gepa_core.data.__main__
import launch
from gepa_core import invocation
from gepa_core.config import RunConfig
from gepa_core.recipes import PRESETS
from sweeps.commands.doctor import problems_of
from sweeps.commands.machine import examine
from sweeps.commands.parser import COMMANDS, command_parser, sweep_parser, whole_parser
from sweeps.commands.words import default_of, sweep_schema
from sweeps.spec.keys import fields, run_vocabulary
from sweeps.spec.meanings import all_keys, meanings

ROOT = Path(__file__).parents[2]


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in dict.fromkeys(action.choices.values()):
                yield from parsers(inner)


def test_every_argument_is_described() -> None:
    own = [command_parser(name) for name in COMMANDS if name != "run"]
    whole = [
        sweep_parser("launch.py", "what"),
        analysis.__main__._parser(),
        gepa_core.data.__main__._parser(),
    ]
    seen = 0
    for parser in (inner for outer in (*own, *whole) for inner in parsers(outer)):
        for action in parser._actions:
            if not isinstance(action, argparse._SubParsersAction):
                assert action.help, f"{parser.prog}: {action.option_strings or action.dest} has no help"
                seen += 1
        assert parser.format_help()
    assert seen > 100


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["statsu"], "statsu: neither a command nor a sweep file; did you mean status?"),
        (["lst"], "did you mean ls?"),
        (["quickstart"], "did you mean sweeps/quickstart.yaml?"),
        (["zzz"], "zzz: neither a command nor a sweep file; commands: run, plan, status"),
        (["plan", "sweeps/quickstrat.yaml"], "did you mean sweeps/quickstart.yaml"),
    ],
)
def test_near_misses(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert launch.main(words) == 2
    assert told in capsys.readouterr().err


def test_version_names_the_commit(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("gepa-sweeps ")


def test_commands_of_other_packages(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert launch.main(["predict", str(tmp_path), "--steps", "9", "--warmdown", "3"]) == 2
    assert "has no runs.parquet" in capsys.readouterr().err
    assert launch.main(["data", "inspect", str(tmp_path)]) == 2
    assert "is not a prepared data folder" in capsys.readouterr().err


def test_a_command_in_a_message_works_as_it_is_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither `python` nor a virtual environment need be on the PATH of the shell it is pasted into."""
    inside = tmp_path / "project"
    (inside / ".venv" / "bin").mkdir(parents=True)
    own = inside / ".venv" / "bin" / "python"
    own.symlink_to(sys.executable)
    monkeypatch.chdir(inside)
    monkeypatch.setattr(sys, "executable", str(own))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert invocation.python() == ".venv/bin/python"
    assert subprocess.run([*invocation.python().split(), "-c", "pass"], cwd=inside).returncode == 0
    monkeypatch.setattr(sys, "argv", ["launch.py", "status"])
    assert invocation.launch() == ".venv/bin/python launch.py"
    monkeypatch.setenv("PATH", f"{own.parent}:/usr/bin")
    assert invocation.module("analysis") == "python -m analysis"
    # Console scripts may be started by the interpreter's other name.
    (own.parent / "python3").symlink_to("python")
    monkeypatch.setattr(sys, "executable", str(own.parent / "python3"))
    assert invocation.python() == "python"
    monkeypatch.setattr(sys, "executable", str(own))
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "a folder" / "python"))
    assert invocation.python() == "'a folder/python'"
    monkeypatch.chdir(inside)
    assert invocation.python() == f"'{tmp_path}/a folder/python'"


def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def test_doctor_says_what_is_missing_with_nothing_installed() -> None:
    """-S: a Python that finds no package at all."""
    done = run(sys.executable, "-S", "launch.py", "doctor", "--json")
    assert done.returncode == 2, done.stderr
    found = json.loads(done.stdout)
    (missing,) = (problem for problem in found["problems"] if problem["what"].startswith("not installed"))
    assert "torch" in missing["what"] and "pip install -c constraints.txt -e ." in missing["remedy"]
    assert found["torch"]["version"] is None and found["cpu"]["cores"] >= 1


def test_doctor_examines_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "data" / "broken"
    broken.mkdir(parents=True)
    (broken / "manifest.json").write_text('{"format": "gepa-sweeps data", "train": {}}')
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    found = examine(tmp_path / "results", tmp_path / "data", None)
    json.dumps(found, allow_nan=False)
    told = {what: remedy for what, remedy, _ in problems_of(found)}
    assert any("no Ray cluster answers at 127.0.0.1:1" in what for what in told)
    assert any("RAY_AUTH_MODE is token" in what for what in told)
    assert any("broken: manifest.json is unreadable" in what for what in told)
    assert all(told.values()), "each problem has its remedy"
    assert found["torch"]["fp32_gflops"] > 0 and found["torch"]["bf16_gflops"] > 0
    assert found["memory"]["available_bytes"] > 0


def test_every_key_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(all_keys()) <= set(meanings())
    assert launch.main(["keys", "matrix_lr", "--recipe", "gepa-nano"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"^optim\.matrix_lr +0\.025 ", told, re.MULTILINE)
    assert "Peak learning rate of the blocks' matrices (Muon)." in " ".join(told.split())
    assert launch.main(["keys", "matrx_lr"]) == 2
    assert "did you mean optim.matrix_lr?" in capsys.readouterr().err
    assert launch.main(["keys", "silence"]) == 0
    assert re.search(r"^script\.silence_minutes +30\.0 ", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize("recipe", PRESETS)
def test_the_defaults_that_are_told_are_those_of_a_run(recipe: str) -> None:
    run: Any = RunConfig(steps=10, warmdown_steps=5, **PRESETS[recipe])
    for name in (set(fields(RunConfig)) & set(run_vocabulary().keys)) - {"steps", "warmdown_steps"}:
        wanted = functools.reduce(getattr, name.split("."), run)
        assert default_of(run_vocabulary().keys[name], recipe) == wanted, name
    assert {default_of(all_keys()[name], recipe) for name in ("steps", "warmdown_ratio")} == {None}


def test_shipped_sweeps_fit_the_schema_and_wrong_ones_do_not() -> None:
    schema = sweep_schema()
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    sweeps = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "sweeps").glob("*.yaml"))]
    assert len(sweeps) >= 5
    for sweep in sweeps:
        assert not list(validator.iter_errors(sweep)), sweep["name"]
    good = sweeps[0]
    for wrong in (
        {**good, "grdi": {}},
        {**good, "keep": "some"},
        {**good, "grid": {"steps": ["ten"]}},
        {**good, "set": {"ema_decya": 0.9}},
        {**good, "exec": {"threads": 0}},
        {**good, "resources": {"gpus_per_run": -1}},
    ):
        assert list(validator.iter_errors(wrong)), wrong


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_is_a_script_of_its_shell(shell: str) -> None:
    done = run(sys.executable, "launch.py", "completion", shell)
    assert done.returncode == 0, done.stderr
    for name in COMMANDS:
        assert name in done.stdout
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} on this machine")
    subprocess.run([shell, "-n"], input=done.stdout, text=True, check=True)


def test_all_commands_are_in_the_whole_parser() -> None:
    (commands,) = (a for a in whole_parser()._actions if isinstance(a, argparse._SubParsersAction))
    assert set(COMMANDS) <= set(commands.choices)


def test_a_misspelt_option_names_the_one_that_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    for words, meant in ((["sweep.yaml", "--plna"], "--plan"), (["status", "--jsn=1"], "--json")):
        with pytest.raises(SystemExit):
            launch.main(words)
        assert f"did you mean {meant}?" in capsys.readouterr().err
