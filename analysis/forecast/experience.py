"""What other studies teach about laws before a table has been looked at.

A table's own trials are few, so they share the say with the errors that the same laws made on public studies.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Experience:
    """RMS relative errors of laws on other studies' held-out finals, and how wide intervals had to be there.

    `trials` is how many trials of the table's own the errors count for; the scales turn the standard error of
    laws and residuals into the one that was found, with one run length known and with several.
    """

    law_error: dict[str, float] = field(default_factory=dict)
    trials: float = 2.0
    sharpness: float = 2.0  # weights in proportion to 1 / MSE to this power
    scale_one: float = 1.5
    scale_many: float = 1.5
    scale_trials: float = 4.0

    def error(self, member: str) -> float:
        """Of a member: a law, a law from some burn-in, or a law with a gap."""
        return self.law_error.get(_law(member), 0.002)

    def weights(self, members: list[str], squares: list[dict[str, float]]) -> dict[str, float]:
        """Weights that sum to 1 from mean squares of the table's trials, NaN where one could not be tried.

        A law that a trial's rows could not carry is taken there as the median of those that they could, in
        proportion to what other studies say of it. Members of one law share its weight.
        """
        prior = np.array([self.error(name) ** 2 for name in members])
        total, count = self.trials * prior, self.trials
        for trial in squares:
            own = np.array([trial.get(name, float("nan")) for name in members])
            tried = np.isfinite(own)
            if tried.any():
                usual = np.median(own[tried] / prior[tried])
                total, count = total + np.where(tried, own, usual * prior), count + 1
        shared = Counter(_law(name) for name in members)
        raw = [
            (s / count) ** -self.sharpness / shared[_law(name)]
            for name, s in zip(members, total, strict=True)
        ]
        return {name: value / sum(raw) for name, value in zip(members, raw, strict=True)}

    def scale(self, one_length: bool, standardized: list[float]) -> float:
        """Factor on standard errors; `standardized` are mean squares of error / standard error, by trial."""
        prior = self.scale_one if one_length else self.scale_many
        square = self.scale_trials * prior**2 + sum(standardized)
        return float(np.sqrt(square / (self.scale_trials + len(standardized))))


def _law(member: str) -> str:
    return member.split(" from ")[0].split(" + ")[0]


EXPERIENCE = Experience(
    {
        "power-fsl": 0.0014, "creep": 0.0013, "kappa-relax": 0.0018, "stretched": 0.0016, "kappa-fsl": 0.0018,
        "kappa-mpl": 0.0018, "power": 0.0015, "surface": 0.004, "size": 0.01,
    }
)  # fmt: skip
