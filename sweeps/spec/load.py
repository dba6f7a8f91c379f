"""A sweep file and its overrides, read from disk: `load_sweep`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gepa_core.bounded import MAX_TEXT_BYTES, read_bytes
from gepa_core.errors import ConfigError
from gepa_core.yamlfile import Problem, parse
from sweeps.spec.keys import near_miss, run_vocabulary
from sweeps.spec.overrides import leave_out_corpus, override
from sweeps.spec.read import Reader
from sweeps.spec.script import ScriptReader, script_vocabulary
from sweeps.spec.sweep import TOP_KEYS, SpecError, Sweep


def load_sweep(path: str | Path, overrides: Sequence[str] = ()) -> Sweep:
    """Reads a sweep file. Raises SpecError with all problems of the file and the overrides."""
    file = Path(path)
    try:
        text = read_bytes(file, MAX_TEXT_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(str(path), [Problem(f"byte {error.start}", "", "not UTF-8 text")]) from None
    except OSError as error:
        beside = [str(p) for p in sorted(file.parent.glob("*.yaml"))] if file.parent.is_dir() else []
        what = (
            "is a folder, not a sweep file" if file.is_dir() else (error.strerror or "cannot be read").lower()
        )
        raise ConfigError(f"{path}: {what}{near_miss(str(path), beside)}") from None
    return read_sweep(text, overrides, str(path))


def read_sweep(text: str, overrides: Sequence[str] = (), file: str = "sweep.yaml") -> Sweep:
    """Like `load_sweep`, from text."""
    document = parse(text)
    if document.value is None and not document.problems:
        document.report((), "empty; a sweep needs at least a grid")
    elif not isinstance(document.value, dict) and not document.problems:
        document.report((), "a sweep file is a mapping with the keys " + ", ".join(TOP_KEYS))
    if document.problems and not isinstance(document.value, dict):
        raise SpecError(file, document.problems)
    syntax = list(document.problems)
    is_script = "script" in document.value
    for argument in overrides:
        override(document, argument, script_vocabulary(document.value) if is_script else run_vocabulary())
    if not is_script:
        leave_out_corpus(document, overrides)
    sweep = (ScriptReader if is_script else Reader)(document, file).sweep()
    if document.problems or sweep is None:
        unreadable = {(problem.place, problem.key) for problem in syntax}
        later = (p for p in document.problems[len(syntax) :] if (p.place, p.key) not in unreadable)
        raise SpecError(file, [*syntax, *later])
    return replace(sweep, overrides=tuple(overrides))
