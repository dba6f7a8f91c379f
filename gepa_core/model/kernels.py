"""Hand-written gradients for a CPU, where a pass over activations costs as much as a small product.

A GPU compiles the plain expressions into fused kernels; a CPU runs one operation at a time, and autograd's
own backward takes two to four times the passes of these. Each function is the plain expression elsewhere;
both agree up to rounding (tests/core/test_model.py). Without gradients there is nothing to save either: then
intermediate results are overwritten.

In bf16 a CPU gains on matrix products alone: there, activations stay fp32 between them.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_EPS = torch.finfo(torch.float32).eps  # F.rms_norm's own

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


def on_cpu(x: Tensor) -> bool:
    """Whether x is where things are done by hand."""
    if torch.compiler.is_compiling() or _plain:
        return False
    return x.device.type == "cpu" and x.dtype == torch.float32


def folds(x: Tensor) -> bool:
    """Whether scales are multiplied into matrices, not activations: where a GPU runs compiled code.

    It is the same mathematics. Their gradients are then sums over a matrix and not over all positions, which
    saves reading every activation once more.
    """
    return torch.compiler.is_compiling() and x.is_cuda and not _plain


def _by_hand(x: Tensor) -> bool:
    return on_cpu(x) and torch.is_grad_enabled()


def _overwriting(x: Tensor) -> bool:
    return on_cpu(x) and not torch.is_grad_enabled()


def activation_dtype(product_dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What activations are in where matrix products are in `product_dtype`."""
    by_hand = device.type == "cpu" and not (torch.compiler.is_compiling() or _plain)
    return torch.float32 if by_hand else product_dtype


def linear(x: Tensor, weight: Tensor, product_dtype: torch.dtype) -> Tensor:
    """x [...,in] @ weight.T [in,out], multiplied in `product_dtype`, in the dtype of x."""
    if x.dtype == product_dtype or not on_cpu(x):
        return F.linear(x, weight.to(x.dtype))
    if torch.is_grad_enabled():
        return _CastLinear.apply(x, weight, product_dtype)
    return F.linear(x.to(product_dtype), weight.to(product_dtype)).float()


def rms_norm(x: Tensor, scale: float = 1.0) -> Tensor:
    """scale * x / rms(x) over the last dimension."""
    if _by_hand(x):
        return _RMSNorm.apply(x, scale)
    if _overwriting(x):
        return x * _rms_factor(x, scale)
    y = F.rms_norm(x, (x.shape[-1],))
    return y if scale == 1.0 else y * scale


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the first 2*R of the C dims of x [B,T,heads,C]; cos, sin [T,1,R]; halves convention."""
    half = cos.shape[-1]
    x1, x2, rest = x.split((half, half, x.shape[-1] - 2 * half), dim=-1)
    return torch.cat((x1 * cos + x2 * sin, x2 * cos - x1 * sin, rest), dim=-1)


def norm_rotate(x: Tensor, cos: Tensor, sin: Tensor, gain: Tensor | None = None) -> Tensor:
    """gain * rotate(rms_norm(x)); gain [heads,1]."""
    if _by_hand(x):
        return _NormRotate.apply(x, cos, sin, x.new_ones(x.shape[-2], 1) if gain is None else gain)
    if _overwriting(x):
        factor = _rms_factor(x, 1.0)
        return _rotate_in_place(x * (factor if gain is None else factor * gain), cos, sin)
    y = rotate(rms_norm(x), cos, sin)
    return y if gain is None else y * gain


def relu_squared_affine(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """relu(x)^2 * scale + bias; x [...,H], scale and bias [H]."""
    if _by_hand(x):
        return _ReluSquaredAffine.apply(x, scale, bias)
    if _overwriting(x):
        r = F.relu(x)
        return torch.addcmul(bias, r.mul_(r), scale, out=r)
    return torch.addcmul(bias, F.relu(x).square(), scale)


def _rms_factor(x: Tensor, scale: float) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm.square_().div_(x.shape[-1]).add_(_EPS).rsqrt_().mul_(scale)


class _CastLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        rows, matrix = x.reshape(-1, x.shape[-1]).to(dtype), weight.to(dtype)
        ctx.save_for_backward(rows, matrix)
        return (rows @ matrix.mT).float().view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        rows, matrix = ctx.saved_tensors
        dx = dweight = None
        d = dy.reshape(-1, dy.shape[-1]).to(rows.dtype)
        if ctx.needs_input_grad[0]:
            dx = (d @ matrix).float().view(*dy.shape[:-1], -1)
        if ctx.needs_input_grad[1]:
            dweight = (d.mT @ rows).float()
        return dx, dweight, None


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


class _NormRotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, gain: Tensor) -> Tensor:
        factor = _rms_factor(x, 1.0)
        ctx.save_for_backward(x, factor, cos, sin, gain)
        return _rotate_in_place(x * (factor * gain), cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, Tensor]:
        x, factor, cos, sin, gain = ctx.saved_tensors
        dz = _rotate_in_place(dy.clone(memory_format=torch.contiguous_format), cos, -sin)  # turned back
        inner = (dz * x).sum(-1, keepdim=True).mul_(factor)
        dgain = inner.sum((0, 1))
        along = inner.mul_(factor).mul_(-1.0 / x.shape[-1])
        return torch.addcmul(dz, x, along).mul_(factor * gain), None, None, dgain


def _rotate_in_place(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[-1]
    x1, x2 = x[..., :half], x[..., half : 2 * half]
    turned = x1 * sin
    x1.mul_(cos).addcmul_(x2, sin)
    x2.mul_(cos).sub_(turned)
    return x
