"""What a run of a training script is: everything that changes its numbers on purpose. Pure.

Templates (command, environment) keep their placeholders: those of the run are filled from its fields, those
of the machine (`{port}`, `{out}`, ...) when it is started.
"""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from gepa_core.config import Average, Length, digest
from sweeps.kinds.stages import MEASURED

SCRIPT_VERSION = 1
"""Raised when what a script is given changes, so that results made before are not taken for the same."""
Scalar = bool | int | float | str | None
RUN_PLACEHOLDERS = (
    "steps",
    "warmdown_steps",
    "warmdown_ratio",
    "peak_steps",
    "seed",
    "schedule",
    "final_lr_fraction",
)
MACHINE_PLACEHOLDERS = (
    "ranks",
    "gpus",
    "port",
    "out",
    "run_id",
    "nodes",
    "node_rank",
    "ranks_per_node",
    "master_addr",
)
STATE_PLACEHOLDERS = ("state", "stop")
"""Only within `state`: the saved state's path, and the step after which it is saved."""
LENGTHS = ("steps", "warmdown_steps", "warmdown_ratio", "peak_steps", "schedule", "final_lr_fraction")
"""What runs that share a trunk may differ in."""
FIGURES = (
    *(f"{kind.name}_bpb" for kind in MEASURED),
    *("val_loss", "artifact_bytes", "code_bytes", "params", "train_tokens"),
    *("eval_seconds", "ttt_seconds", "quantized_fraction"),
)
"""Columns of its row that a finished script fills."""
_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}|(?<![$\{])\{([A-Za-z_]\w*)\}(?!\})")


def placeholders(template: str) -> list[str]:
    """Names in single braces. `${NAME}` is the shell's, `{{name}}` means `{name}`, JSON is left alone."""
    return [match[2] for match in _PLACEHOLDER.finditer(template) if match[2]]


def fill(template: str, values: Mapping[str, Scalar], *, quote: bool = False) -> str:
    """The template with its placeholders replaced; `quote`: for a shell. KeyError on one without a value."""

    def value(match: re.Match[str]) -> str:
        if match[1]:
            return "{" + match[1] + "}"
        found = text(values[match[2]])
        return shlex.quote(found) if quote else found

    return _PLACEHOLDER.sub(value, template)


def text(value: Scalar) -> str:
    """A value as a script reads it from its environment or command: true and false are 1 and 0."""
    if isinstance(value, bool):
        return str(int(value))
    return "" if value is None else str(value)


class State(BaseModel):
    """How a script saves and loads its training state, by variables of its environment."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    file: str = "state.pt"
    """Name of the file or folder that `{state}` ends in, or that the script writes to its working folder."""
    save: dict[str, str] = Field(default_factory=dict)
    """Variables that make it save its state after step {stop} to {state}, and end."""
    load: dict[str, str] = Field(default_factory=dict)
    """Variables that make it start from the state at {state}."""
    check_steps: int = Field(20, ge=2)
    """Length of the two short runs that show whether a shared trunk gives the same figures."""
    every: int | None = Field(None, ge=1, le=10**9)
    """Steps after which a run saves its state and goes on from it; one cut off begins there."""


class Figures(BaseModel):
    """Where figures come from besides the log as the importer reads it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    file: str | None = None
    """A JSON object that the script writes: names of columns (float_bpb, int6_bpb, ...) and numbers."""
    lines: dict[str, str] = Field(default_factory=dict)
    """Column -> how the log's line begins whose val_bpb it takes."""


class Script(BaseModel):
    """The `script` part of a sweep file. What changes a run's numbers goes into its ScriptRun."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    command: str | tuple[str, ...] = Field(
        "", description="a command line for the shell, or a list of its words"
    )
    """What starts the script, in its copy of the workdir; {placeholders} stand for a run's own values."""
    workdir: str = "."
    """The script's folder, relative to the sweep file; copied for every attempt."""
    ignore: tuple[str, ...] = ()
    """Patterns of names in it that the script does not need, besides those of its .gitignore."""
    links: dict[str, str] = Field(default_factory=dict)
    """Name in the copy -> an existing file or folder, too large to copy, on every machine that runs it."""
    max_workdir_mb: float = Field(100.0, gt=0)
    """A larger workdir is refused: data and checkpoints belong under `links` or `ignore`."""
    env: dict[str, Scalar] = Field(
        default_factory=dict,
        description="a mapping of names of variables to text, numbers, true, false or null",
    )
    """Environment variables of the script; {placeholders} stand for a run's own values."""
    pass_env: tuple[str, ...] = ()
    """Variables of this command's own environment that are passed on (keys, say), neither hashed nor kept."""
    data: tuple[str, ...] = ()
    """Patterns of data files, relative to the workdir, whose fingerprint enters the runs' identity."""
    outputs: tuple[str, ...] = ()
    """Names or patterns of files that a run must leave, kept in the store."""
    artifact: str | None = None
    """The one of them that is the compressed model: its size is artifact_bytes."""
    figures: Figures = Figures()
    log: str | None = None
    """Pattern of a file with the log, where the script does not print it."""
    state: State | None = None
    silence_minutes: float = Field(30.0, gt=0)
    """A run that prints nothing for so long hangs, and is ended."""
    nodes: int = Field(1, ge=1, le=1024)
    """Machines that a run spans: the command is started on each, with its {node_rank}."""
    grace_seconds: float = Field(15.0, ge=0)
    """Between SIGTERM and SIGKILL."""


class ScriptRun(Length):
    """A run of a training script. `env` and `command` are templates."""

    script_version: int = SCRIPT_VERSION
    schedule: str = "linear"
    """Shape of its warmdown, as far as it is known: for the analysis, and for {schedule}."""
    final_lr_fraction: float = Field(0.0, ge=0, le=1)
    seed: int | None = Field(None, ge=0)
    parameters: dict[str, Scalar] = Field(default_factory=dict)
    """Values of the sweep file's own placeholders."""
    env: dict[str, Scalar] = Field(default_factory=dict)
    command: str | tuple[str, ...] = ""
    files: str = ""
    """Digest of the script's files."""
    data_fingerprint: str | None = None
    """Fingerprint of the data that the sweep file names."""
    ranks: int | None = None
    """Only where a template has {ranks} or {ranks_per_node}."""
    ema_decay: ClassVar[float] = 0.0
    """As far as the plan knows there is one average."""

    def __hash__(self) -> int:
        return hash(self.digest())

    def digest(self) -> str:
        return digest(self.model_dump(mode="json"))

    @property
    def run_id(self) -> str:
        """Readable slug and the first 10 hex digits of the configuration's SHA-256."""
        seed = "" if self.seed is None else f"-s{self.seed}"
        return f"{self.steps}-{self.warmdown_steps}-{self.schedule}{seed}-{self.digest()[:10]}"

    def identity(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    def trunk(self, decays: Sequence[float] = ()) -> dict[str, Any]:
        """What a shared state may depend on, besides its step."""
        return {key: value for key, value in self.identity().items() if key not in LENGTHS}

    def unaveraged(self) -> dict[str, Any]:
        """The same: averages are the script's own affair."""
        return self.trunk()

    def tail(self) -> dict[str, Any]:
        """What its own part depends on besides."""
        keys = ("schedule", "steps", "warmdown_steps", "final_lr_fraction")
        return {key: getattr(self, key) for key in keys}

    @property
    def average(self) -> Average:
        return Average(self.ema_decay)

    def value(self, axis: str) -> Scalar:
        """Its value on an axis of the grid."""
        if axis.startswith("env."):
            return self.env.get(axis.removeprefix("env."))
        return self.parameters[axis] if axis in self.parameters else getattr(self, axis)

    def values(self) -> dict[str, Scalar]:
        """Values of the run's placeholders, without those of the machine."""
        return {name: getattr(self, name) for name in RUN_PLACEHOLDERS} | self.parameters

    def argv(self, machine: Mapping[str, Scalar]) -> list[str]:
        """The command, for exec: one line goes to a shell, a list is taken as it is."""
        values = {**self.values(), **machine}
        if isinstance(self.command, str):
            return ["bash", "-o", "pipefail", "-c", fill(self.command, values, quote=True)]
        return [fill(part, values) for part in self.command]

    def environment(self, machine: Mapping[str, Scalar], extra: Mapping[str, str]) -> dict[str, str]:
        """The variables that the sweep file sets; those without a value are left out."""
        values = {**self.values(), **machine}
        given = {**self.env, **extra}
        return {
            name: fill(value, values) if isinstance(value, str) else text(value)
            for name, value in given.items()
            if value is not None
        }


def templates(command: str | Iterable[str], env: Mapping[str, Scalar]) -> list[str]:
    """Everything that may have placeholders."""
    parts = [command] if isinstance(command, str) else list(command)
    return [*parts, *(value for value in env.values() if isinstance(value, str))]


def is_script(row: Mapping[str, Any]) -> bool:
    """Whether a row of runs.parquet is of a script's run."""
    return '"script_version"' in str(row.get("config_json") or "")
