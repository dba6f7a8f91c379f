"""Published FineWeb shards and their tokenizer, from the challenge's repository into an openable folder."""

import contextlib
import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from gepa_core.bounded import MAX_JSON_BYTES, parse_json, read_bytes
from gepa_core.data.encode import Say
from gepa_core.data.folder import (
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    Dataset,
    FileEntry,
    open_folder,
    read_manifest,
    write_json,
)
from gepa_core.data.hub import Hub, quiet
from gepa_core.data.inspect import first_token_bytes, scan
from gepa_core.data.shards import ShardSet, combine, file_sha256, open_shard
from gepa_core.data.tokenizer import ByteTable, byte_table, load_tokenizer
from gepa_core.errors import DataError

REPO = "willdepueoai/parameter-golf"
REMOTE_ROOT = "datasets"
TRAIN_SHARDS = 80
"""The challenge's default: 8 billion tokens."""
STAGING = ".fetch"
RECORD = "done.json"
MAX_SHARDS = 100_000
MAX_TOKENS = 1 << 50
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,500}")


@dataclass(frozen=True)
class Published:
    """One variant of the published data, as the repository's own manifest describes it."""

    name: str
    folder: str
    tokenizer: str
    vocab_size: int
    bos_id: int
    files: dict[str, int]
    tokens: dict[str, int]

    def shard_names(self, split: str, count: int) -> list[str]:
        return [f"fineweb_{split}_{i:06d}.bin" for i in range(count)]


def fetch(
    out: Path,
    *,
    variant: str = "sp1024",
    train_shards: int = TRAIN_SHARDS,
    repo: str = REPO,
    revision: str | None = None,
    workers: int = 4,
    endpoint: str | None = None,
    pause_seconds: float = 1.0,
    say: Say = lambda _: None,
) -> Dataset:
    """Fetches the first `train_shards` training shards, all of validation, and the tokenizer into `out`.

    What is there already is kept; a later call goes on where this one stopped, at the same commit, or adds
    shards. Each file's size, header, SHA-256 (where the hub announces it) and token ids are checked;
    manifest.json comes last. `endpoint` None means HF_ENDPOINT or the public hub. Raises DataError.
    """
    if train_shards < 1:
        raise DataError(f"--shards {train_shards}: at least 1")
    quiet()
    staging = out / STAGING
    try:
        staging.mkdir(parents=True, exist_ok=True)
        commit, dataset, done = _progress_so_far(out, staging)
        if commit is None or revision is not None:
            name = f"{REMOTE_ROOT}/{MANIFEST}"
            named = Hub(repo, revision or "main", staging, endpoint, pause_seconds, say)
            wanted = named.commit_of(name)
            if commit is not None and wanted != commit:
                raise DataError(
                    f"{out}: holds files of commit {commit}, {revision} is {wanted}; use another --out"
                )
            commit = wanted
        hub = Hub(repo, str(commit), staging, endpoint, pause_seconds, say)
        published = _published(hub, variant)
        if dataset not in (None, published.name):
            raise DataError(f"{out}: holds shards of {dataset}, not {published.name}; use another --out")
        count = {"train": train_shards, "val": published.files["val"]}
        if train_shards > published.files["train"]:
            raise DataError(f"--shards {train_shards}: {published.name} has {published.files['train']}")
        tokenizer = out / PurePosixPath(published.tokenizer).name
        if not tokenizer.is_file():
            hub.download(published.tokenizer).replace(tokenizer)
        table = byte_table(tokenizer, published.vocab_size)
        names = [name for split in count for name in published.shard_names(split, count[split])]
        missing = [name for name in names if not _still_there(out / name, done.get(name))]
        _fetch_missing(hub, published, out, missing, done, table, workers, say)
        _write_manifest(out, hub, published, tokenizer, done, table)
        shutil.rmtree(staging)
    except OSError as error:
        raise DataError(f"{error.filename or out}: cannot be written ({error.strerror or error})") from error
    return open_folder(out)


def _progress_so_far(out: Path, staging: Path) -> tuple[str | None, str | None, dict[str, dict[str, Any]]]:
    """Commit, dataset and entries by file name, of a fetch that was cut short or a complete folder."""
    commit = dataset = None
    done: dict[str, dict[str, Any]] = {}
    if (out / MANIFEST).is_file():
        manifest = read_manifest(out)
        source = manifest["source"]
        if "commit" not in source:
            raise DataError(f"{out}: holds data that was not fetched; use another --out")
        commit, dataset = source["commit"], source["dataset"]
        done |= {entry["name"]: entry for split in ("train", "val") for entry in manifest[split]["files"]}
    with contextlib.suppress(
        OSError, ValueError, KeyError, TypeError, AttributeError, DataError
    ):  # damaged, it only costs fetching again
        record = parse_json(read_bytes(staging / RECORD, MAX_JSON_BYTES, DataError))
        entries = {name: FileEntry.model_validate(entry) for name, entry in record["files"].items()}
        commit, dataset = str(record["commit"]), str(record["dataset"])
        done |= {entry.name: entry.model_dump() for entry in entries.values()}
    return commit, dataset, done


def _still_there(path: Path, entry: dict[str, Any] | None) -> bool:
    if entry is None or not path.is_file():
        return False
    with contextlib.suppress(DataError):
        return open_shard(path).tokens == entry["tokens"]
    return False


def _published(hub: Hub, variant: str) -> Published:
    """The variant's entry in the repository's manifest. Raises DataError naming the variants there are."""
    manifest_name = f"{REMOTE_ROOT}/{MANIFEST}"
    path = hub.download(manifest_name)
    try:
        manifest = parse_json(read_bytes(path, MAX_JSON_BYTES, DataError))
        by_variant = {entry["name"].rsplit("_", 1)[-1]: entry for entry in manifest["datasets"]}
        if variant not in by_variant:
            raise DataError(f"{hub.repo} has no variant {variant!r}; it has {', '.join(sorted(by_variant))}")
        entry = by_variant[variant]
        tokenizers = {entry["name"]: entry for entry in manifest["tokenizers"]}
        stats = entry["stats"]
        published = Published(
            name=entry["name"],
            folder=f"{REMOTE_ROOT}/{REMOTE_ROOT}/{entry['name']}",
            tokenizer=f"{REMOTE_ROOT}/{tokenizers[entry['tokenizer_name']]['model_path']}",
            vocab_size=_whole(entry["vocab_size"], 65_536),
            bos_id=_whole(entry["bos_id"], 65_536),
            files={split: _whole(stats[f"files_{split}"], MAX_SHARDS) for split in ("train", "val")},
            tokens={split: _whole(stats[f"tokens_{split}"], MAX_TOKENS) for split in ("train", "val")},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{hub.repo}/{manifest_name}: not the manifest expected ({error!r})") from error
    for name in (published.folder, published.tokenizer):
        if {"", ".."} & {*name.split("/")} or not _NAME.fullmatch(name):
            raise DataError(f"{hub.repo}/{manifest_name}: {name!r} leaves the repository")
    return published


def _whole(value: Any, most: int) -> int:
    """A count out of the repository's manifest. Raises ValueError where it cannot be one."""
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{str(value)[:40]} is not a whole number from 0 to {most:,}")
    return value


def _fetch_missing(
    hub: Hub,
    published: Published,
    out: Path,
    missing: list[str],
    done: dict[str, dict[str, Any]],
    table: ByteTable,
    workers: int,
    say: Say,
) -> None:
    """Downloads and checks `missing` in parallel; finished files are recorded at once."""
    started, fetched_bytes = time.monotonic(), 0
    pool = ThreadPoolExecutor(workers)
    try:
        pending: set[Future[dict[str, Any]]] = {
            pool.submit(_fetch_shard, hub, published, out, name, table) for name in missing
        }
        while pending:
            finished, pending = wait(pending, timeout=1.0, return_when=FIRST_COMPLETED)
            for future in finished:
                entry = future.result()
                done[entry["name"]] = entry
                fetched_bytes += (out / entry["name"]).stat().st_size
                write_json(
                    hub.staging / RECORD, {"commit": hub.commit, "dataset": published.name, "files": done}
                )
            under_way = sum(_sizes(hub.staging))
            rate = (fetched_bytes + under_way) / (time.monotonic() - started)
            say(
                f"{published.name}: {len(missing) - len(pending)} of {len(missing)} shards, "
                f"{(fetched_bytes + under_way) / 1e9:.2f} GB, {rate / 1e6:.1f} MB/s"
                + "".join(f"; {Path(name).name}: {why}" for name, why in dict(hub.waits).items())
            )
    finally:
        pool.shutdown(
            wait=False, cancel_futures=True
        )  # an interrupted user should not wait for what is under way


def _sizes(folder: Path) -> Iterator[int]:
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # moved away meanwhile
            if path.suffix in (".bin", ".incomplete"):
                yield path.stat().st_size


def _fetch_shard(hub: Hub, published: Published, out: Path, name: str, table: ByteTable) -> dict[str, Any]:
    """One shard, downloaded, checked and moved into place; its manifest entry."""
    remote = f"{published.folder}/{name}"
    announced = hub.sha256(remote)
    for again in (False, True):  # a damaged leftover of an earlier fetch gets one fresh download
        path = hub.download(remote, again=again)
        try:
            shard = open_shard(path)
            digest = file_sha256(path)
            if announced is not None and digest != announced:
                raise DataError(f"{path}: SHA-256 {digest}, the hub announced {announced}")
            found = scan(shard, published.bos_id, table)
            break
        except DataError as error:
            if again:
                raise DataError(f"{hub.repo}/{remote} is damaged: {error}") from error
    path.replace(out / name)
    return {"name": name, "tokens": shard.tokens, "sha256": digest, **asdict(found)}


def _write_manifest(
    out: Path,
    hub: Hub,
    published: Published,
    tokenizer: Path,
    done: dict[str, dict[str, Any]],
    table: ByteTable,
) -> None:
    splits: dict[str, Any] = {}
    for split in ("train", "val"):
        pattern = f"fineweb_{split}_*.bin"
        entries = sorted(
            (e for e in done.values() if Path(e["name"]).match(pattern)), key=lambda e: e["name"]
        )
        tokens = sum(entry["tokens"] for entry in entries)
        if len(entries) == published.files[split] and tokens != published.tokens[split]:
            raise DataError(
                f"{hub.repo}: the {split} shards of {published.name} hold {tokens} tokens, "
                f"its manifest says {published.tokens[split]}"
            )
        shards = ShardSet(tuple(open_shard(out / entry["name"]) for entry in entries))
        splits[split] = {
            "pattern": pattern,
            "fingerprint": combine(entry["sha256"] for entry in entries),
            "tokens": tokens,
            "documents": sum(entry["documents"] for entry in entries),
            "token_bytes": sum(entry["token_bytes"] for entry in entries) + first_token_bytes(shards, table),
            "files": entries,
        }
    manifest = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "source": {"repository": hub.repo, "commit": hub.commit, "dataset": published.name},
        "tokenizer": {
            "file": tokenizer.name,
            "sha256": file_sha256(tokenizer),
            "vocab_size": published.vocab_size,
            "bos_id": load_tokenizer(tokenizer).bos_id(),
        },
        **splits,
    }
    write_json(out / MANIFEST, manifest)
