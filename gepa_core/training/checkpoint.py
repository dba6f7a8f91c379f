"""Training states on disk: safetensors and JSON, checksummed, atomic, the same whatever the number of ranks.

A checkpoint is a directory with state.safetensors and state.json. It is written aside, flushed to disk and
renamed, so that what has its final name is whole; the checksums tell if it stopped being so.
"""

import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gepa_core import files
from gepa_core.bounded import parse_json, read_bytes
from gepa_core.config import canonical_json, digest
from gepa_core.errors import CheckpointError
from gepa_core.sections import MAX_STEPS

TENSORS = "state.safetensors"
META = "state.json"
VERSION = 1

_MAX_META_BYTES = 4 << 20

_Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_log = logging.getLogger(__name__)


class DamagedError(CheckpointError):
    """A checkpoint is not what was written: cut short, altered, unreadable."""


class _Record(BaseModel):
    """state.json."""

    model_config = ConfigDict(strict=True, extra="forbid")

    version: int
    tensors_sha256: _Sha256
    sha256: _Sha256
    meta: dict[str, Any]


class Meta(BaseModel):
    """What a training state says of itself."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    step: int = Field(ge=1, le=MAX_STEPS)
    identity: _Sha256
    """Digest of what the state depends on."""
    config: dict[str, Any]
    averages: list[list[float | str]] = Field(default_factory=list, max_length=64)
    """Decay and horizon of each; none: the one of the config."""
    segment_seconds: float = Field(0.0, ge=0)


@dataclass(frozen=True)
class State:
    """tensors by name, and what JSON can hold."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]

    def told(self, path: Path | str | None) -> Meta:
        """`meta`, checked. Raises CheckpointError where it is not that of a training state."""
        try:
            return Meta.model_validate(self.meta)
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(str(part) for part in fault["loc"])
            raise CheckpointError(
                f"{path}: not a training state of this version ({META}, {where}: {fault['msg']})"
            ) from None


def save(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Writes a checkpoint directory atomically; one of the same name is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        save_file({name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}, aside / TENSORS)
        body = {"version": VERSION, "tensors_sha256": files.sha256(aside / TENSORS), "meta": dict(meta)}
        (aside / META).write_text(canonical_json({**body, "sha256": digest(body)}) + "\n", encoding="utf-8")
        for part in (aside / TENSORS, aside / META, aside):
            files.flush(part)
        if path.exists():  # a damaged one, found when resuming
            shutil.rmtree(path)
        aside.rename(path)
        files.flush(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def load(path: Path) -> State:
    """Reads and verifies a checkpoint. Raises CheckpointError if it is missing, truncated or altered."""
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such checkpoint directory")
    if not (path / META).is_file():
        raise DamagedError(f"{path}: no checkpoint (no {META} there)")
    try:
        record = _Record.model_validate(parse_json(read_bytes(path / META, _MAX_META_BYTES, DamagedError)))
        body = record.model_dump(exclude={"sha256"})
        if record.sha256 != digest(body):
            raise DamagedError(f"{path / META}: altered (its checksum differs); use an earlier checkpoint")
        if record.version != VERSION:
            raise CheckpointError(f"{path}: checkpoint version {record.version}, only {VERSION} is known")
        if _sha256(path / TENSORS) != record.tensors_sha256:
            raise DamagedError(
                f"{path / TENSORS}: truncated or altered (its checksum differs); use an earlier checkpoint"
            )
        return State(load_file(path / TENSORS), record.meta)
    except (OSError, ValueError, TypeError, RecursionError, SafetensorError) as error:
        what = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise DamagedError(
            f"{path}: unreadable checkpoint ({type(error).__name__}: {what}); use an earlier one"
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
    return sorted((path for path in folder.iterdir() if is_step(path.name)), key=lambda path: int(path.name))


def is_step(name: str) -> bool:
    """Whether a folder's name is a number of steps."""
    return name.isascii() and name.isdecimal() and len(name) <= len(str(MAX_STEPS))


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
    if not path.is_file():  # a pipe, say
        raise DamagedError(f"{path}: not a regular file; use an earlier checkpoint")
    return files.sha256(path)
