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
        found = Path(shutil.which(name) or "")
        # Both names of one environment's interpreter lie side by side; links lead out of an environment.
        if found.name and found.parent.absolute() == here.parent.absolute() and found.samefile(here):
            return name
    below = os.path.relpath(here) if here.is_absolute() and here.is_relative_to(Path.cwd()) else str(here)
    return shlex.quote(below)
