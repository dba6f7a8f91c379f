"""Sizes and costs by arithmetic: parameters, floating-point operations, bytes. Pure, and the only such place.

`model` is a ModelConfig (or has its attributes), `config` a RunConfig. FLOPs are the model's own: matrix
products and causal attention, a multiply-add as two; norms, embeddings and other elementwise work are left
out, as usual.
"""

from typing import Any


def parameter_numels(model: Any) -> dict[str, int]:
    """Elements of the parameter tensors, 27,030,107 in all at the reference size (small ones lumped)."""
    D, V, H = model.width, model.vocab_size, model.mlp_hidden
    kv = model.kv_width
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
        numels |= {"ve_shared.embed": V * model.ve_dim, "ve_shared.scale": 1}
        numels |= {"ve_shared.proj": kv * model.ve_dim} if model.projects_value_embedding else {}
        numels |= {f"ve_layer_scales.{j}": 1 for j in range(len(model.ve_layers))}
    return numels


def num_params(model: Any) -> int:
    return sum(parameter_numels(model).values())


def quantized_fraction(config: Any) -> float:
    """Share of the parameters in tensors of more than keep_float_max_numel elements, which become int6."""
    numels = parameter_numels(config.model).values()
    return sum(n for n in numels if n > config.quant.keep_float_max_numel) / sum(numels)


def block_weights(model: Any) -> int:
    """Elements of one block's matrices."""
    D = model.width
    return 2 * D * D + 2 * D * model.kv_width + 2 * D * model.mlp_hidden


def matmul_weights(model: Any) -> int:
    """Elements of the matrices that every token is multiplied with, the tied head included."""
    value_embedding = model.ve_dim * model.kv_width if model.projects_value_embedding else 0
    other = (model.vocab_size + model.bigram_dim) * model.width + value_embedding
    return int(model.num_layers * block_weights(model) + other)


def forward_flops_per_token(model: Any, seq_len: int) -> float:
    """The mean over a sequence's positions. 76.2e6 at the reference size."""
    attention = model.num_layers * 4 * model.width * (seq_len + 1) / 2
    return 2 * matmul_weights(model) + attention


def training_flops_per_token(model: Any, seq_len: int) -> float:
    """Forward and backward, which is twice the forward. 228.7e6 at the reference size."""
    return 3 * forward_flops_per_token(model, seq_len)


def step_flops(config: Any) -> float:
    """Forward and backward of one training step."""
    return training_flops_per_token(config.model, config.batch.seq_len) * config.batch.tokens_per_step


def measure_flops(way: str, config: Any, num_targets: int) -> float:
    """Of scoring so many targets once, `plain`, `sliding` or by `ttt`.

    Each sliding window is a whole forward pass, of which the last `stride` positions count. Test-time
    training trains without the frozen blocks' weight gradients.
    """
    seq_len = config.eval.seq_len
    plain = forward_flops_per_token(config.model, seq_len) * num_targets
    if way == "plain":
        return plain
    sliding = plain * seq_len / config.eval.stride
    if way == "sliding":
        return sliding
    frozen = 2 * block_weights(config.model) * config.ttt.freeze_blocks
    train = training_flops_per_token(config.model, seq_len) - frozen
    return sliding + config.ttt.epochs * num_targets * train


def state_bytes(model: Any, averages: int = 1) -> int:
    """A checkpoint: weights, their averages, and at most two fp32 moments a parameter."""
    return (12 + 4 * averages) * num_params(model)
