"""Token shards in the challenge's format: 256 int32 (magic, version, count), then uint16; little-endian."""

import glob
import hashlib
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gepa_core import files
from gepa_core.errors import DataError

MAGIC = 20240520
VERSION = 1
HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS
TOKEN_BYTES = 2

Tokens = NDArray[np.uint16]


@dataclass(frozen=True)
class Shard:
    """One file whose header and size agree."""

    path: Path
    tokens: int

    def map(self) -> NDArray[np.uint16]:
        """The tokens, memory-mapped and read-only."""
        try:
            return np.memmap(self.path, dtype="<u2", mode="r", offset=HEADER_BYTES, shape=(self.tokens,))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.path}: cannot be mapped ({error}); has it changed since it was opened?"
            ) from error

    def sha256(self) -> str:
        """Hex SHA-256 of the whole file, header included."""
        return file_sha256(self.path)


@dataclass(frozen=True)
class ShardSet:
    """Shards in name order: one stream of tokens."""

    shards: tuple[Shard, ...]

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(shard.path for shard in self.shards)

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(shard.tokens for shard in self.shards)

    @property
    def total(self) -> int:
        """Tokens in all."""
        return sum(self.counts)

    def fingerprint(self) -> str:
        """Rehashes every file: seconds per 10 GB. See `combine`."""
        return combine(shard.sha256() for shard in self.shards)


def combine(file_digests: Iterator[str] | Sequence[str]) -> str:
    """Fingerprint of a shard set: "sha256:" + SHA-256 over the 32-byte SHA-256 of each file, in name order.

    A digest per file lets files be hashed in parallel and a fault be laid at one file's door.
    File names do not enter: a renamed set that keeps its order is the same data.
    """
    whole = hashlib.sha256()
    for digest in file_digests:
        whole.update(bytes.fromhex(digest))
    return f"sha256:{whole.hexdigest()}"


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file. Raises DataError if it cannot be read."""
    try:
        _refuse_pipes(path)
        return files.sha256(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _refuse_pipes(path: Path) -> int:
    """Bytes of a regular file; DataError for a pipe, a device or a folder, which have no end or no bytes."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path}: not a regular file")
    return status.st_size


def open_shard(path: Path) -> Shard:
    """Checks header and size, reads no token. Raises DataError naming the file and its fault."""
    try:
        size = _refuse_pipes(path)
        with path.open("rb") as file:
            head = file.read(HEADER_BYTES)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if len(head) < HEADER_BYTES:
        raise DataError(
            f"{path}: {size} bytes is less than a shard's header of {HEADER_BYTES}; truncated or no shard"
        )
    magic, version, tokens = (int(n) for n in np.frombuffer(head, dtype="<i4", count=3))
    if magic != MAGIC:
        raise DataError(f"{path}: magic number {magic}, expected {MAGIC}; not a token shard")
    if version != VERSION:
        raise DataError(f"{path}: shard version {version}, only version {VERSION} is known")
    payload = size - HEADER_BYTES
    if payload % TOKEN_BYTES:
        raise DataError(f"{path}: odd number of token bytes ({payload}); a token takes {TOKEN_BYTES}")
    if payload != TOKEN_BYTES * tokens:
        raise DataError(
            f"{path}: header says {tokens} tokens, the file holds {payload // TOKEN_BYTES}; "
            "truncated or altered"
        )
    if not tokens:
        raise DataError(f"{path}: shard without tokens")
    return Shard(path, tokens)


def open_shards(pattern: str | Path) -> ShardSet:
    """Opens the shards of a glob pattern, in name order. Raises DataError if there are none or one is bad."""
    found = sorted(Path(name) for name in glob.glob(str(pattern)))  # noqa: PTH207 (may be absolute)
    if not found:
        raise DataError(f"no shards match {str(pattern)!r}; `prepare` or `fetch` of gepa_core.data make some")
    return ShardSet(tuple(open_shard(path) for path in found))


class TokenStream:
    """Random access to a shard set as one endless stream. Memory-mapped, without state: safe in threads."""

    def __init__(self, shards: ShardSet) -> None:
        self.total = shards.total
        self._maps = [shard.map() for shard in shards.shards]
        self._ends = np.cumsum(shards.counts)

    def span(self, start: int, length: int) -> Tokens:
        """Tokens [start, start+length) as a new uint16[length], wrapping round at the end of the data."""
        if start < 0 or length < 0:
            raise ValueError(f"span({start}, {length}): both must be >= 0")
        out = np.empty(length, dtype=np.uint16)
        filled = 0
        while filled < length:
            position = (start + filled) % self.total
            index = int(np.searchsorted(self._ends, position, side="right"))
            shard = self._maps[index]
            offset = position - (int(self._ends[index]) - len(shard))
            piece = shard[offset : offset + length - filled]
            out[filled : filled + len(piece)] = piece
            filled += len(piece)
        return out


def load_tokens(shards: ShardSet, limit: int | None = None) -> Tokens:
    """The first `limit` tokens (None: all) of the set in memory, uint16[N], without wrapping."""
    length = shards.total if limit is None else min(limit, shards.total)
    return TokenStream(shards).span(0, length)


def check_vocab(shards: ShardSet, vocab_size: int, *, sample_tokens: int | None = None) -> None:
    """Raises DataError if a token id is not below vocab_size.

    `sample_tokens` looks at no more than that many tokens a shard (half at its start, half at its end);
    None looks at all.
    """
    for shard in shards.shards:
        tokens = shard.map()
        if sample_tokens is None or sample_tokens >= len(tokens):
            parts = [tokens[i : i + (1 << 24)] for i in range(0, len(tokens), 1 << 24)]
        else:
            half = max(1, sample_tokens // 2)
            parts = [tokens[:half], tokens[-half:]]
        highest = max(int(part.max()) for part in parts)
        if highest >= vocab_size:
            raise DataError(
                f"{shard.path}: token id {highest} is outside a vocabulary of {vocab_size}; "
                "the shards were made with another tokenizer"
            )


def write_shard(path: Path, tokens: Tokens) -> None:
    """Writes uint16[N] as one shard, atomically (aside, flushed to disk, renamed)."""
    if tokens.dtype != np.uint16 or tokens.ndim != 1:
        raise ValueError(f"tokens are {tokens.dtype}[{tokens.ndim}-D], a shard takes uint16[1-D]")
    header = np.zeros(HEADER_INTS, dtype="<i4")
    header[:3] = MAGIC, VERSION, len(tokens)
    files.write(path, header.tobytes(), tokens.astype("<u2", copy=False).tobytes())
