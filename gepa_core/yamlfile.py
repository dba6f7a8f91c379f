"""YAML of sweep and job files as plain values, with the place of every key and without YAML 1.1's traps.

Scalars follow the YAML 1.2 core schema: `1e-3` is a number, `no`, `on` and `12:30` are text. Duplicate keys,
tags, and aliases that contain themselves are problems, not surprises.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

MAX_DEPTH = 50
MAX_NODES = 20_000
"""Values in a file, aliases counted as often as they are used."""
MAX_DIGITS = 40
"""Of a number: more are damage, and the interpreter itself refuses some thousands."""
KeyPath = tuple[str | int, ...]

_INT = re.compile(r"[-+]?[0-9]+(?:_[0-9]+)*")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_WORDS: Mapping[str, Any] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip
_PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map")}


class LimitError(yaml.MarkedYAMLError):
    """More than this project reads; `problem` says which limit, `problem_mark` where."""


@dataclass(frozen=True)
class Problem:
    """Something wrong in a sweep file: where, at which key, and what is allowed."""

    place: str
    key: str
    message: str

    @property
    def line(self) -> int:
        """For sorting; arguments come last."""
        found = re.match(r"line (\d+)", self.place)
        return int(found[1]) if found else 1_000_000_000

    def __str__(self) -> str:
        where = ", ".join(part for part in (self.place, self.key) if part)
        return f"{where}: {self.message}" if where else self.message


@dataclass
class Document:
    """The file's value, and for every key path in it the place to name in messages ("line 4")."""

    value: Any = None
    places: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def place(self, path: KeyPath) -> str:
        """Of the path itself, or else of the nearest enclosing key."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, "")

    def report(self, path: KeyPath, message: str) -> None:
        self.problems.append(Problem(self.place(path), show(path), message))


def show(path: KeyPath) -> str:
    """`("points", 0, "steps")` as `points[0].steps`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def scalar(text: str) -> Any:
    """Value of an unquoted scalar. A number of more than MAX_DIGITS characters is text: see `too_long`."""
    if text in _WORDS:
        return _WORDS[text]
    if len(text) <= MAX_DIGITS:
        if _INT.fullmatch(text):
            return int(text)
        if _FLOAT.fullmatch(text):
            return float(text)
    return text


def too_long(text: str) -> str | None:
    """What is wrong with an unquoted scalar that would be a number if it were shorter."""
    if len(text) > MAX_DIGITS and (_INT.fullmatch(text) or _FLOAT.fullmatch(text)):
        return f"a number of {len(text):,} digits; at most {MAX_DIGITS} are read"
    return None


def parse(text: str, place: str = "") -> Document:
    """Parses one YAML document; what is wrong goes to `problems`. `place` replaces line numbers."""
    document = Document()
    try:
        node = compose(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = place or (f"line {mark.line + 1}, column {mark.column + 1}" if mark else "")
        what = ", ".join(part for part in (error.context, error.problem) if part)
        what = what if isinstance(error, LimitError) else f"not YAML: {what}"
        document.problems.append(Problem(at, "", what))
        return document
    except yaml.YAMLError as error:
        document.problems.append(Problem(place, "", f"not YAML: {' '.join(str(error).split())}"))
        return document
    if node is not None:
        document.value = _value(node, (), document, place, ())
    return document


def _value(
    node: yaml.Node, path: KeyPath, document: Document, place: str, inside: tuple[yaml.Node, ...]
) -> Any:
    document.places.setdefault(path, place or f"line {node.start_mark.line + 1}")
    if any(node is outer for outer in inside):
        document.report(path, "an alias that contains itself")
        return None
    if node.tag not in _PLAIN_TAGS:
        document.report(path, f"tag {node.tag.replace('tag:yaml.org,2002:', '!!')} is not allowed")
        return None
    inside = (*inside, node)
    if isinstance(node, yaml.ScalarNode):
        if not node.style and (problem := too_long(node.value)):
            document.report(path, problem)
            return None
        return node.value if node.style else scalar(node.value)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*path, i), document, place, inside) for i, item in enumerate(node.value)]
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        at = place or f"line {key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode):
            document.problems.append(Problem(at, show(path), "a key must be text"))
            continue
        here = (*path, key_node.value)
        if key_node.value in mapping:
            first = document.places[here]
            document.problems.append(Problem(at, show(here), f"given twice (first on {first})"))
            continue
        document.places[here] = at
        mapping[key_node.value] = _value(value_node, here, document, place, inside)
    return mapping


def compose(text: str) -> yaml.Node | None:
    """The node graph of one YAML document. Raises yaml.YAMLError, LimitError among them."""
    bounded = _Bounded(text)
    try:
        node: yaml.Node | None = bounded.get_single_node()
    finally:
        bounded.dispose()
    if node is not None:
        _expanded(node, {})
    return node


class _Bounded(yaml.BaseLoader):
    """Counts nodes and levels while it composes them."""

    _depth = _nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth, self._nodes = self._depth + 1, self._nodes + 1
        if self._depth > MAX_DEPTH or self._nodes > MAX_NODES:
            _refuse(self.peek_event().start_mark, self._depth)
        node = super().compose_node(parent, index)
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
