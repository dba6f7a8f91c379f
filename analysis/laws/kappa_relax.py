"""L0 + A S_kappa^-alpha + B (r^q, relaxing): the excess follows r^q with one relaxation time in S_kappa.

The q tells late gains (q < 1, seen with Muon) from gains in proportion to the rate removed (q = 1).
`stretched` has a stretched exponential instead, between one time and a power law of times.
"""

import numpy as np

from analysis.laws.design import Design
from analysis.laws.law import ALPHA, KAPPA, POWER, TAU, Law, Parameter, floor_progress_excess, progress
from analysis.runs.table import Floats

STRETCH = Parameter("stretch", 0.1, 2.5, (0.5, 0.35, 0.8), typical=0.5)


def terms(theta: Floats, design: Design) -> Floats:
    alpha, kappa, q, tau = theta
    drops = design.lagged_drops(kappa, q, lambda age, rate: -np.expm1(-age / tau))
    return floor_progress_excess(design, progress(design, alpha, kappa), drops)


def stretched_terms(theta: Floats, design: Design) -> Floats:
    alpha, kappa, q, tau, stretch = theta
    drops = design.lagged_drops(kappa, q, lambda age, rate: -np.expm1(-((age / tau) ** stretch)))
    return floor_progress_excess(design, progress(design, alpha, kappa), drops)


LAW = Law(
    "kappa-relax", (ALPHA, KAPPA, POWER, TAU), ("L0", "A", "B"), terms,
    source="relaxation of the learning-rate noise towards r^q in time S_kappa",
    formula="L0 + A S_kappa^-alpha + B (1 - sum of drops of r^q x (1 - exp(-age/tau)))",
)  # fmt: skip
STRETCHED_LAW = Law(
    "stretched", (ALPHA, KAPPA, POWER, TAU, STRETCH), ("L0", "A", "B"), stretched_terms,
    source="kappa-relax with a stretched exponential (Kohlrausch) for a spectrum of relaxation times",
    formula="L0 + A S_kappa^-alpha + B (1 - sum of drops of r^q x (1 - exp(-(age/tau)^stretch)))",
)  # fmt: skip
