"""Shards: the format, the stream over them, and each way they can be wrong."""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gepa_core.data.shards import (
    ShardSet,
    TokenStream,
    check_vocab,
    load_tokens,
    open_shard,
    open_shards,
    write_shard,
)
from gepa_core.errors import DataError

TOKENS = np.arange(37, dtype=np.uint16)
CUTS = (5, 6, 20)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("shards")
    for i, part in enumerate(np.split(TOKENS, CUTS)):
        write_shard(folder / f"x_{i:06d}.bin", part)
    return open_shards(folder / "x_*.bin")


def test_bytes_on_disk_are_the_challenge_format(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.bin", np.array([1, 258], dtype=np.uint16))
    header = (20240520).to_bytes(4, "little") + (1).to_bytes(4, "little") + (2).to_bytes(4, "little")
    assert (tmp_path / "a.bin").read_bytes() == header.ljust(1024, b"\0") + bytes([1, 0, 2, 1])


def test_shards_are_read_in_name_order(shards: ShardSet) -> None:
    assert shards.counts == (5, 1, 14, 17)
    assert np.array_equal(load_tokens(shards), TOKENS)
    assert np.array_equal(load_tokens(shards, 7), TOKENS[:7])
    assert np.array_equal(load_tokens(shards, 1000), TOKENS)


@settings(max_examples=200, deadline=None)
@given(start=st.integers(0, 10**12), length=st.integers(0, 120))
def test_span_crosses_shards_and_wraps(shards: ShardSet, start: int, length: int) -> None:
    span = TokenStream(shards).span(start, length)
    assert span.dtype == np.uint16
    assert np.array_equal(span, (start + np.arange(length)) % len(TOKENS))


def test_span_is_a_copy(shards: ShardSet) -> None:
    stream = TokenStream(shards)
    stream.span(0, 4)[:] = 9
    assert np.array_equal(stream.span(0, 4), [0, 1, 2, 3])


def test_threads_read_the_same_stream(shards: ShardSet) -> None:
    stream = TokenStream(shards)
    with ThreadPoolExecutor(4) as pool:
        spans = list(pool.map(lambda start: stream.span(start, 50), range(200)))
    for start, span in enumerate(spans):
        assert np.array_equal(span, (start + np.arange(50)) % len(TOKENS))


def test_fingerprint_is_the_documented_hash(shards: ShardSet) -> None:
    digests = b"".join(hashlib.sha256(path.read_bytes()).digest() for path in shards.paths)
    assert shards.fingerprint() == f"sha256:{hashlib.sha256(digests).hexdigest()}"


def patched(position: int, value: int) -> Callable[[bytes], bytes]:
    field = value.to_bytes(4, "little")
    return lambda data: data[: 4 * position] + field + data[4 * position + 4 :]


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (patched(0, 7), "magic number 7, expected 20240520"),
        (patched(1, 2), "version 2"),
        (patched(2, 99), "header says 99 tokens, the file holds 10"),
        (lambda data: data[:-4], "header says 10 tokens, the file holds 8"),
        (lambda data: data + b"\0\0", "the file holds 11"),
        (lambda data: data[:-1], "odd number of token bytes"),
        (lambda data: data[:500], "less than a shard's header"),
        (lambda data: b"", "less than a shard's header"),
        (lambda data: patched(2, 0)(data)[:1024], "without tokens"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: Callable[[bytes], bytes], fault: str) -> None:
    path = tmp_path / "bad.bin"
    write_shard(path, np.arange(10, dtype=np.uint16))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=fault) as caught:
        open_shards(path)
    assert str(path) in str(caught.value)


def test_missing_pattern_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none_\*\.bin.*prepare"):
        open_shards(tmp_path / "none_*.bin")


def test_directory_is_no_shard(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a regular file"):
        open_shard(tmp_path)


def test_shard_shortened_after_opening(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_shard(path, np.arange(5000, dtype=np.uint16))
    shard = open_shard(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="has it changed"):
        shard.map()


def test_ids_past_the_vocabulary(tmp_path: Path) -> None:
    tokens = np.zeros(1000, dtype=np.uint16)
    tokens[998] = 64
    write_shard(tmp_path / "a.bin", tokens)
    shards = open_shards(tmp_path / "a.bin")
    check_vocab(shards, 65)
    for sample in (None, 10, 100_000):
        with pytest.raises(DataError, match=r"a\.bin: token id 64 is outside a vocabulary of 64"):
            check_vocab(shards, 64, sample_tokens=sample)


def test_write_refuses_other_types(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="int64"):
        write_shard(tmp_path / "a.bin", np.zeros(3, dtype=np.int64))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
