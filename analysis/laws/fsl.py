"""Functional scaling law: drops fade as a power of their age, L0 + A S^-alpha + B (1 - sum of drops (1 - (1
+ age/tau)^-beta)).

In its own form (gamma = 0 in the multi-power law) S is the sum of rates; with kappa both
S and the ages count r^kappa.
"""

from analysis.laws.design import Design
from analysis.laws.law import ALPHA, BETA, KAPPA, POWER, TAU, Law, floor_progress_excess, progress
from analysis.runs.table import Floats


def _drops(design: Design, kappa: float, q: float, tau: float, beta: float) -> Floats:
    return design.lagged_drops(kappa, q, lambda age, rate: 1.0 - (1.0 + age / tau) ** -beta)


def terms(theta: Floats, design: Design) -> Floats:
    alpha, tau, beta = theta
    return floor_progress_excess(design, progress(design, alpha), _drops(design, 1.0, 1.0, tau, beta))


def kappa_terms(theta: Floats, design: Design) -> Floats:
    alpha, kappa, tau, beta = theta
    drops = _drops(design, kappa, 1.0, tau, beta)
    return floor_progress_excess(design, progress(design, alpha, kappa), drops)


def power_terms(theta: Floats, design: Design) -> Floats:
    alpha, kappa, q, tau, beta = theta
    drops = _drops(design, 1.0, q, tau, beta)
    return floor_progress_excess(design, progress(design, alpha, kappa), drops)


LAW = Law(
    "fsl", (ALPHA, TAU, BETA), ("L0", "A", "B"), terms,
    source="Li et al. 2025, Functional Scaling Laws, in the form of Luo et al. 2025",
    formula="L0 + A S^-alpha + B (1 - sum of drops x (1 - (1 + age/tau)^-beta))",
    baseline=True,
)  # fmt: skip
KAPPA_LAW = Law(
    "kappa-fsl", (ALPHA, KAPPA, TAU, BETA), ("L0", "A", "B"), kappa_terms,
    source="the functional scaling law with progress and ages counted in r^kappa",
    formula="fsl's, in S_kappa",
    baseline=True,
)  # fmt: skip
POWER_LAW = Law(
    "power-fsl", (ALPHA, KAPPA, POWER, TAU, BETA), ("L0", "A", "B"), power_terms,
    source="progress in r^kappa, and an excess that follows r^q through the functional scaling law's kernel",
    formula="L0 + A S_kappa^-alpha + B (1 - sum of drops of r^q x (1 - (1 + age/tau)^-beta))",
)  # fmt: skip
