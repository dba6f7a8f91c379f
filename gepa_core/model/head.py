"""The head's loss: cross-entropy of soft-capped logits, and on a CPU its gradient by hand.

There the logits of a slab of rows stay in the cache, and the gradient is found on the way forward.

Shape letters: N positions, D width, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from gepa_core.model.kernels import linear, on_cpu

_SLAB = 1 << 17  # logits at a time: 0.5 MB, within a core's L2 cache
_MAX_CAP = 40.0  # exp(-2*cap) must not vanish


def capped(logits: Tensor, cap: float) -> Tensor:
    """cap * tanh(logits / cap), fp32."""
    return cap * torch.tanh(logits.float() / cap)


def capped_nll(
    h: Tensor, weight: Tensor, targets: Tensor, cap: float, product_dtype: torch.dtype = torch.float32
) -> Tensor:
    """nll [N] (nats, fp32) of targets [N] under cap*tanh(h @ weight.T / cap); h [N,D], weight [V,D]."""
    if _in_slabs(h, cap) and not torch.is_grad_enabled():
        slabs = _softmax_slabs(h, weight, cap, product_dtype)
        return torch.cat([_target_nll(p, targets[rows]) for rows, _, p in slabs])
    return F.cross_entropy(capped(linear(h, weight, product_dtype), cap), targets, reduction="none")


def capped_cross_entropy(
    h: Tensor, weight: Tensor, targets: Tensor, cap: float, product_dtype: torch.dtype = torch.float32
) -> Tensor:
    """Mean of `capped_nll`, an fp32 scalar."""
    if _in_slabs(h, cap) and torch.is_grad_enabled():
        return _CappedCrossEntropy.apply(h, weight, targets, cap, product_dtype)
    return capped_nll(h, weight, targets, cap, product_dtype).mean()


def _in_slabs(h: Tensor, cap: float) -> bool:
    return on_cpu(h) and cap <= _MAX_CAP


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
