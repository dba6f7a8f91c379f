"""A local Ray's private matters: its folder, which only this user may enter, and its environment.

It listens on the loopback alone, and answers only who has the token that is made for this launch.
"""

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray's switch for a node that no other machine can join, whatever the system: all its ports are local."""
_PREFIX = "gepa-ray-"
_LONGEST = 36
"""Of the folder's path: a socket's has 107 characters, of which Ray needs some 65."""


def private_environment(code: Path) -> dict[str, str | None]:
    """Variables of a local Ray and its workers; None = not set. `code`: where they import us from."""
    paths = [str(code), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_AUTH_TOKEN_PATH": None,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        **LOOPBACK,
    }


def change_environment(changes: Mapping[str, str | None]) -> dict[str, str | None]:
    """Sets variables, None unsets one; returns what they were, to be given to this function again."""
    before = {name: os.environ.get(name) for name in changes}
    for name, value in changes.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    return before


def new_folder() -> Path:
    """An empty folder for this process's local Ray, short enough for sockets; those of dead ones go.

    Ray opens its own folder to everybody: it lies in one that is not.
    """
    remove_dead()
    path = folder_of(os.getpid())
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o700, parents=True)
    return path


def folder_of(pid: int) -> Path:
    """Where the local Ray of a driver lies."""
    name = f"{_PREFIX}{pid}"
    return next((base / name for base in _bases() if len(str(base / name)) <= _LONGEST), Path("/tmp", name))


def remove_dead() -> None:
    """Deletes the folders of local Rays whose drivers are gone, as far as they are ours."""
    for base in _bases():
        for folder in base.glob(f"{_PREFIX}*"):
            pid = folder.name.removeprefix(_PREFIX)
            if pid.isdecimal() and not folder.is_symlink() and not psutil.pid_exists(int(pid)):
                shutil.rmtree(folder, ignore_errors=True)


def _bases() -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield Path(tempfile.gettempdir())
    yield Path("/tmp")
