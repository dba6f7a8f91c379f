"""What each key of a sweep file means: the docstrings of the models that read it."""

import ast
import inspect
import textwrap
from functools import cache

from pydantic import BaseModel

from gepa_core.config import ExecConfig, RunConfig
from sweeps.kinds.script import Script
from sweeps.spec.keys import Key, SweepOnly, fields, nested, run_vocabulary
from sweeps.spec.sweep import Resources

SECTIONS: dict[str, type[BaseModel]] = {"exec": ExecConfig, "resources": Resources, "script": Script}
"""Sections of a sweep file beside its runs' own keys."""


def all_keys() -> dict[str, Key]:
    """What a sweep file may set: of its runs, and below each section."""
    found = dict(run_vocabulary().keys)
    for name, model in SECTIONS.items():
        found |= fields(model, f"{name}.")
    return found


@cache
def meanings() -> dict[str, str]:
    """Dotted key -> one sentence or two."""
    only = {name: text for name, text in _documented(SweepOnly).items() if name.endswith("ratio")}
    data = {f"data.{name}": text for name, text in _documented(SweepOnly).items() if name not in only}
    found = {**_below(RunConfig), **only, **data}
    for name, model in SECTIONS.items():
        found |= _below(model, f"{name}.")
    return found


def _below(model: type[BaseModel], prefix: str = "") -> dict[str, str]:
    found = {prefix + name: text for name, text in _documented(model).items()}
    for name, info in model.model_fields.items():
        if model_below := nested(info):
            found |= _below(model_below, f"{prefix}{name}.")
    return found


def _documented(model: type[BaseModel]) -> dict[str, str]:
    """Fields of a model and of those it extends, with the text below each in the source."""
    found: dict[str, str] = {}
    for cls in reversed([c for c in model.__mro__ if issubclass(c, BaseModel) and c is not BaseModel]):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        assert isinstance(body, ast.ClassDef)
        name = None
        for statement in body.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                name = statement.target.id
            elif name and isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                found[name] = " ".join(str(statement.value.value).split())
                name = None
            else:
                name = None
    return found
