"""What a launch needs of its data: where it lies, and the fingerprints that enter a run's identity.

A prepared (or fetched) folder holds shards, a tokenizer and manifest.json with the SHA-256 of each file, made
when the folder was. Opening one checks names, sizes, headers and the manifest's consistency, but reads no
token; `verify` rehashes. Bare glob patterns work too: without a manifest, shards are hashed once and the
digests kept beside them in .fingerprints.json, keyed by size and modification time.
"""

import contextlib
import glob
import json
import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from gepa_core import files
from gepa_core.bounded import MAX_JSON_BYTES, parse_json, read_bytes
from gepa_core.config import DataPaths
from gepa_core.data.shards import (
    Shard,
    ShardSet,
    check_vocab,
    combine,
    file_sha256,
    load_tokens,
    open_shards,
)
from gepa_core.data.tokenizer import check_counts_of_tokens, load_tokenizer
from gepa_core.errors import DataError
from gepa_core.invocation import module
from gepa_core.sections import DataConfig

MANIFEST = "manifest.json"
FORMAT = "gepa-sweeps data"
FORMAT_VERSION = 1
CACHE = ".fingerprints.json"
SPLITS = ("train", "val")
LOST_BYTES_NOTED, LOST_BYTES_REFUSED = 0.005, 0.02
"""Share of a text's bytes that its tokens may fail to stand for. The challenge's own tokenizers, which
normalise, lose 0.0016 of English Wikipedia."""
LAUNCH_SAMPLE_TOKENS = 65_536
"""Tokens looked at per training shard when a run starts; all of validation is looked at."""


_Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_Fingerprint = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
_Name = Annotated[str, StringConstraints(pattern=r"^[^/\\\x00]{1,255}$")]
"""Of a file in the folder itself."""
_Count = Annotated[int, Field(ge=0, le=1 << 50)]
_Size = Annotated[int, Field(ge=1, le=1 << 50)]


class _Loose(BaseModel):
    """Strict about what is read here, and silent on what else a manifest may say."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")


class FileEntry(_Loose):
    name: _Name
    tokens: _Size
    sha256: _Sha256


class Split(_Loose):
    pattern: _Name
    fingerprint: _Fingerprint
    tokens: _Size
    files: list[FileEntry] = Field(min_length=1, max_length=100_000)
    documents: _Count | None = None
    token_bytes: _Count | None = None
    text_bytes: _Size | None = None
    zstd_22_bytes: _Size | None = None
    xz_9e_bytes: _Size | None = None

    @model_validator(mode="after")
    def _sums_agree(self) -> Self:
        if self.fingerprint != combine([entry.sha256 for entry in self.files]):
            raise ValueError("the fingerprint does not follow from its files' SHA-256; altered")
        if self.tokens != sum(entry.tokens for entry in self.files):
            raise ValueError("the token count is not the sum of its files'; altered")
        return self


class TokenizerEntry(_Loose):
    file: _Name
    sha256: _Sha256
    vocab_size: int = Field(ge=1, le=65_536)
    bos_id: int = Field(ge=-1, le=65_535)


class Manifest(_Loose):
    """manifest.json of a prepared or fetched folder."""

    format: Literal["gepa-sweeps data"]
    version: Literal[1]
    source: dict[str, Any]
    tokenizer: TokenizerEntry
    train: Split
    val: Split

    @model_validator(mode="after")
    def _names_are_of_files(self) -> Self:
        names = [self.tokenizer.file, *(entry.name for entry in (*self.train.files, *self.val.files))]
        if {".", ".."} & {*names, self.train.pattern, self.val.pattern}:
            raise ValueError("a name does not lie in the folder")
        return self


@dataclass(frozen=True)
class Dataset:
    """A train and a validation shard set with their tokenizer, opened and checked."""

    paths: DataPaths
    config: DataConfig
    train: ShardSet
    val: ShardSet
    manifest: Mapping[str, Any] | None
    """The manifest of a prepared folder; None for bare patterns."""

    @property
    def train_tokens(self) -> int:
        return self.train.total

    @property
    def val_tokens(self) -> int:
        """Target tokens of a validation on all of it: the first token is no target."""
        return self.val.total - 1

    @property
    def val_text(self) -> Mapping[str, int] | None:
        """Of the validation text, if the manifest knows: text_bytes, zstd_22_bytes, xz_9e_bytes."""
        split = (self.manifest or {}).get("val", {})
        known = {key: split.get(key) for key in ("text_bytes", "zstd_22_bytes", "xz_9e_bytes")}
        return known if all(isinstance(n, int) for n in known.values()) else None


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """manifest.json of a prepared folder. Raises DataError if it is missing, unreadable or inconsistent."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        what = (
            "is not a prepared data folder (no manifest.json)" if path.parent.is_dir() else "does not exist"
        )
        there = [p.parent.name for p in path.parent.parent.glob(f"*/{MANIFEST}")]
        close = get_close_matches(path.parent.name, there, n=1)
        near = f"; did you mean {path.parent.with_name(close[0])}?" if close else ""
        raise DataError(
            f"{folder}: {what}{near}; make it with "
            f"`{module('gepa_core.data')} prepare TEXT... --out {folder}` from any .txt, .jsonl or .parquet"
        )
    try:
        manifest = parse_json(read_bytes(path, MAX_JSON_BYTES, DataError))
        Manifest.model_validate_json(json.dumps(manifest))
    except ValidationError as error:
        raise DataError(f"{path}: {_fault(error)}; prepare it again") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: unreadable manifest ({error}); prepare it again") from error
    return dict(manifest)


def _fault(error: ValidationError) -> str:
    """The first thing that is wrong with a manifest."""
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"])
    if fault["loc"] in (("format",), ("version",)):
        return f"not a manifest of format {FORMAT!r}, version {FORMAT_VERSION}"
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "string_pattern_mismatch" and fault["loc"][-1] in ("name", "file", "pattern"):
        message = f"{fault['input'][:80]!r} does not lie in the folder"
    return f"unreadable manifest ({where + ': ' if where else ''}{message})"


def open_folder(folder: str | Path) -> Dataset:
    """Opens a prepared folder; checks file names, sizes and headers against its manifest.

    Raises DataError naming the file at fault.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    sets = {name: _open_split(folder, manifest, name) for name in SPLITS}
    tokenizer = folder / manifest["tokenizer"]["file"]
    digest = file_sha256(tokenizer)
    if digest != manifest["tokenizer"]["sha256"]:
        raise DataError(
            f"{tokenizer}: not the tokenizer the shards were made with (SHA-256 differs from {MANIFEST})"
        )
    return Dataset(
        paths=DataPaths(
            train=_pattern(folder, manifest, "train"),
            val=_pattern(folder, manifest, "val"),
            tokenizer=str(tokenizer),
        ),
        config=DataConfig(
            train=manifest["train"]["fingerprint"],
            val=manifest["val"]["fingerprint"],
            tokenizer=f"sha256:{digest}",
        ),
        train=sets["train"],
        val=sets["val"],
        manifest=manifest,
    )


def _pattern(folder: Path, manifest: Mapping[str, Any], split: str) -> str:
    return str(Path(glob.escape(str(folder))) / manifest[split]["pattern"])


def _open_split(folder: Path, manifest: Mapping[str, Any], split: str) -> ShardSet:
    shards = open_shards(_pattern(folder, manifest, split))
    listed = {entry["name"]: entry["tokens"] for entry in manifest[split]["files"]}
    present = {shard.path.name: shard.tokens for shard in shards.shards}
    for name in sorted(listed.keys() | present.keys()):
        path = folder / name
        if name not in present:
            raise DataError(f"{path}: listed in {MANIFEST} but missing")
        if name not in listed:
            raise DataError(
                f"{path}: lies in the folder but is not listed in {MANIFEST}; an unfinished fetch?"
            )
        if listed[name] != present[name]:
            raise DataError(f"{path}: {present[name]} tokens, {MANIFEST} says {listed[name]}")
    return shards


def open_patterns(train: str, val: str, tokenizer: str) -> Dataset:
    """Opens bare shard sets by glob pattern; hashes what no manifest or cache beside them knows.

    Raises DataError naming the file at fault.
    """
    train_set, val_set = open_shards(train), open_shards(val)
    load_tokenizer(tokenizer)
    return Dataset(
        paths=DataPaths(train=train, val=val, tokenizer=tokenizer),
        config=DataConfig(
            train=cached_fingerprint(train_set),
            val=cached_fingerprint(val_set),
            tokenizer=f"sha256:{file_sha256(Path(tokenizer))}",
        ),
        train=train_set,
        val=val_set,
        manifest=None,
    )


def cached_fingerprint(shards: ShardSet) -> str:
    """Fingerprint of a shard set from manifest.json or .fingerprints.json beside the files, else by hashing.

    A cached digest counts while size and modification time stand; where the folder is read-only, files are
    hashed at each call.
    """
    by_folder: dict[Path, list[Shard]] = {}
    for shard in shards.shards:
        by_folder.setdefault(shard.path.parent, []).append(shard)
    digests: dict[Path, str] = {}
    for folder, members in by_folder.items():
        digests |= _folder_digests(folder, members)
    return combine(digests[path] for path in shards.paths)


def _folder_digests(folder: Path, shards: list[Shard]) -> dict[Path, str]:
    listed: dict[str, tuple[int, str]] = {}
    if (folder / MANIFEST).is_file():
        with contextlib.suppress(DataError):  # some other program's manifest.json
            manifest = read_manifest(folder)
            listed = {e["name"]: (e["tokens"], e["sha256"]) for s in SPLITS for e in manifest[s]["files"]}
    cache = _read_cache(folder / CACHE)
    digests: dict[Path, str] = {}
    unknown: list[Shard] = []
    for shard in shards:
        name = shard.path.name
        if name in listed and listed[name][0] == shard.tokens:
            digests[shard.path] = listed[name][1]
        elif name in cache and cache[name][:2] == _stamp(shard.path):
            digests[shard.path] = cache[name][2]
        else:
            unknown.append(shard)
    if unknown:
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashlib releases the GIL
            for shard, digest in zip(unknown, pool.map(Shard.sha256, unknown), strict=True):
                digests[shard.path] = digest
                cache[shard.path.name] = [*_stamp(shard.path), digest]
        with contextlib.suppress(OSError):
            write_json(folder / CACHE, cache)
    return digests


def _stamp(path: Path) -> list[Any]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _read_cache(path: Path) -> dict[str, list[Any]]:
    """What can be read of it: the rest is hashed again."""
    try:
        cache = parse_json(read_bytes(path, MAX_JSON_BYTES, DataError))
    except (OSError, ValueError, DataError):
        return {}
    return {k: v for k, v in cache.items() if _is_digest(v)} if isinstance(cache, dict) else {}


def _is_digest(entry: Any) -> bool:
    """Whether this is [bytes, modification time, SHA-256]."""
    whole = isinstance(entry, list) and len(entry) == 3 and [type(e) for e in entry] == [int, int, str]
    return whole and re.fullmatch(r"[0-9a-f]{64}", entry[2]) is not None


def write_json(path: Path, value: object) -> None:
    """Writes JSON atomically."""
    files.write(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def check_counted(split: Mapping[str, Any], tokenizer: str) -> str:
    """What a user should know of a split whose tokens stand for other bytes than its text has; "" if nothing.

    Right after a document's start the challenge's rule does not count a space, so a byte a document may lack.
    Raises DataError where the difference is more than a score in bits per byte can bear.
    """
    text, counted = split.get("text_bytes"), split.get("token_bytes")
    if not text or counted is None or abs(text - counted) <= split.get("documents", 0):
        return ""
    lost = abs(text - counted) / text
    unknown = f", {split['unknown_tokens']:,} tokens unknown" if split.get("unknown_tokens") else ""
    told = f"{tokenizer}: its tokens stand for {counted:,} bytes of {text:,} of the validation text{unknown}"
    if lost > LOST_BYTES_REFUSED:
        raise DataError(
            f"{told}; bits per byte would be of another text than was given. Use a tokenizer that normalises "
            "nothing and falls back to bytes, as `prepare --vocab-size N` trains one, and prepare again"
        )
    return f"{told}; compressors, which see all of it, are compared on {lost:.1%} more" * (
        lost > LOST_BYTES_NOTED
    )


def check_launch(dataset: Dataset, *, vocab_size: int, seq_len: int) -> None:
    """Before a launch: the tokenizer has the model's vocabulary, token ids fit it (all of validation, a
    sample of each training shard), validation holds a window. Raises DataError."""
    pieces = load_tokenizer(dataset.paths.tokenizer).vocab_size()
    if pieces != vocab_size:
        raise DataError(
            f"{dataset.paths.tokenizer}: the tokenizer has {pieces} pieces, model.vocab_size is "
            f"{vocab_size}; set model.vocab_size to {pieces} or choose other data"
        )
    if dataset.val.total < seq_len + 1:
        raise DataError(
            f"{dataset.paths.val}: {dataset.val.total} validation tokens are less than one window of "
            f"{seq_len} + 1; lower eval.seq_len or give more validation text"
        )
    if dataset.manifest is not None:
        check_counted(dataset.manifest["val"], dataset.paths.tokenizer)
    check_vocab(dataset.val, vocab_size)
    check_counts_of_tokens(
        dataset.paths.tokenizer, load_tokens(dataset.val, LAUNCH_SAMPLE_TOKENS), str(dataset.paths.val)
    )
    check_vocab(dataset.train, vocab_size, sample_tokens=LAUNCH_SAMPLE_TOKENS)


def verify(folder: str | Path) -> Dataset:
    """`open_folder`, then rehashes every shard and looks at every token id.

    Raises DataError naming the first file whose content is not what the manifest says.
    """
    dataset = open_folder(folder)
    manifest = dataset.manifest or {}
    for split, shards in (("train", dataset.train), ("val", dataset.val)):
        expected = {entry["name"]: entry["sha256"] for entry in manifest[split]["files"]}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for shard, digest in zip(shards.shards, pool.map(Shard.sha256, shards.shards), strict=True):
                if digest != expected[shard.path.name]:
                    raise DataError(f"{shard.path}: content altered (SHA-256 differs from {MANIFEST})")
        check_vocab(shards, manifest["tokenizer"]["vocab_size"])
    return dataset
