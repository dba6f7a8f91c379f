"""Fetching from a hub that breaks off, truncates, lies and refuses."""

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest

from gepa_core.data import hub
from gepa_core.data.encode import train_tokenizer
from gepa_core.data.fetch import REPO, fetch
from gepa_core.data.folder import Dataset, open_folder, verify
from gepa_core.data.shards import load_tokens, write_shard
from gepa_core.errors import DataError
from tests.hub_standin import COMMIT, Standin, serving

FOLDER = "datasets/datasets/fineweb10B_sp1024"
TOKENIZER = "datasets/tokenizers/fineweb_1024_bpe.model"
SHARDS = {"train": 4, "val": 1}


def shard(folder: Path, seed: int, tokens: int = 40_000) -> bytes:
    ids = np.random.default_rng(seed).integers(4, 300, tokens).astype(np.uint16)
    ids[::1000] = 1
    write_shard(folder / "one.bin", ids)
    return (folder / "one.bin").read_bytes()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A small repository of the published layout: 4 + 1 shards, a real tokenizer, the manifest's shape."""
    folder = tmp_path_factory.mktemp("published")
    files = {TOKENIZER: train_tokenizer(["some words to learn a tokenizer of 300 pieces from"] * 5, 300)}
    tokens = {"train": 0, "val": 0}
    for split, count in SHARDS.items():
        for i in range(count):
            data = shard(folder, seed=i + 10 * (split == "val"))
            files[f"{FOLDER}/fineweb_{split}_{i:06d}.bin"] = data
            tokens[split] += (len(data) - 1024) // 2
    entry = {
        "name": "fineweb10B_sp1024",
        "tokenizer_name": "sp_bpe_1024",
        "path": "datasets/fineweb10B_sp1024",
        "vocab_size": 300,
        "bos_id": 1,
        "stats": {
            "files_train": SHARDS["train"],
            "files_val": SHARDS["val"],
            "tokens_train": tokens["train"],
            "tokens_val": tokens["val"],
        },
    }
    tokenizers = [{"name": "sp_bpe_1024", "model_path": "tokenizers/fineweb_1024_bpe.model"}]
    files["datasets/manifest.json"] = json.dumps({"datasets": [entry], "tokenizers": tokenizers}).encode()
    return files


@pytest.fixture
def standin(published: dict[str, bytes]) -> Iterator[Standin]:
    with serving(Standin(REPO, dict(published))) as server:
        yield server


def fetch_from(standin: Standin, out: Path, **options: Any) -> Dataset:
    return fetch(out, endpoint=standin.url, **options)


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses are noted instead of slept: the hub's library asks for whole seconds."""
    noted: list[float] = []
    monkeypatch.setattr(time, "sleep", noted.append)
    return noted


def test_fetched_folder_opens_like_a_prepared_one(standin: Standin, tmp_path: Path) -> None:
    said: list[str] = []
    dataset = fetch_from(standin, tmp_path / "d", train_shards=3, say=said.append)
    assert verify(tmp_path / "d") == dataset == open_folder(tmp_path / "d")
    assert [path.name for path in dataset.train.paths] == [f"fineweb_train_{i:06d}.bin" for i in range(3)]
    for path in (*dataset.train.paths, *dataset.val.paths):
        assert path.read_bytes() == standin.files[f"{FOLDER}/{path.name}"]
    assert dataset.manifest is not None
    assert dataset.manifest["source"] == {
        "repository": REPO,
        "commit": COMMIT,
        "dataset": "fineweb10B_sp1024",
    }
    assert dataset.manifest["train"]["documents"] == (load_tokens(dataset.train) == 1).sum() == 120
    assert dataset.val_text is None
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == [
        "fineweb_1024_bpe.model",
        *(f"fineweb_train_{i:06d}.bin" for i in range(3)),
        "fineweb_val_000000.bin",
        "manifest.json",
    ]
    assert "4 of 4 shards" in said[-1]


def test_again_downloads_nothing_and_more_shards_only_those(standin: Standin, tmp_path: Path) -> None:
    first = fetch_from(standin, tmp_path / "d", train_shards=2)
    standin.requests.clear()
    assert fetch_from(standin, tmp_path / "d", train_shards=2) == first
    assert (
        fetch_from(standin, tmp_path / "d", train_shards=1) == first
    )  # fewer than there are: none is taken away
    assert not [name for _, name, _ in standin.requests if name.endswith(".bin")]
    more = fetch_from(standin, tmp_path / "d", train_shards=4)
    shards = {name for _, name, _ in standin.requests if name.endswith(".bin")}
    assert shards == {f"{FOLDER}/fineweb_train_{i:06d}.bin" for i in (2, 3)}
    assert len(verify(tmp_path / "d").train.paths) == 4
    assert more.config.train != first.config.train


def test_broken_transfer_resumes_where_it_broke(
    standin: Standin, tmp_path: Path, sleeps: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 4096)  # what may be lost at a break
    name = f"{FOLDER}/fineweb_train_000000.bin"
    standin.faults["GET", name] = ["break", "break"]
    fetch_from(standin, tmp_path / "d", train_shards=1)
    verify(tmp_path / "d")
    ranges = standin.gets(name)
    assert ranges[0] is None
    assert all(rng is not None and rng != "bytes=0-" for rng in ranges[1:])
    assert len(ranges) == 3


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize("status", ["429", "500", "503"])
def test_passing_refusals_are_waited_out(
    standin: Standin, tmp_path: Path, sleeps: list[float], method: str, status: str
) -> None:
    for name in (f"{FOLDER}/fineweb_train_000000.bin", "datasets/manifest.json"):
        standin.faults[method, name] = [status, status]
    fetch_from(standin, tmp_path / "d", train_shards=1)
    verify(tmp_path / "d")
    assert len(sleeps) >= 4
    assert all(not queue for queue in standin.faults.values())


def test_truncated_and_corrupt_files_are_fetched_again(
    standin: Standin, tmp_path: Path, sleeps: list[float]
) -> None:
    standin.faults["GET", f"{FOLDER}/fineweb_train_000000.bin"] = ["truncate"]
    standin.faults["GET", f"{FOLDER}/fineweb_train_000001.bin"] = ["corrupt"]
    fetch_from(standin, tmp_path / "d", train_shards=2)
    verify(tmp_path / "d")
    assert all(not queue for queue in standin.faults.values())


def test_pauses_grow_and_end(standin: Standin, tmp_path: Path, sleeps: list[float]) -> None:
    name = f"{FOLDER}/fineweb_train_000000.bin"
    said: list[str] = []
    standin.faults["GET", name] = ["503"] * 99
    with pytest.raises(
        DataError, match=r"train_000000.bin: given up after 6 attempts .HTTP 503.; .*the same command"
    ):
        fetch_from(standin, tmp_path / "d", train_shards=1, workers=1, say=said.append)
    assert sleeps == [1.0, 2.0, 4.0, 8.0, 16.0]
    waits = [line for line in said if line.startswith(f"{name}: ")]
    assert waits[0] == f"{name}: HTTP 503; attempt 2 of 6 in 1 s" and len(waits) == 5
    with pytest.raises(DataError, match=r"no manifest.json"):
        open_folder(tmp_path / "d")


def test_disk_faults_are_not_retried(
    standin: Standin, tmp_path: Path, sleeps: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub, "hf_hub_download", full)
    with pytest.raises(DataError, match=r"cannot be written .No space left on device"):
        fetch_from(standin, tmp_path / "d", train_shards=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file.*cannot be written"):
        fetch_from(standin, tmp_path / "file" / "d", train_shards=1)
    assert not sleeps


def test_retry_after_is_honoured(standin: Standin, tmp_path: Path, sleeps: list[float]) -> None:
    standin.faults["HEAD", "datasets/manifest.json"] = ["429"]
    standin.retry_after = "17"
    fetch_from(standin, tmp_path / "d", train_shards=1)
    assert 17.0 in sleeps


def test_cut_short_goes_on_from_there(standin: Standin, tmp_path: Path, sleeps: list[float]) -> None:
    broken = f"{FOLDER}/fineweb_train_000002.bin"
    standin.faults["GET", broken] = ["503"] * 6
    with pytest.raises(DataError, match="train_000002"):
        fetch_from(standin, tmp_path / "d", train_shards=4, workers=1)
    standin.requests.clear()
    fetch_from(standin, tmp_path / "d", train_shards=4, workers=1)
    verify(tmp_path / "d")
    assert not standin.gets(f"{FOLDER}/fineweb_train_000000.bin")
    assert not standin.gets(f"{FOLDER}/fineweb_train_000001.bin")
    assert len(standin.gets(broken)) == 1


def test_file_lost_or_shortened_since_is_fetched_again(standin: Standin, tmp_path: Path) -> None:
    first = fetch_from(standin, tmp_path / "d", train_shards=3)
    first.train.paths[0].unlink()
    first.train.paths[1].write_bytes(first.train.paths[1].read_bytes()[:-2])
    standin.requests.clear()
    assert fetch_from(standin, tmp_path / "d", train_shards=3) == first
    verify(tmp_path / "d")
    assert not standin.gets(f"{FOLDER}/fineweb_train_000002.bin")


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda data: b"\1" + data[1:], "is damaged: .*magic number"),
        (lambda data: data[:-2], "is damaged: .*header says"),
        (lambda data: data[:-2] + b"\xff\xff", "is damaged: .*token id 65535 is outside a vocabulary of 300"),
    ],
)
def test_published_damage_is_named(
    standin: Standin, tmp_path: Path, damage: Callable[[bytes], bytes], fault: str
) -> None:
    name = f"{FOLDER}/fineweb_val_000000.bin"
    standin.files[name] = damage(standin.files[name])
    with pytest.raises(DataError, match=f"fineweb_val_000000.bin {fault}"):
        fetch_from(standin, tmp_path / "d", train_shards=1)
    assert not (tmp_path / "d" / "manifest.json").exists()


def test_token_count_is_held_against_the_published_one(standin: Standin, tmp_path: Path) -> None:
    standin.files[f"{FOLDER}/fineweb_val_000000.bin"] = shard(tmp_path, 1, tokens=500)
    with pytest.raises(
        DataError, match="val shards of fineweb10B_sp1024 hold 500 tokens, its manifest says 40000"
    ):
        fetch_from(standin, tmp_path / "d", train_shards=1)


def test_changed_commit_does_not_mix(standin: Standin, tmp_path: Path) -> None:
    fetch_from(standin, tmp_path / "d", train_shards=1)
    standin.commit = "f" * 40
    with pytest.raises(DataError, match=f"holds files of commit {COMMIT}, main is {'f' * 40}"):
        fetch_from(standin, tmp_path / "d", train_shards=2, revision="main")


def test_what_cannot_pass_is_said_at_once(standin: Standin, tmp_path: Path, sleeps: list[float]) -> None:
    with pytest.raises(DataError, match="has no variant 'sp9'; it has sp1024"):
        fetch_from(standin, tmp_path / "a", variant="sp9")
    with pytest.raises(DataError, match="--shards 5: fineweb10B_sp1024 has 4"):
        fetch_from(standin, tmp_path / "b", train_shards=5)
    with pytest.raises(DataError, match="--shards 0"):
        fetch_from(standin, tmp_path / "c", train_shards=0)
    with pytest.raises(DataError, match="no such dataset repository"):
        fetch_from(standin, tmp_path / "e", repo="some/other")
    with pytest.raises(DataError, match="no such revision"):
        fetch_from(standin, tmp_path / "f", revision="nowhere")
    del standin.files[TOKENIZER]
    with pytest.raises(DataError, match=r"fineweb_1024_bpe.model: no such file in the repository"):
        fetch_from(standin, tmp_path / "g", train_shards=1)
    standin.faults["HEAD", "datasets/manifest.json"] = ["403"]
    with pytest.raises(DataError, match="refused"):
        fetch_from(standin, tmp_path / "h", train_shards=1)
    assert not sleeps


@pytest.mark.parametrize("manifest", [b"{", b"[]", b'{"datasets": [{}], "tokenizers": []}'])
def test_foreign_manifest(standin: Standin, tmp_path: Path, manifest: bytes) -> None:
    standin.files["datasets/manifest.json"] = manifest
    with pytest.raises(DataError, match="not the manifest expected"):
        fetch_from(standin, tmp_path / "d", train_shards=1)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("datasets", 0, "name"), "../../x_sp1024"),
        (("tokenizers", 0, "model_path"), "../../../etc/passwd"),
        (("tokenizers", 0, "model_path"), "/etc/passwd"),
        (("datasets", 0, "stats", "files_val"), 10**18),
        (("datasets", 0, "stats", "files_val"), -1),
        (("datasets", 0, "stats", "tokens_val"), 1e300),
        (("datasets", 0, "vocab_size"), 10**18),
        (("datasets", 0, "bos_id"), "1"),
    ],
)
def test_malicious_manifest(
    standin: Standin, tmp_path: Path, where: tuple[str | int, ...], value: object
) -> None:
    """Names that lead out of the repository or the folder, sizes that no disk has."""
    manifest = json.loads(standin.files["datasets/manifest.json"])
    *path, last = where
    at = manifest
    for part in path:
        at = at[part]
    at[last] = value
    standin.files["datasets/manifest.json"] = json.dumps(manifest).encode()
    with pytest.raises(DataError, match=r"not the manifest expected|leaves the repository"):
        fetch_from(standin, tmp_path / "in" / "d", train_shards=1)
    left = {path.name for path in tmp_path.rglob("*") if path.is_file() and ".fetch" not in path.parts}
    assert not left


def test_prepared_folder_is_not_overwritten(standin: Standin, tmp_path: Path) -> None:
    dataset = fetch_from(standin, tmp_path / "d", train_shards=1)
    manifest = json.loads((tmp_path / "d" / "manifest.json").read_text())
    manifest["source"] = {"corpus": "docstrings"}
    (tmp_path / "d" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="not fetched; use another --out"):
        fetch_from(standin, tmp_path / "d", train_shards=2)
    assert len(dataset.train.paths) == 1


def command(url: str, *args: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gepa_core.data", "fetch", *args],
        cwd=cwd,
        env={**os.environ, "HF_ENDPOINT": url, "PYTHONPATH": str(Path(__file__).parents[2]), **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_command_with_hf_endpoint(standin: Standin, tmp_path: Path) -> None:
    done = command(standin.url, "--shards", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "bytes_per_token" in done.stdout
    assert verify(tmp_path / "data/datasets/fineweb10B_sp1024").train.total == 40_000
    refused = command(standin.url, "--shards", "99", "--out", "x", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr == "error: --shards 99: fineweb10B_sp1024 has 4\n"
    offline = command(standin.url, "--out", "y", cwd=tmp_path, HF_HUB_OFFLINE="1")
    assert offline.returncode == 2
    assert "HF_HUB_OFFLINE" in offline.stderr and "Traceback" not in offline.stderr


def test_nobody_answers(tmp_path: Path, sleeps: list[float]) -> None:
    with serving(Standin(REPO, {})) as standin:
        pass
    with pytest.raises(DataError, match=rf"manifest.json: given up after {hub.ATTEMPTS} attempts"):
        fetch_from(standin, tmp_path / "d", train_shards=1)
