"""The GEPA transformer: a U-Net of pre-norm blocks with GQA, XSA, value embeddings and a bigram embedding.

Source: openai/parameter-golf, pull request 644, whose parameter names are kept so that its artifacts load.

Shape letters: B batch, T time, D width, V vocabulary, H query heads, K key/value heads, C head dim.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gepa_core.model.head import capped, capped_cross_entropy, capped_nll
from gepa_core.model.kernels import (
    activation_dtype,
    folds,
    linear,
    norm_rotate,
    relu_squared_affine,
    rms_norm,
)

# Small parameters that stay fp32 whatever the storage of the matrices, and are no Muon matrices.
CONTROL_NAMES = (
    "attn_scale",
    "mlp_scale",
    "resid_mix",
    "q_gain",
    "skip_weights",
    "skip_gates",
    "smear_gate",
    "bigram",
    "ve_shared",
    "ve_layer_scales",
)

_MIN_ORTHOGONAL_SIDE = 64  # Linears with a smaller side keep torch's own initialisation


def compute_dtype(cfg: Any) -> torch.dtype:
    """Of matrix products."""
    return torch.bfloat16 if cfg.compute_dtype == "bf16" else torch.float32


class Linear(nn.Linear):
    """[..., in] -> [..., out], without bias; multiplied in the dtype that the configuration says."""

    def __init__(self, cfg: Any, inputs: int, outputs: int, zero_init: bool = False) -> None:
        self.zero_init, self.dtype = zero_init, compute_dtype(cfg)
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.dtype)


def add_scaled(residual: Tensor, gain: Tensor, matrix: Linear, x: Tensor) -> Tensor:
    """residual [...,out] + gain [out] * matrix(x [...,in])."""
    if folds(x):
        return residual + linear(x, matrix.weight * gain[:, None], matrix.dtype)
    return torch.addcmul(residual, gain.to(x.dtype), matrix(x))


def rotary_table(
    length: int, dims: int, base: float, train_length: int, precision: str = "fp32"
) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, dims/2], fp32, for positions 0..length-1.

    Beyond `train_length` the base grows (NTK-aware scaling). "bf16_published" rounds the frequencies, the
    positions and the angles to bf16, as the published code does: positions above 256 collapse to multiples
    of 2, 4, 8.
    """
    if length > train_length and dims > 2:
        base *= (length / train_length) ** (dims / (dims - 2))
    frequencies = 1.0 / base ** (torch.arange(0, dims, 2, dtype=torch.float32) / dims)
    positions = torch.arange(length, dtype=torch.float32)
    if precision == "bf16_published":
        frequencies, positions = frequencies.bfloat16(), positions.bfloat16()
    angles = torch.outer(positions, frequencies)
    return angles.cos().float(), angles.sin().float()


def tail(x: Tensor, last: int | None) -> Tensor:
    """The last positions of x [B,T,...]; None: all, without the copy that the gradient of a slice makes."""
    return x if last is None else x[:, -last:]


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q [B,S,H,C] are the last S of the T positions of k, v [B,T,K,C]; returns [B,S,H,C]."""
    S, T = q.shape[1], k.shape[1]
    mask = None
    if S < T:
        mask = torch.ones(S, T, dtype=torch.bool, device=q.device).tril(T - S)
    if q.is_cuda and (mask is not None or q.dtype == torch.float32):
        # The fused kernels for fp32 and for masks know no grouped queries; plain mathematics would step in.
        k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], dim=2) for x in (k, v))
    y = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return y.transpose(1, 2)


def exclude_self(y: Tensor, v: Tensor) -> Tensor:
    """XSA, exclusive self-attention: y [B,T,H,C] less its part along the position's own value v [B,T,K,C]."""
    B, T, H, C = y.shape
    unit = F.normalize(v, dim=-1).unsqueeze(3)  # [B,T,K,1,C]
    grouped = y.reshape(B, T, v.shape[2], -1, C)
    return (grouped - (grouped * unit).sum(-1, keepdim=True) * unit).view(B, T, H, C)


class Attention(nn.Module):
    def __init__(self, cfg: Any, layer: int) -> None:
        super().__init__()
        D, kv_width = cfg.width, cfg.num_kv_heads * cfg.head_dim
        self.head_dim = cfg.head_dim
        self.exclude_self = layer >= cfg.num_layers - cfg.xsa_last_n
        self.q_gain_init = cfg.q_gain_init
        self.c_q = Linear(cfg, D, D)
        self.c_k = Linear(cfg, D, kv_width)
        self.c_v = Linear(cfg, D, kv_width)
        self.proj = Linear(cfg, D, D, zero_init=True)
        self.q_gain = nn.Parameter(torch.empty(cfg.num_heads))

    def forward(
        self, x: Tensor, value_embedding: Tensor | None, cos: Tensor, sin: Tensor, last: int | None
    ) -> Tensor:
        """x [B,T,D] -> what is yet to be projected, [B,S,D], S = `last` or T."""
        heads = (-1, self.head_dim)
        q = self.c_q(tail(x, last)).unflatten(-1, heads)
        k = self.c_k(x).unflatten(-1, heads)
        v = self.c_v(x)
        if value_embedding is not None:
            v = v + value_embedding
        v = v.unflatten(-1, heads)
        S = q.shape[1]
        q = norm_rotate(q, cos[-S:], sin[-S:], self.q_gain.to(q.dtype)[:, None])
        k = norm_rotate(k, cos, sin)
        y = causal_attention(q, k, v)
        if self.exclude_self:
            y = exclude_self(y, tail(v, last))
        return y.flatten(2)


class MLP(nn.Module):
    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.up_proj = Linear(cfg, cfg.width, cfg.mlp_hidden)
        self.down_proj = Linear(cfg, cfg.mlp_hidden, cfg.width, zero_init=True)
        self.scale = nn.Parameter(torch.empty(cfg.mlp_hidden))
        self.bias = nn.Parameter(torch.empty(cfg.mlp_hidden))

    def forward(self, residual: Tensor, x: Tensor, gain: Tensor) -> Tensor:
        """residual [B,S,D] + gain [D] times what this makes of x [B,S,D]."""
        if folds(x):
            weight = self.down_proj.weight * gain[:, None]
            bias = (weight @ self.bias).to(x.dtype)
            hidden = F.relu(self.up_proj(x)).square()
            return residual + linear(hidden, weight * self.scale, self.down_proj.dtype) + bias
        scale, bias = self.scale.to(x.dtype), self.bias.to(x.dtype)
        hidden = relu_squared_affine(self.up_proj(x), scale, bias)
        return torch.addcmul(residual, gain.to(x.dtype), self.down_proj(hidden))


class Block(nn.Module):
    def __init__(self, cfg: Any, layer: int) -> None:
        super().__init__()
        self.norm_scale = 1.0 / math.sqrt(layer + 1)
        self.attn = Attention(cfg, layer)
        self.mlp = MLP(cfg)
        self.attn_scale = nn.Parameter(torch.empty(cfg.width))
        self.mlp_scale = nn.Parameter(torch.empty(cfg.width))
        self.resid_mix = nn.Parameter(torch.empty(2, cfg.width))

    def forward(
        self,
        x: Tensor,
        x0: Tensor,
        value_embedding: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        last: int | None = None,
    ) -> Tensor:
        mix = self.resid_mix.to(x.dtype)
        x = torch.addcmul(mix[1] * x0, mix[0], x)
        attended = self.attn(rms_norm(x, self.norm_scale), value_embedding, cos, sin, last)
        x = add_scaled(tail(x, last), self.attn_scale, self.attn.proj, attended)
        return self.mlp(x, rms_norm(x, self.norm_scale), self.mlp_scale)


class BigramEmbedding(nn.Module):
    """Adds an embedding of the hashed pair (previous, current) token."""

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.xor = cfg.bigram == "xor"
        self.buckets = cfg.bigram_buckets
        self.embed = nn.Embedding(cfg.bigram_buckets, cfg.bigram_dim)
        self.proj = Linear(cfg, cfg.bigram_dim, cfg.width, zero_init=True)
        if self.xor:
            self.scale = nn.Parameter(torch.empty(()))

    def hash(self, ids: Tensor, starts: Tensor | None = None) -> Tensor:
        """ids [B,T] -> buckets [B,T]. Where `starts` [B,T] is true, there is no token before."""
        previous = F.pad(ids[:, :-1], (1, 0))
        if starts is not None:
            previous = previous.masked_fill(starts, 0)
        if not self.xor:
            return (1009 * previous + ids) % self.buckets
        # The published code hashes in int32: ids below 59,000 do not overflow it, larger ones wrap round.
        mixed = (36313 * ids.int()) ^ (27191 * previous.int())
        hashed = (mixed % (self.buckets - 1)).to(ids.dtype)
        hashed = torch.cat((torch.full_like(ids[:, :1], self.buckets - 1), hashed[:, 1:]), dim=1)
        return hashed if starts is None else hashed.masked_fill(starts, self.buckets - 1)

    def forward(self, ids: Tensor, dtype: torch.dtype, starts: Tensor | None = None) -> Tensor:
        x = self.proj(self.embed(self.hash(ids, starts)).to(dtype))
        return x * self.scale.to(dtype) if self.xor else x


class ValueEmbedding(nn.Module):
    """A token embedding added to the values of some layers, scaled per layer by the caller.

    One as wide as the values is added as it is; another is projected to their width.
    """

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        kv_width = cfg.num_kv_heads * cfg.head_dim
        self.embed = nn.Embedding(cfg.vocab_size, cfg.ve_dim)
        self.proj = Linear(cfg, cfg.ve_dim, kv_width, zero_init=True) if cfg.ve_dim != kv_width else None
        self.scale = nn.Parameter(torch.empty(()))

    def forward(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        x = self.embed(ids).to(dtype)
        return (x if self.proj is None else self.proj(x)) * self.scale.to(dtype)


class SmearGate(nn.Module):
    """Mixes each position with the one before, per channel. [B,T,D] -> [B,T,D].

    Where `starts` [B,T] is true, there is none before: zeros, as before position 0.
    """

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.empty(cfg.width))

    def forward(self, x: Tensor, starts: Tensor | None = None) -> Tensor:
        previous = F.pad(x[:, :-1], (0, 0, 1, 0))
        if starts is not None:
            previous = previous.masked_fill(starts[..., None], 0.0)
        return torch.lerp(x, previous, self.gate.sigmoid().to(x.dtype))


class GEPA(nn.Module):
    """The model; `cfg` is a ModelConfig or has its attributes. `init_weights` or a state dict fills it."""

    rotary: Tensor

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.cfg = cfg
        D = cfg.width
        self.dtype = compute_dtype(cfg)
        self.num_encoder_layers = cfg.num_layers // 2
        num_skips = min(self.num_encoder_layers, cfg.num_layers - self.num_encoder_layers)
        self.ve_index = {layer: i for i, layer in enumerate(cfg.ve_layers)}

        self.tok_emb = nn.Embedding(cfg.vocab_size, D)
        self.bigram_emb = BigramEmbedding(cfg)
        self.smear_gate = SmearGate(cfg)
        self.skip_weights = nn.Parameter(torch.empty(num_skips, D))
        self.skip_gates = nn.Parameter(torch.empty(num_skips, D))
        self.blocks = nn.ModuleList(Block(cfg, i) for i in range(cfg.num_layers))
        if self.ve_index:
            self.ve_shared = ValueEmbedding(cfg)
            self.ve_layer_scales = nn.ParameterList(torch.empty(1) for _ in self.ve_index)
        if cfg.embedding_dtype == "bf16":
            self.tok_emb.bfloat16()
        # One table for training and evaluation: shorter sequences read a prefix of it.
        self.register_buffer("rotary", self._rotary_table(cfg.rope_train_seq_len), persistent=False)

    def _rotary_table(self, length: int) -> Tensor:
        cfg = self.cfg
        table = rotary_table(length, cfg.rope_dims, cfg.rope_base, cfg.rope_train_seq_len, cfg.rope_precision)
        return torch.stack(table).unsqueeze(2)  # [2,T,1,R]

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """The published initialisation, a function of `seed` alone. Matrices are rounded to bf16."""
        generator = torch.Generator().manual_seed(seed)
        cfg = self.cfg
        for name, module in self.named_modules():
            if isinstance(module, Linear):
                _init_linear(module, name, cfg.num_layers, generator)
        self.tok_emb.weight.copy_(
            torch.empty(self.tok_emb.weight.shape).normal_(0.0, cfg.embed_init_std, generator=generator)
        )
        if self.bigram_emb.xor:
            self.bigram_emb.embed.weight.zero_()
            self.bigram_emb.scale.fill_(0.05)
        else:
            self.bigram_emb.embed.weight.normal_(0.0, 0.01, generator=generator)
        self.smear_gate.gate.zero_()
        self.skip_weights.fill_(1.0)
        self.skip_gates.zero_()
        for block in self.blocks:
            assert isinstance(block, Block)
            block.attn.q_gain.fill_(cfg.q_gain_init)
            for ones in (block.attn_scale, block.mlp_scale, block.resid_mix[0], block.mlp.scale):
                ones.fill_(1.0)
            for zeros in (block.resid_mix[1], block.mlp.bias):
                zeros.zero_()
        if self.ve_index:
            self.ve_shared.embed.weight.normal_(0.0, 0.01, generator=generator)
            self.ve_shared.scale.fill_(0.1)
            for scale in self.ve_layer_scales:
                scale.fill_(1.0)
        for parameter in self.parameters():
            if parameter.ndim >= 2:
                parameter.copy_(parameter.bfloat16())

    def features(self, ids: Tensor, last: int | None = None) -> Tensor:
        """ids [B,T] -> normalised final hidden states [B,S,D] of the last S = `last` (None: all T) positions.

        Exact: with `last`, the last block spends queries, projections, MLP and norm on those positions alone.
        """
        length = ids.shape[1]
        table = self.rotary[:, :length]
        if length > table.shape[1]:
            table = self._rotary_table(length).to(ids.device)
        dtype = activation_dtype(self.dtype, ids.device)
        cos, sin = table.to(dtype).unbind()

        starts = None if self.cfg.document_start is None else ids == self.cfg.document_start
        x = self.tok_emb(ids).to(dtype) + self.bigram_emb(ids, dtype, starts)
        x = x0 = self.smear_gate(rms_norm(x), starts)
        value_embedding = self.ve_shared(ids, dtype) if self.ve_index else None
        skips: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            if i >= self.num_encoder_layers and skips:
                j = i - self.num_encoder_layers
                skip = self.skip_weights[j].to(x.dtype) * skips.pop()
                x = torch.lerp(skip, x, self.skip_gates[j].sigmoid().to(x.dtype))
            value = None
            if value_embedding is not None and i in self.ve_index:
                value = value_embedding * self.ve_layer_scales[self.ve_index[i]].to(x.dtype)
            x = block(x, x0, value, cos, sin, last if i == self.cfg.num_layers - 1 else None)
            if i < self.num_encoder_layers:
                skips.append(x)
        return rms_norm(x)

    def head(self, h: Tensor) -> Tensor:
        """h [...,D] -> soft-capped logits [...,V], fp32; the head is the token embedding."""
        return capped(linear(h, self.tok_emb.weight, self.dtype), self.cfg.logit_softcap)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [B,T] -> soft-capped logits [B,T,V], fp32."""
        return self.head(self.features(ids))

    def head_nll(self, h: Tensor, targets: Tensor) -> Tensor:
        """nll [B,n] (nats, fp32) of targets [B,n] after the last n of the hidden states h [B,S,D]."""
        h = h[:, -targets.shape[1] :].flatten(0, 1)
        weight, cap = self.tok_emb.weight, self.cfg.logit_softcap
        return capped_nll(h, weight, targets.flatten(), cap, self.dtype).view_as(targets)

    def head_loss(self, h: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy (nats, fp32 scalar) of targets [B,T] (int64) after hidden states h [B,T,D]."""
        weight, cap = self.tok_emb.weight, self.cfg.logit_softcap
        return capped_cross_entropy(h.flatten(0, 1), weight, targets.flatten(), cap, self.dtype)

    def nll(self, ids: Tensor, targets: Tensor, last: int | None = None) -> Tensor:
        """As `head_nll`, of targets after ids [B,T]; the last block works for the last positions alone."""
        return self.head_nll(self.features(ids, last), targets)

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """As `head_loss`, of targets after ids [B,T]."""
        return self.head_loss(self.features(ids), targets)


def _init_linear(module: Linear, name: str, num_layers: int, generator: torch.Generator) -> None:
    weight = module.weight
    is_block_output = name.endswith((".attn.proj", ".mlp.down_proj"))
    if min(weight.shape) >= _MIN_ORTHOGONAL_SIDE and not is_block_output:
        nn.init.orthogonal_(weight, generator=generator)
        if name.endswith(".proj"):
            weight.mul_(1.0 / math.sqrt(2 * num_layers))
    elif module.zero_init:
        weight.zero_()
    else:
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
