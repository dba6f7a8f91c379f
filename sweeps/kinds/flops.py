"""What the work of a run costs, by arithmetic: parameters, FLOPs and bytes of its model. Pure."""

from gepa_core.config import ModelConfig, RunConfig


def parameter_numels(model: ModelConfig) -> dict[str, int]:
    """Elements of the parameter tensors, 27,030,107 in all at the reference size (small ones lumped)."""
    D, V, H = model.width, model.vocab_size, model.mlp_hidden
    kv = model.num_kv_heads * model.head_dim
    numels = {
        "tok_emb": V * D,
        "bigram_emb.embed": model.bigram_buckets * model.bigram_dim,
        "bigram_emb.proj": D * model.bigram_dim,
        "smear_gate": D,
        "skip_weights": model.num_encoder_layers * D,
        "skip_gates": model.num_encoder_layers * D,
    }
    if model.bigram == "xor":
        numels["bigram_emb.scale"] = 1
    for i in range(model.num_layers):
        numels |= {
            f"blocks.{i}.c_q": D * D,
            f"blocks.{i}.c_k": D * kv,
            f"blocks.{i}.c_v": D * kv,
            f"blocks.{i}.proj": D * D,
            f"blocks.{i}.up_proj": D * H,
            f"blocks.{i}.down_proj": D * H,
            f"blocks.{i}.mlp": 2 * H,
            f"blocks.{i}.scales": 4 * D,
            f"blocks.{i}.q_gain": model.num_heads,
        }
    if model.ve_layers:
        numels |= {
            "ve_shared.embed": V * model.ve_dim,
            "ve_shared.proj": kv * model.ve_dim,
            "ve_shared.scale": 1,
        }
        numels |= {f"ve_layer_scales.{j}": 1 for j in range(len(model.ve_layers))}
    return numels


def num_params(model: ModelConfig) -> int:
    return sum(parameter_numels(model).values())


def quantized_fraction(config: RunConfig) -> float:
    """Share of the parameters in tensors of more than keep_float_max_numel elements, which become int6."""
    numels = parameter_numels(config.model).values()
    return sum(n for n in numels if n > config.quant.keep_float_max_numel) / sum(numels)


def forward_flops(model: ModelConfig, seq_len: int) -> float:
    """FLOPs a token: 2 a matrix weight, and causal attention over half of seq_len on average."""
    kv = model.num_kv_heads * model.head_dim
    block = 2 * model.width**2 + 2 * model.width * kv + 2 * model.width * model.mlp_hidden
    other = model.vocab_size * model.width + model.bigram_dim * model.width
    other += kv * model.ve_dim if model.ve_layers else 0
    attention = 2 * seq_len * model.width * model.num_layers
    return 2.0 * (model.num_layers * block + other) + attention


def step_flops(config: RunConfig) -> float:
    """Forward and backward of one training step."""
    return 3.0 * forward_flops(config.model, config.batch.seq_len) * config.batch.tokens_per_step


def plain_flops(config: RunConfig, val_tokens: int) -> float:
    return forward_flops(config.model, config.eval.seq_len) * val_tokens


def sliding_flops(config: RunConfig, val_tokens: int) -> float:
    """Every window is a whole forward pass, of which the last `stride` positions count."""
    return plain_flops(config, val_tokens) * config.eval.seq_len / config.eval.stride


def ttt_flops(config: RunConfig, val_tokens: int) -> float:
    """Sliding scores, and `epochs` of training without the frozen blocks' weight gradients."""
    model = config.model
    kv = model.num_kv_heads * model.head_dim
    block = 2 * model.width**2 + 2 * model.width * kv + 2 * model.width * model.mlp_hidden
    train = 3.0 * forward_flops(model, config.eval.seq_len) - 2.0 * block * config.ttt.freeze_blocks
    return sliding_flops(config, val_tokens) + config.ttt.epochs * val_tokens * train


def state_bytes(model: ModelConfig) -> int:
    """A checkpoint: weights, EMA, and at most two fp32 moments a parameter."""
    return 16 * num_params(model)
