"""What defines a run's numbers (RunConfig) and how they are computed (ExecConfig), kept apart.

RunConfig is frozen, strict, and hashed: two runs with the same canonical JSON have the same numbers.
ExecConfig is recorded and never hashed.
"""

import hashlib
import json
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gepa_core.schedule import SHAPES

# Raised by any change to results, rounding included: what other numerics made is never reused as if equal.
NUMERICS_VERSION = 2

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
_MAX_REAL = 1e6
"""Of a learning rate, a decay, a clip."""

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
    ema_every: int = Field(2000, ge=1, le=_MAX_COUNT)
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

    method: Literal["reference", "per_row", "rd"] = "reference"
    keep_float_max_numel: int = Field(65_536, ge=0, le=_MAX_TOKENS)
    budget_bytes: int | None = Field(None, ge=1, le=_MAX_TOKENS)
    """`rd` only: size of the compressed model to aim at; None = the 16,000,000-byte cap less the code."""
    calibration_tokens: int = Field(131_072, ge=1, le=_MAX_TOKENS)
    """`rd` only: training tokens behind the Hessians."""
    integer_bits: int = Field(6, ge=2, le=8)
    """`rd` only: range of the integers. The recipe's rule is 6; the cap is on bytes, whatever the range."""


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


class RunConfig(_Frozen):
    """Everything that changes a run's numbers on purpose."""

    numerics_version: int = Field(NUMERICS_VERSION, ge=NUMERICS_VERSION, le=NUMERICS_VERSION)
    steps: int = Field(ge=1, le=MAX_STEPS)
    warmdown_steps: int = Field(ge=0, le=MAX_STEPS)
    schedule: str = "linear"
    final_lr_fraction: float = Field(0.0, ge=0, le=1)
    seed: int = Field(42, ge=0, le=2**63 - 1)
    ema_decay: float = Field(0.997, ge=0, lt=1)
    batch: BatchConfig = BatchConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    data: DataConfig = DataConfig()
    eval: EvalConfig = EvalConfig()
    quant: QuantConfig = QuantConfig()
    ttt: TTTConfig = TTTConfig()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.warmdown_steps > self.steps:
            raise ValueError(f"warmdown_steps {self.warmdown_steps} exceeds steps {self.steps}")
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
        if self.quant.method == "rd" and self.quant.calibration_tokens < self.batch.seq_len:
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
        return self.steps - self.warmdown_steps

    @property
    def train_tokens(self) -> int:
        return self.steps * self.batch.tokens_per_step

    @property
    def warmdown_ratio(self) -> float:
        return self.warmdown_steps / self.steps

    def digest(self) -> str:
        return digest(self.model_dump(mode="json"))

    @property
    def run_id(self) -> str:
        """Readable slug and the first 10 hex digits of the configuration's SHA-256."""
        return f"{self.steps}-{self.warmdown_steps}-{self.schedule}-s{self.seed}-{self.digest()[:10]}"

    def trunk(self) -> dict[str, Any]:
        """What the state at every step <= peak_steps depends on, besides the step."""
        kept = self.model_dump(mode="json")
        for key in ("steps", "warmdown_steps", "schedule", "final_lr_fraction", "quant", "ttt"):
            del kept[key]
        for key in ("stride", "counting", "block_tokens"):
            del kept["eval"][key]
        return kept


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
