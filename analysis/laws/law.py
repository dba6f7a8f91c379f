"""What a law is: nonlinear parameters in bounds, and terms in which the loss is linear with coefficients >=
0.

Laws of trajectories share one picture: a floor L0; progress A S_kappa^-alpha with S_kappa = sum of r^kappa;
and an excess B that the learning rate keeps up and that fades, with a lag, as the rate falls: B (1 - drops
seen so far). They differ in kappa, in the power q of the rate, and in the kernel that says how much of a
drop is seen at which age.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from analysis.laws.design import Design
from analysis.runs.table import Floats

SYMBOLS = (
    "N: steps, in thousands. r: the learning rate over its peak. S: the sum of r over the steps so far, in "
    "thousands; S_kappa: of r^kappa. A drop is a fall of r (with q: of r^q) from one step to the next, its "
    "age how much of S, or S_kappa, has been added since."
)


@dataclass(frozen=True)
class Parameter:
    """A positive parameter, searched in log space between its bounds from each of its starts.

    `typical` and `spread` (in log units) are a weak prior: where a few runs do not determine the parameter,
    the fit stays near what larger studies found instead of at a bound. Data that speak overrule it.
    """

    name: str
    low: float
    high: float
    starts: tuple[float, ...]
    typical: float
    spread: float = float("inf")


@dataclass(frozen=True)
class Law:
    """loss = terms(theta, design) @ coefficients, coefficients >= 0; terms are [rows, len(linear)].

    Start i takes the i-th start of every parameter.
    """

    name: str
    parameters: tuple[Parameter, ...]
    linear: tuple[str, ...]
    terms: Callable[[Floats, Design], Floats]
    source: str
    formula: str = ""
    """By the names of the parameters, for a reader; SYMBOLS says what else is in it."""
    of_finals: bool = False  # a function of the run's plan (steps, warmdown): knows nothing of the way there
    of_steps_alone: bool = False  # of finals, and blind to the warmdown: speaks for schedules like those run
    baseline: bool = False  # as published, for comparison: its general form in the ensemble includes it

    def starts(self) -> Floats:
        """[starts, parameters]; one empty start if there are none."""
        return np.array([p.starts for p in self.parameters]).T if self.parameters else np.empty((1, 0))


ALPHA = Parameter("alpha", 0.05, 3.0, (0.5, 0.4, 0.7), typical=0.5, spread=0.15)
KAPPA = Parameter("kappa", 0.05, 3.0, (0.7, 0.4, 1.0), typical=0.7, spread=0.5)
POWER = Parameter("q", 0.1, 4.0, (1.0, 0.6, 0.4), typical=1.0, spread=0.3)
TAU = Parameter("tau", 0.001, 50.0, (0.1, 0.03, 0.5), typical=0.1)  # thousands of peak-LR steps
BETA = Parameter("beta", 0.02, 20.0, (0.4, 0.2, 1.0), typical=0.4)


def progress(design: Design, alpha: float, kappa: float = 1.0) -> Floats:
    """S_kappa^-alpha at the rows, S in thousands, [n]."""
    return np.maximum(design.clock(kappa)[0], 1e-6) ** -alpha


def floor_progress_excess(design: Design, fading: Floats, drops: Floats) -> Floats:
    """Columns [n, 3]: L0, A, B."""
    return np.column_stack([np.ones(len(design)), fading, 1.0 - drops])
