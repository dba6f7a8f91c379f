"""What a worker is told to do, and what it does it with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gepa_core.config import Average, DataPaths, ExecConfig, RunConfig
from sweeps.kinds.script import Script, ScriptRun
from sweeps.store.store import Outcome, Store
from sweeps.work.policy import Observed
from sweeps.work.workdir import Workdir

_BITS_DEPEND_ON = ("device", "ranks", "threads", "micro_batch_seqs", "torch_version")


@dataclass(frozen=True)
class ScriptHow:
    """How a script is executed: what of its sweep file changes no numbers, and what its lease has."""

    script: Script
    archive: str
    """Its files, in the store."""
    links: dict[str, str]
    """Name in the copy -> an absolute path on the worker's machine."""
    gpus: float
    ranks: int
    every: int | None = None
    """Steps from one saved state to the next; None where none is saved on the way."""
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    """Variables passed on from whoever launched the sweep; never recorded."""


@dataclass(frozen=True)
class Job:
    """An attempt at a node. Paths `start` and `resume` are relative to the store."""

    id: str
    kind: str
    """Its entry in `sweeps.kinds.table.KINDS`."""
    attempt: str
    store: Store
    config: RunConfig | ScriptRun
    data: DataPaths | None
    """None for a script."""
    exec: ExecConfig
    identity: dict[str, Any]
    start: str | None
    """Folder of the state, or the artifact's file, that it starts from; None = the initial weights."""
    sources: tuple[str, ...] = ()
    """Folders of the states that are merged."""
    averages: tuple[Average, ...] = ()
    """Training: the averages of the weights to keep; none: the config's own."""
    until: int = 0
    final: bool = True
    """Some run ends at `until`."""
    resume: tuple[str, ...] = ()
    """Checkpoints of earlier attempts, the furthest first."""
    script: ScriptHow | None = None
    launch: dict[str, Any] = field(default_factory=dict)
    """What the record of its execution is to say besides: commit, gpus."""

    @property
    def recipe(self) -> RunConfig:
        """The configuration of a job that is no script's."""
        assert isinstance(self.config, RunConfig)
        return self.config

    @property
    def paths(self) -> DataPaths:
        """Where the data of such a job lies."""
        assert self.data is not None
        return self.data


@dataclass(frozen=True)
class Attempt:
    """One rank's part in a job, as the modules that execute kinds of work get it."""

    job: Job
    workdir: Workdir
    rank: int
    world: int
    should_stop: Callable[[], Observed | None]
    outcome: Outcome
    """To be handed back with its result."""
    meeting: tuple[str, int] | None = None
    """Address and port where the processes of a script on several nodes find each other."""

    def source(self) -> Path:
        """A local copy of what the job starts from."""
        return self.workdir.fetch(self.job.start or "")


def differences(before: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    """In what two executions differ that may change the bits."""
    return [
        f"{key}: {before.get(key)} before, then {then.get(key)}"
        for key in _BITS_DEPEND_ON
        if before.get(key) != then.get(key)
    ]
