"""What a user can get wrong: one clear message, exit code 2, nothing started, no traceback, and quickly."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
GOOD = "name: s\nrecipe: gepa-nano\ngrid: {steps: [10], warmdown_ratio: [.5]}\nset: {data.dir: corpus}\n"


def launch(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def refused(folder: Path, *arguments: str) -> str:
    """The message of a launch that must be refused."""
    before = sorted(path for path in folder.rglob("*"))
    result = launch(folder, *arguments)
    assert result.returncode == 2, result
    assert "Traceback" not in result.stderr and not result.stdout
    assert sorted(path for path in folder.rglob("*")) == before, "something was started"
    return result.stderr


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("grid", "grdi"), ["s.yaml: ", "line 3, grdi: unknown key", "did you mean grid?"]),
        (("[10]", "[ten]"), ["line 3, grid.steps[0]: text 'ten'", "whole number >= 1"]),
        (("[10]", "[0]"), ["line 3, grid.steps[0]: int 0", "whole number >= 1"]),
        (("warmdown_ratio: [.5]", "warmdown_steps: [11]"), ["warmdown_steps 11 exceeds steps 10"]),
        (("name: s", "name: ../s"), ["line 1, name: '../s' must name a folder inside the output"]),
        (("name: s", "name: s: t"), ["line 1, column 8: not YAML"]),
        (("corpus", "nowhere"), ["nowhere", "python -m gepa_core.data prepare", ".txt, .jsonl or .parquet"]),
        (("set: {data.dir: corpus}", ""), ["names no data", "set data.dir"]),
        (("data.dir: corpus", "data.train: 'fineweb/x_*.bin'"), ["fineweb/x_*.bin: no such shards", "fetch"]),
        (("corpus}", "corpus}\nexec: {ranks: 3}"), ["s.yaml: 2 spans a step do not divide among 3 ranks"]),
    ],
)  # fmt: skip
def test_wrong_sweep_files(change: tuple[str, str], expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(GOOD.replace(*change))
    message = refused(tmp_path, "s.yaml")
    for part in expected:
        assert part in message


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["missing.yaml"], "missing.yaml: no such file or directory; did you mean missin.yaml?"),
        (["missin.yaml", "stps=5"], "argument 'stps=5', stps: unknown key; did you mean"),
        (["missin.yaml", "--max-gpu-hours", "0"], "--max-gpu-hours"),
        (["missin.yaml", "--max-parallel", "1.5"], "--max-parallel"),
        (["missin.yaml", "--paln"], "--paln"),
        (["status", "nowhere"], "nowhere"),
        (["gc", "nowhere"], "nowhere"),
        ([], "SWEEP.yaml"),
    ],
)
def test_wrong_arguments(arguments: list[str], expected: str, tmp_path: Path) -> None:
    (tmp_path / "missin.yaml").write_text(GOOD)
    assert expected in refused(tmp_path, *arguments)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A small prepared folder."""
    from gepa_core.data.prepare import prepare_files

    text = tmp_path / "text.txt"
    words = [f"word{i % 97} of {i % 13} and more" for i in range(4000)]
    text.write_text("\n\n".join(" ".join(words[i : i + 40]) for i in range(0, 4000, 40)))
    prepare_files(tmp_path / "corpus", [text], vocab_size=300, val_fraction=0.2, workers=1)
    return tmp_path / "corpus"


def test_corrupt_shard_is_named(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(GOOD.replace("corpus", "corpus, model.vocab_size: 300"))
    shard = next(corpus.glob("train_*.bin"))
    intact = shard.read_bytes()
    shard.write_bytes(intact[:-2])
    assert shard.name in refused(tmp_path, "s.yaml")
    header = np.frombuffer(intact[:1024], np.int32).copy()
    header[0] = 1
    shard.write_bytes(header.tobytes() + intact[1024:])
    assert shard.name in refused(tmp_path, "s.yaml")


def test_vocabulary_must_be_the_tokenizers(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(GOOD)
    message = refused(tmp_path, "s.yaml")
    assert "300 pieces" in message and "set model.vocab_size to 300" in message


def test_plan_and_errors_are_quick(tmp_path: Path) -> None:
    """No torch, no ray: processor time well under 1.5 s."""
    (tmp_path / "s.yaml").write_text(GOOD)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert launch(tmp_path, "s.yaml", "--plan").returncode == 0
    refused(tmp_path, "s.yaml", "stps=1")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent < 2 * 1.5


def test_plan_of_some_runs_within_a_budget(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(GOOD.replace("[10]", "[10, 20000]"))
    shown = launch(tmp_path, "s.yaml", "--plan", "--only", "20000-*", "--max-gpu-hours", "0.01")
    assert shown.returncode == 0
    assert "1 run in 1 tree" in shown.stdout and "at --max-gpu-hours 0.01 of" in shown.stdout
    assert "no run of s matches; there are 10-5-linear-s42-" in refused(
        tmp_path, "s.yaml", "--plan", "--only", "x*"
    )


def test_a_cluster_that_is_not_there(tmp_path: Path) -> None:
    """A run is refused at once; a plan says so and reckons with this machine."""
    (tmp_path / "s.yaml").write_text(GOOD)
    assert "no Ray cluster answers at 127.0.0.1:1" in refused(tmp_path, "s.yaml", "--address", "127.0.0.1:1")
    shown = launch(tmp_path, "s.yaml", "--plan", "--address", "127.0.0.1:1")
    assert shown.returncode == 0
    assert "no Ray cluster answers" in shown.stdout and "this machine" in shown.stdout


def test_help_lists_commands_and_exit_codes(tmp_path: Path) -> None:
    shown = launch(tmp_path, "--help")
    assert shown.returncode == 0
    for word in ("status", "gc", "export", "import", "exit codes", "--max-gpu-hours", "--only"):
        assert word in shown.stdout
