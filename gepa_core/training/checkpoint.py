"""Training states on disk: safetensors and JSON, checksummed, atomic, the same whatever the number of ranks.

A checkpoint is a directory with state.safetensors and state.json. It is written aside, flushed to disk and
renamed, so that what has its final name is whole; the checksums tell if it stopped being so.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gepa_core.config import canonical_json, digest
from gepa_core.errors import CheckpointError

TENSORS = "state.safetensors"
META = "state.json"
VERSION = 1

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class State:
    """tensors by name, and what JSON can hold."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]


def save(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Writes a checkpoint directory atomically; one of the same name is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        save_file({name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}, aside / TENSORS)
        body = {"version": VERSION, "tensors_sha256": _sha256(aside / TENSORS), "meta": dict(meta)}
        (aside / META).write_text(canonical_json({**body, "sha256": digest(body)}) + "\n", encoding="utf-8")
        for part in (aside / TENSORS, aside / META, aside):
            _flush(part)
        if path.exists():  # a damaged one, found when resuming
            shutil.rmtree(path)
        aside.rename(path)
        _flush(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def load(path: Path) -> State:
    """Reads and verifies a checkpoint. Raises CheckpointError if it is missing, truncated or altered."""
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such checkpoint directory")
    if not (path / META).is_file():
        raise CheckpointError(f"{path}: no checkpoint (no {META} there)")
    try:
        record = json.loads((path / META).read_text(encoding="utf-8"))
        body = {key: record[key] for key in ("version", "tensors_sha256", "meta")}
        if record["sha256"] != digest(body):
            raise CheckpointError(f"{path / META}: altered (its checksum differs); use an earlier checkpoint")
        if body["version"] != VERSION:
            raise CheckpointError(f"{path}: checkpoint version {body['version']}, only {VERSION} is known")
        if _sha256(path / TENSORS) != body["tensors_sha256"]:
            raise CheckpointError(
                f"{path / TENSORS}: truncated or altered (its checksum differs); use an earlier checkpoint"
            )
        return State(load_file(path / TENSORS), body["meta"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: unreadable checkpoint ({type(error).__name__}: {error}); use an earlier one"
        ) from error


def newest(folder: Path) -> tuple[Path, State] | None:
    """The checkpoint of most steps in `folder` that is whole, if any; damaged ones are passed over aloud."""
    for path in reversed(in_order(folder)):
        try:
            return path, load(path)
        except CheckpointError as error:
            _log.warning("passing over a damaged checkpoint: %s", error)
    return None


def in_order(folder: Path) -> list[Path]:
    """Checkpoint directories, by number of steps."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))


def prune(folder: Path, keep: int, newest: int) -> None:
    """Leaves the last `keep` checkpoints up to step `newest`, which was just saved.

    What claims more steps was passed over as damaged; what is hidden was being written when its writer died.
    """
    found = in_order(folder)
    whole = [path for path in found if int(path.name) <= newest]
    for path in {*found, *folder.glob(".*")}.difference(whole[-keep:]):
        shutil.rmtree(path, ignore_errors=True)


def require(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path | str) -> None:
    """Raises CheckpointError unless names, shapes and dtypes are those wanted."""
    for name in sorted(tensors.keys() | wanted.keys()):
        if name not in tensors:
            raise CheckpointError(f"{path}: {name} is missing; the checkpoint is of another model")
        if name not in wanted:
            raise CheckpointError(f"{path}: {name} is not part of this model")
        have, want = tensors[name], wanted[name]
        if have.shape != want.shape or have.dtype != want.dtype:
            raise CheckpointError(
                f"{path}: {name} is {have.dtype} {list(have.shape)}, this model has {want.dtype} "
                f"{list(want.shape)}; the checkpoint is of another model"
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """fsync of a file or directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems cannot flush directories
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
