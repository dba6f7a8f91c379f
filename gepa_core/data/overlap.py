"""Validation documents that are in the training shards as well, token for token.

A document is what follows a beginning-of-document token up to the next one. Each is told by a 64-bit hash of
its tokens and their places, so that a whole training set is looked through in one pass over its shards.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gepa_core import files
from gepa_core.data.shards import ShardSet
from gepa_core.errors import DataError

CACHE = ".overlap.json"
_CHUNK = 1 << 22
_LONGEST = 1 << 20  # tokens of a document that enter its hash: longer ones agree in that many, or differ


@dataclass(frozen=True)
class Overlap:
    """Of the validation documents, those that training holds too; `tokens` are without their first."""

    documents: int
    tokens: int
    repeated_documents: int
    repeated_tokens: int

    def __str__(self) -> str:
        return (
            f"{self.repeated_documents:,} of {self.documents:,} validation documents "
            f"({self.repeated_tokens / max(self.tokens, 1):.1%} of their tokens) are in training too"
        )


def find_overlap(train: ShardSet, val: ShardSet, bos: int) -> Overlap | None:
    """None where validation has no beginning of a document: then nothing can be told.

    Some 20 million tokens a second on one core.
    """
    own = list(_documents(val, bos))
    if not own:
        return None
    hashes, lengths = (np.concatenate(parts) for parts in zip(*own, strict=True))
    found = np.zeros(len(hashes), dtype=bool)
    for theirs, _ in _documents(train, bos):
        found |= np.isin(hashes, theirs)
    return Overlap(len(hashes), int(lengths.sum()), int(found.sum()), int(lengths[found].sum()))


def _documents(shards: ShardSet, bos: int) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.int64]]]:
    """(hashes, lengths) of documents, batch by batch, in order; empty ones are left out."""
    generator = np.random.default_rng(0)
    values = generator.integers(0, 1 << 64, 1 << 16, dtype=np.uint64)
    places = _powers(int(generator.integers(0, 1 << 63)) * 2 + 1)
    begun = np.zeros(0, dtype=np.uint16)  # of a document whose end is not read yet, its first token included
    for tokens in (*_chunks(shards), np.array([bos], dtype=np.uint16)):
        tokens = np.concatenate((begun, tokens))
        starts = np.flatnonzero(tokens == bos)
        if not len(starts):
            continue  # before the first document
        lengths = np.diff(starts) - 1
        whole = tokens[starts[0] : starts[-1]]
        begun = tokens[starts[-1] :]
        if len(begun) > 2 * _LONGEST:  # a text without documents, say: it is compared as far as it is kept
            begun = begun[:_LONGEST]
        if len(lengths) and len(whole):
            place = np.arange(len(whole)) - np.repeat(starts[:-1] - starts[0], np.diff(starts))
            heard = values[whole] * places[np.minimum(place, _LONGEST)]
            heard[starts[:-1] - starts[0]] = 0  # the first token is the same for all
            sums = np.add.reduceat(heard, starts[:-1] - starts[0]) + lengths.astype(np.uint64)
            yield sums[lengths > 0], lengths[lengths > 0]


def _chunks(shards: ShardSet) -> Iterator[NDArray[np.uint16]]:
    for shard in shards.shards:
        tokens = shard.map()
        for start in range(0, len(tokens), _CHUNK):
            yield np.asarray(tokens[start : start + _CHUNK])


def _powers(base: int) -> NDArray[np.uint64]:
    """base^i for i up to _LONGEST, and 0 beyond: uint64, wrapping round."""
    powers = np.full(_LONGEST + 1, base, dtype=np.uint64)
    powers[0] = 1
    np.multiply.accumulate(powers, out=powers)
    powers[-1] = 0
    return powers


def known_overlap(
    folder: Path, train: ShardSet, val: ShardSet, fingerprints: tuple[str, str], bos: int, most: int | None
) -> Overlap | None:
    """From the folder's cache, else found and kept there; None if neither, because there are more than `most`
    training tokens or no documents."""
    key = " ".join(fingerprints)
    kept: dict[str, dict[str, int] | None] = {}
    with contextlib.suppress(OSError, ValueError, DataError):
        read = json.loads((folder / CACHE).read_text(encoding="utf-8"))
        kept = read if isinstance(read, dict) else {}
    with contextlib.suppress(TypeError):
        if isinstance(found := kept.get(key), dict):
            return Overlap(**found)
    if most is not None and train.total > most:
        return None
    overlap = find_overlap(train, val, bos)
    with contextlib.suppress(OSError):  # a folder that cannot be written: it is found again
        kept[key] = None if overlap is None else asdict(overlap)
        files.write(folder / CACHE, json.dumps(kept).encode())
    return overlap
