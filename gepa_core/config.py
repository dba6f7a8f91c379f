"""What defines a run's numbers (RunConfig) and how they are computed (ExecConfig), kept apart.

RunConfig is frozen, strict, and hashed: two runs with the same canonical JSON have the same numbers.
ExecConfig is recorded and never hashed.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from gepa_core.schedule import SHAPES
from gepa_core.sections import (
    MAX_COUNT,
    MAX_PLACE,
    MAX_STEPS,
    BatchConfig,
    DataConfig,
    EvalConfig,
    Frozen,
    MergeConfig,
    ModelConfig,
    OptimConfig,
    QuantConfig,
    TTTConfig,
)

# Raised by any change to results, rounding included: what other numerics made is never reused as if equal.
NUMERICS_VERSION = 3

CAP_BYTES = 16_000_000
"""The challenge's limit on code + compressed model, decimal bytes."""


class Length(Frozen):
    """How long a run is, and how much of that its learning rate falls."""

    steps: int = Field(ge=1, le=MAX_STEPS)
    """Optimizer steps of the whole run."""
    warmdown_steps: int = Field(ge=0, le=MAX_STEPS)
    """The last of them, in which the learning rate falls."""

    @model_validator(mode="after")
    def _warmdown_fits(self) -> Self:
        if self.warmdown_steps > self.steps:
            raise ValueError(f"warmdown_steps {self.warmdown_steps} exceeds steps {self.steps}")
        return self

    @property
    def peak_steps(self) -> int:
        """Steps at the full learning rate: where the trunk shared with longer runs may end."""
        return self.steps - self.warmdown_steps

    @property
    def warmdown_ratio(self) -> float:
        return self.warmdown_steps / self.steps


class Average(NamedTuple):
    """A moving average of the weights: an observer, which changes nothing of the training."""

    decay: float
    horizon: str = "fixed"
    """`fixed`, or `lr`, see RunConfig.ema_horizon; the same as long as the learning rate is constant."""

    def __str__(self) -> str:
        return f"{self.decay}" + ("" if self.horizon == "fixed" else f" {self.horizon}")


class RunConfig(Length):
    """Everything that changes a run's numbers on purpose."""

    numerics_version: int = Field(NUMERICS_VERSION, ge=NUMERICS_VERSION, le=NUMERICS_VERSION)
    schedule: str = "linear"
    """Shape of the warmdown."""
    final_lr_fraction: float = Field(0.0, ge=0, le=1)
    """Where the shape of the warmdown ends."""
    schedule_power: float = Field(1.0, gt=0, le=1000)
    """`power` only: (1 - t)^p at share t of the warmdown."""
    lr_floor: float = Field(0.0, ge=0, le=1)
    """The multiplier never falls below, whatever the shape (the field's MIN_LR)."""
    adam_warmdown_steps: int | None = Field(None, ge=0, le=MAX_STEPS)
    """Warmdown of what AdamW trains (embeddings, scalars); None = warmdown_steps, as of the matrices."""
    seed: int = Field(42, ge=0, le=2**63 - 1)
    """Of the initial weights; the data is read in its own order."""
    ema_decay: float = Field(0.997, ge=0, lt=1)
    """Of the averaged (EMA) weights, in each step; 0 = none."""
    ema_horizon: Literal["fixed", "lr"] = "fixed"
    """`lr`: an average reaches back no further than LR / |dLR/dstep|, nor than ema_decay says."""
    batch: BatchConfig = BatchConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    data: DataConfig = DataConfig()
    eval: EvalConfig = EvalConfig()
    quant: QuantConfig = QuantConfig()
    ttt: TTTConfig = TTTConfig()
    merge: MergeConfig = MergeConfig()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.adam_warmdown_steps or 0) > self.steps:
            raise ValueError(f"adam_warmdown_steps {self.adam_warmdown_steps} exceeds steps {self.steps}")
        if self.schedule not in SHAPES:
            raise ValueError(f"schedule {self.schedule!r} is not one of {', '.join(SHAPES)}")
        if self.ttt.chunk_tokens % self.eval.seq_len:
            raise ValueError(
                f"ttt.chunk_tokens {self.ttt.chunk_tokens} must be a multiple of eval.seq_len "
                f"{self.eval.seq_len}"
            )
        if self.data.val_tokens is not None and self.data.val_tokens < self.eval.seq_len:
            raise ValueError(
                f"data.val_tokens {self.data.val_tokens} are less than one window of eval.seq_len "
                f"{self.eval.seq_len}"
            )
        if (
            self.quant.calibrates or self._probes_by_gptq
        ) and self.quant.calibration_tokens < self.batch.seq_len:
            raise ValueError(
                f"quant.calibration_tokens {self.quant.calibration_tokens} are less than one sequence of "
                f"batch.seq_len {self.batch.seq_len}"
            )
        if self.ttt.freeze_blocks > self.model.num_layers:
            raise ValueError(
                f"ttt.freeze_blocks {self.ttt.freeze_blocks} exceeds num_layers {self.model.num_layers}"
            )
        return self

    @property
    def peak_steps(self) -> int:
        """Steps at the full learning rate: where the trunk shared with longer runs may end."""
        return self.steps - max(self.warmdown_steps, self.adam_warmdown_steps or 0)

    @property
    def _probes_by_gptq(self) -> bool:
        return self.eval.int6_every is not None and self.eval.int6_method == "gptq"

    @property
    def average(self) -> Average:
        """The one that is validated, quantized and adapted."""
        return Average(self.ema_decay, self.ema_horizon)

    @property
    def merge_steps(self) -> tuple[int, ...]:
        """Steps of the states that `merged` takes, up to peak_steps; none if the constant phase is short."""
        span, states = self.merge.ratio * self.peak_steps, self.merge.checkpoints
        if span < states:
            return ()
        return tuple(self.peak_steps - round(i * span / states) for i in reversed(range(states)))

    @property
    def train_tokens(self) -> int:
        return self.steps * self.batch.tokens_per_step

    @property
    def adam_warmdown_ratio(self) -> float | None:
        return None if self.adam_warmdown_steps is None else self.adam_warmdown_steps / self.steps

    def digest(self) -> str:
        return digest(self.identity())

    def identity(self) -> dict[str, Any]:
        """All keys, as JSON can hold them, but those that came later and still have no say.

        So a key that is added with a default that changes nothing leaves every identity as it was.
        """
        kept = self.model_dump(mode="json")
        for name, silent in LATER.items():
            section, _, key = name.rpartition(".")
            part = kept[section] if section else kept
            if part[key] == silent:
                del part[key]
        if self.model.ve_layers and not self.model.projects_value_embedding:
            kept["model"]["ve_projected"] = False  # earlier code had a projection here too
        return kept

    @property
    def run_id(self) -> str:
        """Readable slug and the first 10 hex digits of the configuration's SHA-256."""
        return f"{self.steps}-{self.warmdown_steps}-{self.schedule}-s{self.seed}-{self.digest()[:10]}"

    def trunk(self, decays: Sequence[float] = ()) -> dict[str, Any]:
        """What the state at every step <= peak_steps depends on, besides the step.

        decays: of the averages that it holds, where they are others than the run's own alone.
        """
        kept = self.identity()
        for key in (*_TAIL, "ema_horizon", "quant", "ttt", "merge"):
            kept.pop(key, None)
        for key in ("stride", "counting", "block_tokens"):
            del kept["eval"][key]
        kept["eval"].pop("warmdown_points", None)
        if self.eval.int6_every is None:
            kept["eval"].pop("int6_method", None)
        else:
            kept["int6"] = self.probe_quant.identity()
        if set(decays) - {self.ema_decay}:
            kept["ema_decay"] = sorted(set(decays)) if len(set(decays)) > 1 else decays[0]
        return kept

    def unaveraged(self) -> dict[str, Any]:
        """`trunk` without the averages: what the training itself depends on."""
        kept = self.trunk()
        del kept["ema_decay"]
        return kept

    def tail(self) -> dict[str, Any]:
        """What a state after peak_steps depends on besides, in a fixed order."""
        kept = {key: getattr(self, key) for key in _TAIL}
        return {key: value for key, value in kept.items() if key not in LATER or value != LATER[key]}

    @property
    def probe_quant(self) -> QuantConfig:
        """The quantizer of eval.int6_every."""
        return self.quant.model_copy(update={"method": self.eval.int6_method})


_TAIL = (
    "schedule",
    "steps",
    "warmdown_steps",
    "final_lr_fraction",
    "schedule_power",
    "lr_floor",
    "adam_warmdown_steps",
)
LATER: dict[str, Any] = {
    "schedule_power": 1.0,
    "lr_floor": 0.0,
    "adam_warmdown_steps": None,
    "ema_horizon": "fixed",
    "model.document_start": None,
    "optim.muon_ns_dtype": "bf16",
    "eval.warmdown_points": 0,
    "eval.int6_every": None,
    "eval.int6_method": "reference",
    "quant.clip_sigmas": 12.85,
    "merge": MergeConfig().model_dump(mode="json"),
}
"""Keys that came after NUMERICS_VERSION 2, each with the value at which it has no say in an identity."""


def canonical_json(value: Any) -> str:
    """JSON with one spelling per value. Raises TypeError or ValueError for what it cannot hold (NaN, say)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def digest(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


class DataPaths(Frozen):
    """Where the data lies on this machine: glob patterns of shards, and the tokenizer's model file."""

    train: str = Field(max_length=MAX_PLACE)
    val: str = Field(max_length=MAX_PLACE)
    tokenizer: str = Field(max_length=MAX_PLACE)


class ExecConfig(Frozen):
    """How a run is executed. Nothing here changes results beyond rounding. `None` chooses well by device."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where tensors live; in a sweep `resources.gpus_per_run` decides."""
    ranks: int = Field(1, ge=1, le=4096)
    """Processes that share a training, each with its part of every batch; on GPUs one a GPU."""
    threads: int | None = Field(None, ge=1, le=4096)
    """CPU threads a rank; None = 1 on CPU."""
    micro_batch_seqs: int | None = Field(None, ge=1, le=1_048_576)
    """Sequences per forward pass in training; None = a span on a GPU, what fits the cache on a CPU."""
    eval_batch_seqs: int | None = Field(None, ge=1, le=1_048_576)
    """Windows per forward pass where a text is scored."""
    compile: bool | None = None
    """Whether passes go through torch.compile; None = on a GPU."""
    attention: Literal["flash", "cudnn", "efficient", "math"] | None = None
    """The attention kernel that is tried first on a GPU."""
    deterministic: bool = False
    """On a GPU: only kernels that give the same bits every time, some of them slower."""
    checkpoint_every: int | None = Field(None, ge=1, le=MAX_COUNT)
    """Steps between checkpoints inside a segment; None = by time, see checkpoint_seconds."""
    checkpoint_seconds: float = Field(600.0, gt=0, le=MAX_COUNT)
    """Seconds between checkpoints inside a segment, where checkpoint_every is not given."""

    @staticmethod
    def without_retired(recorded: Any) -> Any:
        """What an earlier version recorded, without keys that are no more: they were no part of identity."""
        if not isinstance(recorded, Mapping):
            return recorded
        return {key: value for key, value in recorded.items() if key not in _RETIRED}


_RETIRED = {"batched_newton_schulz", "foreach_ema", "prefetch", "trim_last_block", "device_windows"}
