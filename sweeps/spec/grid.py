"""From axes to run configurations: the product of a grid's axes, single points, shared settings."""

import itertools
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from gepa_core.config import RunConfig
from gepa_core.sections import DataConfig
from sweeps.spec.keys import MAX_INT
from sweeps.spec.source import SOURCE_KEYS, DataSource

MAX_CELLS = 20_000
_RATIOS = {"warmdown_ratio": "warmdown_steps", "adam_warmdown_ratio": "adam_warmdown_steps"}
"""Keys of a sweep file by the field of the run that they give, in steps."""

R = TypeVar("R", bound=Hashable)
Cell = dict[str, Any]
"""Dotted keys to typed values."""


@dataclass(frozen=True)
class BadCell:
    """A combination of values that no run can have."""

    cell: Cell
    message: str


def cells(grid: Mapping[str, list[Any]], points: Iterable[Cell]) -> Iterator[Cell]:
    """The product of the grid's axes, the last one fastest, and then the points."""
    if grid:
        for values in itertools.product(*grid.values()):
            yield dict(zip(grid, values, strict=True))
    yield from points


class Expander:
    """Makes run configurations of cells; sections that no cell touches are built once and shared."""

    def __init__(self, preset: Mapping[str, Any], settings: Cell) -> None:
        self._settings = settings
        self._preset = preset
        self._sections: dict[tuple[Any, ...], BaseModel] = {}
        self._sources: dict[tuple[Any, ...], tuple[DataConfig, DataSource]] = {}

    def run(self, cell: Cell) -> tuple[RunConfig, DataSource] | BadCell:
        """The run of a cell, its data named but not yet looked at."""
        values = {**self._settings, **cell}
        try:
            top = {key: value for key, value in self._preset.items() if not isinstance(value, Mapping)}
            top |= {key: value for key, value in values.items() if "." not in key and key not in _RATIOS}
            top |= warmdown_of(cell, values, top)
            for name, info in RunConfig.model_fields.items():
                if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
                    top[name] = self._section(name, info.annotation, values)
            top["data"], source = self._data(values, top["data"].val_tokens)
            run = RunConfig(**top)
            if run.train_tokens > MAX_INT:
                raise ValueError(f"steps {run.steps} of {run.batch.tokens_per_step} tokens each are too many")
            return run, source
        except ValidationError as error:
            return BadCell(cell, "; ".join(_reason(detail) for detail in error.errors()))
        except ValueError as error:
            return BadCell(cell, str(error))

    def _section(self, name: str, model: type[BaseModel], values: Cell) -> BaseModel:
        prefix = name + "."
        given = tuple((k, v) for k, v in values.items() if k.startswith(prefix) and k not in SOURCE_KEYS)
        if (name, *given) not in self._sections:
            changed = {key.removeprefix(prefix): value for key, value in given}
            self._sections[(name, *given)] = model(**{**self._preset.get(name, {}), **changed})
        return self._sections[(name, *given)]

    def _data(self, values: Cell, val_tokens: int | None) -> tuple[DataConfig, DataSource]:
        key = tuple(values.get(name) for name in (*SOURCE_KEYS, "data.val_tokens"))
        if key not in self._sources:
            source = DataSource.from_values(values)
            self._sources[key] = source.placeholder(val_tokens), source
        return self._sources[key]


def warmdown_of(cell: Cell, values: Cell, top: Mapping[str, Any]) -> dict[str, Any]:
    """Ratios in steps. What a cell says of the warmdown wins over the shared settings.

    Keys that the schedule does not heed are set to one value, whatever the grid's: the runs are the same.
    Raises ValueError where nothing says how long it is.
    """
    if "steps" not in top:
        raise ValueError("no run length: give steps")
    schedule = top.get("schedule", RunConfig.model_fields["schedule"].default)
    unheeded = {} if schedule == "power" else {"schedule_power": 1.0}
    if schedule == "constant":
        return unheeded | {"warmdown_steps": 0, "adam_warmdown_steps": None, "lr_floor": 0.0}
    found: dict[str, Any] = {}
    for ratio, name in _RATIOS.items():
        for level in (values, cell):
            if name in level:
                found[name] = level[name]
            elif ratio in level:
                found[name] = round(level[ratio] * top["steps"])
    if "warmdown_steps" not in found and "warmdown_steps" not in top:
        raise ValueError("no warmdown: give warmdown_ratio or warmdown_steps (0 = constant to the end)")
    return found | unheeded


def _reason(detail: Any) -> str:
    where = ".".join(map(str, detail["loc"]))
    message = str(detail["msg"]).removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def merge(runs: Iterable[R]) -> tuple[tuple[R, ...], dict[R, int]]:
    """Runs without repeats, in order, and how often each repeated one occurred."""
    counts: dict[R, int] = {}
    for run in runs:
        counts[run] = counts.get(run, 0) + 1
    return tuple(counts), {run: count for run, count in counts.items() if count > 1}
