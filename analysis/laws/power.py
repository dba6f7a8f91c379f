"""Laws of final values alone: E + A N^-alpha and a - b ln N (N = steps), and the steps x warmdown surface."""

import numpy as np

from analysis.laws.design import Design
from analysis.laws.law import Law, Parameter
from analysis.runs.table import Floats

EXPONENT = Parameter("alpha", 0.05, 3.0, (0.5, 0.3, 1.0), typical=0.5, spread=0.5)
_LOG_UNIT = (
    20.0  # ln of more steps than any run has, so that a - b ln N has coefficients >= 0 for a falling curve
)


def power_terms(theta: Floats, design: Design) -> Floats:
    thousands = design.steps_total / 1000
    return np.column_stack([np.ones(len(design)), thousands ** -theta[0]])


def log_terms(theta: Floats, design: Design) -> Floats:
    return np.column_stack([np.ones(len(design)), _LOG_UNIT - np.log(design.steps_total)])


def surface_terms(theta: Floats, design: Design) -> Floats:
    thousands = design.steps_total / 1000
    log_warmdown = np.log(np.maximum(design.warmdown, 1.0))
    return np.column_stack([np.ones(len(design)), thousands ** -theta[0], _LOG_UNIT - log_warmdown])


POWER_LAW = Law(
    "power", (EXPONENT,), ("E", "A"), power_terms, of_finals=True, of_steps_alone=True,
    source="Kaplan et al. 2020; Hoffmann et al. 2022",
)  # fmt: skip
LOG_LAW = Law(
    "log-linear", (), ("a", "b"), log_terms, of_finals=True, of_steps_alone=True,
    source="the power law's limit of small exponents",
)  # fmt: skip
SURFACE_LAW = Law(
    "surface", (EXPONENT,), ("E", "B", "b"), surface_terms, of_finals=True,
    source="E + B T^-beta - b ln n_warmdown, for grids of steps x warmdown",
)  # fmt: skip
