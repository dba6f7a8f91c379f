"""Command-line overrides, `key.path=value`, entered into a sweep file before it is typed."""

from collections.abc import Sequence
from typing import Any

from gepa_core.yamlfile import Document, KeyPath, Problem, parse, scalar, too_long
from sweeps.spec.keys import KeyRefusedError, Vocabulary, shortened
from sweeps.spec.sweep import TOP_KEYS


def override(document: Document, text: str, keys: Vocabulary) -> None:
    """Enters `key.path=value` into the document: a key of the file, or one of its runs'."""
    place = f"argument {shortened(text)!r}"
    name, equals, given = text.partition("=")
    if not equals or not name:
        document.problems.append(Problem(place, "", "an override is written key.path=value"))
        return
    if given[:1] in ("[", "{", '"', "'"):
        parsed = parse(given, place)
        if parsed.problems:
            document.problems += parsed.problems
            return
        value = parsed.value
        inner = parsed.places
    elif problem := too_long(given):
        document.problems.append(Problem(place, "", problem))
        return
    else:
        value, inner = scalar(given), {}
    path = _target(document, name, value, keys)
    *parents, last = path
    at = document.value
    for part in parents:
        if at.get(part) is None:
            at[part] = {}
        at = at[part]
        if not isinstance(at, dict):
            document.problems.append(Problem(place, name, "goes below a key that is not a mapping"))
            return
    if path[0] == "grid" and len(path) > 1 and not isinstance(value, (list, dict)):
        value = [value]
    at[last] = value
    below = [known for known in document.places if known[: len(path)] == path]
    for known in below:
        del document.places[known]
    document.places[path] = place
    document.places |= {(*path, *rest): where for rest, where in inner.items()}


def leave_out_corpus(document: Document, overrides: Sequence[str]) -> None:
    """A folder named on the command line is meant as it is: what the file would prepare in its own is not."""
    given = {text.partition("=")[0] for text in overrides}
    settings = document.value.get("set")
    named = {"data.dir", "set.data.dir"} & given and not {"data.corpus", "set.data.corpus"} & given
    if named and isinstance(settings, dict) and settings.get("data.corpus"):
        settings["data.corpus"] = None


def _target(document: Document, name: str, value: Any, keys: Vocabulary) -> KeyPath:
    """Where in the file an override goes."""
    head, _, rest = name.partition(".")
    if head in ("grid", "set", "resources", "exec", "script") and rest:
        return (head, rest) if head in ("grid", "set") else (head, *rest.split("."))
    if name in TOP_KEYS:
        return (name,)
    try:
        key = keys.key(name)
    except KeyRefusedError:
        return (name,)  # reported with the file's other keys
    grid = document.value.get("grid")
    if isinstance(grid, dict):
        for axis in grid:
            if keys.full_name(axis) == key.name:
                return ("grid", axis)
    if isinstance(value, list) and not key.takes_list:
        return ("grid", key.name)
    settings = document.value.get("set")
    for known in settings if isinstance(settings, dict) else ():
        if keys.full_name(known) == key.name:
            return ("set", known)
    return ("set", key.name)
