"""What a launch checks of its data, and the fingerprints it takes."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gepa_core.data import folder as folders
from gepa_core.data.__main__ import main
from gepa_core.data.folder import cached_fingerprint, check_launch, open_folder, open_patterns, verify
from gepa_core.data.prepare import prepare
from gepa_core.data.shards import Shard, open_shards, write_shard
from gepa_core.errors import DataError


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("folder") / "data [1]"  # a name that glob would misread
    documents = [f"text number {i} of a few short ones, all of them plain words" for i in range(200)]
    train, val = documents[20:], documents[:20]
    prepare(out, lambda: train, lambda: val, vocab_size=300, source={}, shard_tokens=2000, workers=1)
    return out


@pytest.fixture
def copy(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "copy"))


def test_fingerprints_are_the_hash_of_the_files(prepared: Path) -> None:
    dataset = verify(prepared)
    assert dataset.config.train == dataset.train.fingerprint()
    assert dataset.config.val == dataset.val.fingerprint()
    assert open_shards(dataset.paths.train) == dataset.train
    check_launch(dataset, vocab_size=300, seq_len=64)


def test_bare_patterns_have_the_fingerprints_of_the_folder(copy: Path) -> None:
    known = open_folder(copy)
    (copy / "manifest.json").unlink()
    bare = open_patterns(known.paths.train, known.paths.val, known.paths.tokenizer)
    assert bare.config == known.config
    assert bare.manifest is None and bare.val_text is None


def test_cache_saves_hashing_until_a_file_changes(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy / "manifest.json").unlink()
    hashed: list[str] = []
    real = Shard.sha256

    def counting(shard: Shard) -> str:
        hashed.append(shard.path.name)
        return real(shard)

    monkeypatch.setattr(Shard, "sha256", counting)
    shards = open_shards(copy / "train_*.bin")
    first = cached_fingerprint(shards)
    assert sorted(hashed) == [path.name for path in shards.paths]
    assert cached_fingerprint(shards) == first
    assert len(hashed) == len(shards.paths)
    flip(shards.paths[1])
    os.utime(shards.paths[1], ns=(1, 1))  # a coarse clock may not have moved
    assert cached_fingerprint(shards) != first
    assert hashed[len(shards.paths) :] == [shards.paths[1].name]
    (copy / ".fingerprints.json").write_text("{broken")
    assert cached_fingerprint(shards) == shards.fingerprint()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return apply


def shorten(folder: Path) -> None:
    write_shard(folder / "train_000000.bin", np.zeros(5, dtype=np.uint16))


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda f: shutil.rmtree(f), "does not exist; make it with .*prepare"),
        (lambda f: (f / "manifest.json").unlink(), "no manifest.json.*prepare"),
        (lambda f: (f / "manifest.json").write_text("{"), "unreadable manifest"),
        (lambda f: (f / "manifest.json").write_text("[]"), "unreadable manifest"),
        (edit(lambda m: m.update(version=9)), "version 1"),
        (edit(lambda m: m.pop("val")), "unreadable manifest .*val"),
        (
            edit(lambda m: m["train"].update(fingerprint="sha256:" + "0" * 64)),
            "does not follow from its files",
        ),
        (edit(lambda m: m["train"]["files"][0].update(sha256="zz")), "unreadable manifest"),
        (edit(lambda m: m["train"].update(tokens=1)), "token count is not the sum"),
        (edit(lambda m: m["tokenizer"].update(file="../../x")), "does not lie in the folder"),
        (
            lambda f: (f / "train_000001.bin").unlink(),
            "train_000001.bin: listed in manifest.json but missing",
        ),
        (lambda f: shutil.copy(f / "val_000000.bin", f / "val_000009.bin"), "val_000009.bin: .*not listed"),
        (shorten, "train_000000.bin: 5 tokens, manifest.json says 2000"),
        (lambda f: (f / "val_000000.bin").write_bytes(b"x" * 2000), "val_000000.bin: magic number"),
        (lambda f: (f / "tokenizer.model").unlink(), "tokenizer.model: cannot be read"),
        (lambda f: (f / "tokenizer.model").write_bytes(b"other"), "tokenizer.model: not the tokenizer"),
    ],
)
def test_damage_is_found_on_opening(copy: Path, damage: Callable[[Path], object], fault: str) -> None:
    damage(copy)
    with pytest.raises(DataError, match=fault):
        open_folder(copy)


def test_altered_content_is_found_by_verify_only(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(copy / "train_000001.bin")
    open_folder(copy)
    assert main(["inspect", str(copy)]) == 0
    assert main(["inspect", str(copy), "--verify"]) == 2
    captured = capsys.readouterr()
    assert "train_000001.bin: content altered" in captured.err
    assert captured.err.count("\n") == 1


def test_launch_refuses_what_does_not_fit(copy: Path) -> None:
    dataset = open_folder(copy)
    with pytest.raises(
        DataError, match=r"has 300 pieces, model.vocab_size is 1024; set model.vocab_size to 300"
    ):
        check_launch(dataset, vocab_size=1024, seq_len=64)
    with pytest.raises(DataError, match=rf"{dataset.val.total} validation tokens are less than one window"):
        check_launch(dataset, vocab_size=300, seq_len=dataset.val.total)
    check_launch(dataset, vocab_size=300, seq_len=dataset.val.total - 1)
    shard = dataset.train.paths[0]
    tokens = np.array(open_shards(shard).shards[0].map())
    tokens[3] = 300
    write_shard(shard, tokens)
    with pytest.raises(DataError, match="token id 300 is outside a vocabulary of 300"):
        check_launch(open_folder(copy), vocab_size=300, seq_len=64)


def test_bare_patterns_name_what_is_missing(copy: Path) -> None:
    paths = open_folder(copy).paths
    with pytest.raises(DataError, match=r"no shards match '.*none\*'"):
        open_patterns(str(copy / "none*"), paths.val, paths.tokenizer)
    with pytest.raises(DataError, match="no such tokenizer"):
        open_patterns(paths.train, paths.val, str(copy / "none.model"))


def test_read_only_folder_is_hashed_each_time(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy / "manifest.json").unlink()

    def refuse(path: Path, value: object) -> None:
        raise PermissionError(13, "read-only", str(path))

    monkeypatch.setattr(folders, "write_json", refuse)
    shards = open_shards(copy / "val_*.bin")
    assert cached_fingerprint(shards) == shards.fingerprint()
    assert not (copy / ".fingerprints.json").exists()
