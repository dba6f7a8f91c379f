"""Names and types of what a sweep file may set: dotted keys, unambiguous leaves, near misses."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, cached_property
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from gepa_core.config import ExecConfig, RunConfig
from gepa_core.schedule import SHAPES
from gepa_core.sections import MAX_TEXT

CORPORA = ("docstrings",)
"""Text that can be prepared without a download."""
MAX_INT = 2**63 - 1
"""What a column of whole numbers holds."""


class KeyRefusedError(Exception):
    """A key or a value that is not allowed; the message says what is."""


@dataclass(frozen=True)
class Key:
    """A settable value: its dotted name and its type."""

    name: str
    info: FieldInfo

    @cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        typed: Any = self.info.annotation
        if self.info.metadata:
            typed = Annotated[typed, *self.info.metadata]
        return TypeAdapter(typed, config=ConfigDict(strict=True, allow_inf_nan=False))

    @property
    def takes_list(self) -> bool:
        return get_origin(self.info.annotation) is tuple

    @property
    def allowed(self) -> str:
        return self.info.description or _describe(self.info.annotation) + _bounds(
            self.info.metadata, self.takes_list
        )

    def typed(self, value: Any) -> Any:
        """The value in this key's type. Raises KeyRefusedError."""
        kinds = {self.info.annotation, *get_args(self.info.annotation)}
        whole = int in kinds and float not in kinds  # a script's own 1.0 is no 1
        if isinstance(value, float) and value.is_integer() and whole:
            value = int(value)  # 9e3 steps
        if isinstance(value, int) and whole and abs(value) > MAX_INT:
            raise KeyRefusedError(f"int {value} is not allowed; it must be {self.allowed}")
        try:
            if isinstance(value, str) and "\0" in value:
                raise KeyRefusedError("text with a NUL character is not allowed")
            return self._adapter.validate_json(json.dumps(value))
        except ValidationError:
            hint = ""
            if self.info.annotation is bool and str(value).lower() in ("yes", "no", "on", "off"):
                hint = " (yes, no, on and off are plain text here)"
            shown = "nothing" if value is None else f"{type(value).__name__} {shortened(repr(value))}"
            shown = shown.replace("str ", "text ").replace("dict ", "mapping ")
            raise KeyRefusedError(f"{shown} is not allowed; it must be {self.allowed}{hint}") from None


def shortened(text: str) -> str:
    """For messages: what was given, as far as it helps."""
    return text if len(text) <= 200 else f"{text[:200]}..."


def near_miss(name: str, names: Iterable[str]) -> str:
    """ "; did you mean x?" or nothing."""
    names = list(dict.fromkeys(names))
    close = get_close_matches(name, names, n=2, cutoff=0.6)
    if not close:  # the leaf may be right, or nearly, under another parent
        leaf = name.rpartition(".")[2]
        leaves = [known.rpartition(".")[2] for known in names]
        near = get_close_matches(leaf, leaves, n=1, cutoff=0.75)
        close = [known for known in names if near and known.rpartition(".")[2] == near[0]][:2]
    return f"; did you mean {' or '.join(close)}?" if close else ""


def fields(model: type[BaseModel], prefix: str = "") -> dict[str, Key]:
    """Every leaf of a (nested) model by dotted name."""
    found: dict[str, Key] = {}
    for name, info in model.model_fields.items():
        if model_below := nested(info):
            found |= fields(model_below, f"{prefix}{name}.")
        else:
            found[prefix + name] = Key(prefix + name, info)
    return found


def nested(info: FieldInfo) -> type[BaseModel] | None:
    """The model whose fields are below this one, which may be left out."""
    for kind in (info.annotation, *get_args(info.annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


class SweepOnly(BaseModel):
    """Keys of a sweep file that resolve to RunConfig fields."""

    warmdown_ratio: float = Field(ge=0, le=1)
    """Share of the steps that is warmdown; in place of warmdown_steps."""
    adam_warmdown_ratio: float = Field(ge=0, le=1)
    """The same of what AdamW trains; in place of adam_warmdown_steps."""
    dir: str = Field("", max_length=MAX_TEXT)
    """A prepared folder: shards, tokenizer and manifest."""
    corpus: Literal["docstrings"] | None = None
    """Text to prepare in data.dir where nothing is there yet: the docstrings of installed packages."""


@dataclass(frozen=True)
class Vocabulary:
    """What `grid`, `points` and `set` may name."""

    keys: Mapping[str, Key]
    family: Key | None = None
    """Named `prefix.`: any key that begins so is allowed, with this one's type."""

    def key(self, name: str) -> Key:
        """A key by its dotted name, or by its last part where that tells. Raises KeyRefusedError."""
        if name in self.keys:
            return self.keys[name]
        if self.family and name.startswith(self.family.name) and name != self.family.name:
            return Key(name, self.family.info)
        same_leaf = [known for known in self.keys if known.rpartition(".")[2] == name]
        if len(same_leaf) == 1:
            return self.keys[same_leaf[0]]
        if same_leaf:
            raise KeyRefusedError(f"ambiguous; write {' or '.join(same_leaf)}")
        if name in ExecConfig.model_fields:
            raise KeyRefusedError(f"is how a run is executed; set exec.{name}")
        leaves = [known.rpartition(".")[2] for known in self.keys]
        hint = near_miss(name, [*self.keys, *(x for x in leaves if leaves.count(x) == 1)])
        if self.family:
            hint += f"; a variable of the environment is written {self.family.name}NAME, and any other name "
            hint += "has to be a {placeholder} of script.command or script.env"
        raise KeyRefusedError("unknown key" + hint)

    def full_name(self, name: str) -> str:
        """Dotted form of a key; a key that is not allowed as it is."""
        try:
            return self.key(name).name
        except KeyRefusedError:
            return name

    def nests(self, name: str) -> bool:
        """Whether keys continue below `name`."""
        family = (self.family.name,) if self.family else ()
        return any(known.startswith(f"{name}.") for known in (*self.keys, *family))


@cache
def run_vocabulary() -> Vocabulary:
    """That of a recipe: RunConfig's keys, and those that resolve to some of them."""
    keys = fields(RunConfig)
    del keys["numerics_version"]
    only = SweepOnly.model_fields
    shapes = Literal[tuple(SHAPES)]  # type: ignore[valid-type]
    default = RunConfig.model_fields["schedule"].default
    keys["schedule"] = Key("schedule", FieldInfo(annotation=shapes, default=default))  # type: ignore[arg-type]
    for name in ("warmdown_ratio", "adam_warmdown_ratio"):
        keys[name] = Key(name, only[name])
    keys["data.dir"] = Key("data.dir", only["dir"])
    keys["data.corpus"] = Key("data.corpus", only["corpus"])
    return Vocabulary(keys)


def _describe(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (Union, UnionType):
        parts = [_describe(part) for part in arguments if part is not NoneType]
        return " or ".join(parts) + (" (or null)" if NoneType in arguments else "")
    if origin is tuple:
        return f"a list, each item {_describe(arguments[0])}"
    if origin is dict:
        return f"a mapping of names to values, each {_describe(arguments[1])}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return names.get(annotation, str(annotation))


def _bounds(metadata: list[Any], of_list: bool = False) -> str:
    words = []
    for constraint in metadata:
        for attribute, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
            if (bound := getattr(constraint, attribute, None)) is not None:
                words.append(f"{sign} {bound:,}" if isinstance(bound, int) else f"{sign} {bound:g}")
        if (longest := getattr(constraint, "max_length", None)) is not None:
            words.append(f"of at most {longest:,} characters" if not of_list else f"(at most {longest:,})")
    return " " + " and ".join(words) if words else ""
