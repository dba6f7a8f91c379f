"""The report's first screen: how long to train, how much of that as warmdown, and at what price.

A prediction is only named with its interval; where there is none the sentence says 'undetermined', and why.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from analysis.effects.confounds import ratios_compared
from analysis.effects.slopes import Estimate
from analysis.effects.soundness import CLEAR, noise_of
from analysis.forecast.advise import interval
from analysis.forecast.cost import Cost, cost_of
from analysis.forecast.predict import Prediction
from analysis.forecast.surface import BestRatio, Forecast
from analysis.report.study import Study
from analysis.runs.settings import setting, varying_axes
from analysis.runs.sweepfile import SweepFile
from analysis.runs.table import Run
from analysis.runs.units import axis, counted, unit

_NARROWER = 0.9  # of the range of ratios that were run: an interval at least that wide tells nothing


@dataclass(frozen=True)
class Answer:
    """The first screen: one headline, then labelled facts, the best run first."""

    headline: str
    facts: tuple[tuple[str, str], ...]  # (label, sentence)


def answer(study: Study, sweep: SweepFile) -> Answer:
    """What the runs say, in the order in which a person asks it."""
    facts = [
        ("Best run", best_run(study)),
        ("Warmdown", warmdown_share(study)),
        ("Twice as long", doubling(study)),
        ("Its cost", price_of_doubling(study, sweep)),
        ("Acceleration", acceleration(study)),
        ("Compressors", compressors(study, sweep)),
    ]
    return Answer(headline(study), tuple((label, text) for label, text in facts if text))


def acceleration(study: Study) -> str:
    """Whether improvement accelerates in the warmdown: a comparison that an unstable trunk does not carry."""
    if study.unstable:
        return "Undetermined: slopes on an unstable trunk say little; the section below has them."
    return study.headline or study.verdict[0]


def headline(study: Study) -> str:
    """How long, how much warmdown: one sentence."""
    if study.best is None:
        return f"Undetermined: no run has a final {axis(study.final_metric)}."
    best, _ = study.best
    lengths, tried = {run.steps for run in study.table.runs}, ratios_run(study)
    if len(lengths) == 1 and len(tried) == 1:
        return (
            "How long to train, and how much of it as warmdown, is undetermined: "
            f"all runs have {best.steps:,} steps and warm down for {tried[0]:.2f} of them."
        )
    gain = gain_of_doubling(study)
    if study.longer_worse is not None:
        steps = study.longer_worse.best.steps
        length = f"Train for about {steps:,} steps: longer runs were worse"
    elif len(lengths) == 1:
        length = f"How long to train is undetermined: all runs have {best.steps:,} steps"
    elif gain is None:
        length = (
            f"The longest runs, {max(lengths):,} steps, were best; what longer ones bring is undetermined"
        )
        if best.steps < max(lengths):
            length = f"How long to train is undetermined: the best run has {best.steps:,} steps, within noise"
    elif gain.above(0):
        length = (
            f"Train longer than {max(lengths):,} steps: twice as many are predicted to gain "
            f"{gain.text('.4f')} {unit(study.final_metric)}"
        )
    else:
        length = (
            f"{best.steps:,} steps were best; whether twice the longest run is better is undetermined "
            f"({gain.text('+.4f')} {unit(study.final_metric)})"
        )
    return f"{length}; {_share(study)}."


def _share(study: Study) -> str:
    """How much warmdown, as the end of the headline."""
    tried = ratios_run(study)
    if not tried:
        return "no run has a warmdown"
    if len(tried) == 1:
        return f"all runs warm down for {tried[0]:.2f} of their steps, so how much is best is undetermined"
    span = f"{tried[0]:.2f} to {tried[-1]:.2f}"
    undetermined = f"how much warmdown is undetermined: {_apart(study, span)}"
    best = _best_at_longest(study)
    if best is None or not _narrows(best, tried) or _misfits(study):
        if (measured := measured_ratios(study)) is None:
            return undetermined
        low, high = measured.low, measured.high
        within = f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}"
        steps, end = measured.steps, _open_end(low, high, tried)
    else:
        within = f"{best.low:.2f} to {best.high:.2f}"
        steps, end = best.steps, _open_end(best.low, best.high, tried)
    alone = (
        "" if ratios_compared(study.table) else " (by fitted laws alone: no length was run with two ratios)"
    )
    return f"at {steps:,} steps {within} of the run as warmdown is best{alone}{end}"


def _open_end(low: float, high: float, tried: list[float]) -> str:
    """A warning, where the best ratios (low to high) reach an end of the ratios that were run."""
    if high >= tried[-1] - 0.005:
        return f", and {tried[-1]:.2f} is the largest that was run"
    return f", and {tried[0]:.2f} is the smallest that was run" if low <= tried[0] + 0.005 else ""


def ratios_run(study: Study) -> list[float]:
    """Distinct warmdown ratios of the runs with a warmdown, to two decimals."""
    runs = study.forecast.ensemble.measured.runs if study.forecast else study.table.runs
    return sorted({round(run.warmdown_ratio, 2) for run in runs if not run.is_constant})


def _best_at_longest(study: Study) -> BestRatio | None:
    """The forecast's best ratio at the longest run, where its laws know of ratios."""
    if study.forecast is None or not study.forecast.knows_ratios:
        return None
    return study.forecast.best_at(_longest(study.forecast))


def _longest(forecast: Forecast) -> int:
    return max(run.steps for run in forecast.ensemble.measured.runs)


def _narrows(best: BestRatio, tried: list[float]) -> bool:
    """Whether the interval of best ratios is narrower than the range of those that were run."""
    return best.high - best.low < _NARROWER * (tried[-1] - tried[0])


def _misfits(study: Study) -> bool:
    """Whether the report found that its laws do not fit these runs."""
    return any(text.startswith("The laws miss") for text in study.findings)


class MeasuredRatios(NamedTuple):
    """Of the warmdown ratios that were run at one length, the best, and the range of those as good as it."""

    steps: int
    best: float
    low: float
    high: float
    noise: float  # one run's SD, in the metric's unit


def _apart(study: Study, span: str) -> str:
    """Why no ratio is named as the best; of an unstable trunk, whose noise nobody knows, which one was."""
    if not study.unstable or study.best is None or len(means := _means_by_ratio(study, study.best[0])) < 2:
        return f"{span} of the steps cannot be told apart"
    lowest = min(means, key=lambda ratio: means[ratio])
    return (
        f"of {span} at {study.best[0].steps:,} steps {lowest:.2f} was best, but the trunk is too unstable to "
        "tell whether by more than noise"
    )


def _means_by_ratio(study: Study, best: Run) -> dict[float, float]:
    """Mean final value by warmdown ratio, of the runs that are as long as the best one."""
    finals: dict[float, list[float]] = {}
    for run in study.table.runs:
        known = run.final(study.final_metric)
        like = (run.steps, run.group, run.schedule) == (best.steps, best.group, best.schedule)
        if like and not run.is_constant and known is not None:
            finals.setdefault(round(run.warmdown_ratio, 2), []).append(known)
    return {ratio: float(np.mean(values)) for ratio, values in sorted(finals.items())}


def measured_ratios(study: Study) -> MeasuredRatios | None:
    """The ratios that are as good as the best one at the best run's length, by the runs alone.

    None where fewer than two ratios were run there, where none of them is clearly worse than the best, or
    where the trunk is unstable, so that the noise is unknown.
    """
    if study.best is None or study.unstable:
        return None
    best, value = study.best
    means = _means_by_ratio(study, best)
    if len(means) < 2:
        return None
    noise = noise_of(study.table, study.final_metric, value)[0]
    ratios, lowest = list(means), min(means, key=lambda ratio: means[ratio])
    alike = [mean - means[lowest] <= CLEAR * noise for mean in means.values()]
    first = last = ratios.index(lowest)
    while first > 0 and alike[first - 1]:
        first -= 1
    while last + 1 < len(ratios) and alike[last + 1]:
        last += 1
    if last - first + 1 == len(ratios):
        return None
    return MeasuredRatios(best.steps, lowest, ratios[first], ratios[last], noise)


def best_run(study: Study) -> str:
    """The run with the best final metric, and the size of its artifact."""
    if study.best is None:
        return ""
    run, value = study.best
    known = sum(r.final(study.final_metric) is not None for r in study.table.runs)
    text = (
        f"{run.run_id}, best of {known}: {value:.4f} {axis(study.final_metric)}, {run.steps:,} steps"
        if known > 1
        else f"{run.run_id}, the only one: {value:.4f} {axis(study.final_metric)}, {run.steps:,} steps"
    )
    text += "" if run.is_constant else f" of which {run.warmdown_steps:,} are {run.schedule} warmdown"
    size = run.metrics.get("artifact_bytes")
    return text + (f"; compressed model {size:,.0f} bytes." if size else ".")


def warmdown_share(study: Study) -> str:
    """The best ratio with its interval, and whether it was run or lies between runs."""
    tried = ratios_run(study)
    best = _best_at_longest(study)
    if len(tried) < 2:
        return "" if not tried else f"Undetermined: every run warms down for {tried[0]:.2f} of its steps."
    if best is None or not _narrows(best, tried) or _misfits(study):
        if (measured := measured_ratios(study)) is None:
            return f"Undetermined: {_apart(study, f'{tried[0]:.2f} to {tried[-1]:.2f}')}."
        only = measured.low == measured.high
        alike = "no other ratio" if only else f"{measured.low:.2f} to {measured.high:.2f}"
        return (
            f"Measured at {measured.steps:,} steps: {measured.best:.2f} of the run was best, {alike} within "
            f"the noise of two runs ({measured.noise:.4f} {unit(study.final_metric)} each)."
        )
    where = "" if _was_run(study, best) else ", which lies between ratios that were run"
    text = (
        f"At {best.steps:,} steps, {best.ratio:.2f} of the run as {best.prediction.schedule} warmdown{where}"
    )
    if not best.at_edge:
        return f"{text}; {best.low:.2f} to {best.high:.2f} are as good."
    if best.ratio > np.mean(tried):
        return f"{text}; {best.low:.2f} to at least {best.high:.2f} are as good: no larger one was run."
    return f"{text}; {best.high:.2f} down to at most {best.low:.2f} are as good: no smaller one was run."


def _was_run(study: Study, best: BestRatio) -> bool:
    assert study.forecast is not None
    return any(
        abs(run.warmdown_ratio - best.ratio) < 0.005
        for run in study.forecast.ensemble.measured.runs
        if not run.is_constant
    )


def doubled(study: Study) -> Prediction | None:
    """Twice the longest run, at the best ratio where the laws tell one, else at the best run's ratio.

    None without a forecast.
    """
    if study.forecast is None:
        return None
    ahead, best = study.forecast.best[-1], _best_at_longest(study)
    told = best is not None and _narrows(best, ratios_run(study)) and not _misfits(study)
    if told or study.best is None or study.best[0].is_constant:
        return ahead.prediction
    return study.forecast.at(ahead.steps, round(ahead.steps * study.best[0].warmdown_ratio))


def gain_of_doubling(study: Study) -> Estimate | None:
    """How far below the best run's value that of `doubled` is predicted to be; None without an interval."""
    ahead = doubled(study)
    if ahead is None or study.best is None or ahead.low is None or ahead.high is None:
        return None
    value = _best_of_like(study)
    return Estimate(value - ahead.value, value - ahead.high, value - ahead.low)


def _best_of_like(study: Study) -> float:
    """The best final value of the runs that the forecast is made from: another axis's are of another law."""
    assert study.forecast is not None and study.best is not None
    finals = (run.final(study.final_metric) for run in study.forecast.ensemble.table.runs)
    return min((value for value in finals if value is not None), default=study.best[1])


def doubling(study: Study) -> str:
    """What twice the longest run is predicted to reach, against the best run."""
    ahead, gain = doubled(study), gain_of_doubling(study)
    if ahead is None:
        return f"Not predicted: {study.no_forecast}."
    if gain is None:
        return f"Undetermined: {ahead.reason}."
    word = "better than" if gain.above(0) else "worse than" if gain.below(0) else "not clearly better than"
    amount = gain if gain.value >= 0 else Estimate(-gain.value, -gain.high, -gain.low)  # type: ignore[operator]
    assert study.forecast is not None
    run = "the best run"
    if study.forecast.left_out:
        of = setting(study.forecast.ensemble.table.runs[0], varying_axes(study.table))
        run += f" with {of}"
    return (
        f"{ahead.steps:,} steps with {ahead.warmdown:,} of warmdown: {interval(ahead)}, {word} {run} "
        f"(by {amount.text('.4f')}).{_own_misses(study)}"
    )


def _own_misses(study: Study) -> str:
    """How far off these runs were when they were predicted from shorter ones, as the interval counts it."""
    assert study.forecast is not None
    ensemble = study.forecast.ensemble
    misses = [
        abs(error) * value
        for kind, run_id, error in ensemble.held_out
        if kind == "length" and (value := ensemble.table.run(run_id).final(study.final_metric)) is not None
    ]
    if not misses:
        return ""
    return (
        f" Predicted in the same way from shorter runs alone, {counted(len(misses), 'known run')} came out "
        f"{max(misses):.4f} off at most."
    )


def price_of_doubling(study: Study, sweep: SweepFile) -> str:
    """Device time of `doubled`, trained alone and from the longest trunk there is."""
    ahead = doubled(study)
    if study.forecast is None or ahead is None:
        return ""
    cost = cost_of(study.forecast.ensemble.table)
    if cost is None:
        return "Unknown: no run says how long it took."
    text = _priced(cost, cost.hours(ahead.steps), sweep)
    if study.table.keeps_trunk:
        new = _new_steps(study.table.runs, ahead.steps, ahead.warmdown)
        if new < ahead.steps:
            shared = _priced(cost, cost.fixed + cost.per_step * new, sweep)
            text += f" alone, {shared} from the trunk that is kept"
    return f"{text}."


def _new_steps(runs: tuple[Run, ...], steps: int, warmdown: int) -> int:
    """Steps to train when the constant phase starts from the furthest state at the full rate."""
    trunk = max((run.steps if run.is_constant else run.peak_steps) for run in runs)
    return steps - min(trunk, steps - warmdown)


def _priced(cost: Cost, hours: float, sweep: SweepFile) -> str:
    text = cost.text(hours)
    if sweep.price_per_gpu_hour is not None and cost.device == "GPU":
        text += f" ({hours * sweep.price_per_gpu_hour:,.2f} at {sweep.price_per_gpu_hour:g} a GPU-hour)"
    return text


def compressors(study: Study, sweep: SweepFile) -> str:
    """What general compressors reach on the same text, beside a metric in the same unit."""
    if not sweep.compressor_bpb or unit(study.final_metric) != "BPB":
        return ""
    others = " and ".join(f"{name} {bpb:.3f}" for name, bpb in sweep.compressor_bpb)
    return f"On the same validation text, general compressors reach {others} bits per byte."
