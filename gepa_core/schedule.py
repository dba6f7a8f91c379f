"""Learning-rate schedules: constant, then a warmdown of some shape. Pure functions of the step.

A shape maps progress through the warmdown, t in [0, 1], to the multiplier's way from 1 to its final
fraction: shape(0) = 1, shape(1) = 0 (`exponential` reaches its fraction geometrically instead).
To add one, write a function and enter it in SHAPES.
"""

import math
from collections.abc import Callable

Shape = Callable[[float, float], float]
"""(progress, final_fraction) -> multiplier."""

_EXPONENTIAL_FLOOR = 0.01  # exponential decay cannot reach 0; with final fraction 0 it ends at 1 %


def _blend(remaining: float, final: float) -> float:
    return final + (1.0 - final) * remaining


def linear(t: float, final: float) -> float:
    return _blend(1.0 - t, final)


def cosine(t: float, final: float) -> float:
    return _blend(0.5 * (1.0 + math.cos(math.pi * t)), final)


def one_minus_sqrt(t: float, final: float) -> float:
    """Haegele et al. 2024, "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations"."""
    return _blend(1.0 - math.sqrt(t), final)


def exponential(t: float, final: float) -> float:
    return (final or _EXPONENTIAL_FLOOR) ** t


def constant(t: float, final: float) -> float:
    return 1.0


SHAPES: dict[str, Shape] = {
    "linear": linear,
    "cosine": cosine,
    "1-sqrt": one_minus_sqrt,
    "exponential": exponential,
    "constant": constant,
}


def lr_multiplier(
    step: int, *, steps: int, warmdown_steps: int, schedule: str = "linear", final_lr_fraction: float = 0.0
) -> float:
    """Multiplier of every learning rate at 0-based `step`: 1 until steps - warmdown_steps, then the shape.

    The first warmdown step still has multiplier 1 and the last one is not 0: (steps - step) / warmdown_steps
    for `linear`, as the published code has it.
    """
    done = step - (steps - warmdown_steps)
    if done <= 0 or warmdown_steps == 0:
        return 1.0
    return SHAPES[schedule](min(done / warmdown_steps, 1.0), final_lr_fraction)
