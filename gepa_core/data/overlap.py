"""Validation documents that are in the training shards as well, token for token.

A document is what follows a beginning-of-document token up to the next one. Each is told by a 64-bit hash of
its tokens and their places, so that a whole training set is looked through in one pass over its shards.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gepa_core import files
from gepa_core.bounded import MAX_JSON_BYTES, parse_json, read_bytes
from gepa_core.data.folder import Dataset
from gepa_core.data.shards import ShardSet
from gepa_core.data.tokenizer import load_tokenizer
from gepa_core.errors import DataError

CACHE = ".overlap.json"
LAUNCH_TOKENS = 500_000_000
"""Training tokens up to which a launch looks for them itself: seconds."""
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

    Some 100 million tokens a second on one core.
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


def overlap_of(dataset: Dataset, most: int | None = None) -> Overlap | None:
    """From the cache beside the validation shards, else found and kept there.

    None where it is not known: there are over `most` training tokens, or validation has no documents.
    """
    key = f"{dataset.config.train} {dataset.config.val}"
    cache = dataset.val.paths[0].parent / CACHE
    kept: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, DataError):
        read = parse_json(read_bytes(cache, MAX_JSON_BYTES, DataError))
        kept = read if isinstance(read, dict) else {}
    with contextlib.suppress(TypeError):
        found = Overlap(**kept[key]) if key in kept else None
        if found and all(type(number) is int and number >= 0 for number in asdict(found).values()):
            return found
    if most is not None and dataset.train.total > most:
        return None
    overlap = find_overlap(dataset.train, dataset.val, load_tokenizer(dataset.paths.tokenizer).bos_id())
    if overlap is not None:
        with contextlib.suppress(OSError):  # a folder that cannot be written: it is found again
            files.write(cache, json.dumps({**kept, key: asdict(overlap)}).encode())
    return overlap


def launch_warning(dataset: Dataset) -> str | None:
    """What a launch is to say of documents that are in both sets; None where there is nothing to say."""
    overlap = overlap_of(dataset, LAUNCH_TOKENS)
    if overlap is not None and overlap.repeated_documents:
        return f"{overlap}: what a model has trained on is no test of it; hold other documents out"
    if overlap is None and dataset.train.total > LAUNCH_TOKENS:
        folder = dataset.val.paths[0].parent
        return (
            "not checked whether validation documents are in training too (it takes some minutes): "
            f"`python -m gepa_core.data inspect {folder}` finds out, once"
        )
    return None
