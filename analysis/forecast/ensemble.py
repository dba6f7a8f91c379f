"""Several laws as one predictor: each is tried on runs it was not fitted to, and counts by how well it did.

Everything here is a function of one table, the training rows; nothing else can reach a fit, a weight or an
error bar.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from analysis.forecast.folds import NEAR_DEFICIT, Fold, deficit_distance, folds, last_known, replicate_sd
from analysis.forecast.gaps import BASES, StageGap, fit_gaps
from analysis.forecast.observations import final_rows, trajectory_rows
from analysis.laws import FINAL_LAWS, TRAJECTORY_LAWS
from analysis.laws.design import Design
from analysis.laws.fit import Fit, fit
from analysis.runs.errors import AnalysisError
from analysis.runs.table import Floats, Ints, Run, Table

Fitted = Fit | StageGap

SCORE_FLOOR = 5e-4  # relative; backtest errors below it are luck
LIKENESS = 0.01  # difference in r (its mean so far and now) that ends the likeness of two histories


def fit_laws(table: Table, metric: str, *, baselines: bool = False) -> dict[str, Fitted]:
    """Every law of the ensemble that the table can carry, or instead the baselines it is compared with."""
    base = metric
    if metric in BASES and not any(run.curve(metric) is not None for run in table.runs):
        base = BASES[metric]
    fits: dict[str, Fit] = {}
    if any(run.curve(base) is not None for run in table.runs):
        data = trajectory_rows(table, base)
        annealed = data.design.anneals
        for law in TRAJECTORY_LAWS:
            enough = len(data.value) >= 2 * len(law.parameters) + len(law.linear)
            if annealed and enough and law.baseline == baselines:
                fits[law.name] = fit(law, data)
    result: dict[str, Fitted] = {**fits} if base == metric else {**fit_gaps(fits, table, metric)}
    annealed_runs = table.where(lambda run: not run.is_constant and run.final(metric) is not None)
    if annealed_runs.runs and not baselines:
        finals = final_rows(annealed_runs, metric)
        lengths = len(set(finals.design.step))
        plans = len(set(zip(finals.design.step, finals.design.warmdown, strict=True)))
        for law in FINAL_LAWS:
            # A surface needs its two directions told apart: more plans than lengths.
            apart = "b" not in law.linear or len(law.linear) < 3 or plans > lengths
            if (
                lengths >= len(law.parameters) + 2
                and plans >= 2 * len(law.parameters) + len(law.linear)
                and apart
            ):
                result[law.name] = fit(law, finals)
    return result


@dataclass(frozen=True)
class Trial:
    """One fold's outcome for one law: relative errors (predicted / measured - 1) on the runs held out."""

    kind: str
    stretch: float
    final: dict[str, float]  # by run: at the last measurement
    curve: float  # mean square over what of the runs' trajectories was not known when fitting; NaN if nothing


def _try(fitted: Fitted, fold: Fold, metric: str) -> Trial:
    final, squares = {}, []
    for run in fold.held_out:
        known = last_known(run, metric)
        assert known is not None
        step, value, is_final = known
        predicted = evaluate(fitted, run, np.array([step]), is_final)
        final[run.run_id] = float(predicted[0] / value - 1)
        curve = run.curve(metric)
        if curve is None:
            continue
        unseen = curve[0] > run.peak_steps
        if unseen.any():
            squares.append(
                float(np.mean((evaluate(fitted, run, curve[0][unseen], False) / curve[2][unseen] - 1) ** 2))
            )
    return Trial(fold.kind, fold.stretch, final, float(np.mean(squares)) if squares else float("nan"))


def evaluate(fitted: Fitted, run: Run, steps: Ints, final: bool) -> Floats:
    """A law's values at steps of a run, [n]; `final`: as final values are measured."""
    if len(steps) == 0:
        return np.empty(0)
    return fitted.predict(Design([(run, steps)])) + fitted.offset * final


@dataclass(frozen=True)
class Ensemble:
    """Fitted laws, their weights (sum 1), and the errors that the weighted centre makes in inner backtests.

    Errors are relative; `length_stretch` is the typical ln(longer / longest trained) of the former,
    `ratio_stretch` the typical distance of a left-out schedule. None of it was made with anything but
    `table`.
    """

    table: Table
    metric: str
    fits: dict[str, Fitted]
    weights: dict[str, float]
    scores: dict[str, float]  # RMS relative backtest error of each law, NaN where it could not be tried
    length_errors: Floats
    ratio_errors: Floats
    length_stretch: float
    ratio_stretch: float
    replicate_sd: float  # relative
    held_out: tuple[tuple[str, str, float], ...] = ()  # (kind, run_id, relative error) behind the errors

    @cached_property
    def measured(self) -> Table:
        """The runs that say something of the metric itself: how far a prediction reaches, reaches from them.

        Laws of a stage's base quantity may be fitted to further ones.
        """
        return self.table.where(lambda run: last_known(run, self.metric) is not None)

    def mean_square(self, kind: str) -> float:
        """Mean square backtest error of a kind. The mean of all kinds counts as one more: few are luck."""
        errors = self.length_errors if kind == "length" else self.ratio_errors
        pooled = np.concatenate([self.length_errors, self.ratio_errors])
        return float((np.sum(errors**2) + np.mean(pooled**2)) / (len(errors) + 1))

    def laws(self, run: Run, steps: Ints, final: bool) -> dict[str, Floats]:
        """Values at steps of a run by each law that can speak for it; `final`: as finals are measured."""
        usable = {name: f for name, f in self.fits.items() if final or not f.law.of_finals}
        if deficit_distance(self.measured, run) > NEAR_DEFICIT:
            usable = {name: f for name, f in usable.items() if not f.law.of_steps_alone} or usable
        return {name: evaluate(f, run, steps, final) for name, f in usable.items()}

    def trajectory(self, run: Run, steps: Ints) -> Floats:
        """Values along a run, [n]: the centre, and where its plan repeats a measured one, what was
        measured.
        """
        centre = self.centre(self.laws(run, steps, final=False))
        value, likeness = measured_prefix(self.table, self.metric, run, steps)
        return centre + likeness * (value - centre)

    def centre(self, laws: dict[str, Floats]) -> Floats:
        """The laws' weighted mean; their median where no backtest could tell them apart."""
        if all(np.isnan(score) for score in self.scores.values()):
            return np.median(list(laws.values()), axis=0)
        weight = self._among(laws)
        return np.sum([weight[name] * value for name, value in laws.items()], axis=0)

    def _among(self, laws: dict[str, Floats]) -> dict[str, float]:
        """The weights, summing to 1 over the laws that speak here: laws of finals have no trajectories."""
        total = sum(self.weights[name] for name in laws)
        return {name: self.weights[name] / total for name in laws}

    def spread(self, laws: dict[str, Floats]) -> Floats:
        """Weighted standard deviation of the laws around their centre, [n]."""
        centre, weight = self.centre(laws), self._among(laws)
        return np.sqrt(np.sum([weight[name] * (value - centre) ** 2 for name, value in laws.items()], axis=0))


def build(table: Table, metric: str) -> Ensemble:
    """Fit the laws to a table and weigh them by its inner backtests.

    Raises:
        AnalysisError: the table carries no law.
    """
    fits = fit_laws(table, metric)
    if not fits:
        raise AnalysisError(
            f"{table.source}: {metric} of {len(table.runs)} runs carries no law; it takes a trajectory "
            f"with a "
            "falling learning rate, or final values at three lengths or more"
        )
    trials: list[dict[str, Trial]] = []
    for fold in folds(table, metric):
        inner = fit_laws(fold.train, metric)
        tried = {name: _try(inner[name], fold, metric) for name in fits if name in inner}
        if tried:
            trials.append(tried)
    scores = _scores(trials, list(fits))
    weights = _weights(scores)
    held_out = {kind: _centre_errors(trials, weights, kind) for kind in ("length", "ratio")}
    errors = {kind: np.array([error for _, error in found]) for kind, found in held_out.items()}
    stretch = {
        kind: [x.stretch for t in trials for x in list(t.values())[:1] if x.kind == kind] for kind in errors
    }
    return Ensemble(
        table=table,
        metric=metric,
        fits=fits,
        weights=weights,
        scores=scores,
        length_errors=errors["length"],
        ratio_errors=errors["ratio"],
        length_stretch=float(np.mean(stretch["length"])) if stretch["length"] else float("nan"),
        ratio_stretch=float(np.mean(stretch["ratio"])) if stretch["ratio"] else float("nan"),
        replicate_sd=replicate_sd(table, metric),
        held_out=tuple((kind, run_id, error) for kind, found in held_out.items() for run_id, error in found),
    )


def _scores(trials: list[dict[str, Trial]], names: list[str]) -> dict[str, float]:
    """RMS relative error of each law over folds: finals and, where there are some, whole warmdowns count
    alike.

    A law that a fold's rows could not carry is scored there as the worst of those that they could.
    """
    table = np.full((len(trials), len(names)), np.nan)
    for i, tried in enumerate(trials):
        for name, trial in tried.items():
            final = float(np.mean(np.square(list(trial.final.values()))))
            table[i, names.index(name)] = final if np.isnan(trial.curve) else (final + trial.curve) / 2
        table[i] = np.where(np.isnan(table[i]), np.nanmax(table[i]), table[i])
    if not trials:
        return dict.fromkeys(names, float("nan"))
    return dict(zip(names, np.sqrt(table.mean(axis=0)).tolist(), strict=True))


def _weights(scores: dict[str, float]) -> dict[str, float]:
    """In proportion to 1 / MSE^2 of the backtests; equal where there were none."""
    raw = {n: 1.0 if np.isnan(score) else (score**2 + SCORE_FLOOR**2) ** -2 for n, score in scores.items()}
    total = sum(raw.values())
    return {name: value / total for name, value in raw.items()}


def _centre_errors(
    trials: list[dict[str, Trial]], weights: dict[str, float], kind: str
) -> list[tuple[str, float]]:
    """(run_id, relative error of the weighted centre) of every run held out in the folds of a kind."""
    errors = []
    for tried in trials:
        of_kind = {name: trial for name, trial in tried.items() if trial.kind == kind}
        total = sum(weights[name] for name in of_kind)
        for run_id in next(iter(of_kind.values())).final if of_kind else ():
            error = sum(weights[n] * t.final[run_id] for n, t in of_kind.items()) / total
            errors.append((run_id, error))
    return errors


def measured_prefix(table: Table, metric: str, run: Run, steps: Ints) -> tuple[Floats, Floats]:
    """What the table's runs measured at these steps, and how alike their learning rates were until then,
    0..1, [n].

    A run that branches off a measured trunk repeats it up to noise; before the burn-in nothing else knows
    the curve.
    """
    best, weight, total = np.zeros(len(steps)), np.zeros(len(steps)), np.zeros(len(steps))
    for other in table.runs:
        curve = other.curve(metric)
        if curve is None:
            continue
        n = min(run.steps, other.steps)
        apart = np.abs(run.lr[:n] - other.lr[:n])
        distance = np.cumsum(apart) / np.arange(1, n + 1) + apart
        inside = (steps >= curve[0][0]) & (steps <= min(curve[0][-1], n))
        likeness = np.where(inside, np.exp(-distance[np.clip(steps - 1, 0, n - 1)] / LIKENESS), 0.0)
        total += likeness * np.interp(steps, curve[0], curve[2])
        weight += likeness
        best = np.maximum(best, likeness)
    return total / np.maximum(weight, 1e-300), best
