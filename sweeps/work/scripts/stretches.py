"""The stretches of a run that saves its state on the way, and what an attempt cut off leaves to the next.

Each stretch is a start of the script, which ends by saving its state. The state, the log up to there and the
time it took are a checkpoint in the attempt's folder; the next attempt goes on from the furthest whole one.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeps.kinds.kind import SCRIPT_LOG
from sweeps.work.scripts.log import Lines
from sweeps.work.scripts.place import pack_state

_FOLDER = "checkpoints"
_FACTS = "state.json"
"""Copied to a remote store last: where it is, the rest is."""
_KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A saved state on the way. `seconds`: from the start of the run."""

    path: Path
    step: int
    seconds: float

    @property
    def state(self) -> Path:
        """The folder with the packed state."""
        return self.path

    def continue_log(self, log: Path) -> Iterator[str]:
        """Begins the log with what the run printed up to here, and gives its lines."""
        shutil.copyfile(self.path / SCRIPT_LOG, log)
        lines = Lines()
        yield from lines.feed(log.read_bytes())
        yield from lines.end()


def stops(start: int, until: int, every: int | None) -> list[int]:
    """The steps after which a run from `start` saves its state, and `until`."""
    return [*range((start // every + 1) * every, until, every), until] if every else [until]


def save(attempt: Path, step: int, state: Path, seconds: float) -> Checkpoint:
    """A checkpoint of the state, whole or not at all; those before the last two are deleted."""
    path = attempt / _FOLDER / str(step)
    aside = path.with_name(f".{step}")
    shutil.rmtree(aside, ignore_errors=True)
    pack_state(state, aside)
    shutil.copyfile(attempt / SCRIPT_LOG, aside / SCRIPT_LOG)
    sizes = {file.name: file.stat().st_size for file in aside.iterdir()}
    with (aside / _FACTS).open("w", encoding="utf-8") as file:
        json.dump({"step": step, "seconds": seconds, "sizes": sizes}, file)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)
    for old in _steps(attempt)[_KEPT:]:
        shutil.rmtree(attempt / _FOLDER / str(old))
    return Checkpoint(path, step, seconds)


def furthest(attempt: Path) -> Checkpoint | None:
    """The furthest checkpoint that is whole; the others are deleted."""
    for step in _steps(attempt):
        path = attempt / _FOLDER / str(step)
        if (facts := _facts(path)) is not None and facts["step"] == step:
            return Checkpoint(path, step, facts["seconds"])
        shutil.rmtree(path)
    return None


def forget(attempt: Path) -> None:
    """Deletes the checkpoints of an attempt that is complete."""
    shutil.rmtree(attempt / _FOLDER, ignore_errors=True)


def _steps(attempt: Path) -> list[int]:
    folder = attempt / _FOLDER
    found = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return sorted((int(name) for name in found if name.isdecimal()), reverse=True)


def _facts(path: Path) -> dict[str, Any] | None:
    """What a checkpoint says of itself; None where it is cut short, altered or another's."""
    try:
        facts = json.loads((path / _FACTS).read_bytes())
        sizes, step, seconds = facts["sizes"], facts["step"], facts["seconds"]
        whole = all((path / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    of_types = isinstance(step, int) and isinstance(seconds, int | float) and SCRIPT_LOG in sizes
    return facts if whole and of_types else None
