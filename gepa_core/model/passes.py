"""The two passes over a model, compiled where that pays: the loss to be differentiated, and scores.

A CPU's head is written by hand (head.py), and takes half the time of what the compiler makes of it: there
the body alone is compiled.
"""

from typing import Any

import torch
from torch import Tensor

from gepa_core.device import compiled, maybe_compiled


def body(model: Any, ids: Tensor, last: int | None) -> Tensor:
    return model.features(ids, last)


def whole_loss(model: Any, ids: Tensor, targets: Tensor) -> Tensor:
    return model.loss(ids, targets)


def whole_nll(model: Any, ids: Tensor, targets: Tensor, last: int | None) -> Tensor:
    return model.nll(ids, targets, last)


def needed(targets: Tensor) -> int | None:
    """How many of the last positions the last block computes: those of targets [B,n]. None = all."""
    return targets.shape[1]


def sequence_loss(model: Any, ids: Tensor, targets: Tensor, exec_cfg: Any, device: torch.device) -> Tensor:
    """Mean cross-entropy (nats, fp32 scalar) of targets [B,T] after ids [B,T]."""
    if device.type == "cpu":
        return model.head_loss(maybe_compiled(body, exec_cfg, device)(model, ids, None), targets)
    return maybe_compiled(whole_loss, exec_cfg, device)(model, ids, targets)


def token_nll(
    model: Any, ids: Tensor, targets: Tensor, exec_cfg: Any, device: torch.device, compiles: bool
) -> Tensor:
    """nll [B,n] (nats, fp32) of targets [B,n], the last n after ids [B,T]."""
    last = needed(targets)
    if not compiles:
        return model.nll(ids, targets, last)
    if device.type == "cpu":
        return model.head_nll(compiled(body, exec_cfg, device)(model, ids, last), targets)
    return compiled(whole_nll, exec_cfg, device)(model, ids, targets, last)
