"""What a law is: nonlinear parameters in bounds, and terms in which the loss is linear with coefficients >= 0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from analysis.design import Design
from analysis.table import Floats


@dataclass(frozen=True)
class Parameter:
    """A positive parameter, searched in log space between its bounds from each of its starts."""

    name: str
    low: float
    high: float
    starts: tuple[float, ...]


@dataclass(frozen=True)
class Law:
    """loss = terms(theta, design) @ coefficients, coefficients >= 0.

    `terms` returns [rows, len(linear)]. Start i takes the i-th start of every parameter.
    """

    name: str
    parameters: tuple[Parameter, ...]
    linear: tuple[str, ...]
    terms: Callable[[Floats, Design], Floats]
    source: str
    finals_only: bool = False  # a function of the run's whole plan, not of a point on its way

    def starts(self) -> Floats:
        return np.array([p.starts for p in self.parameters]).T
