"""How this Python is started from here, so that a command in a message works as it is pasted."""

import os
import shlex
import shutil
import sys
from pathlib import Path


def python() -> str:
    """`python` where a shell finds this one under that name, else its path: relative where it lies below."""
    here = Path(sys.executable or "python3")
    for name in ("python", "python3"):
        found = shutil.which(name)
        if found and Path(found).absolute() == here.absolute():
            return name
    below = os.path.relpath(here) if here.is_absolute() and here.is_relative_to(Path.cwd()) else str(here)
    return shlex.quote(below)
