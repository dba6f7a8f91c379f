"""A sweep file with `script` in place of `recipe`: any training script as the job."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from gepa_core.config import ExecConfig
from gepa_core.errors import ConfigError
from gepa_core.yamlfile import KeyPath
from sweeps.kinds.script import (
    MACHINE_PLACEHOLDERS,
    RUN_PLACEHOLDERS,
    STATE_PLACEHOLDERS,
    Figures,
    Scalar,
    Script,
    ScriptRun,
    State,
    placeholders,
    templates,
)
from sweeps.kinds.stages import MEASURED
from sweeps.spec.grid import BadCell, Cell, warmdown_of
from sweeps.spec.keys import Key, KeyRefusedError, Vocabulary, near_miss, run_vocabulary
from sweeps.spec.read import Reader
from sweeps.spec.script_words import notices_of, own_placeholders, used_placeholders, words_of
from sweeps.spec.sweep import STANDARD_AXES, Resources, Sweep
from sweeps.spec.workdir import ScriptFiles, data_fingerprint, read_files

SCRIPT_KEYS = ("name", "script", "grid", "points", "set", "resources", "exec", "share")
_EXEC_KEYS = ("ranks", "threads")
_SCALAR = FieldInfo(annotation=Scalar, description="text, a number, true, false or null")  # type: ignore[arg-type]
_LENGTH_KEYS = ("steps", "warmdown_steps", "warmdown_ratio", "schedule", "seed", "final_lr_fraction")


def script_vocabulary(document: Mapping[str, Any]) -> Vocabulary:
    """What `grid`, `points` and `set` may name: length, seed, the script's own placeholders, and env.X."""
    keys = {name: run_vocabulary().keys[name] for name in _LENGTH_KEYS}
    section = document.get("script")
    if isinstance(section, dict):
        for name in own_placeholders(*_templates_of(section)):
            keys[name] = Key(name, _SCALAR)
    return Vocabulary(keys, Key("env.", _SCALAR))


def _templates_of(section: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    command, env = section.get("command", ""), section.get("env")
    words = [part for part in command if isinstance(part, str)] if isinstance(command, list) else command
    return words if isinstance(words, (str, list)) else "", env if isinstance(env, dict) else {}


@dataclass(frozen=True)
class _Expander:
    """Makes runs of cells."""

    script: Script
    settings: Cell
    files: str
    data: str | None
    ranks: int
    used: frozenset[str]
    """Placeholders that the templates have."""

    def run(self, cell: Cell) -> ScriptRun | BadCell:
        values = {**self.settings, **cell}
        given = {k.removeprefix("env."): v for k, v in values.items() if k.startswith("env.")}
        env = {**self.script.env, **given}
        own = own_placeholders(self.script.command, env)
        try:
            if "steps" not in values:
                raise ValueError("no run length: give steps")
            if "seed" in self.used and values.get("seed") is None:
                raise ValueError("no value for {seed}: give seed under grid, points or set")
            if missing := [name for name in own if name not in values]:
                raise ValueError(
                    f"no value for {{{missing[0]}}}: give {missing[0]} under grid, points or set"
                )
            length: dict[str, Any] = {k: values[k] for k in ("steps", "schedule", "seed") if k in values}
            length["warmdown_steps"] = warmdown_of(cell, values, length)["warmdown_steps"]
            return ScriptRun(
                **length,
                final_lr_fraction=values.get("final_lr_fraction", 0.0),
                parameters={name: values[name] for name in own},
                env=env,
                command=self.script.command,
                files=self.files,
                data_fingerprint=self.data,
                ranks=self.ranks if {"ranks", "ranks_per_node"} & self.used else None,
            )
        except ValidationError as error:
            return BadCell(
                cell, "; ".join(str(e["msg"]).removeprefix("Value error, ") for e in error.errors())
            )
        except ValueError as error:
            return BadCell(cell, str(error))


class ScriptReader(Reader):
    """Turns a document with a `script` into a Sweep; what is wrong goes to the document's problems."""

    def sweep(self) -> Sweep | None:
        self.keys = script_vocabulary(self.value)
        for key in self.value:
            if key in ("recipe", "stages"):
                self.document.report((key,), "does not go with script: leave it out")
            elif key not in SCRIPT_KEYS:
                hint = near_miss(key, [*SCRIPT_KEYS, *self.keys.keys])
                self.document.report((key,), f"unknown key{hint}; allowed here: {', '.join(SCRIPT_KEYS)}")
        name, share = self._name(), self._bool("share", True)
        script = self._script()
        resources = self._model("resources", Resources)
        exec_config = self._script_exec(resources)
        grid, settings = self._grid(), self._settings()
        points = self._points(settings)
        files = self._files(script)
        data = self._data_of(script, files)
        self._check_use(script, grid, points, settings)
        self._check_nodes(script, exec_config.ranks, used_placeholders(script, grid, points))
        if self.document.problems or files is None:
            return None
        expander = _Expander(
            script,
            settings,
            files.digest,
            data,
            exec_config.ranks,
            frozenset(used_placeholders(script, grid, points)),
        )
        runs = self._expanded(expander, grid, points)
        if self.document.problems or runs is None:
            return None
        configs, notices = self._merge(runs)
        varying = dict.fromkeys([*grid, *(key for point in points for key in point)])
        return Sweep(
            name=name,
            recipe="",
            runs=configs,
            stages=(),
            resources=resources,
            exec=exec_config,
            share=share and script.state is not None,
            axes=tuple(key for key in varying if key not in STANDARD_AXES),
            script=script,
            files=files,
            document={
                "name": name,
                "script": script.model_dump(mode="json", exclude_defaults=True),
                "grid": grid,
                "points": points,
                "set": settings,
                "resources": resources.model_dump(mode="json", exclude_defaults=True),
                "exec": exec_config.model_dump(mode="json", exclude_defaults=True),
                "share": share,
            },
            notices=(*notices, *notices_of(script, files, varying, settings)),
            file=self.file,
        )

    def _script(self) -> Script:
        given = self._mapping("script")
        script = self._typed_model(given, ("script",), Script)
        if not script.command and ("script", "command") not in self._reported():
            self.document.report(
                ("script", "command"), "missing: how is the script run? e.g. python train_gpt.py"
            )
        if isinstance(script.command, str) and "\x00" in script.command:
            self.document.report(("script", "command"), "has a character that no command line can have")
        self._check_names(script)
        self._check_templates(script)
        return script

    def _typed_model(self, given: Mapping[str, Any], path: KeyPath, model: type[Any]) -> Any:
        """A model of the section, with its own sections read the same way."""
        typed: dict[str, Any] = {}
        nested: dict[str, type[BaseModel]] = {"state": State, "figures": Figures} if model is Script else {}
        keys = {name: Key(name, info) for name, info in model.model_fields.items()}
        for name, value in given.items():
            here = (*path, name)
            if name not in keys:
                hint = near_miss(name, keys)
                self.document.report(here, f"unknown key{hint}; allowed here: {', '.join(keys)}")
            elif name in nested and isinstance(value, dict):
                typed[name] = self._typed_model(value, here, nested[name])
            elif name in nested and value is not None:
                allowed = ", ".join(nested[name].model_fields)
                self.document.report(here, f"must be a mapping with the keys {allowed}")
            elif name not in nested:
                if value is None:
                    value = keys[name].info.get_default(call_default_factory=True)
                    value = list(value) if isinstance(value, tuple) else value
                try:
                    typed[name] = keys[name].typed(
                        [value] if keys[name].takes_list and isinstance(value, str) else value
                    )
                except KeyRefusedError as problem:
                    self.document.report(here, str(problem))
        try:
            return model(**typed)
        except ValidationError as error:  # pragma: no cover - fields were checked one by one
            self.document.report(path, str(error))
            return model()

    def _reported(self) -> set[KeyPath]:
        keys = {problem.key for problem in self.document.problems}
        return {("script", name) for name in Script.model_fields if f"script.{name}" in keys}

    def _check_names(self, script: Script) -> None:
        """Names of variables, of files inside the folder, and of columns."""
        variables: list[tuple[KeyPath, str]] = [(("script", "env", name), name) for name in script.env]
        variables += [(("script", "pass_env", i), name) for i, name in enumerate(script.pass_env)]
        for section in ("grid", "set"):
            names = [name for name in self._mapping(section) if name.startswith("env.")]
            variables += [((section, name), name.removeprefix("env.")) for name in names]
        for part in ("save", "load") if script.state else ():
            names = getattr(script.state, part)
            variables += [(("script", "state", part, name), name) for name in names]
        for path, name in variables:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                self.document.report(path, f"{name!r} cannot name a variable of the environment")
        inside: list[tuple[KeyPath, str]] = [
            (("script", "outputs", i), name) for i, name in enumerate(script.outputs)
        ]
        inside += [(("script", "links", name), name) for name in script.links]
        inside += [(("script", "figures", "file"), script.figures.file)] if script.figures.file else []
        inside += [(("script", "log"), script.log)] if script.log else []
        inside += [(("script", "state", "file"), script.state.file)] if script.state else []
        for path, name in inside:
            parts = PurePosixPath(name).parts
            if not name or PurePosixPath(name).is_absolute() or ".." in parts:
                self.document.report(path, f"{name!r} must lie inside the script's folder")
            elif path[1] == "outputs" and any(part.startswith(".") for part in parts):
                self.document.report(path, f"{name!r}: hidden files are not kept")
        if script.artifact is not None and script.artifact not in script.outputs:
            hint = near_miss(script.artifact, script.outputs)
            self.document.report(("script", "artifact"), f"{script.artifact!r} is not one of outputs{hint}")
        columns = [kind.name + "_bpb" for kind in MEASURED]
        for column in script.figures.lines:
            if column not in columns:
                hint = near_miss(column, columns)
                self.document.report(
                    ("script", "figures", "lines", column),
                    f"not a column of a BPB{hint}; there are {', '.join(columns)}",
                )
        if script.state and not (script.state.save and script.state.load):
            self.document.report(
                ("script", "state"), "needs both save and load: the variables that make the script do so"
            )

    def _check_templates(self, script: Script) -> None:
        own = own_placeholders(script.command, script.env)
        known = [*RUN_PLACEHOLDERS, *MACHINE_PLACEHOLDERS]
        for name in own:
            given = {*self._mapping("grid"), *self._mapping("set")}
            points = self.value.get("points")
            given |= {
                key for p in (points if isinstance(points, list) else ()) if isinstance(p, dict) for key in p
            }
            if name not in given:
                hint = near_miss(name, known)
                self.document.report(
                    self._place_of(name, script),
                    f"{{{name}}} has no value: give {name} under grid, points or set{hint} (a literal brace "
                    f"is written {{{{{name}}}}}; known without: {', '.join(known)})",
                )
        for path, template in self._state_templates(script):
            for name in placeholders(template):
                if name not in (*known, *STATE_PLACEHOLDERS, *own):
                    hint = near_miss(name, [*STATE_PLACEHOLDERS, *known])
                    self.document.report(path, f"{{{name}}} is not known here{hint}")
        for template in templates(script.command, script.env):
            for name in placeholders(template):
                if name in STATE_PLACEHOLDERS:
                    self.document.report(
                        self._place_of(name, script), f"{{{name}}} belongs under script.state"
                    )

    def _state_templates(self, script: Script) -> Iterator[tuple[KeyPath, str]]:
        for part in ("save", "load") if script.state else ():
            for name, value in getattr(script.state, part).items():
                yield ("script", "state", part, name), value

    def _place_of(self, placeholder: str, script: Script) -> KeyPath:
        for name, value in script.env.items():
            if isinstance(value, str) and placeholder in placeholders(value):
                return ("script", "env", name)
        return ("script", "command")

    def _script_exec(self, resources: Resources) -> ExecConfig:
        for name in self._mapping("exec"):
            if name in ExecConfig.model_fields and name not in _EXEC_KEYS:
                allowed = " and ".join(_EXEC_KEYS)
                self.document.report(("exec", name), f"has no effect on a script, which has {allowed} only")
        return self._exec(resources)

    def _check_nodes(self, script: Script, ranks: int, used: set[str]) -> None:
        if script.nodes == 1:
            return
        path: KeyPath = ("script", "nodes")
        if ranks % script.nodes:
            self.document.report(path, f"{ranks} ranks do not divide among {script.nodes} nodes")
        if "node_rank" not in used:
            self.document.report(
                path,
                "every node would be started the same way: give the command {node_rank}, e.g. "
                "torchrun --nnodes={nodes} --node-rank={node_rank} --nproc-per-node={ranks_per_node} "
                "--master-addr={master_addr} --master-port={port} train_gpt.py",
            )
        if script.state is not None:
            self.document.report(
                ("script", "state"), "a run on several nodes is made whole: leave out state, or nodes"
            )

    def _files(self, script: Script) -> ScriptFiles | None:
        path: KeyPath = ("script", "workdir")
        tried = [Path(self.file).parent / script.workdir, Path(script.workdir)]
        root = next((folder for folder in tried if folder.is_dir()), None)
        if root is None:
            what = "is a file, not a folder" if any(p.exists() for p in tried) else "no such folder"
            places = " or ".join(dict.fromkeys(str(p.absolute().parent) for p in tried))
            siblings = [p.name for t in tried if t.parent.is_dir() for p in t.parent.iterdir() if p.is_dir()]
            hint = near_miss(Path(script.workdir).name, siblings)
            self.document.report(path, f"{script.workdir!r}: {what} (in {places}){hint}")
            return None
        for name, target in script.links.items():
            if not (root / Path(target).expanduser()).exists():
                self.document.report(
                    ("script", "links", name), f"{target!r}: no such file or folder (seen from {root})"
                )
        try:
            files = read_files(root.absolute(), script.ignore, script.links, script.max_workdir_mb)
        except ConfigError as error:
            self.document.report(path, str(error))
            return None
        self._check_command(script, files)
        return files

    def _check_command(self, script: Script, files: ScriptFiles) -> None:
        """A file that the command names and that is not there, where another has nearly its name."""
        names = [PurePosixPath(file.name).name for file in files.files]
        for word in words_of(script.command):
            if re.fullmatch(r"[\w./-]+\.(py|sh)", word) and not word.startswith("/"):
                name = PurePosixPath(word).name
                top = PurePosixPath(word).parts[0]
                if name not in names and top not in script.links and (hint := near_miss(name, names)):
                    self.document.report(("script", "command"), f"no {word} in {script.workdir}{hint}")

    def _data_of(self, script: Script, files: ScriptFiles | None) -> str | None:
        if files is None or not script.data:
            return None
        root, rest = files.root, []
        for pattern in script.data:  # what is linked lies elsewhere
            top, _, below = pattern.partition("/")
            target = script.links.get(top)
            rest.append(str(root / Path(target).expanduser() / below) if target else pattern)
        try:
            return data_fingerprint(root, rest)
        except ConfigError as error:
            self.document.report(("script", "data"), str(error))
            return None

    def _check_use(
        self, script: Script, grid: Mapping[str, list[Any]], points: list[Cell], settings: Cell
    ) -> None:
        """An axis that no template has would make equal runs that pass for different ones."""
        if any(problem.key.startswith("script") for problem in self.document.problems):
            return
        used = used_placeholders(script, grid, points)
        values: dict[str, set[Any]] = {}
        for name, axis in grid.items():
            values.setdefault(name, set()).update(axis)
        for point in points:
            for name, value in point.items():
                values.setdefault(name, set()).add(value)
        warmdown = {"warmdown_steps", "warmdown_ratio", "peak_steps"}
        for name, different in values.items():
            needed = warmdown if name in warmdown else {name, "peak_steps"} if name == "steps" else {name}
            if name in _LENGTH_KEYS and not needed & used and len(different) > 1:
                path: KeyPath = ("grid", name) if name in grid else ("points",)
                example = name if name not in warmdown else "warmdown_steps"
                variable = {"steps": "ITERATIONS", "warmdown_steps": "WARMDOWN_ITERS"}.get(
                    example, example.upper()
                )
                self.document.report(
                    path,
                    f"changes nothing: neither script.command nor script.env has {{{example}}}; "
                    f'write, e.g., env: {{{variable}: "{{{example}}}"}}',
                )

    def _expanded(
        self, expander: _Expander, grid: dict[str, list[Any]], points: list[Cell]
    ) -> list[ScriptRun] | None:
        return self._of_cells(expander.run, grid, points)
