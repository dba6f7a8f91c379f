"""L0 + A S_kappa^-alpha - B sum of drops age^p: what a fall of the rate brings goes on growing with its age.

Every other kernel here saturates, so that longer warmdowns of one ratio bring no more than shorter ones once
they outlast the kernel. Measured drops below the constant rate do not: between 15k and 200k steps they grow
as the warmdown's length to the 0.1 to 0.2 (124M and 210M parameters). The constant rate itself is a power law
in steps with an exponent near 1/2. Both are known before a single run is made, so the priors are stiff: with
one warmdown this is a law of three linear coefficients.
"""

import numpy as np

from analysis.laws.design import Design
from analysis.laws.law import Law, Parameter, progress
from analysis.runs.table import Floats

# p (0.08 to 0.15) and kappa (0.4 to 1) by the mean error over all given studies of runs predicted from one
# length: 0.12 and 0.5 (0.0040). Without the 210M horizon p would be 0.10 to 0.12; other studies were not left
# out. alpha and q from fits to whole studies.
# Spreads: the scatter of such fits, drawn in by 2.5, as one run's evaluations are correlated.
ALPHA = Parameter("alpha", 0.05, 3.0, (0.5, 0.45), typical=0.5, spread=0.03)
KAPPA = Parameter("kappa", 0.05, 3.0, (0.5, 0.7), typical=0.5, spread=0.12)
POWER = Parameter("q", 0.1, 4.0, (0.9, 0.7), typical=0.9, spread=0.08)
GROWTH = Parameter("p", 0.01, 1.0, (0.12, 0.15), typical=0.12, spread=0.12)
_LIFT = 3.0  # keeps the third column positive, so that B >= 0 lowers the loss; L0 absorbs it


def terms(theta: Floats, design: Design) -> Floats:
    alpha, kappa, q, growth = theta
    drops = design.lagged_drops(kappa, q, lambda age, rate: np.maximum(age, 1e-9) ** growth)
    return np.column_stack([np.ones(len(design)), progress(design, alpha, kappa), _LIFT - drops])


LAW = Law(
    "creep", (ALPHA, KAPPA, POWER, GROWTH), ("L0", "A", "B"), terms,
    source="the functional scaling law's kernel in the limit that never saturates",
    formula="L0 + A S_kappa^-alpha - B sum of drops of r^q x age^p",
)  # fmt: skip
