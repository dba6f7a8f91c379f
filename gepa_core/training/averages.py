"""Which moving averages a training state holds, and under what names: one for each that a sweep asks for."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor

from gepa_core.config import Average
from gepa_core.errors import CheckpointError
from gepa_core.training import checkpoint


def average_prefixes(averages: Sequence[Average]) -> list[str]:
    """What the names of each one's tensors begin with."""
    return ["average/", *(f"average.{i}/" for i in range(1, len(averages)))]


def averages_of(state: checkpoint.State, path: Path | str | None) -> tuple[Average, ...]:
    """Those that a state holds; a state from before there could be several has its run's own.

    Raises CheckpointError.
    """
    told = state.told(path)
    try:
        if told.averages:
            return tuple(Average(float(decay), str(horizon)) for decay, horizon in told.averages)
        return (Average(float(told.config["ema_decay"]), str(told.config.get("ema_horizon", "fixed"))),)
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{path}: does not say which averages it holds; use an earlier one") from None


def prefix_of(
    wanted: Average, held: Sequence[Average], path: Path | str | None, *, constant: bool = False
) -> str:
    """Where a state has an average. constant: the learning rate has not fallen yet, whatever the horizon.

    Raises CheckpointError if it has none such.
    """
    for average, prefix in zip(held, average_prefixes(held), strict=True):
        if average == wanted or (constant and average.decay == wanted.decay):
            return prefix
    raise CheckpointError(
        f"{path}: holds no average of the weights with ema_decay {wanted} (it has "
        f"{', '.join(map(str, held))}); train again, or evaluate with one that it has"
    )


def merged(states: Iterable[checkpoint.State], weights: Sequence[float]) -> dict[str, Tensor]:
    """The weighted mean of the raw weights of some states of one model, summed up in fp64: fp32 tensors."""
    total: dict[str, Tensor] = {}
    for state, weight in zip(states, weights, strict=True):
        for name, tensor in state.tensors.items():
            if name.startswith("model/"):
                part = weight * tensor.double()
                total[name] = total[name] + part if name in total else part
    return {name.removeprefix("model/"): tensor.float() for name, tensor in total.items()}
