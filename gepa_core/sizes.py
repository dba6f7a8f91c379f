"""The model's own count of floating-point operations, for utilisation (MFU). Pure."""

from typing import Any


def matmul_weights(cfg: Any) -> int:
    """Elements of the matrices that every token is multiplied with, the tied head included."""
    D, kv_width = cfg.width, cfg.num_kv_heads * (cfg.width // cfg.num_heads)
    block = 2 * D * D + 2 * D * kv_width + 2 * D * cfg.mlp_hidden
    value_embedding = cfg.ve_dim * kv_width if cfg.ve_layers else 0
    return cfg.num_layers * block + cfg.vocab_size * D + cfg.bigram_dim * D + value_embedding


def forward_flops_per_token(cfg: Any, seq_len: int) -> float:
    """Matrix products and causal attention, a multiply-add as two; the mean over a sequence's positions.

    Norms, embeddings and other elementwise work are left out, as usual. 76.2e6 at the reference size.
    """
    attention = cfg.num_layers * 4 * cfg.width * (seq_len + 1) / 2
    return 2 * matmul_weights(cfg) + attention


def training_flops_per_token(cfg: Any, seq_len: int) -> float:
    """Forward and backward, which is twice the forward. 228.7e6 at the reference size."""
    return 3 * forward_flops_per_token(cfg, seq_len)
