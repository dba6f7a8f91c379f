"""Slopes of a noisy training curve, with intervals that respect autocorrelation.

A continuous piecewise-linear function is fitted to a whole stretch of the curve at once, so that a segment of
two or three evaluations borrows the noise estimate of all of them. Its residuals are taken as AR(1), with
the estimate of the correlation corrected for the downward bias that fitted residuals have. On curves of 18
and 39 points with seven parameters, nominal 90 % intervals made so cover 80-90 % for correlations of 0 to
0.7; Newey-West intervals cover 45-80 % there (tests/analysis/test_warmdown.py measures the former).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number and its two-sided interval; `low` and `high` are None where the data cannot bound it."""

    value: float
    low: float | None = None
    high: float | None = None

    def above(self, bound: float) -> bool:
        """Whether the whole interval lies above; False where there is none."""
        return self.low is not None and self.low > bound

    def below(self, bound: float) -> bool:
        return self.high is not None and self.high < bound

    def scaled(self, factor: float) -> "Estimate":
        """The estimate times a positive factor."""
        low, high = (None if edge is None else edge * factor for edge in (self.low, self.high))
        return Estimate(self.value * factor, low, high)

    @property
    def bounded(self) -> bool:
        """Whether the data give an interval."""
        return self.low is not None and self.high is not None

    def text(self, digits: str) -> str:
        """'value [low, high]' in a format, or the bare value."""
        if self.low is None or self.high is None:
            return format(self.value, digits)
        return f"{self.value:{digits}} [{self.low:{digits}}, {self.high:{digits}}]"

    def __str__(self) -> str:
        return self.text(".3g")


def mean_of(values: Sequence[float], level: float = 0.9) -> Estimate:
    """The mean with its t interval; without one for fewer than 3 values, which hardly tell a spread."""
    mean = float(np.mean(values))
    n = len(values)
    if n < 3:
        return Estimate(mean)
    half = float(stats.t.ppf(0.5 + level / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return Estimate(mean, mean - half, mean + half)


@dataclass(frozen=True)
class LinearFit:
    """Ordinary least squares with an AR(1) covariance: `coef` [k], `cov` [k, k], error `df`."""

    coef: Array
    cov: Array
    df: float
    autocorrelation: float
    residuals: Array

    def combination(self, weights: Array, level: float) -> Estimate:
        """Estimate of weights @ coef, with its t interval."""
        value = float(weights @ self.coef)
        if self.df < 1:
            return Estimate(value)
        half = float(stats.t.ppf(0.5 + level / 2, self.df) * np.sqrt(weights @ self.cov @ weights))
        return Estimate(value, value - half, value + half)


def fit_linear(design: Array, values: Array) -> LinearFit:
    """Least squares of `values` [n] on `design` [n, k] with AR(1) errors in row order.

    With n <= k there is no error estimate: df is 0 and `cov` is NaN.
    """
    n, k = design.shape
    coef: Array = np.linalg.lstsq(design, values, rcond=None)[0].astype(np.float64)
    residuals = values - design @ coef
    if n <= k:
        return LinearFit(coef, np.full((k, k), np.nan), 0.0, 0.0, residuals)
    inverse = np.linalg.pinv(design.T @ design)
    maker = np.eye(n) - design @ inverse @ design.T
    rho = _unbiased_correlation(maker, residuals)
    correlation = _ar1(n, rho)
    variance = residuals @ residuals / np.trace(maker @ correlation)
    cov: Array = variance * inverse @ design.T @ correlation @ design @ inverse
    return LinearFit(coef, cov, float(n - k), rho, residuals)


def _ar1(n: int, rho: float) -> Array:
    return np.asarray(rho ** np.abs(np.subtract.outer(np.arange(n), np.arange(n))), dtype=np.float64)


def _unbiased_correlation(maker: Array, residuals: Array) -> float:
    """The AR(1) correlation in [0, 0.9] under which residuals of this design show the one observed.

    Fitting makes residuals look less correlated than the errors are. Negative correlation is taken as none.
    """
    n = len(residuals)
    total = float(residuals @ residuals)
    if n < 4 or total == 0.0:
        return 0.0
    observed = float(residuals[1:] @ residuals[:-1]) / total
    grid = np.linspace(0.0, 0.9, 31)
    # With C the correlation: sum of products of neighbours and of squares of maker @ errors, in expectation.
    neighbours = maker[:-1].T @ maker[1:]
    lag = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    expected = np.array([(rho**lag * neighbours).sum() / (rho**lag * maker).sum() for rho in grid])
    return float(np.interp(observed, np.maximum.accumulate(expected), grid))


def piecewise_design(x: Array, knots: Array) -> Array:
    """Columns: 1, then how far each x lies into each segment between consecutive knots."""
    columns = [np.ones_like(x)]
    columns += [np.clip(x - a, 0.0, b - a) for a, b in pairwise(knots)]
    return np.stack(columns, axis=1)


def log_ratio(fit: LinearFit, numerator: int, denominator: int, level: float) -> Estimate:
    """coef[numerator] / coef[denominator], interval by the delta method on the logarithm.

    The interval is None where either slope's own interval reaches 0: its logarithm has no bound there.
    """
    a, b = float(fit.coef[numerator]), float(fit.coef[denominator])
    if b == 0.0:
        return Estimate(float("nan"))
    ratio = a / b
    unit = np.eye(len(fit.coef))
    for index in (numerator, denominator):
        slope = fit.combination(unit[index], level)
        if not (slope.above(0.0) or slope.below(0.0)):
            return Estimate(ratio)
    if ratio <= 0.0:
        return Estimate(ratio)
    gradient = unit[numerator] / a - unit[denominator] / b
    spread = stats.t.ppf(0.5 + level / 2, fit.df) * np.sqrt(gradient @ fit.cov @ gradient)
    return Estimate(ratio, float(ratio * np.exp(-spread)), float(ratio * np.exp(spread)))
