"""What other studies teach about laws before a table has been looked at.

A table's own trials are few, so they share the say with the errors that the same laws made on public studies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Experience:
    """RMS relative errors of laws on runs held out in other studies, and how wide intervals had to be there.

    `trials` is how many trials of the table's own these errors count for. The scales turn the standard error
    that laws and residuals give into the one that was found.
    """

    law_error: Mapping[str, float]  # with two run lengths known or more
    law_error_one: Mapping[str, float]  # with one
    scale: float
    scale_one: float
    trials: float = 2.0
    scale_trials: float = 8.0
    sharpness: float = 3.0  # weights in proportion to 1 / MSE to this power

    def weights(
        self, members: Sequence[str], one_length: bool, squares: Sequence[Mapping[str, float]] = ()
    ) -> dict[str, float]:
        """Weights that sum to 1, from mean squares of the table's trials by law.

        A law that a trial's rows could not carry is taken there as the median of those that they could, in
        proportion to what other studies say of it. Members of one law share its weight.
        """
        errors = self.law_error_one if one_length else self.law_error
        usual = float(np.median(list(errors.values())))
        prior = np.array([errors.get(law_of(name), usual) ** 2 for name in members])
        total, count = self.trials * prior, self.trials
        for trial in squares:
            own = np.array([trial.get(law_of(name), float("nan")) for name in members])
            tried = np.isfinite(own)
            if tried.any():
                as_hard = np.median(own[tried] / prior[tried])
                total, count = total + np.where(tried, own, as_hard * prior), count + 1
        shared = Counter(law_of(name) for name in members)
        raw = (total / count) ** -self.sharpness / [shared[law_of(name)] for name in members]
        return dict(zip(members, (raw / raw.sum()).tolist(), strict=True))

    def scaled(self, one_length: bool, standardized: Sequence[float] = ()) -> float:
        """Factor on standard errors; `standardized` are mean squares of error / standard error, by trial."""
        prior = self.scale_one if one_length else self.scale
        square = self.scale_trials * prior**2 + sum(standardized)
        return float(np.sqrt(square / (self.scale_trials + len(standardized))))


def law_of(member: str) -> str:
    """The law of a member, which may be fitted from some burn-in or carry a gap."""
    return member.split(" from ")[0].split(" + ")[0]


EXPERIENCE = Experience(
    law_error={
        "power-fsl": 0.00082, "stretched": 0.00091, "kappa-relax": 0.0015, "kappa-mpl": 0.00162,
        "creep": 0.00165, "power": 0.00189, "surface": 0.00448,
    },
    law_error_one={
        "creep": 0.00248, "kappa-mpl": 0.00422, "power-fsl": 0.00464, "kappa-relax": 0.00596,
        "stretched": 0.00609,
    },
    scale=0.96,
    scale_one=1.03,
)  # fmt: skip
"""What `python -m benchmarks.laws` learns from wsd_124m_lr1e-3, wsd_124m_lr5e-4, wsd_210m_horizon,
wsd_openwebtext_lengths, cosine_openwebtext_lengths and the published study, each counting once.

What it scores a study with is learnt from the others. `trials`, `scale_trials` and `sharpness` were chosen by
the mean of left-out scores: 1 to 5 trials and a sharpness of 2 to 4 differ by less than a tenth."""
