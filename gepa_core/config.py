"""What defines a run's numbers (RunConfig) and how they are computed (ExecConfig), kept apart.

RunConfig is frozen, strict, and hashed: two runs with the same canonical JSON have the same numbers.
ExecConfig is recorded and never hashed.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gepa_core.schedule import SHAPES

# Raised by any change to results, rounding included: what other numerics made is never reused as if equal.
NUMERICS_VERSION = 3

MAX_STEPS = 100_000_000
"""Four thousand times the published run. What is above any use is refused where it is read, before a plan or
an array is made of it; so are the sizes below."""
MAX_PARAMETERS = 4_000_000_000
MAX_TEXT = 4096
"""Characters of a path or name."""
_MAX_SIZE = 65_536
"""Of a side of a matrix."""
_MAX_COUNT = 1_000_000_000
"""Of steps between two events, and of the like: never, in effect."""
_MAX_TOKENS = 1 << 40
_MAX_PLACE = 8 * MAX_TEXT
"""Of a fingerprint; one not known yet holds the names of all it is of."""
_MAX_REAL = 1e38
"""Of a learning rate, a decay, a clip: what float32 holds."""

CAP_BYTES = 16_000_000
"""The challenge's limit on code + compressed model, decimal bytes."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ModelConfig(_Frozen):
    """The GEPA transformer; defaults are the reference size, 27,030,107 parameters."""

    vocab_size: int = Field(1024, ge=8, le=65536)
    num_layers: int = Field(11, ge=2, le=1024)
    width: int = Field(512, ge=8, le=_MAX_SIZE)
    num_heads: int = Field(8, ge=1, le=1024)
    num_kv_heads: int = Field(4, ge=1, le=1024)
    mlp_hidden: int = Field(1536, ge=1, le=4 * _MAX_SIZE)
    bigram: Literal["poly", "xor"] = "poly"
    bigram_buckets: int = Field(2048, ge=2, le=16_777_216)
    bigram_dim: int = Field(128, ge=1, le=_MAX_SIZE)
    rope_dims: int = Field(16, ge=2, le=_MAX_SIZE)
    rope_base: float = Field(10_000.0, gt=0, le=1e12)
    rope_train_seq_len: int = Field(2048, ge=1, le=1_048_576)
    rope_precision: Literal["fp32", "bf16_published"] = "fp32"
    xsa_last_n: int = Field(4, ge=0, le=1024)
    ve_dim: int = Field(128, ge=1, le=_MAX_SIZE)
    ve_layers: tuple[int, ...] = Field((9, 10), max_length=1024)
    document_start: int | None = Field(None, ge=0, le=65535)
    """Token that begins a document (1 in the challenge's data): there, smear and bigram look at no token
    before, as at position 0. None: they look across, as published."""
    logit_softcap: float = Field(30.0, gt=0, le=_MAX_REAL)
    q_gain_init: float = Field(1.5, ge=-_MAX_REAL, le=_MAX_REAL)
    embed_init_std: float = Field(0.005, gt=0, le=_MAX_REAL)
    embedding_dtype: Literal["bf16", "fp32"] = "bf16"
    """Storage of tok_emb. The published recipe has no fp32 master for it."""
    compute_dtype: Literal["bf16", "fp32"] = "bf16"
    """Autocast of matrix products."""

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads

    @property
    def kv_width(self) -> int:
        """Of keys and values, all heads together."""
        return self.num_kv_heads * self.head_dim

    @property
    def projects_value_embedding(self) -> bool:
        """Where a value embedding is as wide as the values, it is added as it is."""
        return bool(self.ve_layers) and self.ve_dim != self.kv_width

    @property
    def num_encoder_layers(self) -> int:
        return self.num_layers // 2

    @property
    def _least_parameters(self) -> int:
        """Of the large matrices alone."""
        block = 2 * self.width * (self.width + self.mlp_hidden)
        tables = self.bigram_buckets * self.bigram_dim + self.vocab_size * (self.width + self.ve_dim)
        return self.num_layers * block + tables

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} must be a multiple of num_heads {self.num_heads}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.rope_dims % 2 or self.rope_dims > self.head_dim:
            raise ValueError(f"rope_dims {self.rope_dims} must be even and at most head_dim {self.head_dim}")
        if self._least_parameters > MAX_PARAMETERS:
            raise ValueError(
                f"{self.num_layers} layers of width {self.width} and {self.mlp_hidden} hidden have over "
                f"{MAX_PARAMETERS:,} parameters, the most that is planned"
            )
        if self.xsa_last_n > self.num_layers:
            raise ValueError(f"xsa_last_n {self.xsa_last_n} exceeds num_layers {self.num_layers}")
        if tuple(sorted(set(self.ve_layers))) != self.ve_layers:
            raise ValueError(f"ve_layers {self.ve_layers} must be ascending, without repeats")
        if any(not 0 <= i < self.num_layers for i in self.ve_layers):
            raise ValueError(f"ve_layers {self.ve_layers} must lie in 0..{self.num_layers - 1}")
        return self


class BatchConfig(_Frozen):
    """A step reads `spans` spans in stream order; a span is `seqs_per_span` sequences and one more token."""

    seq_len: int = Field(2048, ge=2, le=1_048_576)
    seqs_per_span: int = Field(48, ge=1, le=1_048_576)
    spans: int = Field(8, ge=1, le=65_536)

    @property
    def span_tokens(self) -> int:
        """Tokens a span trains on; it reads one more."""
        return self.seqs_per_span * self.seq_len

    @property
    def tokens_per_step(self) -> int:
        return self.spans * self.span_tokens

    @property
    def stride_per_step(self) -> int:
        """Tokens the stream advances in a step: the extra target of each span is not read again."""
        return self.spans * (self.span_tokens + 1)


class OptimConfig(_Frozen):
    """Muon on block matrices, AdamW on the rest."""

    matrix_lr: float = Field(0.025, gt=0, le=_MAX_REAL)
    embed_lr: float = Field(0.035, gt=0, le=_MAX_REAL)
    scalar_lr: float = Field(0.025, gt=0, le=_MAX_REAL)
    decoder_lr_multiplier: float = Field(2.0, gt=0, le=_MAX_REAL)
    muon_momentum: float = Field(0.99, ge=0, lt=1)
    muon_momentum_start: float = Field(0.92, ge=0, lt=1)
    muon_momentum_warmup_steps: int = Field(1500, ge=0, le=_MAX_COUNT)
    muon_ns_steps: int = Field(5, ge=1, le=1000)
    muon_ns_dtype: Literal["bf16", "fp32"] = "bf16"
    """Precision of Newton-Schulz; the published recipe's is bf16."""
    muon_weight_decay: float = Field(0.04, ge=0, le=_MAX_REAL)
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.95, ge=0, lt=1)
    adam_eps: float = Field(1e-8, gt=0, le=_MAX_REAL)
    adam_weight_decay: float = Field(0.04, ge=0, le=_MAX_REAL)
    grad_clip: float = Field(0.3, gt=0, le=_MAX_REAL)


class DataConfig(_Frozen):
    """Which data, by fingerprint ("sha256:..."); the paths are execution."""

    train: str = Field("", max_length=_MAX_PLACE)
    val: str = Field("", max_length=_MAX_PLACE)
    tokenizer: str = Field("", max_length=_MAX_PLACE)
    val_tokens: int | None = Field(None, ge=1, le=_MAX_TOKENS)
    """Validate on at most this many leading target tokens; None = all of them."""


class EvalConfig(_Frozen):
    """Validation during and after training."""

    every: int = Field(500, ge=1, le=_MAX_COUNT)
    """Steps between validations of the raw weights; also at peak_steps and at the end."""
    warmdown_points: int = Field(0, ge=0, le=_MAX_COUNT)
    """Validations besides, at so many equal parts of the warmdown, so that a short one is seen as well."""
    ema_every: int = Field(2000, ge=1, le=_MAX_COUNT)
    int6_every: int | None = Field(None, ge=1, le=_MAX_COUNT)
    """Steps between looks at what int6 would cost: raw and averaged weights, quantized and validated."""
    int6_method: Literal["reference", "per_row", "gptq"] = "reference"
    """Of those looks, whatever the run itself is quantized by: runs that differ in that share a training."""
    log_every: int = Field(100, ge=1, le=_MAX_COUNT)
    seq_len: int = Field(2048, ge=2, le=1_048_576)
    stride: int = Field(64, ge=1, le=1_048_576)
    counting: Literal["once", "reference"] = "once"
    """`reference` repeats the published double counting at the end of the data."""
    block_tokens: int = Field(32_768, ge=1, le=_MAX_TOKENS)
    """Target tokens per validation block, the unit of paired stage effects."""

    @model_validator(mode="after")
    def _stride_fits(self) -> Self:
        if self.stride > self.seq_len:
            raise ValueError(f"stride {self.stride} exceeds seq_len {self.seq_len}: tokens would go unscored")
        return self


class QuantConfig(_Frozen):
    """Int6 quantization and the artifact's coding."""

    method: Literal["reference", "per_row", "gptq", "rd"] = "reference"
    keep_float_max_numel: int = Field(65_536, ge=0, le=_MAX_TOKENS)
    budget_bytes: int | None = Field(None, ge=1, le=_MAX_TOKENS)
    """`rd` only: size of the compressed model to aim at; None = the 16,000,000-byte cap less the code."""
    calibration_tokens: int = Field(131_072, ge=1, le=_MAX_TOKENS)
    """`gptq` and `rd` only: training tokens behind the Hessians."""
    clip_sigmas: float = Field(12.85, gt=0, le=_MAX_REAL)
    """`gptq` only: a row's integers reach this many of its standard deviations; fewer make finer steps."""
    integer_bits: int = Field(6, ge=2, le=8)
    """`rd` only: range of the integers. The recipe's rule is 6; the cap is on bytes, whatever the range."""

    @property
    def calibrates(self) -> bool:
        """Whether it needs training text."""
        return self.method in ("gptq", "rd")

    def identity(self) -> dict[str, Any]:
        """The keys that this method heeds."""
        kept = self.model_dump(mode="json")
        unheeded = {
            "reference": ("budget_bytes", "integer_bits", "calibration_tokens", "clip_sigmas"),
            "per_row": ("budget_bytes", "integer_bits", "calibration_tokens", "clip_sigmas"),
            "gptq": ("budget_bytes", "integer_bits"),
            "rd": ("clip_sigmas",),
        }
        for key in unheeded[self.method]:
            del kept[key]
        return kept


class MergeConfig(_Frozen):
    """`merged`: an average of trunk states in place of a decay (WSM, arXiv:2507.17634)."""

    checkpoints: int = Field(8, ge=2, le=1000)
    """States that are merged, equally far apart."""
    ratio: float = Field(0.2, gt=0, le=1)
    """Share of the constant phase whose states are merged: what would have been the warmdown's."""
    schedule: str = "linear"
    """The warmdown that it stands for: a state's weight is what the multiplier loses after it."""

    @model_validator(mode="after")
    def _schedule_known(self) -> Self:
        if self.schedule not in SHAPES or self.schedule == "constant":
            raise ValueError(f"merge.schedule {self.schedule!r} is no shape of a warmdown")
        return self


class TTTConfig(_Frozen):
    """Legal score-first test-time training."""

    chunk_tokens: int = Field(32_768, ge=1, le=_MAX_TOKENS)
    epochs: int = Field(10, ge=0, le=1_000_000)
    lr: float = Field(0.002, ge=0, le=_MAX_REAL)
    momentum: float = Field(0.9, ge=0, lt=1)
    batch_seqs: int = Field(32, ge=1, le=1_048_576)
    grad_clip: float = Field(1.0, gt=0, le=_MAX_REAL)
    freeze_blocks: int = Field(2, ge=0, le=1024)
    warmup_fraction: float = Field(0.05, ge=0, le=1)


class Length(_Frozen):
    """How long a run is, and how much of that its learning rate falls."""

    steps: int = Field(ge=1, le=MAX_STEPS)
    warmdown_steps: int = Field(ge=0, le=MAX_STEPS)

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
    final_lr_fraction: float = Field(0.0, ge=0, le=1)
    """Where the shape of the warmdown ends."""
    schedule_power: float = Field(1.0, gt=0, le=1000)
    """`power` only: (1 - t)^p at share t of the warmdown."""
    lr_floor: float = Field(0.0, ge=0, le=1)
    """The multiplier never falls below, whatever the shape (the field's MIN_LR)."""
    adam_warmdown_steps: int | None = Field(None, ge=0, le=MAX_STEPS)
    """Warmdown of what AdamW trains (embeddings, scalars); None = warmdown_steps, as of the matrices."""
    seed: int = Field(42, ge=0, le=2**63 - 1)
    ema_decay: float = Field(0.997, ge=0, lt=1)
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


class DataPaths(_Frozen):
    """Where the data lies on this machine: glob patterns of shards, and the tokenizer's model file."""

    train: str = Field(max_length=_MAX_PLACE)
    val: str = Field(max_length=_MAX_PLACE)
    tokenizer: str = Field(max_length=_MAX_PLACE)


class ExecConfig(_Frozen):
    """How a run is executed. Nothing here changes results beyond rounding. `None` chooses well by device."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    ranks: int = Field(1, ge=1, le=4096)
    threads: int | None = Field(None, ge=1, le=4096)
    """CPU threads a rank; None = 1 on CPU."""
    micro_batch_seqs: int | None = Field(None, ge=1, le=1_048_576)
    """Sequences per forward pass in training; None = a span on a GPU, what fits the cache on a CPU."""
    eval_batch_seqs: int | None = Field(None, ge=1, le=1_048_576)
    compile: bool | None = None
    attention: Literal["flash", "cudnn", "efficient", "math"] | None = None
    deterministic: bool = False
    checkpoint_every: int | None = Field(None, ge=1, le=_MAX_COUNT)
    """Steps between checkpoints inside a segment; None = by time, see checkpoint_seconds."""
    checkpoint_seconds: float = Field(600.0, gt=0, le=_MAX_COUNT)
    batched_newton_schulz: bool = True
    foreach_ema: bool = True
    prefetch: bool = True
    trim_last_block: bool = True
    device_windows: bool = True
