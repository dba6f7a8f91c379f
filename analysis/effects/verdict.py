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


CLEARLY = 0.5  # of the other ways' spread: what lines runs up so much better is said to be followed


@dataclass(frozen=True)
class Collapse:
    """How much runs differ when their drops are lined up in one way or another.

    Rate against steps: between-run SD of the drop as a share of its mean, the drops as they are. (Divided by
    their own ends they would meet at the end of the warmdown by construction, and the rate would always win.)
    Rate against share of the warmdown: SD of the part of the whole drop that is reached; both lines end where
    the warmdown does, so that here lengths may differ in how much they bring. None with one schedule shape,
    where rate and share are one variable.
    """

    remaining: float  # at equal remaining learning rate
    steps: float  # at equal number of steps since the peak
    part_by_rate: float | None
    part_by_share: float | None

    @property
    def followed(self) -> str | None:
        """'steps', 'rate', 'share', or 'rate or share'; None where these runs do not settle it."""
        if self.steps < CLEARLY * self.remaining:
            return "steps"
        if self.remaining >= CLEARLY * self.steps:
            return None
        if self.part_by_rate is None or self.part_by_share is None:
            return "rate or share"
        if self.part_by_rate < CLEARLY * self.part_by_share:
            return "rate"
        return "share" if self.part_by_share < CLEARLY * self.part_by_rate else "rate or share"


def collapse(runs: Sequence[RunWarmdown]) -> Collapse | None:
    """Line the drops of two or more runs up; None below two, or where all warmdowns are of one length."""
    curves = [
        (r, drop, share)
        for r in runs
        if (drop := r.drop) is not None
        if (share := r.share_of_drop) is not None
    ]
    lengths = [r.run.warmdown_steps for r, _, _ in curves]
    if len(curves) < 2 or max(lengths) < 1.2 * min(lengths):
        return None
    grid = np.linspace(0.05, 0.95, 19)

    def at_rate(r: RunWarmdown) -> Floats:
        return np.interp(grid, r.remaining[::-1], r.step[::-1].astype(float))

    def at_share(r: RunWarmdown) -> Floats:
        return np.asarray(r.run.peak_steps + grid * r.run.warmdown_steps)

    def at_steps(r: RunWarmdown) -> Floats:
        return np.asarray(r.run.peak_steps + grid * min(lengths))

    def lined_up(at: Callable[[RunWarmdown], Floats], parts: bool) -> tuple[float, float]:
        """(SD between runs, mean)."""
        values = np.array([np.interp(at(r), r.step, share if parts else drop) for r, drop, share in curves])
        return float(np.sqrt(np.mean(np.var(values, axis=0, ddof=1)))), float(np.abs(values.mean()))

    (by_rate, mean_rate), (by_steps, mean_steps) = (lined_up(at, False) for at in (at_rate, at_steps))
    several = len({r.run.schedule for r, _, _ in curves}) > 1
    return Collapse(
        remaining=by_rate / mean_rate,
        steps=by_steps / mean_steps,
        part_by_rate=lined_up(at_rate, True)[0] if several else None,
        part_by_share=lined_up(at_share, True)[0] if several else None,
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
    cause = (
        ""
        if found is None or found.followed is None
        else f": what is gained follows {_FOLLOWED[found.followed]}"
    )
    return f"Improvement {' and '.join(words)}{cause}."


_FOLLOWED = {
    "steps": "the number of steps since the peak",
    "rate": "how far the learning rate has fallen, not the number of steps nor the share of the warmdown",
    "share": "the share of the warmdown that is over, not the number of steps nor the rate that is left",
    "rate or share": "how far the learning rate has fallen (or the share of the warmdown, which these runs "
    "do not tell from it), not the number of steps",
}


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
    text = f"As many steps at the constant rate would have brought {span(brought, '.4f')} {unit(metric)}, "
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
        few = "With a drop below the constant rate known for fewer than two"
        if len(runs) == 1:
            few = "With one run"
        elif exponents:
            few = "With warmdowns of one length"
        return f"{few}, the steps cannot be told from the learning rate."
    late = {-1: "the gain comes late", 1: "the gain comes early", 0: "not clearly otherwise"}[
        _direction(exponents)
    ]
    law = (
        f"Below the constant rate's continuation, the drop follows D(r) = D_inf (1 - r^q) in the remaining "
        f"rate r with q = {span(q.value for q in exponents)} "
        f"(1 would be proportional to the rate removed; {late})."
    )
    text = (
        f"{law} Lined up by remaining rate, drops differ between runs by {found.remaining:.2f} of their mean "
        f"(SD), by steps since the peak {found.steps:.2f}"
    )
    if found.part_by_rate is not None:
        text += (
            "; the part of its whole drop that a run has reached differs by "
            f"{found.part_by_rate:.3f} at equal rate, by {found.part_by_share:.3f} at equal share of the "
            "warmdown"
        )
    told = "these runs do not settle what the drop follows"
    if found.followed is not None:
        told = f"the drop follows {_FOLLOWED[found.followed]}"
    if found.part_by_rate is None:
        told += (
            f". All are {runs[0].run.schedule}: only another shape can tell rate from share of the warmdown"
        )
    return f"{text}: {told}."


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
    word = "goes with" if law.b.above(0) or law.b.below(0) else "goes with no more than noise:"
    text = (
        f"Doubling a {law.schedule} warmdown {word} {doubling.text('.4f')} {unit(metric)} more of final drop "
        f"(a + b ln n, {len(law.drop)} lengths)"
    )
    if law.confounded:
        text += "; longer warmdowns were longer runs here, so that the two cannot be told apart"
    return f"{text}."


def _average(runs: Sequence[RunWarmdown]) -> str:
    shares = [100 * r.ema_share for r in runs if r.ema_share is not None]
    if not shares:
        return ""
    share = span(shares, ".0f")
    return f"Averaging weights (EMA) at the peak rate alone shows {share} % of the warmdown's gain."
