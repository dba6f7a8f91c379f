"""JSON for other programs: numbers that are not known are null, never NaN."""

from __future__ import annotations

import json
import math
from typing import Any


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
