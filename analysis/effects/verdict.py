"""The question under study answered in words and numbers: does improvement accelerate at the end, and why?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.effects.slopes import Estimate
from analysis.effects.warmdown import MILESTONES, LengthLaw, RunWarmdown, Warmdown
from analysis.runs.units import span, unit

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Collapse:
    """Between-run SD of the share of the drop reached, when runs are lined up in one of three ways.

    The small one names what drives the drop. None where it cannot be told from the other (one schedule shape:
    `progress` and `remaining` are the same variable).
    """

    remaining: float  # at equal remaining learning rate
    progress: float | None  # at equal share of the warmdown's steps
    steps: float  # at equal number of steps since the peak


def collapse(runs: Sequence[RunWarmdown]) -> Collapse | None:
    """Line the drops of two or more runs up; None below two."""
    curves = [(r, share) for r in runs if (share := r.share_of_drop) is not None]
    if len(curves) < 2:
        return None
    grid = np.linspace(0.05, 0.95, 19)

    def spread(at: Callable[[RunWarmdown], Floats]) -> float:
        shares = [np.interp(at(r), r.step, share) for r, share in curves]
        return float(np.sqrt(np.mean(np.var(shares, axis=0, ddof=1))))

    shortest = min(r.run.warmdown_steps for r, _ in curves)
    shapes = {r.run.schedule for r, _ in curves}
    return Collapse(
        remaining=spread(lambda r: np.interp(grid, r.remaining[::-1], r.step[::-1].astype(float))),
        progress=spread(lambda r: r.run.peak_steps + grid * r.run.warmdown_steps)
        if len(shapes) > 1
        else None,
        steps=spread(lambda r: r.run.peak_steps + grid * shortest),
    )


def warmdown_verdict(result: Warmdown) -> tuple[str, ...]:
    """Sentences, the answer first. One that says why there is no answer, where there is none."""
    runs = result.runs
    if not runs:
        reasons = "; ".join(dict.fromkeys(reason for _, reason in result.skipped)) or "no runs"
        return (f"No verdict on the warmdown: no run has one that can be measured ({reasons}).",)
    sentences = [_acceleration(runs), _tail(runs), _steps(runs, result.metric), _shares(runs)]
    sentences += [_driver(runs), _schedules(runs, result.metric), _peak_rates(runs)]
    sentences += [_length(law, result.metric) for law in result.lengths]
    sentences += [_average(runs)]
    return tuple(s for s in sentences if s)


def headline(result: Warmdown) -> str:
    """One sentence: whether improvement accelerates at the end, and what it follows; or none."""
    if not result.runs:
        return ""
    words = []
    for schedule in dict.fromkeys(r.run.schedule for r in result.runs):
        ratios = [r.last_over_first for r in result.runs if r.run.schedule == schedule]
        word = {1: "accelerates", -1: "slows", 0: "does not clearly accelerate"}[_direction(ratios)]
        steep = f"last fifth {span(ratio.value for ratio in ratios)} times as steep as the first"
        words.append(f"{word} towards the end of a {schedule} warmdown ({steep})")
    found = collapse(result.runs)
    cause = ""
    if found is not None and found.remaining < 0.7 * min(found.steps, found.progress or np.inf):
        cause = ": what is gained follows the learning rate that is left, not the number of steps"
        cause += "" if found.progress is None else " nor the shape that takes it there"
    return f"Improvement {' and '.join(words)}{cause}."


def _direction(estimates: Sequence[Estimate]) -> int:
    """1 if most intervals lie above 1, -1 if most lie below, else 0."""
    above, below = sum(e.above(1) for e in estimates), sum(e.below(1) for e in estimates)
    return 1 if above > len(estimates) / 2 else -1 if below > len(estimates) / 2 else 0


def _acceleration(runs: Sequence[RunWarmdown]) -> str:
    """Per schedule: how much steeper the last fifth is than the first."""
    parts = []
    for schedule in dict.fromkeys(r.run.schedule for r in runs):
        ratios = [r.last_over_first for r in runs if r.run.schedule == schedule]
        faster, slower = sum(e.above(1) for e in ratios), sum(e.below(1) for e in ratios)
        n = len(ratios)
        word = {1: "accelerates", -1: "slows down", 0: "neither accelerates nor slows"}[_direction(ratios)]
        if faster and slower:
            word = f"accelerates in {faster} and slows in {slower} of {n} runs"
        parts.append(
            f"under {schedule}, improvement per step {word}: the last fifth of the warmdown is "
            f"{span(r.value for r in ratios)} times as steep as the first "
            f"(90 % interval above 1 in {faster}, below 1 in {slower} of {n})"
        )
    text = "; ".join(parts) + "."
    return text[0].upper() + text[1:]


def _tail(runs: Sequence[RunWarmdown]) -> str:
    known = [r for r in runs if r.first_over_tail is not None]
    if not known:
        return "No constant phase was evaluated often enough to compare the warmdown with."
    ratios = [r.first_over_tail.value for r in known if r.first_over_tail is not None]
    already = "already " if min(ratios) > 1 else ""
    return f"The first fifth is {already}{span(ratios, '.1f')} times as steep as the constant tail before it."


def _steps(runs: Sequence[RunWarmdown], metric: str) -> str:
    known = [r for r in runs if r.steps_gain is not None and r.gain > 0]
    if not known:
        return (
            "What the steps alone would have brought is not known: too few evaluations at the constant rate."
        )
    brought = [r.steps_gain.value for r in known if r.steps_gain is not None]
    shares = [100 * b / r.gain for b, r in zip(brought, known, strict=True)]
    answer = "The steps are not it" if max(shares) < 33 else "The steps are part of it"
    text = (
        f"{answer}: as many at the constant rate would have brought {span(brought, '.4f')} {unit(metric)}, "
    )
    text += f"{span(shares, '.0f')} % of the gain"
    guessed = [r.run.run_id for r in known if r.extrapolated]
    return text + (f" (extrapolated, not measured, for {_listed(guessed)})." if guessed else ".")


def _listed(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _shares(runs: Sequence[RunWarmdown]) -> str:
    parts = []
    for schedule in dict.fromkeys(r.run.schedule for r in runs):
        mine = [r for r in runs if r.run.schedule == schedule]
        mean = [float(np.mean([r.fractions[m] for r in mine])) for m in MILESTONES]
        wide = max(np.ptp([r.fractions[m] for r in mine]) for m in MILESTONES)
        parts.append(
            f"{' / '.join(f'{v:.2f}' for v in mean)} of the gain under {schedule}"
            + (f" (runs differ by up to {wide:.2f})" if len(mine) > 1 else "")
        )
    at = " / ".join(f"{100 * m:.0f}" for m in MILESTONES)
    return f"At {at} % of the warmdown, runs have reached " + ", ".join(parts) + "."


def _driver(runs: Sequence[RunWarmdown]) -> str:
    """Which of remaining rate, progress and steps lines the runs up."""
    exponents = [r.q for r in runs if r.q is not None]
    found = collapse(runs)
    if not exponents or found is None:
        few = (
            "With one run"
            if len(runs) == 1
            else "With a drop below the constant rate known for fewer than two"
        )
        return f"{few}, the steps cannot be told from the learning rate."
    late = {-1: "the gain comes late", 1: "the gain comes early", 0: "not clearly otherwise"}[
        _direction(exponents)
    ]
    law = (
        f"Below the constant rate's continuation, the drop follows D(r) = D_inf (1 - r^q) in the remaining "
        f"rate r with q = {span(q.value for q in exponents)} "
        f"(1 would be proportional to the rate removed; {late})."
    )
    lined = f"Lined up by remaining rate, runs differ by {found.remaining:.3f} of their drop (SD)"
    lined += f", by steps since the peak {found.steps:.3f}"
    if found.progress is None:
        settled = (
            "how much rate is left" if found.remaining < 0.7 * found.steps else "not settled by these runs"
        )
        tail = (
            f": what matters is {settled}. All are {runs[0].run.schedule}, so remaining rate and share "
            "of the warmdown are one variable here, and only another shape can tell rate from shape."
        )
        return f"{law} {lined}{tail}"
    lined += f", by share of the warmdown {found.progress:.3f}"
    names = {"the remaining learning rate": found.remaining, "the share of the warmdown": found.progress,
             "the number of steps": found.steps}  # fmt: skip
    best = min(names, key=lambda name: names[name])
    return f"{law} {lined}: it is {best} that drives the drop."


def _schedules(runs: Sequence[RunWarmdown], metric: str) -> str:
    """Final differences of shapes at equal steps, warmdown and group."""
    twins: dict[tuple[object, ...], dict[str, list[float]]] = {}
    for r in runs:
        key = (r.run.group, r.run.steps, r.run.warmdown_steps)
        twins.setdefault(key, {}).setdefault(r.run.schedule, []).append(r.final_value)
    base = runs[0].run.schedule
    differences: dict[str, list[float]] = {}
    for shapes in twins.values():
        for shape, finals in shapes.items():
            if shape != base and base in shapes:
                differences.setdefault(shape, []).append(float(np.mean(finals) - np.mean(shapes[base])))
    return " ".join(
        f"At equal length {shape} ends {span(values, '+.4f')} {unit(metric)} from {base} "
        f"(pairs: {len(values)})."
        for shape, values in differences.items()
    )


def _peak_rates(runs: Sequence[RunWarmdown]) -> str:
    rates = {value for r in runs for name, value in r.run.group if "lr" in name}
    if len(rates) > 1:
        return ""
    return (
        "All runs share one peak learning rate: whether a lower one accelerates as much is not answered here."
    )


def _length(law: LengthLaw, metric: str) -> str:
    doubling = law.b.scaled(float(np.log(2)))
    word = "adds" if law.b.above(0) or law.b.below(0) else "adds no more than noise:"
    return (
        f"Doubling a {law.schedule} warmdown {word} {doubling.text('.4f')} {unit(metric)} to the final drop "
        f"(a + b ln n, {len(law.drop)} lengths)."
    )


def _average(runs: Sequence[RunWarmdown]) -> str:
    shares = [100 * r.ema_share for r in runs if r.ema_share is not None]
    if not shares:
        return ""
    share = span(shares, ".0f")
    return f"Averaging weights (EMA) at the peak rate alone shows {share} % of the warmdown's gain."
