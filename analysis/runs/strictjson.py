"""JSON for other programs: numbers that are not known are null, never NaN."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from analysis.runs.errors import AnalysisError

MAX_BYTES = 256 << 20


def read(path: Path) -> Any:
    """The value in a file.

    Raises:
        AnalysisError: it is no regular file, over 256 MiB, or not JSON.
    """
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            raise AnalysisError(f"{path}: not a regular file of at most {MAX_BYTES >> 20} MiB")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        told = "nested too deeply" if isinstance(error, RecursionError) else error
        raise AnalysisError(
            f"{path}: damaged, not JSON ({told}); resuming the sweep writes it anew"
        ) from None


def dumps(value: object, indent: int | None = None) -> str:
    """The value as strict JSON."""
    return json.dumps(plain(value), indent=indent, allow_nan=False)


def plain(value: Any) -> Any:
    """The value with NaN and infinities as None and tuples as lists."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
