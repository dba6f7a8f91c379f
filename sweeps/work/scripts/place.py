"""The copy of a script's folder that one start of it works in, and what it leaves there."""

import os
import shutil
import socket
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from gepa_core.errors import UserError
from sweeps.store.files import StorageError
from sweeps.work.job import Attempt, ScriptHow

_LOADED = 1.0
"""Time of modification that marks the files of a state to load, so that saving anew shows."""


@dataclass(frozen=True)
class Place:
    """The folders of one start of a script, all on this machine."""

    folder: Path
    """The copy of its files, where it is started."""
    out: Path
    state: Path
    """Where its state is, or will be."""
    before: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Files that came with the script: size and time of modification."""


@contextmanager
def copied(at: Attempt, name: str) -> Iterator[Place]:
    """A copy of the script's files with what it links to; gone afterwards. Raises UserError, StorageError."""
    how = at.job.script
    assert how is not None
    base = at.workdir.scratch.absolute() / "scripts" / at.job.attempt / name
    state = how.script.state.file if how.script.state else "state"
    place = Place(base / "work", base / "out", base / "saved" / state)
    try:
        for folder in (place.folder, place.out, place.state.parent):
            folder.mkdir(parents=True)
        archive = at.job.store.files.read(how.archive)
        if archive is None:
            where = at.job.store.files.describe(how.archive)
            raise StorageError(f"{where} is gone; give the same command again to put it there")
        with tarfile.open(fileobj=BytesIO(archive)) as tar:
            tar.extractall(place.folder, filter="fully_trusted")  # our own archive
        for link, target in how.links.items():
            if not Path(target).exists():
                raise UserError(f"script.links.{link}: {target} is not on {socket.gethostname()}")
            (place.folder / link).parent.mkdir(parents=True, exist_ok=True)
            (place.folder / link).symlink_to(target)
        place.before.update({str(path): _stamp(path) for path in place.folder.rglob("*") if path.is_file()})
        yield place
    finally:
        shutil.rmtree(base, ignore_errors=True)


def pack_state(state: Path, folder: Path) -> None:
    """A state's file or folder as one file, whatever its name."""
    folder.mkdir(parents=True)
    if state.is_dir():
        with tarfile.open(folder / "state.tar", "w") as tar:
            tar.add(state, arcname="")
    else:
        shutil.copyfile(state, folder / "state")


def placed_state(how: ScriptHow, packed: Path, place: Place) -> Path:
    """A copy of a packed state for a script to load: by `{state}`, or by its name in the working folder."""
    assert how.script.state is not None
    state = how.script.state
    by_name = not any("{state}" in value for value in state.load.values())
    target = (place.folder if by_name else place.folder.parent / "loaded") / state.file
    target.parent.mkdir(parents=True, exist_ok=True)
    if (packed / "state.tar").exists():
        with tarfile.open(packed / "state.tar") as tar:
            tar.extractall(target, filter="fully_trusted")  # as the script itself wrote it
    else:
        shutil.copyfile(packed / "state", target)
    for file in _files_of(target):
        os.utime(file, (_LOADED, _LOADED))
    return target


def saved_state(place: Place) -> bool:
    """Whether the script saved its state; one in the working folder is taken to its place.

    The state that it was to load may lie there too, and is none that it saved.
    """
    beside = place.folder / place.state.name
    fresh = beside.exists() and any(file.stat().st_mtime != _LOADED for file in _files_of(beside))
    if not place.state.exists() and fresh:
        keep(beside, place.state)
    return place.state.exists()


def keep(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


def missing(how: ScriptHow, place: Place, is_trunk: bool) -> list[str]:
    """What the script was to leave and did not."""
    if is_trunk:
        return [] if saved_state(place) else [f"the state {place.state.name}"]
    own = [how.script.figures.file] if how.script.figures.file else []
    made = [*own, *([how.script.artifact] if how.script.artifact else [])]
    lacking = [name for name in dict.fromkeys([*how.script.outputs, *own]) if not found(place, name)]
    stale = [name for name in made if name not in lacking and _untouched(place, name)]
    return lacking + [f"a new {name} (the one in its folder is as it was before)" for name in stale]


def _untouched(place: Place, pattern: str) -> bool:
    """Whether what is found is what came with the script's files."""
    return all(
        str(path) in place.before and _stamp(path) == place.before[str(path)]
        for path in _paths(place, pattern)
    )


def _paths(place: Place, pattern: str) -> list[Path]:
    return [folder / name for folder, name in found(place, pattern)]


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def found(place: Place, pattern: str) -> list[tuple[Path, Path]]:
    """(folder, path in it) of files of that name or pattern: in {out}, or else in the working folder."""
    for folder in (place.out, place.folder):
        exact = folder / pattern
        paths = [exact] if exact.exists() else sorted(folder.glob(pattern))
        if files := [file for path in paths for file in _files_of(path)]:
            return [(folder, file.relative_to(folder)) for file in files]
    return []


def _files_of(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
