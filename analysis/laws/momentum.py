"""L0 + A S1^-alpha - C S2: drops seen through the momentum of 1/(1 - 0.999) steps, the baseline."""

import numpy as np

from analysis.laws.design import Design
from analysis.laws.law import ALPHA, Law, floor_progress_excess, progress
from analysis.runs.table import Floats

DECAY = 0.999


def terms(theta: Floats, design: Design) -> Floats:
    # S2 = sum of m_i with m_i = decay m_{i-1} + drop_i is, up to a factor, every drop times 1 - decay^age.
    drops = design.lagged_drops(0.0, 1.0, lambda age, rate: -np.expm1(1000 * age * np.log(DECAY)))
    return floor_progress_excess(design, progress(design, theta[0]), drops)


LAW = Law(
    "momentum", (ALPHA,), ("L0", "A", "C"), terms,
    source="Tissue et al. 2024, Scaling Law with Learning Rate Annealing",
    formula="L0 + A S^-alpha + C (1 - sum of drops x (1 - 0.999^steps since))",
    baseline=True,
)  # fmt: skip
