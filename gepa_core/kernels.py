"""Hand-written gradients for fp32 on a CPU, where a pass over activations costs as much as a small product.

A GPU compiles the plain expressions into fused kernels; a CPU runs one operation at a time, and autograd's
own backward takes two to four times the passes of these. Each function is the plain expression elsewhere;
both agree up to rounding (tests/test_model.py). Without gradients there is nothing to save either: then
intermediate results are overwritten.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_EPS = torch.finfo(torch.float32).eps  # F.rms_norm's own
_SLAB = 1 << 17  # logits at a time: 0.5 MB, within a core's L2 cache
_MAX_CAP = 80.0  # exp(cap) * vocabulary must stay finite


_plain = False


@contextlib.contextmanager
def plain_expressions() -> Iterator[None]:
    """Switches everything by hand off: for ablation, and for the baseline of the benchmarks."""
    global _plain
    before, _plain = _plain, True
    try:
        yield
    finally:
        _plain = before


def _on_cpu(x: Tensor) -> bool:
    if torch.compiler.is_compiling() or _plain:
        return False
    return x.device.type == "cpu" and x.dtype == torch.float32


def _by_hand(x: Tensor) -> bool:
    return _on_cpu(x) and torch.is_grad_enabled()


def _overwriting(x: Tensor) -> bool:
    return _on_cpu(x) and not torch.is_grad_enabled()


def rms_norm(x: Tensor, scale: float = 1.0) -> Tensor:
    """scale * x / rms(x) over the last dimension."""
    if _by_hand(x):
        return _RMSNorm.apply(x, scale)
    if _overwriting(x):
        return x * _rms_factor(x, scale)
    y = F.rms_norm(x, (x.shape[-1],))
    return y if scale == 1.0 else y * scale


def relu_squared_affine(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """relu(x)^2 * scale + bias; x [...,H], scale and bias [H]."""
    if _by_hand(x):
        return _ReluSquaredAffine.apply(x, scale, bias)
    if _overwriting(x):
        r = F.relu(x)
        return torch.addcmul(bias, r.mul_(r), scale, out=r)
    return torch.addcmul(bias, F.relu(x).square(), scale)


def capped_cross_entropy(h: Tensor, weight: Tensor, targets: Tensor, cap: float) -> Tensor:
    """Mean cross-entropy (fp32) of targets [N] under cap*tanh(h @ weight.T / cap); h [N,D], weight [V,D]."""
    if _by_hand(h) and cap <= _MAX_CAP:
        return _CappedCrossEntropy.apply(h, weight, targets, cap)
    return F.cross_entropy(capped(F.linear(h, weight), cap), targets)


def capped(logits: Tensor, cap: float) -> Tensor:
    """cap * tanh(logits / cap), fp32."""
    if _overwriting(logits):
        return (logits * (1.0 / cap)).tanh_().mul_(cap)
    return cap * torch.tanh(logits.float() / cap)


def _rms_factor(x: Tensor, scale: float) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm.square_().div_(x.shape[-1]).add_(_EPS).rsqrt_().mul_(scale)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        factor = _rms_factor(x, scale)
        y = x * factor
        ctx.save_for_backward(y, factor)
        ctx.scale = scale
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        y, factor = ctx.saved_tensors
        along = (dy * y).sum(-1, keepdim=True).mul_(-1.0 / (y.shape[-1] * ctx.scale**2))
        return torch.addcmul(dy, y, along).mul_(factor), None


class _ReluSquaredAffine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        r = F.relu(x)
        ctx.save_for_backward(r, scale)
        return torch.addcmul(bias, r, r * scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r, scale = ctx.saved_tensors
        rows = (-1, r.shape[-1])
        dbias = dy.reshape(rows).sum(0)
        t = dy * r
        dscale = (t * r).view(rows).sum(0)
        return t.mul_(2.0 * scale), dscale, dbias


class _CappedCrossEntropy(torch.autograd.Function):
    """Finds the gradient on the way forward, in slabs of rows whose logits stay in the cache."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, targets: Tensor, cap: float) -> Tensor:
        N, slab = len(h), max(1, _SLAB // len(weight))
        nll = h.new_zeros(())
        dh, dweight = torch.empty_like(h), torch.zeros_like(weight)
        for lo in range(0, N, slab):
            rows, target = h[lo : lo + slab], targets[lo : lo + slab, None]
            t = (rows @ weight.mT).mul_(1.0 / cap).tanh_()
            p = (t * cap).exp_()  # finite without a shift by the maximum: |t * cap| <= cap
            sums = p.sum(-1, keepdim=True)
            nll += sums.log().sum() - cap * t.gather(1, target).sum()
            p.div_(sums).scatter_add_(1, target, -torch.ones_like(target, dtype=p.dtype))
            p.addcmul_(p, t.square_(), value=-1.0)
            torch.mm(p, weight, out=dh[lo : lo + slab])
            dweight.addmm_(p.mT, rows)
        ctx.save_for_backward(dh.div_(N), dweight.div_(N))
        return nll.div_(N)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor, Tensor, None, None]:
        dh, dweight = ctx.saved_tensors
        return dh * dloss, dweight * dloss, None, None
