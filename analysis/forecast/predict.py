"""What a run not yet made would give: the ensemble's centre, and an interval calibrated by backtests.

    centre +- z sqrt(c^2 (unknown^2 + spread^2) + seed^2)        all relative to the centre

z is the normal quantile of the interval's level. `unknown` is the posterior standard deviation of the laws'
residuals at runs' ends (kriging.py); it grows with ln(steps / longest run) and with the distance of the
warmdown ratio from those that were run. `spread` is the laws' disagreement about this run. c is how large
standardized errors on held-out runs were: in other studies at first, in the table itself as it has more of
them. `seed` is the standard deviation between replicates. docs/intervals.md says why it is no bootstrap of
residuals.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import norm

from analysis.forecast.centre import BEYOND, Ensemble
from analysis.forecast.ensemble import build
from analysis.laws.plans import mean_final, same_plan
from analysis.runs.errors import AnalysisError
from analysis.runs.schedule import SHAPES
from analysis.runs.strictjson import plain
from analysis.runs.table import MAX_STEPS, Run, Table

FARTHEST = 10.0  # times the longest run: beyond, errors of other studies (4 times at most) say nothing


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A final value with its interval.

    Where no honest interval can be given, `low` and `high` are None, and `reason` says why.
    """

    metric: str
    steps: int
    warmdown: int
    schedule: str
    value: float
    low: float | None
    high: float | None
    level: float
    reason: str | None
    laws: dict[str, float]
    weights: dict[str, float]
    scores: dict[str, float]  # each law's RMS relative error in inner backtests
    extrapolation: dict[str, object]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Plain JSON; NaN becomes null."""
        fields: dict[str, object] = plain(vars(self))
        return fields


def predict(
    table: Table,
    *,
    steps: int,
    warmdown: int,
    metric: str,
    level: float = 0.9,
    schedule: str | None = None,
    where: dict[str, object] | None = None,
) -> Prediction:
    """The final `metric` of a run of `steps`, of which the last `warmdown` are warmdown, from a table's runs.

    Args:
        level: probability of the interval.
        schedule: shape of the warmdown; if not given, the most frequent one that has a name.
        where: values of axes (peak_lr, ...), needed if the table's runs differ in them.

    Raises:
        AnalysisError: the plan is impossible, the runs differ in more than schedule and seed, or they are too
            few to fit any law.
    """
    if not 0 <= warmdown <= steps or steps < 1:
        raise AnalysisError(f"warmdown {warmdown} of {steps} steps is impossible: it must be within 0..steps")
    if steps > MAX_STEPS:
        raise AnalysisError(f"steps is {steps:,}; a run has {MAX_STEPS:,} at most")
    check_level(level)
    if not any(run.final(metric) is not None or run.curve(metric) is not None for run in table.runs):
        raise AnalysisError(f"{table.source}: no run has '{metric}'; known: {', '.join(table.metrics())}")
    training = one_group(table, where or {})
    target = planned_run(training, steps, warmdown, schedule)
    return predict_run(build(training, metric), target, level)


def check_level(level: float) -> None:
    """Refuse, by an AnalysisError, what is not the probability of an interval."""
    if not 0 < level < 1:
        raise AnalysisError(f"level is {level:g}; it must be between 0 and 1, as 0.9")


def one_group(table: Table, where: dict[str, object]) -> Table:
    """The runs that agree with `where`.

    Raises:
        AnalysisError: none does, or they still differ in an axis that is not the schedule's or the seed.
    """
    kept = table.where(lambda run: run.agrees(where))
    if not kept.runs:
        raise AnalysisError(f"{table.source}: no run has {where}")
    groups = list(kept.groups())
    if len(groups) > 1:
        axes = {axis for group in groups for axis, _ in group}
        differing = {axis: sorted({str(dict(group).get(axis)) for group in groups}) for axis in sorted(axes)}
        told = "; ".join(f"{axis}: {', '.join(seen)}" for axis, seen in differing.items() if len(seen) > 1)
        raise AnalysisError(
            f"{table.source}: the runs differ in more than steps and schedule ({told}), and one law "
            f"would mix them; "
            "keep the rows of one value of each (--where AXIS=VALUE)"
        )
    return kept


def planned_run(table: Table, steps: int, warmdown: int, schedule: str | None) -> Run:
    """A run like the table's with another plan; unless given, its shape is their most frequent one.

    Raises:
        AnalysisError: no shape is given, and the runs' learning rates are only known from logs.
    """
    annealed = [run for run in table.runs if not run.is_constant] or list(table.runs)
    shaped = [run for run in annealed if run.schedule != "observed"]
    if not shaped and warmdown and schedule is None:
        raise AnalysisError(
            f"{table.source}: its learning rates are known by lr_scale only, which gives no shape to plan "
            f"with: name it in the column schedule, or give --schedule ({', '.join(SHAPES)})"
        )
    annealed = shaped or annealed
    usual = Counter((run.schedule, run.final_lr_fraction) for run in annealed).most_common(1)[0][0]
    like = next(run for run in annealed if (run.schedule, run.final_lr_fraction) == usual)
    return replace(
        like,
        run_id=f"planned-{steps}-{warmdown}",
        steps=steps,
        peak_steps=steps - warmdown,
        warmdown_steps=warmdown,
        schedule="constant" if warmdown == 0 else schedule or usual[0],
        metrics={},
        columns={},
        trajectory=None,
    )


def predict_run(ensemble: Ensemble, target: Run, level: float, at: int | None = None) -> Prediction:
    """The value of a run at its end (or at step `at` of its trajectory), with its interval."""
    found = ensemble.finals([target])
    if at is None:
        laws = {name: float(values[0]) for name, values in found.laws.items()}
        value = float(found.centre[0])
    else:
        curves = ensemble.laws(target, np.array([at]), final=False)
        laws = {name: float(values[0]) for name, values in curves.items()}
        value = float(ensemble.centre(curves)[0])
    replicates = [run for run in ensemble.measured.runs if same_plan(run, target)]
    made = mean_final(replicates, ensemble.metric) if at is None else None
    reason = _no_interval(ensemble.measured, target)
    sd = float(ensemble.standard_error(found)[0])
    if made is not None:  # the plan was run: its replicates say more than any law
        value, sd, reason = made[0], ensemble.replicate_sd * float(np.sqrt(1 + 1 / made[1])), None
    half = float(norm.ppf((1 + level) / 2)) * sd * value
    return Prediction(
        metric=ensemble.metric,
        steps=target.steps,
        warmdown=target.warmdown_steps,
        schedule=target.schedule,
        value=value,
        low=None if reason else value - half,
        high=None if reason else value + half,
        level=level,
        reason=reason,
        laws=laws,
        weights=ensemble.weights,
        scores=ensemble.scores,
        extrapolation=_extrapolation(ensemble.measured, target),
        warnings=tuple(dict.fromkeys(w for f in ensemble.fits.values() for w in f.warnings)),
    )


def _no_interval(measured: Table, target: Run) -> str | None:
    """Why nothing tells how wide an interval would have to be; None where something does."""
    longest = max(run.steps for run in measured.runs)
    if target.steps > FARTHEST * longest:
        return (
            f"{target.steps / longest:.0f} times the longest run: no study tells how well so far a run is "
            f"predicted ({FARTHEST:g} times at most)"
        )
    if all(run.is_constant for run in measured.runs) and not target.is_constant:
        return "no run with a warmdown was measured: nothing tells how well one is predicted"
    return None


def _extrapolation(table: Table, target: Run) -> dict[str, object]:
    longest = max(run.steps for run in table.runs)
    ratios = [run.warmdown_ratio for run in table.runs if not run.is_constant] or [0.0]
    factor = target.steps / longest
    inside = min(ratios) - 0.025 <= target.warmdown_ratio <= max(ratios) + 0.025
    length = (
        f"{factor:.2f} x the longest run ({longest} steps)" if factor > BEYOND else "within the lengths run"
    )
    ratio = f"warmdown ratio {target.warmdown_ratio:.2f} {'within' if inside else 'outside'}"
    return {
        "longest_run": longest,
        "factor": factor,
        "beyond_longest": factor > BEYOND,
        "ratio_range": [min(ratios), max(ratios)],
        "ratio_inside": inside,
        "label": f"{length}; {ratio} {min(ratios):.2f}-{max(ratios):.2f}",
    }
