"""A sweep, typed: what a YAML file and its command-line overrides say, resolved. `load_sweep` reads one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from gepa_core.config import DataPaths, ExecConfig, RunConfig
from gepa_core.errors import ConfigError
from gepa_core.sections import DataConfig
from gepa_core.yamlfile import Problem
from sweeps.kinds.lease import devices
from sweeps.kinds.script import Script, ScriptRun
from sweeps.spec.grid import merge
from sweeps.spec.source import SOURCE_KEYS, DataSource
from sweeps.spec.workdir import ScriptFiles

if TYPE_CHECKING:
    from gepa_core.data.folder import Dataset

TOP_KEYS = (
    "name",
    "recipe",
    "script",
    "grid",
    "points",
    "set",
    "stages",
    "resources",
    "exec",
    "share",
    "keep",
)
KEEPS = ("artifacts", "final", "all")
"""States that stay: those on trunks; the runs' final ones too; every checkpoint."""
RESERVED_NAMES = ("segments", "stages", "cache", "scripts")
STANDARD_AXES = ("steps", "warmdown_steps", "warmdown_ratio", "schedule", "seed")
"""Axes that have a column in runs.parquet anyway."""
Run = RunConfig | ScriptRun
Fingerprints = tuple[str, str, str]
"""Of training shards, validation shards and tokenizer."""


def fingerprints(data: DataConfig) -> Fingerprints:
    return data.train, data.val, data.tokenizer


class SpecError(ConfigError):
    """A sweep file or its overrides are wrong; `problems` are all that was found."""

    def __init__(self, path: str, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(dict.fromkeys(problems), key=lambda problem: problem.line))
        count = f"{len(self.problems)} problem" + "s" * (len(self.problems) != 1)
        super().__init__("\n".join([f"{path}: {count}", *(f"  {problem}" for problem in self.problems)]))


def _not_rays_own(name: str) -> str:
    if name in ("CPU", "GPU", "memory", "object_store_memory"):
        raise ValueError("one of Ray's own")
    return name


_Amount = Annotated[float, Field(gt=0, le=1e9)]


class Resources(BaseModel):
    """What a run asks of the cluster, and what is known of its price."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    gpus_per_run: float = Field(0.0, ge=0, le=4096)
    """0 = CPU; below 1 = several runs share a GPU; from 1 on one rank a GPU."""
    cpus_per_run: float | None = Field(None, gt=0, le=1e6)
    """None = a CPU a rank and thread."""
    memory_gb_per_run: float | None = Field(None, gt=0, le=1e6)
    """Main memory that Ray sets aside for a run."""
    price_per_gpu_hour: float | None = Field(None, ge=0, le=1e9)
    """In any currency: the plan and the report then tell costs."""
    cluster_gpus: int | None = Field(None, ge=1, le=1_000_000)
    """GPUs to reckon with in `--plan` where no cluster is at hand."""
    node_labels: dict[str, str] = Field(default_factory=dict)
    """Ray node labels a node must carry, e.g. {accelerator-type: A100}."""
    custom: dict[Annotated[str, AfterValidator(_not_rays_own)], _Amount] = Field(
        default_factory=dict,
        description="a mapping of names (CPU, GPU and memory have keys of their own) to numbers > 0",
    )
    """Custom Ray resources of a run."""


@dataclass(frozen=True)
class Sweep:
    """A sweep file, resolved. `runs` are distinct, in grid order; their data fingerprints start with
    "unresolved:" until `with_data`."""

    name: str
    recipe: str
    """Name of a preset; "" for a script."""
    runs: tuple[Run, ...]
    stages: tuple[str, ...]
    resources: Resources
    exec: ExecConfig
    share: bool
    keep: str = "artifacts"
    """One of KEEPS."""
    axes: tuple[str, ...] = ()
    """Dotted keys that vary besides the standard ones: a column each in runs.parquet."""
    sources: tuple[DataSource, ...] = ()
    origins: Mapping[Fingerprints, DataSource] = field(default_factory=dict)
    """What the file says of a run's data."""
    script: Script | None = None
    files: ScriptFiles | None = None
    """The script's files; None for a recipe."""
    data: Mapping[DataSource, "Dataset"] = field(default_factory=dict)
    """The data that was opened, by what the file says of it."""
    unchecked: tuple[str, ...] = ()
    """What could not be looked at, for a plan to say."""
    document: Mapping[str, Any] | None = None
    """The file's typed values with the overrides in, for sweep.json."""
    notices: tuple[str, ...] = ()
    file: str = ""
    overrides: tuple[str, ...] = ()

    @property
    def recipe_runs(self) -> tuple[RunConfig, ...]:
        """The runs of a recipe, all or none: those of a script are a ScriptRun each."""
        return tuple(run for run in self.runs if isinstance(run, RunConfig))

    @property
    def resolved(self) -> bool:
        """Whether all its data was opened, so that run ids are final."""
        return all(source in self.data for source in self.sources)

    def dataset_of(self, config: RunConfig) -> "Dataset":
        """The opened data of a run."""
        return self.data[self.origins[fingerprints(config.data)]]

    def paths_of(self, config: RunConfig) -> DataPaths:
        """Where a run's data lies."""
        return self.dataset_of(config).paths

    @property
    def val_tokens(self) -> int | None:
        """Target tokens of the longest validation text; None where no data was opened."""
        return max((dataset.val_tokens for dataset in self.data.values()), default=None)

    def axis_values(self, config: Run) -> dict[str, Any]:
        """A run's values on the further axes; data by what the file calls it."""
        values: dict[str, Any] = {}
        for axis in self.axes:
            if isinstance(config, ScriptRun):
                values[axis] = config.value(axis)
                continue
            named = axis in SOURCE_KEYS
            value: Any = self.origins[fingerprints(config.data)] if named else config
            for part in axis.removeprefix("data." if named else "").split("."):
                value = getattr(value, part)
            values[axis] = value
        return values

    @property
    def ranks(self) -> int:
        """Processes that train a run together: one a GPU, or one a CPU worker."""
        return self.exec.ranks

    @property
    def workers(self) -> int:
        """Worker processes of a lease. A script starts its ranks itself, by one worker a node."""
        return self.script.nodes if self.script else self.ranks

    @property
    def spread(self) -> bool:
        """Whether each worker of a lease must be on a node of its own."""
        return self.script is not None and self.script.nodes > 1

    @property
    def devices(self) -> float:
        """Devices that a run occupies."""
        return devices(self.resources.gpus_per_run, self.ranks)

    def bundles(self) -> list[dict[str, float]]:
        """What each worker asks for: one Ray bundle a rank, or a node for a script and its processes."""
        ranks, resources = self.workers, self.resources
        cpus = resources.cpus_per_run or self.ranks * (self.exec.threads or 1)
        bundle = {"CPU": cpus / ranks}
        if resources.gpus_per_run:
            bundle["GPU"] = resources.gpus_per_run / ranks
        if resources.memory_gb_per_run:
            bundle["memory"] = resources.memory_gb_per_run * 1e9 / ranks
        bundle |= {name: amount / ranks for name, amount in resources.custom.items()}
        return [dict(bundle) for _ in range(ranks)]

    def with_data(self, opened: Mapping[DataSource, "Dataset"], unchecked: Sequence[str] = ()) -> "Sweep":
        """The sweep with the data's fingerprints in its runs; sources left out stay unresolved."""
        if self.script is not None:
            return self
        found = {fingerprints(source.placeholder(None)): data.config for source, data in opened.items()}
        changed = {
            data: found[fingerprints(data)].model_copy(update={"val_tokens": data.val_tokens})
            for data in {run.data for run in self.recipe_runs}
            if fingerprints(data) in found
        }
        runs, _ = merge(
            run.model_copy(update={"data": changed[run.data]}) if run.data in changed else run
            for run in self.recipe_runs
        )
        origins = {fingerprints(data.config): source for source, data in opened.items()}
        return replace(
            self,
            runs=runs,
            origins={**self.origins, **origins},
            data=dict(opened),
            unchecked=tuple(unchecked),
        )
