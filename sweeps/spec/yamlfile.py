"""YAML as plain values with the place of every key, without YAML 1.1's traps.

Scalars follow the YAML 1.2 core schema: `1e-3` is a number, `no`, `on` and `12:30` are text. Duplicate keys,
tags, and aliases that contain themselves are problems, not surprises.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from gepa_core.bounded import LimitError, compose

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
