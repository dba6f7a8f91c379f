"""From the values of a sweep file to a Sweep; everything wrong is collected, with its place."""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from gepa_core.config import ExecConfig, RunConfig
from gepa_core.recipes import PRESETS
from gepa_core.yamlfile import Document, KeyPath, show
from sweeps.kinds.script import ScriptRun
from sweeps.kinds.table import KINDS, STAGES, USUAL_STAGES
from sweeps.spec.grid import MAX_CELLS, BadCell, Cell, Expander, cells, merge
from sweeps.spec.keys import Key, KeyRefusedError, Vocabulary, fields, near_miss, run_vocabulary
from sweeps.spec.source import DataSource
from sweeps.spec.sweep import (
    KEEPS,
    RESERVED_NAMES,
    STANDARD_AXES,
    TOP_KEYS,
    Resources,
    Sweep,
    fingerprints,
)

T = TypeVar("T")
R = TypeVar("R", RunConfig, ScriptRun)


class Reader:
    """Turns a document into a Sweep; what is wrong goes to the document's problems."""

    def __init__(self, document: Document, file: str) -> None:
        self.document = document
        self.file = file
        self.keys: Vocabulary = run_vocabulary()
        self.value: dict[str, Any] = document.value

    def sweep(self) -> Sweep | None:
        for key in self.value:
            if key not in TOP_KEYS:
                self._unknown_top(key)
        name, recipe = self._name(), self._recipe()
        stages, share = self._stages(), self._bool("share", True)
        keep = self._keep()
        if not share and (alone := [stage for stage in stages if KINDS[stage].states]):
            self.document.report(("stages",), f"{alone[0]} takes states of a trunk; it needs share: true")
        resources = self._model("resources", Resources)
        exec_config = self._exec(resources)
        grid, settings = self._grid(), self._settings()
        points = self._points(settings)
        runs = self._runs(recipe, grid, points, settings)
        if self.document.problems or runs is None or recipe is None:
            return None
        configs, notices = self._merge([run for run, _ in runs])
        varying = {key for key, values in grid.items() if len(values) > 1} | {k for p in points for k in p}
        varying |= grid.keys()
        sources = tuple(dict.fromkeys(source for _, source in runs))
        return Sweep(
            name=name,
            recipe=recipe,
            runs=configs,
            stages=stages,
            resources=resources,
            exec=exec_config,
            share=share,
            keep=keep,
            axes=tuple(key for key in self.keys.keys if key in varying and key not in STANDARD_AXES),
            sources=sources,
            origins={fingerprints(source.placeholder(None)): source for source in sources},
            document={
                "name": name,
                "recipe": recipe,
                "grid": grid,
                "points": points,
                "set": settings,
                "stages": list(stages),
                "resources": resources.model_dump(mode="json", exclude_defaults=True),
                "exec": exec_config.model_dump(mode="json", exclude_defaults=True),
                "share": share,
                **({"keep": keep} if "keep" in self.value else {}),
            },
            notices=notices,
            file=self.file,
        )

    def _unknown_top(self, key: str) -> None:
        try:
            self.keys.key(key)
            hint = f"; it belongs under set, as set.{key}, or under grid with a list of values"
        except KeyRefusedError as problem:
            if not str(problem).startswith("unknown key"):
                self.document.report((key,), str(problem))
                return
            executed = [f"exec.{name}" for name in ExecConfig.model_fields]
            asked = [f"resources.{name}" for name in Resources.model_fields]
            hint = near_miss(key, [*TOP_KEYS, *self.keys.keys, *executed, *asked])
            hint += f"; allowed here: {', '.join(TOP_KEYS)}"
        self.document.report((key,), "unknown key" + hint)

    def _name(self) -> str:
        default = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(self.file).stem).strip(".-") or "sweep"
        name = self.value.get("name", default)
        if not isinstance(name, str):
            self.document.report(("name",), f"{name!r} is not text; quote it")
        elif not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) or name.endswith(".tmp"):
            allowed = "letters, digits, '.', '_' and '-', starting with a letter or digit, 100 at most"
            self.document.report(("name",), f"{name!r} must name a folder inside the output: {allowed}")
        elif name in RESERVED_NAMES:
            self.document.report(("name",), f"{name!r} is a folder the store itself uses; choose another")
        return str(name)

    def _recipe(self) -> str | None:
        recipe = self.value.get("recipe", "gepa-11l")
        if isinstance(recipe, str) and recipe in PRESETS:
            return recipe
        known = ", ".join(PRESETS)
        self.document.report(
            ("recipe",), f"{recipe!r} is not a recipe{near_miss(str(recipe), PRESETS)}; there are {known}"
        )
        return None

    def _bool(self, key: str, default: bool) -> bool:
        try:
            return bool(Key(key, _FLAG).typed(self.value.get(key, default)))
        except KeyRefusedError as problem:
            self.document.report((key,), str(problem))
            return default

    def _keep(self) -> str:
        keep = self.value.get("keep", KEEPS[0])
        if keep not in KEEPS:
            allowed = ", ".join(KEEPS)
            self.document.report(("keep",), f"{keep!r} is not one of {allowed}{near_miss(str(keep), KEEPS)}")
        return str(keep)

    def _stages(self) -> tuple[str, ...]:
        stages = self.value.get("stages", list(USUAL_STAGES))
        if not isinstance(stages, list):
            self.document.report(("stages",), f"must be a list, of {', '.join(STAGES)}")
            return USUAL_STAGES
        for i, stage in enumerate(stages):
            if stage not in STAGES:
                hint = near_miss(str(stage), STAGES)
                self.document.report(("stages", i), f"{stage!r} is not one of {', '.join(STAGES)}{hint}")
        return tuple(stage for stage in STAGES if stage in stages)

    def _model(self, section: str, model: type[Any]) -> Any:
        """A section of the file that is a pydantic model of its own."""
        given = self._mapping(section)
        keys = fields(model)
        typed: dict[str, Any] = {}
        for name, value in given.items():
            if name not in keys:
                hint = near_miss(name, keys)
                self.document.report((section, name), f"unknown key{hint}; allowed here: {', '.join(keys)}")
                continue
            try:
                typed[name] = keys[name].typed(value)
            except KeyRefusedError as problem:
                self.document.report((section, name), str(problem))
        try:
            return model(**typed)
        except ValidationError as error:  # pragma: no cover - fields were checked one by one
            self.document.report((section,), str(error))
            return model()

    def _exec(self, resources: Resources) -> ExecConfig:
        """ExecConfig with the device and the ranks that the GPUs imply, and consistent with them."""
        config: ExecConfig = self._model("exec", ExecConfig)
        gpus, given = resources.gpus_per_run, self._mapping("exec").get("ranks")
        where = ("resources", "gpus_per_run")
        if gpus > 1 and not float(gpus).is_integer():
            self.document.report(where, f"{gpus:g} is neither a whole number nor below 1")
        elif gpus and given is None:
            config = config.model_copy(update={"ranks": max(1, int(gpus))})
        elif gpus and config.ranks != max(1, int(gpus)):
            self.document.report(
                ("exec", "ranks"),
                f"{config.ranks} does not go with gpus_per_run {gpus:g}: one rank a GPU; leave it out",
            )
        if config.device == "cuda" and not gpus:
            self.document.report(("exec", "device"), "cuda needs resources.gpus_per_run above 0")
        if config.device == "cpu" and gpus:
            self.document.report(where, "must be 0 (or left out) with exec.device cpu")
        if self._mapping("exec").get("device") == "auto":
            self.document.report(
                ("exec", "device"),
                "auto is no choice in a sweep: resources.gpus_per_run decides, 0 for the CPU; leave it out",
            )
        return config.model_copy(update={"device": "cuda" if gpus else "cpu"})

    def _mapping(self, section: str) -> dict[str, Any]:
        given = self.value.get(section)
        if given is None:
            return {}
        if not isinstance(given, dict):
            if not any(problem.key == section for problem in self.document.problems):
                self.document.report((section,), "must be a mapping of keys to values")
            return {}
        return given

    def _named(self, given: Mapping[str, Any], path: KeyPath) -> list[tuple[Key, Any, KeyPath]]:
        """RunConfig keys of a mapping; nested mappings are dotted names."""
        found: list[tuple[Key, Any, KeyPath]] = []
        seen: dict[str, KeyPath] = {}

        def walk(values: Mapping[str, Any], prefix: str, at: KeyPath) -> None:
            for name, value in values.items():
                here = (*at, name)
                if isinstance(value, dict) and self.keys.nests(prefix + name):
                    walk(value, f"{prefix}{name}.", here)
                    continue
                try:
                    key = self.keys.key(prefix + name)
                except KeyRefusedError as problem:
                    self.document.report(here, str(problem))
                    continue
                if key.name in seen:
                    self.document.report(here, f"is the same key as {show(seen[key.name])}")
                    continue
                seen[key.name] = here
                found.append((key, value, here))

        walk(given, "", path)
        for own in ("", "adam_"):
            ratio, steps = f"{own}warmdown_ratio", f"{own}warmdown_steps"
            if seen.keys() >= {ratio, steps}:
                self.document.report(seen[ratio], f"give either {ratio} or {steps}")
        return found

    def _typed(self, key: Key, value: Any, path: KeyPath) -> list[Any]:
        """The value in a list, or an empty list if it is wrong."""
        try:
            return [key.typed(value)]
        except KeyRefusedError as problem:
            self.document.report(path, str(problem))
            return []

    def _grid(self) -> dict[str, list[Any]]:
        grid: dict[str, list[Any]] = {}
        for key, values, path in self._named(self._mapping("grid"), ("grid",)):
            if not isinstance(values, list):
                self.document.report(path, f"an axis is a list of values: write [{values}]")
                continue
            if not values:
                self.document.report(path, "an axis needs at least one value")
            typed = [v for i, value in enumerate(values) for v in self._typed(key, value, (*path, i))]
            if typed:
                grid[key.name] = typed
        return grid

    def _points(self, settings: Cell) -> list[Cell]:
        points = self.value.get("points") or []
        if not isinstance(points, list):
            self.document.report(("points",), "must be a list of mappings, one a run")
            return []
        read: list[Cell] = []
        for i, point in enumerate(points):
            if not isinstance(point, dict) or not point:
                self.document.report(
                    ("points", i), "a point is a mapping like {steps: 100, warmdown_steps: 40}"
                )
                continue
            named = self._named(point, ("points", i))
            read.append({key.name: v for key, value, path in named for v in self._typed(key, value, path)})
            if {**settings, **read[-1]}.get("schedule") == "constant":
                for key, value, path in named:
                    if key.name in _WARMDOWN and value:
                        self.document.report(path, "schedule constant has no warmdown; leave it out")
        return read

    def _settings(self) -> Cell:
        named = self._named(self._mapping("set"), ("set",))
        axes = {self.keys.full_name(name) for name in self._mapping("grid")}
        for key, _, path in named:
            if key.name in axes:
                self.document.report(path, "is also an axis of the grid; give it in one place")
            elif key.name in _WARMDOWN and not _WARMDOWN.isdisjoint(axes):
                self.document.report(path, "has no effect beside the grid's own warmdown; leave it out")
        return {key.name: v for key, value, path in named for v in self._typed(key, value, path)}

    def _runs(
        self, recipe: str | None, grid: dict[str, list[Any]], points: list[Cell], settings: Cell
    ) -> list[tuple[RunConfig, DataSource]] | None:
        """Every cell's run."""
        if recipe is None:
            return None
        return self._of_cells(Expander(PRESETS[recipe], settings).run, grid, points)

    def _of_cells(
        self, run_of: Callable[[Cell], T | BadCell], grid: dict[str, list[Any]], points: list[Cell]
    ) -> list[T] | None:
        """What each cell makes. Combinations that no run can have are reported together, by reason."""
        if not self._mapping("grid") and not self.value.get("points"):
            self.document.report(("grid",), "nothing to run: give axes under grid, or runs under points")
            return None
        size = math.prod(len(values) for values in grid.values())
        if size > MAX_CELLS:
            self.document.report(
                ("grid",), f"{size:,} combinations; at most {MAX_CELLS:,} are planned in one sweep"
            )
            return None
        made = [run_of(cell) for cell in cells(grid, points)]
        bad: dict[str, list[Cell]] = {}
        for run in made:
            if isinstance(run, BadCell):
                bad.setdefault(run.message, []).append(run.cell)
        incomplete = bool(self.document.problems)
        for message, wrong in list(bad.items())[:20]:
            if incomplete and message.startswith("no "):
                continue  # what is missing may be what could not be read
            self._report_cells(message, wrong)
        if len(bad) > 20:
            self.document.report(("grid",), f"and {len(bad) - 20} more combinations that no run can have")
        return [run for run in made if not isinstance(run, BadCell)]

    def _report_cells(self, message: str, wrong: list[Cell]) -> None:
        """At the key the message is about, as far as the file has it."""
        words = re.findall(r"[a-z_0-9.]+", message)
        paths = [path for path in self.document.places if path and path[0] in ("set", "grid", "points")]
        by_name = {
            self.keys.full_name(str(path[-1])): path for path in reversed(paths) if isinstance(path[-1], str)
        }
        candidates = [by_name[self.keys.full_name(w)] for w in words if self.keys.full_name(w) in by_name]
        if "warmdown_steps" in words and "warmdown_ratio" in by_name:
            candidates.append(by_name["warmdown_ratio"])
        points = self.value.get("points")
        point_cells = [
            i for i, p in enumerate(points if isinstance(points, list) else ()) if isinstance(p, dict)
        ]
        path: KeyPath = candidates[0] if candidates else ("grid",)
        if not candidates and not self._mapping("grid") and point_cells:
            path = ("points", point_cells[0])
        example = ", ".join(f"{key} {value}" for key, value in wrong[0].items())
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        self.document.report(path, f"{message}" + (f" (run with {example}{more})" if example else ""))

    def _merge(self, runs: list[R]) -> tuple[tuple[R, ...], tuple[str, ...]]:
        configs, repeated = merge(runs)
        if not repeated:
            return configs, ()
        extra = sum(count - 1 for count in repeated.values())
        first = next(iter(repeated))
        example = f"steps {first.steps}, warmdown_steps {first.warmdown_steps}, seed {first.seed}"
        return configs, (f"{extra} duplicate run{'s' * (extra > 1)} merged (e.g. {example})",)


_WARMDOWN = frozenset({"warmdown_steps", "warmdown_ratio"})
_FLAG = fields(ExecConfig)["deterministic"].info
