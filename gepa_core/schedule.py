"""Learning-rate schedules: constant, then a warmdown of some shape. Pure functions of the step.

A shape maps progress through the warmdown, t in [0, 1], to the multiplier's way from 1 to its final
fraction: shape(0) = 1, shape(1) = 0 (`exponential` reaches its fraction geometrically instead).
To add one, write a function and enter it in SHAPES.
"""

import itertools
import math
from collections.abc import Callable

Shape = Callable[..., float]
"""(progress, final_fraction) -> multiplier; `power` takes its exponent besides."""

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


def power(t: float, final: float, exponent: float = 1.0) -> float:
    return _blend((1.0 - t) ** exponent, final)


def exponential(t: float, final: float) -> float:
    return (final or _EXPONENTIAL_FLOOR) ** t


def constant(t: float, final: float) -> float:
    return 1.0


SHAPES: dict[str, Shape] = {
    "linear": linear,
    "cosine": cosine,
    "1-sqrt": one_minus_sqrt,
    "power": power,
    "exponential": exponential,
    "constant": constant,
}


def lr_multiplier(
    step: int,
    *,
    steps: int,
    warmdown_steps: int,
    schedule: str = "linear",
    final_lr_fraction: float = 0.0,
    schedule_power: float = 1.0,
    lr_floor: float = 0.0,
) -> float:
    """Multiplier of a learning rate at 0-based `step`: 1 until steps - warmdown_steps, then the shape.

    The first warmdown step still has multiplier 1 and the last one is not 0: (steps - step) / warmdown_steps
    for `linear`, as the published code has it. It never falls below `lr_floor`.
    """
    done = step - (steps - warmdown_steps)
    if done <= 0 or warmdown_steps == 0:
        return 1.0
    exponent = (schedule_power,) if schedule == "power" else ()
    return max(lr_floor, SHAPES[schedule](min(done / warmdown_steps, 1.0), final_lr_fraction, *exponent))


def merge_weights(schedule: str, states: int) -> list[float]:
    """Weights, oldest first, with which equidistant states of a constant phase stand for its warmdown.

    An update between two states is in all later ones: its share of the merge is what their weights sum up
    to, and that is to fall as the multiplier does (WSM, arXiv:2507.17634). `linear` is the plain mean.
    """
    reach = [SHAPES[schedule](i / states, 0.0) for i in range(states)] + [0.0]
    return [(before - after) / reach[0] for before, after in itertools.pairwise(reach)]


def lr_horizon(now: float, then: float) -> float:
    """LR / |dLR/dstep| in steps, from the multipliers of two steps in a row; inf where it is constant."""
    return now / abs(now - then) if now != then else math.inf
