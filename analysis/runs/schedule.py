"""Learning-rate curves of runs, as multiples r of the peak rate, from what their table says about them.

A run is warm-up (linear from 0), constant phase (r = 1) up to `peak_steps`, then a
warmdown of some shape to `steps`.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from analysis.runs.errors import AnalysisError

Floats = NDArray[np.float64]

_EXPONENTIAL_FLOOR = 0.01  # a geometric decay cannot reach 0; with final fraction 0 it ends at 1 %


def _linear(t: Floats, final: float) -> Floats:
    return final + (1 - final) * (1 - t)


def _linear_floor(t: Floats, final: float) -> Floats:
    """To 0, but never below the final fraction."""
    return np.maximum(1 - t, final)


def _cosine(t: Floats, final: float) -> Floats:
    return final + (1 - final) * 0.5 * (1 + np.cos(np.pi * t))


def _one_minus_sqrt(t: Floats, final: float) -> Floats:
    return final + (1 - final) * (1 - np.sqrt(t))


def _exponential(t: Floats, final: float) -> Floats:
    return np.asarray((final or _EXPONENTIAL_FLOOR) ** t)


def _step(t: Floats, final: float) -> Floats:
    """Two-stage schedule: at once to the final fraction."""
    return np.full_like(t, final)


def _constant(t: Floats, final: float) -> Floats:
    return np.ones_like(t)


SHAPES: dict[str, Callable[[Floats, float], Floats]] = {
    "linear": _linear,
    "linear-floor": _linear_floor,
    "cosine": _cosine,
    "1-sqrt": _one_minus_sqrt,
    "exponential": _exponential,
    "step": _step,
    "constant": _constant,
}


def rate_at(
    step: NDArray[np.int64] | Floats,
    steps: int,
    peak_steps: int,
    schedule: str,
    final_lr_fraction: float = 0.0,
    warmup_steps: int = 0,
) -> Floats:
    """Multiplier of the peak learning rate at 0-based steps, [n]; `steps` itself is where the shape ends.

    Raises:
        AnalysisError: the shape is unknown.
    """
    if schedule not in SHAPES:
        raise AnalysisError(f"schedule '{schedule}' is unknown; known: {', '.join(SHAPES)}")
    step = np.asarray(step, np.float64)
    r = np.ones(len(step))
    late = step >= peak_steps
    if steps > peak_steps and late.any():
        t = (step[late] - peak_steps) / (steps - peak_steps)
        r[late] = SHAPES[schedule](t, final_lr_fraction)
    return r * _warmup(step, warmup_steps)


def observed_rate_at(
    step: NDArray[np.int64] | Floats, at: NDArray[np.int64], lr_scale: Floats, warmup_steps: int = 0
) -> Floats:
    """The same from the multipliers logged at some steps, linearly between them, [n].

    Before the first logged step the rate is taken as that of the first one, after a linear warm-up.
    """
    step = np.asarray(step, np.float64)
    r = np.interp(step, at, lr_scale)
    return np.where(step < at[0], r * _warmup(step, warmup_steps), r)


def _warmup(step: Floats, warmup_steps: int) -> Floats:
    return np.minimum(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else np.ones(len(step))
