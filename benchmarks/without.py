"""The library with one optimisation off: what is it worth, and does it change rounding only?

Each entry replaces one function or attribute by name while it is entered; a name that is gone raises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

from torch import Tensor

from gepa_core.evaluation import scoring, ttt
from gepa_core.model import gepa, passes
from gepa_core.training.optim import FlatParameters, Optimizer
from gepa_core.training.trainer import Trainer


def _one_tensor_at_a_time(flat: FlatParameters, decays: Sequence[float]) -> None:
    flat.refresh()
    values = flat.named(flat.values)
    for average, decay in zip(flat.averages, decays, strict=True):
        for name, part in flat.named(average).items():
            part.mul_(decay).add_(values[name], alpha=1.0 - decay)


def _on_the_host(ids: Tensor, device: Any) -> Tensor:
    return ids


OPTIMISATIONS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "batched Newton-Schulz": lambda: patch.object(Optimizer, "batched", False),
    "flat average": lambda: patch.object(FlatParameters, "update_averages", _one_tensor_at_a_time),
    "prefetch": lambda: patch.object(Trainer, "_source", lambda trainer: trainer.batches),
    "scales in the matrices": lambda: patch.object(gepa, "folds", lambda x: False),
    "replayed passes": lambda: patch.object(ttt, "captures", lambda scorer: False),
    "trimmed last block": lambda: patch.object(passes, "needed", lambda targets: None),
    "windows gathered on the device": lambda: patch.object(scoring, "held", _on_the_host),
}


def without(name: str, function: Callable[[], Any]) -> Callable[[], None]:
    """A call of the function with that optimisation off."""

    def run() -> None:
        with OPTIMISATIONS[name]():
            function()

    return run
