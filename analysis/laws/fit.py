"""One routine fits every law: variable projection with non-negative linear terms,
exponents searched in log space.

The terms' coefficients are solved exactly inside (NNLS), so that the search has 0-5 well-conditioned
dimensions; the residuals are logarithms under a Huber loss. Sources: Golub & Pereyra 1973 (variable
projection); Hoffmann et al. 2022 (Huber on log loss, delta 1e-3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares, nnls

from analysis.laws.design import Design
from analysis.laws.law import Law
from analysis.runs.table import Floats

HUBER_DELTA = 1e-3
PRIOR_SCALE = (
    2e-3  # residual that one spread of a parameter from its typical value costs; Huber's tail lets data win
)
_AT_BOUND = 1e-3  # in log units


@dataclass(frozen=True)
class Observations:
    """Rows of a fit: `value` [n] > 0, `weight` [n], `offset` [n] = 1 where the
    row carries the finals' offset.
    """

    design: Design
    value: Floats
    weight: Floats
    offset: Floats


@dataclass(frozen=True)
class Fit:
    law: Law
    theta: Floats
    coefficients: Floats  # of law.linear
    offset: float
    cost: float
    warnings: tuple[str, ...] = ()

    def predict(self, design: Design) -> Floats:
        """Values at the rows of a design, [n], without the offset of final values."""
        return self.law.terms(self.theta, design) @ self.coefficients


def fit(law: Law, data: Observations, starts: Floats | None = None) -> Fit:
    """The law's best parameters for the data. Sees nothing but its arguments.

    Args:
        starts: where to search from, [starts, parameters]; the law's own if not given.
    """
    lower, upper, typical = (
        np.log([getattr(p, bound) for p in law.parameters]) for bound in ("low", "high", "typical")
    )
    stiffness = PRIOR_SCALE / np.array([p.spread for p in law.parameters])

    def residuals(log_theta: Floats) -> Floats:
        _, misfit = _solve(law, np.exp(log_theta), data)
        return np.concatenate([misfit, stiffness * (log_theta - typical)])

    best, cost = np.empty(0), float("inf")
    if not law.parameters:
        cost = float(np.sum(residuals(best) ** 2) / 2)
    for start in (law.starts() if starts is None else starts) if law.parameters else ():
        found = least_squares(
            residuals,
            np.clip(np.log(start), lower + 1e-6, upper - 1e-6),
            bounds=(lower, upper),
            loss="huber",
            f_scale=HUBER_DELTA,
            xtol=1e-6,
            ftol=1e-7,
            gtol=1e-12,
            max_nfev=60,
            diff_step=np.full(len(law.parameters), 1e-4),
        )
        if found.cost < cost:
            best, cost = found.x, float(found.cost)
    coefficients, _ = _solve(law, np.exp(best), data)
    k = len(law.linear)
    offset = float(coefficients[k] - coefficients[k + 1]) if data.offset.any() else 0.0
    return Fit(law, np.exp(best), coefficients[:k], offset, cost, _at_bounds(law, best, lower, upper))


def _at_bounds(law: Law, log_theta: Floats, lower: Floats, upper: Floats) -> tuple[str, ...]:
    return tuple(
        f"{law.name}: {p.name} sits on its bound {edge:g}"
        for p, x, lo, hi in zip(law.parameters, log_theta, lower, upper, strict=True)
        for edge, distance in ((p.low, x - lo), (p.high, hi - x))
        if distance < _AT_BOUND
    )


def _solve(law: Law, theta: Floats, data: Observations) -> tuple[Floats, Floats]:
    """(coefficients, weighted log residuals) at theta; the offset's two columns (+, -) come last."""
    terms = law.terms(theta, data.design)
    if data.offset.any():
        terms = np.column_stack([terms, data.offset, -data.offset])
    scaled = terms * (data.weight / data.value)[:, None]
    size = np.sqrt((scaled**2).sum(0)) + 1e-300
    q, r = np.linalg.qr(scaled / size)
    coefficients = nnls(r, q.T @ data.weight)[0] / size
    predicted = np.maximum(terms @ coefficients, 1e-9)
    return coefficients, data.weight * np.log(predicted / data.value)
