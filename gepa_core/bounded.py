"""Files from outside, read with limits: so many bytes, and never a device or a pipe.

A limit is far above anything this project writes or asks for; what exceeds it is damage or an attack, and the
message says the limit.
"""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

from gepa_core.errors import ConfigError, UserError

MAX_TEXT_BYTES = 1 << 20
"""Of a sweep or job file, 1 MiB."""
MAX_JSON_BYTES = 64 << 20
"""Of a manifest or a record."""
_PIECE = 1 << 20


def read_bytes(path: Path, limit: int, error: type[UserError] = ConfigError) -> bytes:
    """A regular file of at most `limit` bytes. Raises OSError, and `error` for anything else."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe without a writer would keep us waiting
    with os.fdopen(handle, "rb") as file:
        kind = os.fstat(handle).st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(kind):
            raise error(f"{path}: not a regular file; give a file on a disk")
        data = read_stream(file, limit)
    if data is None:
        raise error(f"{path}: over {limit:,} bytes, and no more are read of such a file")
    return data


def read_stream(stream: Any, limit: int) -> bytes | None:
    """All of a stream; None if over `limit`. By pieces: a reader may reserve all it is asked for."""
    pieces, length = [], 0
    while piece := stream.read(_PIECE):
        pieces.append(piece)
        length += len(piece)
        if length > limit:
            return None
    return b"".join(pieces)


def parse_json(data: str | bytes) -> Any:
    """Raises ValueError for anything but JSON, also where it is nested too deeply or not UTF-8."""
    try:
        return json.loads(data.decode("utf-8") if isinstance(data, bytes) else data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
