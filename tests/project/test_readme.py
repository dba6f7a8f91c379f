"""Every shell command of README.md and docs/ is run, or at least parsed by the program it starts.

Quick ones run in a folder that looks like a checkout with a finished sweep in results/quickstart, a tiny one.
Long ones go through the real parser, and their sweep file and overrides are read. A command that this file
does not know fails: nothing is passed over.
"""

import argparse
import json
import os
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from sweeps.spec.load import load_sweep
from tests import shell
from tests.tiny_sweep import launch, make_data, rows, sweep_text

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PYTHON = re.compile(r"(.*/)?python3?$")
LAUNCH_COMMANDS = ("status", "ls", "best", "logs", "doctor", "gc", "mirror", "export")
ANALYSES = ("report", "predict", "backtest", "compare")


def documented() -> list[tuple[str, tuple[str, ...]]]:
    """(page, words) of every simple command, each at its first page."""
    found: dict[tuple[str, ...], str] = {}
    for page in PAGES:
        texts = [text for _, text in shell.blocks(page)] + shell.indented(page)
        for line in (line for text in texts for line in shell.commands(text)):
            for words in shell.simple_commands(line):
                found.setdefault(tuple(words), page.name)
    return [(page, words) for words, page in found.items()]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the code, and results of a tiny sweep that is called quickstart."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("launch.py", "sweeps", "gepa_core", "analysis", "docs", "deploy", "constraints.txt"):
        (folder / name).symlink_to(ROOT / name)
    grid = {"steps": [16, 32, 48], "warmdown_ratio": [0.5]}
    slow = {"optim.matrix_lr": 0.002, "optim.embed_lr": 0.002, "optim.scalar_lr": 0.002}
    text = sweep_text(
        make_data(folder / "data"),
        grid,
        name="quickstart",
        points=[{"steps": 48, "warmdown_ratio": 0.25}],
        set=slow,
    )
    assert launch(text, folder / "results").exit_code == 0
    return folder


class Parsed(Exception):  # noqa: N818 - not an error
    """Arguments that the program's own parser took."""


def parse(program: str, arguments: list[str]) -> argparse.Namespace:
    """What the parser of a script or module makes of its arguments; the program goes no further."""

    def stop(original: Callable[..., argparse.Namespace]) -> Callable[..., argparse.Namespace]:
        def parse_and_stop(*args: object, **options: object) -> argparse.Namespace:
            raise Parsed(original(*args, **options))

        return parse_and_stop

    is_script = program.endswith(".py")
    run = runpy.run_path if is_script else runpy.run_module
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [program, *arguments])
        is_package = (ROOT / program.replace(".", "/")).is_dir()
        module = f"{program}.__main__" if is_package else program
        patch.delitem(sys.modules, module, raising=False)  # another test may have imported it
        for name in ("parse_args", "parse_intermixed_args"):
            patch.setattr(argparse.ArgumentParser, name, stop(getattr(argparse.ArgumentParser, name)))
        try:
            run(str(ROOT / program) if is_script else program, run_name="__main__")
        except Parsed as parsed:
            return parsed.args[0]  # type: ignore[no-any-return]
    raise AssertionError(f"{program} parsed nothing")


def is_quick(program: str, arguments: list[str]) -> bool:
    """Whether a command can be run here: it looks at a sweep or at finished results."""
    if program == "launch.py":
        return "--plan" in arguments or arguments[:1] in [[name] for name in LAUNCH_COMMANDS]
    return (
        program == "analysis"
        and "--serve" not in arguments
        and any(word.startswith("results") for word in arguments)
    )


def check_python(words: list[str], checkout: Path) -> None:
    """`python ...`: a script or module of this project, or venv and pip."""
    if words[1:3] == ["-m", "venv"]:
        return  # the environment this test runs in was made by it
    if words[1:3] == ["-m", "pytest"]:
        assert not words[3:], "what runs here now, with the project's own options"
        return
    if words[1] == "-m":
        program, arguments = words[2], words[3:]
    else:
        program, arguments = words[1], words[2:]
    arguments = [real(word, checkout) for word in arguments]
    if is_quick(program, arguments):
        run(words[: -len(arguments)] + arguments, checkout)
        return
    args = parse(program, arguments)
    if program == "launch.py":
        assert load_sweep(ROOT / args.sweep, args.overrides).runs


def real(word: str, checkout: Path) -> str:
    """Placeholders get a value of the tiny sweep's."""
    return next(iter(rows(checkout / "results", "quickstart"))) if word == "RUN_ID" else word


def run(words: list[str], checkout: Path) -> None:
    environment = {**os.environ, "COLUMNS": "100", "WANDB_MODE": "offline"}
    command = [sys.executable, *words[1:]]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr


def check_pip(words: list[str], checkout: Path) -> None:
    """`pip install`: constraints and extras that exist. `.ci/run` runs the README's own lines."""
    assert words[1] == "install"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for before, word in pairwise(words[1:]):
        if before == "-c":
            assert (ROOT / word).is_file()
        elif asked := re.fullmatch(r"(?:\.|gepa-sweeps)\[(.*)\]", word):
            assert set(asked[1].split(",")) <= extras.keys()
        else:
            assert word in ("-q", "-e", ".", "-c", "--no-compile"), word


def check_script(words: list[str], checkout: Path) -> None:
    """A shell script of this checkout, itself too long to run here."""
    script = ROOT / words[0]
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)


def check_viewer(words: list[str], checkout: Path) -> None:
    """A program that serves until it is stopped, or that sends data away."""
    assert words[:2] == ["tensorboard", "--logdir"] or words[:2] == ["wandb", "sync"]


def check_shell(words: list[str], checkout: Path) -> None:
    """The environment made by the README's first line, and a folder."""
    assert words == [".", ".venv/bin/activate"] or words[:2] == ["mkdir", "-p"]


def check_installed(words: list[str], checkout: Path) -> None:
    """`gepa-sweeps`, launch.py by the name under which it is installed."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts[words[0]] == "launch:entry"
    run(["python", "launch.py", *words[1 : words.index(">") if ">" in words else None]], checkout)


HANDLERS: list[tuple[str, Callable[[list[str], Path], None]]] = [
    (r"(.*/)?python3?", check_python),
    (r"(.*/)?pip", check_pip),
    (r"\.ci/run", check_script),
    (r"tensorboard|wandb", check_viewer),
    (r"\.|mkdir", check_shell),
    (r"gepa-sweeps", check_installed),
]


@pytest.mark.parametrize(
    ("page", "words"), documented(), ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_documented_command(page: str, words: tuple[str, ...], checkout: Path) -> None:
    for pattern, check in HANDLERS:
        if re.fullmatch(pattern, words[0]):
            check(list(words), checkout)
            return
    raise AssertionError(f"{page}: no way to check {' '.join(words)!r}; give it one in HANDLERS")


def test_python_of_the_tutorial(checkout: Path) -> None:
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    run(["python", "-c", code], checkout)


def test_notebook_runs_and_was_executed(checkout: Path) -> None:
    """Its cells on the tiny sweep's results, then those of the page on Python; as it is kept, every cell of
    the notebook has its output."""
    path = ROOT / "docs" / "examples" / "quickstart.ipynb"
    kept = json.loads(path.read_text(encoding="utf-8"))
    cells = [cell for cell in kept["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell["outputs"] for cell in cells)
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    kept["cells"] += [{"cell_type": "code", "source": block.splitlines(keepends=True)} for block in blocks]
    copy = checkout / "notebook.ipynb"
    copy.write_text(json.dumps(kept))
    command = [sys.executable, "-m", "tests.notebooks", str(copy), str(checkout)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    made = [cell for cell in json.loads(copy.read_text())["cells"] if cell["cell_type"] == "code"]
    assert any("image/png" in output.get("data", {}) for cell in made for output in cell["outputs"])


def test_pages_have_commands() -> None:
    pages = {page for page, _ in documented()}
    assert pages >= {"README.md", "tutorial.md", "sharing.md", "extending.md"}
    launches = [words for _, words in documented() if "launch.py" in words]
    assert len(launches) >= 8


def test_wrong_commands_are_found(checkout: Path) -> None:
    for wrong in ("launch.py sweeps/quickstart.yaml --pln", "-m analysis predict results/quickstart"):
        with pytest.raises((SystemExit, AssertionError)):
            check_python(["python", *wrong.split()], checkout)
    with pytest.raises(AssertionError, match="no way to check"):
        test_documented_command("page", ("make", "all"), checkout)
