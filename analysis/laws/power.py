"""Laws of final values alone: E + A N^-alpha (N = steps), the steps x warmdown surface, and a - b ln N.

The exponent's prior holds it at 1/2 where two lengths cannot say; a - b ln N has no floor, extrapolates up to
six times worse than the power law on public finals, and is kept as a baseline. The size of an artifact falls
with ln of the warmdown's steps: by 1.0 to 1.1 MB an e-fold in both public studies that report it.
"""

import numpy as np

from analysis.laws.design import Design
from analysis.laws.law import Law, Parameter
from analysis.runs.table import Floats

EXPONENT = Parameter("alpha", 0.05, 3.0, (0.5, 0.4, 0.7), typical=0.5, spread=0.5)
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


def size_terms(theta: Floats, design: Design) -> Floats:
    return np.column_stack([np.ones(len(design)), _LOG_UNIT - np.log(np.maximum(design.warmdown, 1.0))])


POWER_LAW = Law(
    "power", (EXPONENT,), ("E", "A"), power_terms, of_finals=True, of_steps_alone=True,
    source="Kaplan et al. 2020; Hoffmann et al. 2022",
    formula="E + A N^-alpha",
)  # fmt: skip
LOG_LAW = Law(
    "log-linear", (), ("a", "b"), log_terms, of_finals=True, of_steps_alone=True, baseline=True,
    source="the power law's limit of small exponents",
    formula="a - b ln N",
)  # fmt: skip
SURFACE_LAW = Law(
    "surface", (EXPONENT,), ("E", "B", "b"), surface_terms, of_finals=True,
    source="for grids of steps x warmdown",
    formula="E + B N^-alpha - b ln(warmdown steps)",
)  # fmt: skip
SIZE_LAW = Law(
    "size", (), ("a", "b"), size_terms, of_finals=True,
    source="weights that were annealed for longer compress better",
    formula="a - b ln(warmdown steps)",
)  # fmt: skip
