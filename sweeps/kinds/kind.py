"""What is to be known of a kind of work; stages that measure are made of weights and an evaluation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from gepa_core.config import RunConfig
from gepa_core.sizes import measure_flops

Rate = Literal["train", "evaluate", "ttt", "quantize", "steps"]
"""What a cost is counted in: FLOPs at one of three speeds, weights as `reference` quantizes and packs them,
or steps of a training script."""
RATES: tuple[Rate, ...] = get_args(Rate)
Weights = Literal["raw", "average", "merged", "int6"]
Evaluation = Literal["plain", "sliding", "ttt"]

FINAL_STATE = "checkpoint"
"""Folder of an attempt that holds the state at the end of a training."""
ARTIFACT = "model.int6"
"""File of an attempt that holds the compressed model."""
BLOCKS = "blocks.parquet"
TRAJECTORY = "trajectory.parquet"
SCRIPT_LOG = "script.log"
OUTPUTS = "outputs"
"""Folder of an attempt with the files that a script leaves."""

Cost = Mapping[Rate, float]


@dataclass(frozen=True)
class Kind:
    """A kind of work; see the package's docstring for how to add one."""

    name: str
    work: str
    """Module of sweeps.work that executes it."""
    files: tuple[str, ...]
    """Files and folders of an attempt that its commit vouches for."""
    cost: Callable[..., Cost]
    """(config, validation tokens, first step, last step, averages kept) -> what it costs."""
    after: str | None = None
    """Stages: the kind whose output it starts from; None = the state at the end of the training."""
    settings: Callable[[Any], dict[str, Any]] = lambda config: {}
    """What a stage's result depends on besides what it starts from."""
    gives: str | None = None
    """The file or folder that what follows starts from."""
    columns: tuple[str, ...] = ()
    """Entries of the result that are columns of the run."""
    seconds: str | None = None
    """Entry of the result with the wall time of the work itself; a column, summed over the run's stages."""
    trains: bool = False
    """Takes training steps, reports them, and can be asked to stop."""
    resumes: bool = False
    """Goes on from the checkpoints of an earlier attempt."""
    log: str = "log.txt"
    """File of an attempt with what the work printed."""
    averages: bool = False
    """It takes the averaged weights of the state, of which there may be several."""
    states: Callable[[Any], tuple[int, ...]] | None = None
    """Steps of the trunk whose states it starts from, instead of that at the end; none: a run has no such."""
    optional: bool = False
    """Done where the sweep file's `stages` name it, and not otherwise."""
    weights: Weights | None = None
    evaluation: Evaluation | None = None
    what: str = ""
    """What its column holds, for the schema."""

    @property
    def column(self) -> str | None:
        """The BPB it measures."""
        return f"{self.name}_bpb" if self.evaluation else None


def _plain_settings(config: RunConfig) -> dict[str, Any]:
    return {"block_tokens": config.eval.block_tokens}


def _sliding_settings(config: RunConfig) -> dict[str, Any]:
    return _plain_settings(config) | {"stride": config.eval.stride, "counting": config.eval.counting}


def ttt_settings(config: RunConfig) -> dict[str, Any]:
    return _sliding_settings(config) | config.ttt.model_dump(mode="json")


@dataclass(frozen=True)
class _Evaluation:
    settings: Callable[[RunConfig], dict[str, Any]]
    rate: Rate
    seconds: str


_EVALUATIONS: Mapping[Evaluation, _Evaluation] = {
    "plain": _Evaluation(_plain_settings, "evaluate", "eval_seconds"),
    "sliding": _Evaluation(_sliding_settings, "evaluate", "eval_seconds"),
    "ttt": _Evaluation(ttt_settings, "ttt", "ttt_seconds"),
}


def _merge_settings(config: RunConfig) -> dict[str, Any]:
    return {"merge": config.merge.model_dump(mode="json"), "steps": config.merge_steps}


def stage(name: str, *, weights: Weights, evaluation: Evaluation, what: str, optional: bool = False) -> Kind:
    """A stage that measures `weights` of a finished run by `evaluation`, into the column `<name>_bpb`."""
    by, merges = _EVALUATIONS[evaluation], weights == "merged"
    return Kind(
        name,
        work="sweeps.work.measure",
        files=(BLOCKS,),
        cost=lambda config, tokens, *_: {by.rate: measure_flops(evaluation, config, tokens)},
        after="quantize" if weights == "int6" else None,
        settings=lambda config: by.settings(config) | (_merge_settings(config) if merges else {}),
        averages=weights == "average",
        states=(lambda config: config.merge_steps) if merges else None,
        optional=optional,
        columns=(f"{name}_bpb", *(("code_bytes",) if evaluation == "ttt" and weights == "int6" else ())),
        seconds=by.seconds,
        weights=weights,
        evaluation=evaluation,
        what=what,
    )
