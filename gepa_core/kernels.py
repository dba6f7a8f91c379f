"""Hand-written gradients for a CPU, where a pass over activations costs as much as a small product.

A GPU compiles the plain expressions into fused kernels; a CPU runs one operation at a time, and autograd's
own backward takes two to four times the passes of these. Each function is the plain expression elsewhere;
both agree up to rounding (tests/test_model.py). Without gradients there is nothing to save either: then
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
_SLAB = 1 << 17  # logits at a time: 0.5 MB, within a core's L2 cache
_MAX_CAP = 40.0  # exp(-2*cap) must not vanish


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


def activation_dtype(product_dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What activations are in where matrix products are in `product_dtype`."""
    by_hand = device.type == "cpu" and not (torch.compiler.is_compiling() or _plain)
    return torch.float32 if by_hand else product_dtype


def linear(x: Tensor, weight: Tensor, product_dtype: torch.dtype) -> Tensor:
    """x [...,in] @ weight.T [in,out], multiplied in `product_dtype`, in the dtype of x."""
    if x.dtype == product_dtype or not _on_cpu(x):
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


def capped_nll(
    h: Tensor, weight: Tensor, targets: Tensor, cap: float, product_dtype: torch.dtype = torch.float32
) -> Tensor:
    """nll [N] (nats, fp32) of targets [N] under cap*tanh(h @ weight.T / cap); h [N,D], weight [V,D].

    """
    if _in_slabs(h, cap) and not torch.is_grad_enabled():
        return _nll_in_slabs(h, weight, targets, cap, product_dtype)
    return F.cross_entropy(capped(linear(h, weight, product_dtype), cap), targets, reduction="none")


def capped_cross_entropy(
    h: Tensor, weight: Tensor, targets: Tensor, cap: float, product_dtype: torch.dtype = torch.float32
) -> Tensor:
    """Mean of `capped_nll` (fp32 scalar)."""
    if _in_slabs(h, cap) and torch.is_grad_enabled():
        return _loss_in_slabs(h, weight, targets, cap, product_dtype)
    return capped_nll(h, weight, targets, cap, product_dtype).mean()


def capped(logits: Tensor, cap: float) -> Tensor:
    """cap * tanh(logits / cap), fp32."""
    if _overwriting(logits):
        return (logits * (2.0 / cap)).sigmoid_().mul_(2.0 * cap).sub_(cap)  # faster than tanh
    return cap * torch.tanh(logits.float() / cap)


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


def _in_slabs(h: Tensor, cap: float) -> bool:
    """The head is by hand in compiled code, too: what a compiler makes of it takes twice as long."""
    return h.device.type == "cpu" and h.dtype == torch.float32 and cap <= _MAX_CAP and not _plain


@torch.compiler.disable
def _nll_in_slabs(h: Tensor, weight: Tensor, targets: Tensor, cap: float, dtype: torch.dtype) -> Tensor:
    slabs = _softmax_slabs(h, weight, cap, dtype)
    return torch.cat([_target_nll(p, targets[rows]) for rows, _, p in slabs])


@torch.compiler.disable
def _loss_in_slabs(h: Tensor, weight: Tensor, targets: Tensor, cap: float, dtype: torch.dtype) -> Tensor:
    return _CappedCrossEntropy.apply(h, weight, targets, cap, dtype)


def _softmax_slabs(
    h: Tensor, weight: Tensor, cap: float, dtype: torch.dtype
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rows of h, s = sigmoid(2z/cap) and p = softmax(cap*tanh(z/cap)) of their logits z: a slab at a time,
    in buffers that stay in the cache; the next slab overwrites them.

    cap*tanh(z/cap) = 2*cap*s - cap, a sixth of the time of tanh; the shift by cap is nothing to a softmax,
    whose terms stay above exp(-2*cap).
    """
    num_rows = max(1, min(len(h), _SLAB // len(weight)))
    buffers = torch.empty(2, num_rows, len(weight))
    rows_of_h, columns = h.to(dtype), weight.to(dtype).mT
    for lo in range(0, len(h), num_rows):
        rows = slice(lo, min(lo + num_rows, len(h)))
        s, p = buffers[:, : rows.stop - lo]
        if dtype == s.dtype:
            torch.mm(rows_of_h[rows], columns, out=s)
        else:
            s.copy_(rows_of_h[rows] @ columns)
        s.mul_(2.0 / cap).sigmoid_()
        torch.softmax(torch.mul(s, 2.0 * cap, out=p), dim=-1, out=p)
        yield rows, s, p


def _target_nll(p: Tensor, targets: Tensor) -> Tensor:
    return p.gather(1, targets[:, None]).log_().neg_().squeeze(1)


class _CappedCrossEntropy(torch.autograd.Function):
    """Finds the gradient on the way forward, while the logits are at hand."""

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, weight: Tensor, targets: Tensor, cap: float, dtype: torch.dtype
    ) -> Tensor:
        nll = h.new_zeros(())
        dh, dweight = torch.empty_like(h), torch.zeros(weight.shape)
        matrix = weight.to(dtype)
        for rows, s, p in _softmax_slabs(h, weight, cap, dtype):
            nll += _target_nll(p, targets[rows]).sum()
            p.scatter_add_(1, targets[rows, None], p.new_full((len(p), 1), -1.0))
            p.mul_(s).addcmul_(p, s, value=-1.0)  # times s*(1-s), a quarter of the derivative
            if dtype == p.dtype:
                torch.mm(p, matrix, out=dh[rows])
                dweight.addmm_(p.mT, h[rows])
            else:
                d = p.to(dtype)
                dh[rows] = d @ matrix
                dweight += d.mT @ h[rows].to(dtype)
        ctx.save_for_backward(dh, dweight)
        ctx.scale = 4.0 / len(h)
        return nll.div_(len(h))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        dh, dweight = ctx.saved_tensors
        scale = dloss * ctx.scale
        return dh * scale, dweight * scale, None, None, None
