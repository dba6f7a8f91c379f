"""The sections of a run's configuration: model, batch, optimizer, data, evaluation, quantizer, merge, TTT."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gepa_core.schedule import SHAPES

MAX_STEPS = 100_000_000
"""Four thousand times the published run. What is above any use is refused where it is read, before a plan or
an array is made of it; so are the sizes below."""
MAX_PARAMETERS = 4_000_000_000
MAX_TEXT = 4096
"""Characters of a path or name."""
MAX_SIZE = 65_536
"""Of a side of a matrix."""
MAX_COUNT = 1_000_000_000
"""Of steps between two events, and of the like: never, in effect."""
MAX_TOKENS = 1 << 40
MAX_PLACE = 8 * MAX_TEXT
"""Of a fingerprint; one not known yet holds the names of all it is of."""
MAX_REAL = 1e38
"""Of a learning rate, a decay, a clip: what float32 holds."""


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ModelConfig(Frozen):
    """The GEPA transformer; defaults are the reference size, 27,030,107 parameters."""

    vocab_size: int = Field(1024, ge=8, le=65536)
    """Pieces of the tokenizer."""
    num_layers: int = Field(11, ge=2, le=1024)
    """Transformer blocks."""
    width: int = Field(512, ge=8, le=MAX_SIZE)
    """Of the residual stream."""
    num_heads: int = Field(8, ge=1, le=1024)
    """Attention heads of a block."""
    num_kv_heads: int = Field(4, ge=1, le=1024)
    """Heads of keys and values, each shared by num_heads / num_kv_heads."""
    mlp_hidden: int = Field(1536, ge=1, le=4 * MAX_SIZE)
    """Hidden units of a block's MLP."""
    bigram: Literal["poly", "xor"] = "poly"
    """How a pair of tokens is hashed to a bucket of the bigram embedding."""
    bigram_buckets: int = Field(2048, ge=2, le=16_777_216)
    """Rows of the bigram embedding."""
    bigram_dim: int = Field(128, ge=1, le=MAX_SIZE)
    """Width of the bigram embedding, before its projection."""
    rope_dims: int = Field(16, ge=2, le=MAX_SIZE)
    """Dimensions of a head that rotary positions turn; the others know no position."""
    rope_base: float = Field(10_000.0, gt=0, le=1e12)
    """Of the rotary frequencies."""
    rope_train_seq_len: int = Field(2048, ge=1, le=1_048_576)
    """Length of the sequences that the rotary frequencies are made for."""
    rope_precision: Literal["fp32", "bf16_published"] = "fp32"
    """Of the rotary tables; `bf16_published` rounds as the published code does."""
    xsa_last_n: int = Field(4, ge=0, le=1024)
    """The last blocks, so many, whose attention leaves out what points along a token's own value (XSA)."""
    ve_dim: int = Field(128, ge=1, le=MAX_SIZE)
    """Width of the value embedding."""
    ve_layers: tuple[int, ...] = Field((9, 10), max_length=1024)
    """Blocks that add it to their values, counted from 0."""
    document_start: int | None = Field(None, ge=0, le=65535)
    """Token that begins a document (1 in the challenge's data): there, smear and bigram look at no token
    before, as at position 0. None: they look across, as published."""
    logit_softcap: float = Field(30.0, gt=0, le=MAX_REAL)
    """Logits x become c tanh(x / c)."""
    q_gain_init: float = Field(1.5, ge=-MAX_REAL, le=MAX_REAL)
    """Initial gain of the queries."""
    embed_init_std: float = Field(0.005, gt=0, le=MAX_REAL)
    """Standard deviation of the initial token embedding."""
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


class BatchConfig(Frozen):
    """A step reads `spans` spans in stream order; a span is `seqs_per_span` sequences and one more token."""

    seq_len: int = Field(2048, ge=2, le=1_048_576)
    """Tokens of a training sequence."""
    seqs_per_span: int = Field(48, ge=1, le=1_048_576)
    """Sequences of a span."""
    spans: int = Field(8, ge=1, le=65_536)
    """Spans of a step, divided among the ranks."""

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


class OptimConfig(Frozen):
    """Muon on block matrices, AdamW on the rest."""

    matrix_lr: float = Field(0.025, gt=0, le=MAX_REAL)
    """Peak learning rate of the blocks' matrices (Muon)."""
    embed_lr: float = Field(0.035, gt=0, le=MAX_REAL)
    """Of the embeddings (AdamW)."""
    scalar_lr: float = Field(0.025, gt=0, le=MAX_REAL)
    """Of scales, gains and other small tensors (AdamW)."""
    decoder_lr_multiplier: float = Field(2.0, gt=0, le=MAX_REAL)
    """Of all rates in the second half of the blocks."""
    muon_momentum: float = Field(0.99, ge=0, lt=1)
    """Muon's momentum once it is warm."""
    muon_momentum_start: float = Field(0.92, ge=0, lt=1)
    """Where it begins."""
    muon_momentum_warmup_steps: int = Field(1500, ge=0, le=MAX_COUNT)
    """Steps from there to muon_momentum."""
    muon_ns_steps: int = Field(5, ge=1, le=1000)
    """Newton-Schulz iterations of an update."""
    muon_ns_dtype: Literal["bf16", "fp32"] = "bf16"
    """Precision of Newton-Schulz; the published recipe's is bf16."""
    muon_weight_decay: float = Field(0.04, ge=0, le=MAX_REAL)
    """Decoupled, of the matrices."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's first moment."""
    adam_beta2: float = Field(0.95, ge=0, lt=1)
    """AdamW's second moment."""
    adam_eps: float = Field(1e-8, gt=0, le=MAX_REAL)
    """AdamW's epsilon."""
    adam_weight_decay: float = Field(0.04, ge=0, le=MAX_REAL)
    """Decoupled, of what AdamW trains."""
    grad_clip: float = Field(0.3, gt=0, le=MAX_REAL)
    """Largest norm of a step's whole gradient."""


class DataConfig(Frozen):
    """Which data, by fingerprint ("sha256:..."); the paths are execution."""

    train: str = Field("", max_length=MAX_PLACE)
    """Pattern of the training shards, in place of data.dir."""
    val: str = Field("", max_length=MAX_PLACE)
    """Pattern of the validation shards."""
    tokenizer: str = Field("", max_length=MAX_PLACE)
    """The SentencePiece model that made them."""
    val_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    """Validate on at most this many leading target tokens; None = all of them."""


class EvalConfig(Frozen):
    """Validation during and after training."""

    every: int = Field(500, ge=1, le=MAX_COUNT)
    """Steps between validations of the raw weights; also at peak_steps and at the end."""
    warmdown_points: int = Field(0, ge=0, le=MAX_COUNT)
    """Validations besides, at so many equal parts of the warmdown, so that a short one is seen as well."""
    ema_every: int = Field(2000, ge=1, le=MAX_COUNT)
    """Steps between validations of the averaged weights; also at the end."""
    int6_every: int | None = Field(None, ge=1, le=MAX_COUNT)
    """Steps between looks at what int6 would cost: raw and averaged weights, quantized and validated."""
    int6_method: Literal["reference", "per_row", "gptq"] = "reference"
    """Of those looks, whatever the run itself is quantized by: runs that differ in that share a training."""
    log_every: int = Field(100, ge=1, le=MAX_COUNT)
    """Steps between lines with the training loss."""
    seq_len: int = Field(2048, ge=2, le=1_048_576)
    """Tokens of an evaluation window."""
    stride: int = Field(64, ge=1, le=1_048_576)
    """Tokens from one sliding window to the next."""
    counting: Literal["once", "reference"] = "once"
    """`reference` repeats the published double counting at the end of the data."""
    block_tokens: int = Field(32_768, ge=1, le=MAX_TOKENS)
    """Target tokens per validation block, the unit of paired stage effects."""

    @model_validator(mode="after")
    def _stride_fits(self) -> Self:
        if self.stride > self.seq_len:
            raise ValueError(f"stride {self.stride} exceeds seq_len {self.seq_len}: tokens would go unscored")
        return self


class QuantConfig(Frozen):
    """Int6 quantization and the artifact's coding."""

    method: Literal["reference", "per_row", "gptq", "rd"] = "reference"
    """`reference`: the published int6; `per_row`: its best clip for each row; `gptq`: errors are passed on to
    the weights that follow; `rd`: integers chosen by their bits and their harm."""
    keep_float_max_numel: int = Field(65_536, ge=0, le=MAX_TOKENS)
    """Matrices of at most so many elements stay in floating point."""
    budget_bytes: int | None = Field(None, ge=1, le=MAX_TOKENS)
    """`rd` only: size of the compressed model to aim at; None = the 16,000,000-byte cap less the code."""
    calibration_tokens: int = Field(131_072, ge=1, le=MAX_TOKENS)
    """`gptq` and `rd` only: training tokens behind the Hessians."""
    clip_sigmas: float = Field(12.85, gt=0, le=MAX_REAL)
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


class MergeConfig(Frozen):
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


class TTTConfig(Frozen):
    """Legal score-first test-time training."""

    chunk_tokens: int = Field(32_768, ge=1, le=MAX_TOKENS)
    """Tokens that are scored, and then trained on, at a time."""
    epochs: int = Field(10, ge=0, le=1_000_000)
    """Passes over a chunk once it is scored."""
    lr: float = Field(0.002, ge=0, le=MAX_REAL)
    """Peak learning rate, over the chunks."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of its SGD."""
    batch_seqs: int = Field(32, ge=1, le=1_048_576)
    """Sequences of an update."""
    grad_clip: float = Field(1.0, gt=0, le=MAX_REAL)
    """Largest norm of an update's gradient."""
    freeze_blocks: int = Field(2, ge=0, le=1024)
    """The first blocks, so many, that are not adapted."""
    warmup_fraction: float = Field(0.05, ge=0, le=1)
    """Share of the chunks in which its learning rate rises."""
