"""How every command of this room ends: bad input and divergence are a line and an exit code."""

import sys
from collections.abc import Callable
from pathlib import Path

from gepa_core.errors import DivergedError, UserError, about_name


def exit_code(work: Callable[[], int], path: Path) -> int:
    """What `work` returns; 2 for bad input, 3 where losses of what is at `path` are not finite."""
    try:
        return work()
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(about_name(error), file=sys.stderr)
        return 2
    except DivergedError as error:
        print(f"{path}: {error}", file=sys.stderr)
        return 3
