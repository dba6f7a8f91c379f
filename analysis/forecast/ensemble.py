"""An ensemble for a table: each law is tried on runs it was not fitted to, and counts by how well it did.

Everything here is a function of one table, the training rows, and of what other studies taught
(experience.py); nothing else can reach a fit, a weight or an error bar.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from analysis.forecast.centre import Ensemble
from analysis.forecast.experience import EXPERIENCE, Experience, law_of
from analysis.forecast.folds import folds, replicate_sd
from analysis.forecast.kriging import residuals
from analysis.forecast.members import fit_laws, known_lengths
from analysis.forecast.trials import Trial, trial
from analysis.laws.observations import BURN_IN, BURN_INS
from analysis.laws.plans import last_known
from analysis.runs.errors import AnalysisError
from analysis.runs.table import Table


def build(table: Table, metric: str, experience: Experience = EXPERIENCE) -> Ensemble:
    """Fit the laws to a table and weigh them by its inner backtests and by other studies.

    Raises:
        AnalysisError: the table carries no law.
    """
    found = untried(table, metric, experience)
    if not found.fits:
        raise AnalysisError(
            f"{table.source}: {metric} of {len(table.runs)} runs carries no law; it takes a trajectory "
            "with a falling learning rate, or final values at two lengths or more"
        )
    trials = []
    for fold in folds(table, metric):
        inner = untried(fold.train, metric, experience, (BURN_IN,))
        if inner.fits:
            trials.append(trial(inner, fold))
    return weighed(found, trials, experience)


def untried(
    table: Table, metric: str, experience: Experience, beginnings: Sequence[float] = BURN_INS
) -> Ensemble:
    """The ensemble as other studies would weigh it."""
    fits = fit_laws(table, metric, beginnings=beginnings)
    measured = [run.steps for run in table.runs if last_known(run, metric) is not None]
    one = len(known_lengths(table, metric)) < 2
    return Ensemble(
        table=table,
        metric=metric,
        fits=fits,
        weights=experience.weights(list(fits), one),
        scores=dict.fromkeys(fits, float("nan")),
        process=residuals(table, metric, max(measured, default=1)),
        scale=experience.scaled(one),
        scale_ahead=experience.scaled(one),
        replicate_sd=replicate_sd(table, metric),
    )


def weighed(found: Ensemble, trials: list[Trial], experience: Experience) -> Ensemble:
    """The ensemble after its trials."""
    one = len(known_lengths(found.table, found.metric)) < 2
    squares = [{law: t.square(law) for law in t.errors} for t in trials]
    weights = experience.weights(list(found.fits), one, squares)
    by_law: dict[str, float] = {}
    for name, weight in weights.items():
        by_law[law_of(name)] = by_law.get(law_of(name), 0.0) + weight
    held_out, standardized, ahead = [], [], []
    for t in trials:
        error, variance = t.centre(by_law)
        standardized.append(float(np.mean(error**2 / (variance + found.replicate_sd**2))))
        ahead += [standardized[-1]] if t.kind == "length" else []
        held_out += [(t.kind, run, float(e)) for run, e in zip(t.runs, error, strict=True)]
    scores = {}
    for name in found.fits:
        own = [trial[law_of(name)] for trial in squares if law_of(name) in trial]
        scores[name] = float(np.sqrt(np.mean(own))) if own else float("nan")
    scale = experience.scaled(one, standardized)
    return replace(
        found,
        weights=weights,
        scores=scores,
        scale=scale,
        # Longer runs are not trusted more than trials at longer runs were, however few they are.
        scale_ahead=max(scale, float(np.sqrt(np.mean(ahead))) if ahead else 0.0),
        held_out=tuple(held_out),
    )
