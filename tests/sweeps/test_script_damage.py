"""What of a script's sweep was altered in the store is made again, and never passes for a result."""

import shutil
from pathlib import Path

import pytest

from sweeps.store.store import Store
from tests.script_sweep import launch, rows
from tests.sweeps.test_scripts import FIGURES, example


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("script") / "out"
    assert launch(example(), output).exit_code == 0
    return output


def figures(output: Path) -> list[list[object]]:
    return [[row[key] for key in FIGURES] for row in rows(output)]


def without_longest_run(made: Path, output: Path) -> Path:
    """A copy of the store in which the end of the longest run is not done; the folder that it starts from."""
    shutil.copytree(made, output)
    (last,) = output.glob("segments/6-12-*")
    shutil.rmtree(last)
    (state,) = output.glob("segments/4-6-*/attempts/*/checkpoint")
    return state


def test_a_state_that_was_altered_is_set_aside_and_made_again(made: Path, tmp_path: Path) -> None:
    (state,) = without_longest_run(made, tmp_path / "out").iterdir()
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 1
    state.write_bytes(data)
    stopped = launch(example(), tmp_path / "out")  # the command plans anew, and goes on
    assert stopped.ending == "damaged" and "altered since it was committed" in str(stopped)
    assert launch(example(), tmp_path / "out").exit_code == 0
    assert figures(tmp_path / "out") == figures(made)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-2000], lambda data: data.replace(b"0.5", b"0.1"), len]
)
def test_an_archive_of_the_script_that_was_altered_is_written_again(
    made: Path, tmp_path: Path, damage
) -> None:  # type: ignore[no-untyped-def]
    without_longest_run(made, tmp_path / "out")
    (archive,) = (tmp_path / "out" / "scripts").iterdir()
    whole = archive.read_bytes()
    altered = damage(whole)
    archive.write_bytes(altered if isinstance(altered, bytes) else b"")
    assert archive.read_bytes() != whole
    assert launch(example(), tmp_path / "out").exit_code == 0
    assert archive.read_bytes() == whole and figures(tmp_path / "out") == figures(made)


def test_runs_that_are_said_to_have_failed_and_are_whole_are_done(made: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(made, output)
    folder = Store(output).sweep("tiny")
    told = [
        {k: v for k, v in row.items() if "output" not in k} | {"status": "failed"} for row in rows(output)
    ]
    folder.write_runs(told, {})
    assert launch(example(), output).exit_code == 0
    assert [row["status"] for row in rows(output)] == ["done", "done"]
