"""What is in a shard set: counts, fingerprint, bytes per token, vocabulary, documents."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from gepa_core.data import folder as folders
from gepa_core.data.shards import ShardSet, open_shards
from gepa_core.data.tokenizer import byte_table, load_tokenizer
from gepa_core.errors import DataError

BOS = 1
"""The challenge's beginning-of-document id; counted where no tokenizer says otherwise."""
_CHUNK = 1 << 22


def inspect(data: str, *, tokenizer: Path | None = None, verify: bool = False) -> dict[str, Any]:
    """Facts about a prepared folder (from its manifest) or the shards of a glob pattern (by reading them).

    `verify` rehashes every file and looks at every token id. Raises DataError.
    """
    if Path(data).is_dir():
        return _inspect_folder(data, rehash=verify)
    return {"pattern": data, **_inspect_shards(open_shards(data), tokenizer, rehash=verify)}


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
    return found


def _inspect_shards(shards: ShardSet, tokenizer: Path | None, *, rehash: bool) -> dict[str, Any]:
    table = byte_table(tokenizer) if tokenizer else None
    bos = load_tokenizer(tokenizer).bos_id() if tokenizer else BOS
    documents = highest = token_bytes = 0
    prev = np.array([bos], dtype=np.uint16)
    for shard in shards.shards:
        tokens = shard.map()
        for start in range(0, len(tokens), _CHUNK):
            chunk = np.asarray(tokens[start : start + _CHUNK])
            documents += int((chunk == bos).sum())
            highest = max(highest, int(chunk.max()))
            if table:
                if highest >= table.vocab_size:
                    raise DataError(
                        f"{shard.path}: token id {highest} is outside {tokenizer}'s {table.vocab_size}"
                    )
                token_bytes += int(table.count_bytes(np.concatenate([prev, chunk[:-1]]), chunk).sum())
            prev = chunk[-1:]
    return {
        "shards": len(shards.shards),
        "tokens": shards.total,
        "fingerprint": shards.fingerprint() if rehash else folders.cached_fingerprint(shards),
        "documents": documents,
        "highest_id": highest,
        "token_bytes": token_bytes if table else None,
        "bytes_per_token": token_bytes / shards.total if table else None,
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
    return str(value)
