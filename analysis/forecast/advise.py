"""What to run next: the best ratio for a budget of steps, the best steps for a budget of hours, what the next
hour buys, and the run that would tell most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.forecast.cost import Cost, cost_of
from analysis.forecast.predict import Prediction, planned_run
from analysis.forecast.surface import BestRatio, Forecast
from analysis.runs.table import Table
from analysis.runs.units import unit

_BUDGETS = (0.5, 1.0, 2.0)  # times the cost of the longest run
_CANDIDATE_LENGTHS = (1.0, 1.5, 2.0)
_CANDIDATE_RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
_NEAR = 0.05  # ratios within it were run
_LONG_RATIO = 0.5  # a sweep without a warmdown this long says little about other ratios (public 124M grid)


@dataclass(frozen=True)
class Budget:
    """The best plan that a number of hours pays for."""

    hours: float
    best: BestRatio


@dataclass(frozen=True)
class Candidate:
    """A run that was not made: what it would settle, and what it costs on top of what exists."""

    steps: int
    warmdown_steps: int
    predicted: float
    settles: float  # share of the laws' disagreement (variance) about the target that it would remove
    new_steps: int  # to pay for, from the longest trunk where its state is kept or nothing says otherwise


@dataclass(frozen=True)
class Advice:
    """All advice on one forecast, with the sentences that say it."""

    cost: Cost | None
    budgets: tuple[Budget, ...]
    marginal: float | None  # change of the best prediction per further hour at the longest run
    candidates: tuple[Candidate, ...]  # most telling for their cost first
    target: BestRatio  # the plan that candidates are to settle
    sentences: tuple[str, ...]


def advise(found: Forecast) -> Advice:
    """Advice from a forecast and the times in its table."""
    table = found.ensemble.table
    longest = max(run.steps for run in found.ensemble.measured.runs)
    cost = cost_of(table)
    budgets: tuple[Budget, ...] = ()
    marginal = None
    if cost is not None:
        hours = [factor * cost.hours(longest) for factor in _BUDGETS]
        affordable = [(h, cost.steps(h)) for h in hours]
        shortest = min(run.steps for run in found.ensemble.measured.runs)
        budgets = tuple(Budget(h, found.best_at(steps)) for h, steps in affordable if steps >= shortest)
        ahead, here = round(1.25 * longest), longest
        change = found.best_at(ahead).prediction.value - found.best_at(here).prediction.value
        marginal = change / (cost.hours(ahead) - cost.hours(here))
    target = found.best[-1]
    candidates = _candidates(found, longest, target)
    sentences = [_ratio_sentence(found, longest), *_budget_sentences(budgets, cost, found, longest)]
    if marginal and cost is not None:
        per, size = ("hour", 1.0) if cost.hours(longest) >= 0.5 else ("minute", 1 / 60)
        sentences.append(
            f"At {longest:,} steps a further {cost.device}-{per} changes the best result by "
            f"{marginal * size:+.2g} {unit(found.ensemble.metric)} (predicted over the next 25 % of steps)."
        )
    if candidates:
        sentences.append(_next_sentence(candidates[0], found, cost, target))
    return Advice(cost, budgets, marginal, tuple(candidates), target, tuple(s for s in sentences if s))


def interval(prediction: Prediction) -> str:
    """'1.0944 BPB [1.0916, 1.0970]', or why there is no interval."""
    text = f"{prediction.value:.4f} {unit(prediction.metric)}"
    if prediction.low is None or prediction.high is None:
        return f"{text} (no interval: {prediction.reason})"
    return f"{text} [{prediction.low:.4f}, {prediction.high:.4f}]"


def _ratio_sentence(found: Forecast, longest: int) -> str:
    if len(found.tried) < 2:
        return (
            f"All runs warm down for {found.tried[0]:.2f} of their steps: nothing says which ratio is best."
        )
    if not found.knows_ratios:
        return "No law that these runs carry depends on the warmdown: nothing says which ratio is best."
    best = found.best_at(longest)
    alike = f"{best.low:.2f} to {best.high:.2f} cannot be told from it"
    text = f"For {best.steps:,} steps the best {found.schedule} warmdown is {best.ratio:.2f} of the run; "
    text += f"{alike}."
    if best.at_edge:
        word, side = ("longest", "above") if best.ratio == found.tried[-1] else ("shortest", "below")
        text += f" It is the {word} that was run, so that the true optimum may lie {side} it."
    near = [run for run in found.ensemble.measured.runs if abs(run.warmdown_ratio - best.ratio) < _NEAR]
    if len(near) == 1:
        text += f" It rests on one run ({near[0].run_id})"
        text += ", also the longest: ratio and length are confounded." if near[0].steps == longest else "."
    return text


def _budget_sentences(
    budgets: tuple[Budget, ...], cost: Cost | None, found: Forecast, longest: int
) -> list[str]:
    if cost is None:
        return ["No run says how long it took: no advice for a budget of hours."]
    sentences = []
    for budget in budgets:
        best, beyond = budget.best, budget.best.steps / longest
        where = f", {beyond:.1f} x the longest run" if beyond > 1.05 else ""
        sentences.append(
            f"{cost.text(budget.hours)} pay for {best.steps:,} steps; with "
            f"{round(best.steps * best.ratio):,} of "
            f"them warmdown, {found.ensemble.metric} is predicted at {interval(best.prediction)}{where}."
        )
    return sentences


def _candidates(found: Forecast, longest: int, target: BestRatio) -> list[Candidate]:
    """Plans that nobody ran, by the share of the laws' disagreement about the target each new step settles.

    The laws are taken as equally likely where their backtest errors are within a factor of 3 of the least.
    Seeing a run with replicate noise s takes cov(run, target)^2 / (var(run) + s^2) off the target's variance.
    """
    table, ensemble = found.ensemble.table, found.ensemble
    least = 0.0 if _has_long_warmdown(ensemble.measured) else _LONG_RATIO
    made = {(run.steps, round(run.warmdown_ratio, 1)) for run in table.runs}
    trunk = max((run.steps if run.is_constant else run.peak_steps) for run in table.runs)
    trunk = trunk if table.keeps_trunk or table.origin == "table" else 0
    plans = [
        planned_run(table, round(factor * longest), round(factor * longest * ratio), None)
        for factor in _CANDIDATE_LENGTHS
        for ratio in _CANDIDATE_RATIOS
        if ratio >= least and (round(factor * longest), round(ratio, 1)) not in made
    ]
    wanted = planned_run(table, target.steps, round(target.steps * target.ratio), None)
    laws = ensemble.finals([*plans, wanted]).laws
    scores = {name: score for name, score in ensemble.scores.items() if np.isfinite(score)}
    credible = [name for name in laws if scores.get(name, np.inf) <= 3 * min(scores.values(), default=0.0)]
    if len(credible) < 2:
        return []
    values = np.stack([laws[name] for name in credible])
    deviation = values - values.mean(axis=0)
    variance, covariance = (deviation**2).mean(axis=0), (deviation * deviation[:, -1:]).mean(axis=0)
    noise = found.noise * values.mean(axis=0)
    settles = covariance**2 / (variance + noise**2) / max(variance[-1], 1e-30)
    new_steps = np.array([plan.warmdown_steps + max(plan.peak_steps - trunk, 0) for plan in plans])
    return [
        Candidate(
            plans[i].steps,
            plans[i].warmdown_steps,
            float(values[:, i].mean()),
            float(settles[i]),
            int(new_steps[i]),
        )
        for i in np.argsort(-settles[:-1] / new_steps)
    ]


def _next_sentence(best: Candidate, found: Forecast, cost: Cost | None, target: BestRatio) -> str:
    price = f" ({cost.text(best.new_steps * cost.per_step + cost.fixed)})" if cost else ""
    source = " from the longest trunk" if best.new_steps < best.steps else ""
    text = (
        f"By the laws' own disagreement {best.steps:,} steps with {best.warmdown_steps:,} of warmdown would "
        f"tell most for its cost about {target.steps:,} steps: {best.new_steps:,} new steps{source}{price}. "
        f"A guide, not a measured gain: doubts that all laws share are not in it."
    )
    if not _has_long_warmdown(found.ensemble.measured):
        text += (
            f" Only plans with {_LONG_RATIO:.0%} of warmdown or more were looked at, as no run has so much: "
        )
        text += "such a run fixes the surface best."
    return text


def _has_long_warmdown(table: Table) -> bool:
    return max(run.warmdown_ratio for run in table.runs) >= _LONG_RATIO
