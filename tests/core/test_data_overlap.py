"""Validation documents that are in training too are found, whatever the cut into shards, and said."""

import json
from pathlib import Path

import numpy as np
import pytest

from gepa_core.data import overlap
from gepa_core.data.__main__ import main
from gepa_core.data.folder import open_folder
from gepa_core.data.overlap import Overlap, find_overlap, launch_warning, overlap_of
from gepa_core.data.prepare import prepare
from gepa_core.data.shards import ShardSet, open_shards, write_shard
from gepa_core.training.trained import read_job
from tests.tiny_sweep import VOCAB, sweep_text

BOS = 1


def shards(folder: Path, documents: list[list[int]], cut: int) -> ShardSet:
    folder.mkdir()
    tokens = np.array([t for document in documents for t in (BOS, *document)], np.uint16)
    for i, start in enumerate(range(0, len(tokens), cut)):
        write_shard(folder / f"{i:03}.bin", tokens[start : start + cut])
    return open_shards(folder / "*.bin")


@pytest.mark.parametrize("cut", [3, 7, 1000])
def test_equal_documents_are_found_across_shards(cut: int, tmp_path: Path) -> None:
    train = [[5, 6, 7], [8, 9], [], [10, 11, 12, 13], [20], [30, 31]]
    val = [[8, 9], [9, 8], [5, 6], [5, 6, 7, 8], [10, 11, 12, 13], [], [20], [31]]
    found = find_overlap(shards(tmp_path / "t", train, cut), shards(tmp_path / "v", val, 4), BOS)
    assert found == Overlap(documents=7, tokens=16, repeated_documents=3, repeated_tokens=7)


def test_a_text_without_documents_tells_nothing(tmp_path: Path) -> None:
    train = shards(tmp_path / "t", [[5, 6]], 10)
    (tmp_path / "v").mkdir()
    write_shard(tmp_path / "v" / "0.bin", np.full(50, 7, np.uint16))
    assert find_overlap(train, open_shards(tmp_path / "v" / "*.bin"), BOS) is None
    assert find_overlap(open_shards(tmp_path / "v" / "*.bin"), train, BOS) == Overlap(1, 2, 0, 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of 45 validation documents 15 are training's."""
    text = [f"text number {i} of a few short ones, all of them plain words" for i in range(400)]
    prepare(tmp_path / "data", lambda: text[30:], lambda: text[:45], vocab_size=VOCAB, source={}, workers=1)
    return tmp_path / "data"


def test_inspect_says_how_many(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["in training and validation"]
    assert (told["validation_documents"], told["repeated_documents"]) == (45, 15)
    assert main(["inspect", str(folder)]) == 0
    assert "repeated_documents 15" in " ".join(capsys.readouterr().out.split())
    pattern, val, model = (str(folder / name) for name in ("train_*.bin", "val_*.bin", "tokenizer.model"))
    assert main(["inspect", pattern, "--val", val, "--tokenizer", model, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["in training and validation"] == told
    assert main(["inspect", pattern, "--val", val]) == 2


def test_a_launch_warns(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from sweeps.commands.sweep import open_data
    from sweeps.spec.load import read_sweep

    said: list[str] = []
    open_data(read_sweep(sweep_text(folder, {"steps": [4], "warmdown_ratio": [0.5]})), said.append)
    (warning,) = (line for line in said if line.startswith("warning"))
    assert "15 of 45 validation documents" in warning and "are in training too" in warning
    job = tmp_path / "job.json"
    job.write_text(
        json.dumps(
            {
                "run": {
                    "recipe": "gepa-nano",
                    "steps": 1,
                    "warmdown_steps": 0,
                    "model": {"vocab_size": VOCAB},
                },
                "data": str(folder),
            }
        )
    )
    read_job(job)
    assert "15 of 45" in caplog.text


def test_what_takes_long_is_not_looked_for_at_a_launch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_folder(folder)
    monkeypatch.setattr(overlap, "LAUNCH_TOKENS", 10)
    assert "not checked" in str(launch_warning(dataset))
    assert overlap_of(dataset) is not None  # as inspect does, which keeps it
    assert "15 of 45" in str(launch_warning(dataset))
    (folder / overlap.CACHE).write_text('{"damaged": [')
    assert "not checked" in str(launch_warning(dataset))
    (folder / overlap.CACHE).write_text(
        json.dumps({f"{dataset.config.train} {dataset.config.val}": {"documents": "x"}})
    )
    assert "not checked" in str(launch_warning(dataset))


def test_other_documents_need_no_word(tmp_path: Path) -> None:
    text = [f"text number {i} of a few short ones, all of them plain words" for i in range(400)]
    out = tmp_path / "data"
    prepare(out, lambda: text[40:], lambda: text[:40], vocab_size=VOCAB, source={}, workers=1)
    assert launch_warning(open_folder(out)) is None
