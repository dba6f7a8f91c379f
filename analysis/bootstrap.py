"""Intervals of a law's parameters. Not of predictions: these are calibrated by backtests (predict.py).

Branches of a trunk share its noise, so whole trunks are drawn where there are four or more. Of fewer, each
run keeps its fitted curve and gets residuals back in blocks of consecutive rows, which keeps their
autocorrelation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from analysis.fit import Fit, Observations, fit
from analysis.laws.law import Law
from analysis.observations import trajectory_rows
from analysis.table import Floats, Table

MIN_TRUNKS = 4
BLOCK_ROWS = 8


@dataclass(frozen=True)
class ParameterInterval:
    """A fitted parameter, nonlinear or linear, and its two-sided bootstrap interval."""

    name: str
    value: float
    low: float
    high: float


def parameter_intervals(
    law: Law, table: Table, metric: str, *, level: float = 0.9, draws: int = 40, seed: int = 0
) -> list[ParameterInterval]:
    """Percentile intervals of theta and of the coefficients, from `draws` refits started at the estimate.

    Source: Künsch 1989 (moving blocks); Cameron, Gelbach & Miller 2008 (clusters).

    Raises:
        AnalysisError: no run has a trajectory of this quantity.
    """
    rng = np.random.default_rng(seed)
    data = trajectory_rows(table, metric)
    found = fit(law, data)
    trunks = list(dict.fromkeys(run.trunk for run in table.runs))
    refits = []
    for _ in range(draws):
        if len(trunks) >= MIN_TRUNKS:
            drawn = _drawn_trunks(table, trunks, rng)
            refits.append(fit(law, trajectory_rows(drawn, metric), found.theta[None]))
        else:
            refits.append(fit(law, _with_drawn_residuals(found, data, rng), found.theta[None]))
    names = [*(p.name for p in law.parameters), *law.linear]
    values = np.concatenate([found.theta, found.coefficients])
    drawn_values = np.array([np.concatenate([refit.theta, refit.coefficients]) for refit in refits])
    low, high = np.quantile(drawn_values, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return [
        ParameterInterval(name, float(v), float(lo), float(hi))
        for name, v, lo, hi in zip(names, values, low, high, strict=True)
    ]


def _drawn_trunks(table: Table, trunks: list[str], rng: np.random.Generator) -> Table:
    runs = []
    for copy, trunk in enumerate(rng.choice(trunks, len(trunks))):
        runs += [replace(run, trunk=f"{copy}/{trunk}") for run in table.runs if run.trunk == trunk]
    return replace(table, runs=tuple(runs))


def _with_drawn_residuals(found: Fit, data: Observations, rng: np.random.Generator) -> Observations:
    fitted = found.predict(data.design) + found.offset * data.offset
    residual = np.log(data.value / fitted)
    drawn = np.empty_like(residual)
    for run in np.unique(data.design.run_of_row):
        rows = np.flatnonzero(data.design.run_of_row == run)
        drawn[rows] = _blocks(residual[rows], rng)
    return replace(data, value=fitted * np.exp(drawn))


def _blocks(residual: Floats, rng: np.random.Generator) -> Floats:
    n = len(residual)
    size = min(BLOCK_ROWS, n)
    starts = rng.integers(0, n - size + 1, -(-n // size))
    return np.concatenate([residual[s : s + size] for s in starts])[:n]
