"""Files from outside, read with limits: so many bytes, nodes and levels, and never a device or a pipe.

A limit is far above anything this project writes or asks for; what exceeds it is damage or an attack, and the
message says the limit.
"""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import yaml

from gepa_core.errors import ConfigError, UserError

MAX_TEXT_BYTES = 1 << 20
"""Of a sweep or job file, 1 MiB."""
MAX_JSON_BYTES = 64 << 20
"""Of a manifest or a record."""
_PIECE = 1 << 20
MAX_DEPTH = 50
MAX_NODES = 20_000
"""Values in a YAML file, aliases counted as often as they are used."""


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


class LimitError(yaml.MarkedYAMLError):
    """More than this project reads; `problem` says which limit, `problem_mark` where."""


def compose(text: str, loader: type[Any] = yaml.BaseLoader) -> yaml.Node | None:
    """The node graph of one YAML document. Raises yaml.YAMLError, LimitError among them."""
    bounded = type("Bounded", (_Bounded, loader), {})(text)
    try:
        node: yaml.Node | None = bounded.get_single_node()
    finally:
        bounded.dispose()
    if node is not None:
        _expanded(node, {})
    return node


def load_yaml(text: str, loader: type[Any]) -> Any:
    """The values of one YAML document. Raises yaml.YAMLError, LimitError among them, and ValueError."""
    compose(text, loader)
    return yaml.load(text, Loader=loader)


class _Bounded:
    """Counts nodes and levels while a loader composes them."""

    _depth = _nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth, self._nodes = self._depth + 1, self._nodes + 1
        if self._depth > MAX_DEPTH or self._nodes > MAX_NODES:
            _refuse(self.peek_event().start_mark, self._depth)  # type: ignore[attr-defined]
        node = super().compose_node(parent, index)  # type: ignore[misc]
        self._depth -= 1
        return node


def _expanded(node: yaml.Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """(nodes, levels) of a node with its aliases written out; a node within itself counts once."""
    if id(node) not in known:
        known[id(node)] = 1, 1
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        items = node.value if isinstance(node, yaml.SequenceNode) else []
        inner = [_expanded(part, known) for part in (*items, *(part for pair in pairs for part in pair))]
        nodes, depth = 1 + sum(n for n, _ in inner), 1 + max((d for _, d in inner), default=0)
        if nodes > MAX_NODES or depth > MAX_DEPTH:
            _refuse(node.start_mark, depth)
        known[id(node)] = nodes, depth
    return known[id(node)]


def _refuse(mark: Any, depth: int) -> None:
    what = f"nested deeper than {MAX_DEPTH} levels" if depth > MAX_DEPTH else f"over {MAX_NODES:,} values"
    raise LimitError(problem=f"{what}, aliases written out; no more is read of one file", problem_mark=mark)
