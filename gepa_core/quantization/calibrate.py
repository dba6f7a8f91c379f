"""How much an error in each matrix costs, measured on training tokens: what `rd` weighs distortion with.

The loss is expanded to second order with Kronecker-factored curvature (Martens & Grosse, "Optimizing Neural
Networks with Kronecker-factored Approximate Curvature", arXiv:1503.05671): for y = Wx, an error D in W costs
about 1/2 sum_r g_r D_r X D_r', g_r the mean squared gradient at output r, X the second moment of the inputs.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from gepa_core.errors import DataError

_BATCH_TOKENS = 8192


@dataclass(frozen=True)
class Sensitivity:
    """rows [out] and columns [in, in], fp32.

    An error D [out, in] costs 1/2 sum_r rows[r] D_r columns D_r'.
    """

    rows: Tensor
    columns: Tensor


class _Moments:
    """Sums over tokens for one module: squared gradients of its outputs, second moments of its inputs."""

    def __init__(self, weight: Tensor, device: torch.device) -> None:
        outputs, inputs = weight.shape
        self.rows = torch.zeros(outputs, device=device)
        self.columns = torch.zeros(inputs, inputs, device=device)

    def watch_linear(self, module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        x = args[0].detach().flatten(0, -2).float()
        self.columns.addmm_(x.T, x)
        output.register_hook(self._add_rows)

    def watch_embedding(self, module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        # A table is a Linear on one-hot inputs: the curvature of its rows is how often each is read, and what
        # couples the numbers within a row is their gradients.
        self.rows += torch.bincount(args[0].flatten(), minlength=len(self.rows))
        output.requires_grad_()  # the weights are frozen: the graph starts here
        output.register_hook(self._add_columns)

    def _add_rows(self, gradient: Tensor) -> None:
        self.rows += gradient.flatten(0, -2).float().square().sum(dim=0)

    def _add_columns(self, gradient: Tensor) -> None:
        g = gradient.flatten(0, -2).float()
        self.columns.addmm_(g.T, g)

    def mean(self, tokens: int) -> Sensitivity:
        return Sensitivity((self.rows / tokens).cpu(), (self.columns / tokens).cpu())


def calibrate(model: Any, tokens: NDArray[Any], seq_len: int, seed: int = 0) -> dict[str, Sensitivity]:
    """Sensitivity of every Linear and Embedding of a GEPA model, by parameter name.

    tokens: uint16 [N] of *training* text: a quantizer that has seen the validation text would leak it.
    Targets are drawn from the model itself (by `seed`), so that the squared gradients estimate its
    curvature and not its present error. Raises DataError if `tokens` hold no whole sequence of `seq_len`.
    """
    batches = list(_batches(tokens, seq_len))
    device = next(model.parameters()).device
    generator = torch.Generator(device=device).manual_seed(seed)
    head = _Moments(model.tok_emb.weight, device)
    with _watched(model, device) as moments:
        for batch in batches:
            _backward(model, batch.to(device), head, generator)
    count = sum(batch.numel() for batch in batches)
    result = {f"{name}.weight": m.mean(count) for name, m in moments.items()}
    result["tok_emb.weight"] = _tied(result["tok_emb.weight"], head.mean(count))
    return result


def _batches(tokens: NDArray[Any], seq_len: int) -> Iterator[Tensor]:
    whole = len(tokens) // seq_len
    if not whole:
        raise DataError(f"calibration needs {seq_len} training tokens at least, got {len(tokens)}")
    rows = torch.from_numpy(tokens[: whole * seq_len].astype(np.int64)).view(whole, seq_len)
    return iter(rows.split(max(1, _BATCH_TOKENS // seq_len)))


@contextlib.contextmanager
def _watched(model: nn.Module, device: torch.device) -> Iterator[dict[str, _Moments]]:
    """Hooks on every Linear and Embedding; weights are frozen meanwhile: only activations need gradients."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    moments: dict[str, _Moments] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            moments[name] = seen = _Moments(module.weight, device)
            watch = seen.watch_linear if isinstance(module, nn.Linear) else seen.watch_embedding
            handles.append(module.register_forward_hook(watch))
    try:
        yield moments
    finally:
        for handle in handles:
            handle.remove()
        for parameter in trainable:
            parameter.requires_grad_(True)


def _backward(model: Any, ids: Tensor, head: _Moments, generator: torch.Generator) -> None:
    """One batch [B,T]: fills the hooks' moments, and those of the tied head, which is no module."""
    hidden = model.features(ids)
    leaf = hidden.detach().requires_grad_()
    logits = model.head(leaf).flatten(0, 1)
    log_p = F.log_softmax(logits, dim=-1)
    targets = torch.multinomial(log_p.detach().exp(), 1, generator=generator)
    F.nll_loss(log_p, targets.flatten(), reduction="sum").backward()
    assert leaf.grad is not None
    hidden.backward(leaf.grad)

    x = leaf.detach().flatten(0, -2).float()
    head.columns.addmm_(x.T, x)
    p = log_p.detach().exp()
    slope = 1 - (logits.detach() / model.cfg.logit_softcap).square()  # of the soft cap
    head.rows += (p * (1 - p) * slope.square()).sum(dim=0)


def _tied(table: Sensitivity, head: Sensitivity) -> Sensitivity:
    """One matrix in two uses: the sum of both costs, brought to the form rows x columns that is nearest."""
    table_trace, head_trace = table.columns.trace(), head.columns.trace()
    columns = table.rows.sum() * table.columns + head.rows.sum() * head.columns
    rows = (table.rows * table_trace + head.rows * head_trace) / columns.trace().clamp_min(1e-30)
    return Sensitivity(rows, columns)
