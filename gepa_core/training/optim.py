"""Muon on block matrices, AdamW on the rest, an average of the weights: all over flat buffers.

Every parameter's fp32 values lie in one flat buffer; gradients, momenta and averages in others of the same
layout. So the reduction over ranks, the clip and the average are one operation each, and matrices of one
shape lie side by side: Newton-Schulz reads a stack of them without copying.

Sources: Muon, Jordan et al. 2024 (github.com/KellerJordan/Muon); AdamW, Loshchilov & Hutter 2019.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gepa_core.device import rank_and_world, sum_over_ranks
from gepa_core.model.gepa import CONTROL_NAMES, GEPA

_CPU_BATCH_NUMEL = 1 << 17  # larger matrices fill a core's cache one at a time (benchmarks/step.py)
_ALIGN = 64  # elements: every parameter starts on a 256-byte boundary, which vectorised kernels want
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def is_muon_matrix(name: str, parameter: Tensor) -> bool:
    """2-D block matrices, and the projection of the bigram embedding."""
    if name == "bigram_emb.proj.weight":
        return True
    return (
        name.startswith("blocks.") and parameter.ndim == 2 and not any(part in name for part in CONTROL_NAMES)
    )


def is_untrained(name: str) -> bool:
    """The scale of the xor bigram is held by no optimizer of the published code."""
    return name == "bigram_emb.scale"


def lr_factor(name: str, model: GEPA, decoder_multiplier: float) -> float:
    """Decoder blocks learn faster."""
    parts = name.split(".")
    in_decoder = parts[0] == "blocks" and int(parts[1]) >= model.num_encoder_layers
    return decoder_multiplier if in_decoder else 1.0


class FlatParameters:
    """The parameters of a model, their gradients and their moving averages in flat fp32 buffers.

    fp32 parameters become views of `values`. Others (the bf16 token embedding) keep their own storage; their
    gradient is accumulated in fp32 all the same, and their slot of `values` is a copy for the average.
    The layout is a function of the model alone: that of the reduction over ranks never changes.
    """

    def __init__(self, model: GEPA, decoder_multiplier: float, num_averages: int = 1) -> None:
        named = sorted(
            model.named_parameters(), key=lambda item: _layout_key(item, model, decoder_multiplier)
        )
        self.parameters: dict[str, nn.Parameter] = dict(named)
        self.offsets: dict[str, int] = {}
        size = 0
        for name, parameter in named:
            self.offsets[name] = size
            size += padded(parameter.numel())
        device = named[0][1].device
        self.size = size
        self.values = torch.zeros(size, device=device)
        self.averages = [torch.zeros(size, device=device) for _ in range(num_averages)]
        # The loss and the ranks' votes travel behind the gradients: one reduction serves all.
        self._reduced = torch.zeros(size + _ALIGN, device=device)
        self.gradients = self._reduced[:size]
        self.loss = self._reduced[size]
        self.votes = self._reduced[size + 1 : size + 3]
        for name, parameter in named:
            self.view(self.values, name).copy_(parameter.detach())
            if parameter.dtype == torch.float32:
                parameter.data = self.view(self.values, name)
                parameter.grad = self.view(self.gradients, name)
            else:
                parameter.register_post_accumulate_grad_hook(self._widen(name))
        self.restart_averages()

    def _widen(self, name: str) -> Any:
        slot = self.view(self.gradients, name)

        def hook(parameter: Tensor) -> None:
            assert parameter.grad is not None
            slot.add_(parameter.grad)
            parameter.grad = None

        return hook

    def view(self, flat: Tensor, name: str) -> Tensor:
        """The part of a flat buffer that belongs to a parameter, in its shape."""
        parameter, start = self.parameters[name], self.offsets[name]
        return flat[start : start + parameter.numel()].view(parameter.shape)

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        return {name: self.view(flat, name) for name in self.parameters}

    def span(self, names: list[str]) -> slice:
        """The slots of parameters that lie side by side."""
        last = names[-1]
        return slice(self.offsets[names[0]], self.offsets[last] + padded(self.parameters[last].numel()))

    def restart_averages(self) -> None:
        """Sets the averages to the present weights; no bias correction, as published."""
        self.refresh()
        for average in self.averages:
            average.copy_(self.values)

    def refresh(self) -> None:
        """Copies parameters that are not fp32 into their slot of `values`."""
        for name, parameter in self.parameters.items():
            if parameter.dtype != torch.float32:
                self.view(self.values, name).copy_(parameter.detach())

    @torch.no_grad()
    def set_weights(self, flat: Tensor) -> None:
        """Sets every parameter from a flat buffer."""
        self.values.copy_(flat)
        for name, parameter in self.parameters.items():
            if parameter.dtype != torch.float32:
                parameter.copy_(self.view(flat, name))

    def update_averages(self, decays: Sequence[float]) -> None:
        """EMA of every weight, one for each decay."""
        self.refresh()
        for average, decay in zip(self.averages, decays, strict=True):
            average.lerp_(self.values, 1.0 - decay)

    def zero_gradients(self) -> None:
        self._reduced.zero_()

    def reduce(self) -> None:
        """Means gradients, loss and votes over ranks: one all-reduce whose layout never changes."""
        world = rank_and_world()[1]
        if world > 1:
            sum_over_ranks(self._reduced).div_(world)

    def clip(self, limit: float) -> Tensor:
        """Scales all gradients so that their joint L2 norm is at most `limit`; returns the norm before."""
        norm = torch.linalg.vector_norm(self.gradients)
        self.gradients.mul_((limit / (norm + 1e-6)).clamp_(max=1.0))
        return norm


def padded(numel: int) -> int:
    return -(-numel // _ALIGN) * _ALIGN


def _layout_key(item: tuple[str, nn.Parameter], model: GEPA, decoder_multiplier: float) -> tuple[Any, ...]:
    """Matrices by shape, then the rest by learning rate: what is updated together lies together."""
    name, parameter = item
    if is_muon_matrix(name, parameter):
        return (0, tuple(parameter.shape))
    return (1, _adam_group(name, model, decoder_multiplier))


def _adam_group(name: str, model: GEPA, decoder_multiplier: float) -> tuple[bool, bool, float]:
    return (is_untrained(name), name == "tok_emb.weight", lr_factor(name, model, decoder_multiplier))


def orthogonalize(matrices: Tensor, steps: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Newton-Schulz: [..., r, c] -> nearly semi-orthogonal matrices (singular values 0.7 to 1.2).

    Operands and results are rounded to `dtype`. A CPU keeps them in fp32 and multiplies there, whatever its
    instructions: but for the order of sums that is bf16 arithmetic, which most CPUs emulate 15 to 60 times
    slower than fp32.
    """
    a, b, c = _NEWTON_SCHULZ
    held = torch.float32 if matrices.device.type == "cpu" else dtype

    def rounded(x: Tensor) -> Tensor:
        return x.to(dtype).to(held)

    X = rounded(matrices)
    tall = X.shape[-2] > X.shape[-1]
    if tall:
        X = X.mT
    X = rounded(X / rounded(rounded(X.norm(dim=(-2, -1), keepdim=True)) + 1e-7))
    product = torch.baddbmm if X.ndim == 3 else torch.addmm
    for _ in range(steps):
        A = rounded(X @ X.mT)
        B = rounded(product(A, A, A, beta=b, alpha=c))
        X = rounded(product(X, B, X, beta=a))
    return X.mT if tall else X


@dataclass(frozen=True)
class _Stack:
    """Matrices of one shape: views [n,r,c] of the flat buffers, and learning rates [n,1,1]."""

    values: Tensor
    gradients: Tensor
    momentum: Tensor
    lr: Tensor


class Optimizer:
    """One step of Muon and AdamW over flat buffers. Its state has the layout of the parameters."""

    batched = True
    """Small matrices of one shape are orthogonalised together."""

    def __init__(self, model: GEPA, flat: FlatParameters, cfg: Any) -> None:
        """cfg: OptimConfig."""
        self.cfg, self.flat = cfg, flat
        self.momentum = torch.zeros_like(flat.values)
        self._stacks = self._make_stacks(model)
        self._adam = self._make_adam(model)

    def _make_stacks(self, model: GEPA) -> list[_Stack]:
        by_shape: dict[torch.Size, list[str]] = {}
        for name, parameter in self.flat.parameters.items():
            if is_muon_matrix(name, parameter):
                by_shape.setdefault(parameter.shape, []).append(name)
        stacks = []
        for (rows, columns), names in by_shape.items():
            lr = [
                self.cfg.matrix_lr * lr_factor(name, model, self.cfg.decoder_lr_multiplier) for name in names
            ]
            size, stride = (len(names), rows, columns), (padded(rows * columns), columns, 1)
            start = self.flat.offsets[names[0]]
            stacks.append(
                _Stack(
                    values=self.flat.values.as_strided(size, stride, start),
                    gradients=self.flat.gradients.as_strided(size, stride, start),
                    momentum=self.momentum.as_strided(size, stride, start),
                    lr=torch.tensor(lr, device=self.momentum.device).view(-1, 1, 1),
                )
            )
        return stacks

    def _make_adam(self, model: GEPA) -> torch.optim.AdamW:
        groups: dict[tuple[bool, bool, float], list[str]] = {}
        for name, parameter in self.flat.parameters.items():
            if not is_muon_matrix(name, parameter) and not is_untrained(name):
                key = _adam_group(name, model, self.cfg.decoder_lr_multiplier)
                groups.setdefault(key, []).append(name)
        self._embedding = self.flat.parameters["tok_emb.weight"]
        param_groups = []
        for (_, is_embedding, factor), names in groups.items():
            span = self.flat.span(names)
            weights = self.flat.values[span]
            if is_embedding and self._embedding.dtype != torch.float32:
                weights = self._embedding.detach().view(-1)
            else:
                weights.grad = self.flat.gradients[span]
            base = self.cfg.embed_lr if is_embedding else self.cfg.scalar_lr
            param_groups.append(
                {"params": [weights], "lr": base * factor, "base_lr": base * factor, "names": names}
            )
        adam = torch.optim.AdamW(
            param_groups,
            betas=(self.cfg.adam_beta1, self.cfg.adam_beta2),
            eps=self.cfg.adam_eps,
            weight_decay=self.cfg.adam_weight_decay,
            fused=True,
        )
        for group in adam.param_groups:  # made here, not at the first step: a checkpoint can be read into it
            (weights,) = group["params"]
            adam.state[weights] = {
                "step": torch.zeros((), device=weights.device),
                "exp_avg": torch.zeros_like(weights),
                "exp_avg_sq": torch.zeros_like(weights),
            }
        return adam

    def muon_momentum(self, step: int) -> float:
        """Rises linearly over the first steps."""
        cfg = self.cfg
        done = min(step / cfg.muon_momentum_warmup_steps, 1.0) if cfg.muon_momentum_warmup_steps else 1.0
        return (1.0 - done) * cfg.muon_momentum_start + done * cfg.muon_momentum

    @torch.no_grad()
    def step(self, step: int, lr_scale: float, adam_lr_scale: float | None = None) -> None:
        """Updates the weights from the flat gradients. `step` counts from 0.

        lr_scale: multiplier of the learning rates; AdamW's own where adam_lr_scale is given.
        """
        adam_lr_scale = lr_scale if adam_lr_scale is None else adam_lr_scale
        momentum = self.muon_momentum(step)
        for stack in self._stacks:
            self._muon_step(stack, momentum, lr_scale)
        for group in self._adam.param_groups:
            group["lr"] = group["base_lr"] * adam_lr_scale
            (weights,) = group["params"]
            if weights.dtype != torch.float32:
                weights.grad = (
                    self.flat.view(self.flat.gradients, "tok_emb.weight").view(-1).to(weights.dtype)
                )
        self._adam.step()

    def _muon_step(self, stack: _Stack, momentum: float, lr_scale: float) -> None:
        stack.momentum.mul_(momentum).add_(stack.gradients)
        nesterov = stack.gradients.add(stack.momentum, alpha=momentum)
        at_once = nesterov.is_cuda or nesterov[0].numel() <= _CPU_BATCH_NUMEL
        steps, dtype = self.cfg.muon_ns_steps, _DTYPES[self.cfg.muon_ns_dtype]
        if self.batched and at_once:
            update = orthogonalize(nesterov, steps, dtype)
        else:
            update = torch.stack([orthogonalize(matrix, steps, dtype) for matrix in nesterov])
        rows, columns = stack.values.shape[1:]
        lr = stack.lr * lr_scale
        stack.values.mul_(1.0 - lr * self.cfg.muon_weight_decay)
        stack.values.addcmul_(update.float(), lr * -math.sqrt(max(1.0, rows / columns)))

    def state(self) -> dict[str, Tensor]:
        """Views of the moments by parameter: "momentum/NAME", "exp_avg/NAME", "exp_avg_sq/NAME"."""
        tensors = {}
        for name, parameter in self.flat.parameters.items():
            if is_muon_matrix(name, parameter):
                tensors[f"momentum/{name}"] = self.flat.view(self.momentum, name)
        for group in self._adam.param_groups:
            moments = self._adam.state[group["params"][0]]
            first = self.flat.offsets[group["names"][0]]
            for key in ("exp_avg", "exp_avg_sq"):
                for name in group["names"]:
                    parameter = self.flat.parameters[name]
                    start = self.flat.offsets[name] - first
                    part = moments[key][start : start + parameter.numel()]
                    tensors[f"{key}/{name}"] = part.view(parameter.shape)
        return tensors

    def set_steps_done(self, step: int) -> None:
        """Adam's bias correction counts the steps done."""
        for moments in self._adam.state.values():
            moments["step"].fill_(step)
