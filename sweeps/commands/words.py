"""`launch.py keys`, `schema` and `completion`: what people, editors and shells ask of the command line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gepa_core.errors import ConfigError

if TYPE_CHECKING:
    from sweeps.spec.keys import Key

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def schema_command(args: argparse.Namespace) -> int:
    """`launch.py schema`."""
    text = json.dumps(sweep_schema(), indent=1) + "\n"
    if args.out:
        try:
            Path(args.out).write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{args.out}: cannot be written ({error.strerror})") from None
        print(f"{args.out}; in a sweep file: # yaml-language-server: $schema={args.out}")
    else:
        print(text, end="")
    return 0


def keys_command(args: argparse.Namespace) -> int:
    """`launch.py keys [WORD]`."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from gepa_core.recipes import PRESETS
    from sweeps.spec.keys import near_miss
    from sweeps.spec.meanings import all_keys, meanings

    if args.recipe not in PRESETS:
        raise ConfigError(f"--recipe {args.recipe}: no such recipe{near_miss(args.recipe, PRESETS)}")
    keys, said = all_keys(), meanings()
    found = [name for name in keys if args.word.lower() in f"{name} {said[name]}".lower()]
    if not found:
        raise ConfigError(f"{args.word}: no key has that{near_miss(args.word, keys)}")
    table = Table(box=None, pad_edge=False)
    for heading in ("key", "default", "what it is"):
        table.add_column(heading, overflow="fold")
    for name in found:
        default = default_of(keys[name], args.recipe)
        told = "" if default is None else escape(str(default))
        table.add_row(name, told, f"{escape(said[name])} [dim]({escape(keys[name].allowed)})[/dim]")
    Console(highlight=False).print(table)
    return 0


def default_of(key: Key, recipe: str) -> Any:
    """Of a key in a recipe; None where each run needs its own, or there is none."""
    from gepa_core.recipes import PRESETS

    given: Any = PRESETS[recipe]
    for part in key.name.split("."):
        given = given.get(part) if isinstance(given, Mapping) else None
    if given is None and not key.info.is_required():
        given = key.info.get_default(call_default_factory=True)
    return given


def completion_command(args: argparse.Namespace) -> int:
    """`launch.py completion SHELL`: for `gepa-sweeps`, the command that `pip install -e .` makes."""
    try:
        import shtab
    except ImportError as error:
        raise ConfigError(f"shtab is not installed ({error}): pip install shtab") from None
    from sweeps.commands.parser import whole_parser

    print(shtab.complete(whole_parser(), shell=args.shell))
    return 0


def sweep_schema() -> dict[str, Any]:
    """JSON schema of a sweep file, from the very models that read it.

    Looser than the reader in what takes several keys to judge, and in the keys of nested mappings.
    """
    from gepa_core.recipes import PRESETS
    from sweeps.kinds.table import STAGES
    from sweeps.spec.meanings import SECTIONS, meanings
    from sweeps.spec.sweep import KEEPS, TOP_KEYS

    settings, axes = _run_keys()
    described: dict[str, dict[str, Any]] = {
        "name": {"type": "string", "description": "folder of the results; default: the file's name"},
        "recipe": {"enum": list(PRESETS), "description": "a preset, laid over the published recipe"},
        "grid": {**axes, "description": "axes: the product of these lists is what runs"},
        "points": {"type": "array", "items": settings, "description": "single runs beside the grid"},
        "set": {**settings, "description": "what all runs have in common"},
        "stages": {"type": "array", "items": {"enum": list(STAGES)}, "description": "what is measured"},
        "share": {"type": "boolean", "description": "false: every run is trained alone"},
        "keep": {
            "enum": list(KEEPS),
            "description": "states that stay: those on trunks; also the runs' final ones; all checkpoints",
        },
    }
    parts: dict[str, Any] = {}
    for section, said in (
        ("resources", "what a run asks of the cluster"),
        ("exec", "how runs are executed: changes no result"),
        ("script", "in place of recipe: any training script"),
    ):
        schema = SECTIONS[section].model_json_schema()
        for name, key in schema["properties"].items():
            key["description"] = meanings().get(f"{section}.{name}", key.get("description", ""))
        parts |= schema.pop("$defs", {})
        described[section] = {**schema, "description": said}
    of_runs = {key: described.pop(key) for key in ("grid", "points", "set")}  # a script has keys of its own
    return {
        "$schema": DRAFT,
        "title": "gepa-sweeps sweep file",
        "type": "object",
        "properties": {key: described.get(key, {}) for key in TOP_KEYS},
        "additionalProperties": False,
        "anyOf": [{"required": ["grid"]}, {"required": ["points"]}],
        "$defs": parts,
        "if": {"required": ["script"]},
        "else": {"properties": of_runs},
    }


def _run_keys() -> tuple[dict[str, Any], dict[str, Any]]:
    """Schemas of `set` (a value a key) and of `grid` (a list of values a key)."""
    from pydantic import ConfigDict, TypeAdapter

    from sweeps.spec.keys import run_vocabulary
    from sweeps.spec.meanings import meanings

    keys = run_vocabulary().keys
    leaves = [name.rpartition(".")[2] for name in keys]
    values: dict[str, Any] = {}
    for name, key in keys.items():
        typed: Any = key.info.annotation
        schema = TypeAdapter(typed, config=ConfigDict(strict=True)).json_schema()
        schema["description"] = f"{said} ({key.allowed})" if (said := meanings().get(name)) else key.allowed
        for constraint in key.info.metadata:
            for bound, word in (("ge", "minimum"), ("gt", "exclusiveMinimum"), ("le", "maximum")):
                if (limit := getattr(constraint, bound, None)) is not None and "type" in schema:
                    schema[word] = limit
        values[name] = schema
        leaf = name.rpartition(".")[2]
        if leaves.count(leaf) == 1:
            values[leaf] = schema
    sections = {name.partition(".")[0] for name in keys if "." in name}
    nested = {section: {"type": "object", "description": f"the keys of {section}"} for section in sections}
    settings = {"type": "object", "properties": values | nested, "additionalProperties": False}
    lists = {name: {"type": "array", "items": schema, "minItems": 1} for name, schema in values.items()}
    axes = {"type": "object", "properties": lists | nested, "additionalProperties": False}
    return settings, axes
