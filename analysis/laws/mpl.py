"""Multi-power law: L0 + A S1^-alpha - B sum of drops (1 - (1 + age r^-gamma /
tau)^-beta), and S1 -> S_kappa.
"""

from analysis.laws.design import Design
from analysis.laws.law import ALPHA, BETA, KAPPA, TAU, Law, Parameter, floor_progress_excess, progress
from analysis.runs.table import Floats

GAMMA = Parameter("gamma", 0.01, 3.0, (0.4, 0.7, 0.1), typical=0.4)


def _terms(alpha: float, kappa: float, tau: float, beta: float, gamma: float, design: Design) -> Floats:
    drops = design.lagged_drops(kappa, 1.0, lambda age, rate: 1.0 - (1.0 + age / tau * rate**-gamma) ** -beta)
    return floor_progress_excess(design, progress(design, alpha, kappa), drops)


def terms(theta: Floats, design: Design) -> Floats:
    alpha, tau, beta, gamma = theta
    return _terms(alpha, 1.0, tau, beta, gamma, design)


def kappa_terms(theta: Floats, design: Design) -> Floats:
    alpha, kappa, tau, beta, gamma = theta
    return _terms(alpha, kappa, tau, beta, gamma, design)


LAW = Law(
    "mpl", (ALPHA, TAU, BETA, GAMMA), ("L0", "A", "B"), terms,
    source="Luo et al. 2025, A Multi-Power Law for Loss Curve Prediction",
    formula="L0 + A S^-alpha + B (1 - sum of drops x (1 - (1 + age r^-gamma / tau)^-beta))",
    baseline=True,
)  # fmt: skip
KAPPA_LAW = Law(
    "kappa-mpl", (ALPHA, KAPPA, TAU, BETA, GAMMA), ("L0", "A", "B"), kappa_terms,
    source="Luo et al. 2025, with progress counted in r^kappa",
    formula="mpl's, in S_kappa",
)  # fmt: skip
