"""What is in a shard set: counts, fingerprint, bytes per token, vocabulary, documents."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gepa_core.data import folder as folders
from gepa_core.data.overlap import overlap_of
from gepa_core.data.shards import Shard, ShardSet, open_shards
from gepa_core.data.tokenizer import ByteTable, byte_table, load_tokenizer
from gepa_core.errors import DataError

BOS = 1
"""The challenge's beginning-of-document id; counted where no tokenizer says otherwise."""
_CHUNK = 1 << 22


def inspect(
    data: str, *, tokenizer: Path | None = None, val: str | None = None, verify: bool = False
) -> dict[str, Any]:
    """Facts about a prepared folder (from its manifest) or the shards of a glob pattern (by reading them).

    Also how many validation documents are in training too; of a pattern, where `val` names the validation
    shards. `verify` rehashes every file and looks at every token id. Raises DataError.
    """
    if Path(data).is_dir():
        return _inspect_folder(data, rehash=verify)
    found = {"pattern": data, **_inspect_shards(open_shards(data), tokenizer, rehash=verify)}
    if val is not None:
        if tokenizer is None:
            raise DataError("to look for validation documents in shards, give their --tokenizer too")
        found |= _in_both(folders.open_patterns(data, val, str(tokenizer)))
    return found


def _inspect_folder(folder: str, *, rehash: bool) -> dict[str, Any]:
    dataset = folders.verify(folder) if rehash else folders.open_folder(folder)
    manifest = dataset.manifest or {}
    found: dict[str, Any] = {"folder": folder, "verified": rehash, "source": manifest["source"]}
    found["tokenizer"] = {**manifest["tokenizer"], "fingerprint": dataset.config.tokenizer}
    for name in folders.SPLITS:
        split = {key: value for key, value in manifest[name].items() if key != "files"}
        split["shards"] = len(manifest[name]["files"])
        if split.get("token_bytes") is not None:
            split["bytes_per_token"] = split["token_bytes"] / split["tokens"]
        found[name] = split
    if dataset.val_text:
        text_bytes = dataset.val_text["text_bytes"]
        for name in ("zstd_22", "xz_9e"):
            found["val"][f"{name}_bpb"] = 8 * dataset.val_text[f"{name}_bytes"] / text_bytes
    found |= _in_both(dataset)
    return found


def _in_both(dataset: folders.Dataset) -> dict[str, Any]:
    overlap = overlap_of(dataset)
    if overlap is None:
        return {"in training and validation": "unknown"}
    told = {name if "repeated" in name else f"validation_{name}": n for name, n in asdict(overlap).items()}
    return {"in training and validation": told}


@dataclass(frozen=True)
class Scan:
    """What reading one shard tells."""

    documents: int
    highest_id: int
    token_bytes: int
    """Bytes of all tokens but the first, which depends on the shard before; 0 without a table."""


def scan(shard: Shard, bos: int, table: ByteTable | None) -> Scan:
    """Reads a whole shard. Raises DataError if an id lies outside the table's vocabulary."""
    documents = highest = token_bytes = 0
    tokens = shard.map()
    for start in range(0, len(tokens), _CHUNK):
        chunk = np.asarray(tokens[max(0, start - 1) : start + _CHUNK])  # one token back, for its space
        documents += int((chunk[start > 0 :] == bos).sum())
        highest = max(highest, int(chunk.max()))
        if table:
            if highest >= table.vocab_size:
                raise DataError(
                    f"{shard.path}: token id {highest} is outside a vocabulary of {table.vocab_size}"
                )
            token_bytes += int(table.count_bytes(chunk[:-1], chunk[1:]).sum())
    return Scan(documents, highest, token_bytes)


def first_token_bytes(shards: ShardSet, table: ByteTable) -> int:
    """Bytes of each shard's first token after the last of the shard before; the very first counts 0."""
    maps = [shard.map() for shard in shards.shards]
    prev = np.array([m[-1] for m in maps[:-1]], dtype=np.uint16)
    cur = np.array([m[0] for m in maps[1:]], dtype=np.uint16)
    return int(table.count_bytes(prev, cur).sum())


def _inspect_shards(shards: ShardSet, tokenizer: Path | None, *, rehash: bool) -> dict[str, Any]:
    table = byte_table(tokenizer) if tokenizer else None
    bos = load_tokenizer(tokenizer).bos_id() if tokenizer else BOS
    scans = [scan(shard, bos, table) for shard in shards.shards]
    token_bytes = sum(s.token_bytes for s in scans) + first_token_bytes(shards, table) if table else None
    fingerprint = folders.cached_fingerprint(shards)
    if rehash and shards.fingerprint() != fingerprint:
        raise DataError(f"{shards.paths[0]} and its like: content altered since it was first hashed")
    return {
        "shards": len(shards.shards),
        "tokens": shards.total,
        "fingerprint": fingerprint,
        "documents": sum(s.documents for s in scans),
        "highest_id": max(s.highest_id for s in scans),
        "token_bytes": token_bytes,
        "bytes_per_token": token_bytes / shards.total if token_bytes is not None else None,
    }


def as_json(found: dict[str, Any]) -> str:
    return json.dumps(found, ensure_ascii=False) + "\n"


def as_text(found: dict[str, Any]) -> str:
    """The same facts as aligned lines, a block per split."""
    lines = []
    for key, value in found.items():
        if isinstance(value, dict):
            lines.append(f"{key}:")
            lines += [f"  {k:<16} {_format(v)}" for k, v in value.items()]
        else:
            lines.append(f"{key:<18} {_format(value)}")
    return "\n".join(lines) + "\n"


def _format(value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return repr(value) if isinstance(value, str) and not value.isprintable() else str(value)
