"""The question under study answered in words and numbers: does improvement accelerate at the end, and why?

No ratio, share or exponent is quoted without an interval that carries it; where the runs give none, the
sentence says so or is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.effects.slopes import Estimate, mean_of
from analysis.effects.sparse import undetermined
from analysis.effects.warmdown import MILESTONES, LengthLaw, RunWarmdown, Warmdown
from analysis.runs.units import unit

Floats = NDArray[np.float64]


_VAGUE = 4.0  # an interval of the exponent q as wide as that tells nothing
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
    lengths = [sentence for law in result.lengths if (sentence := _length(law, result.metric))]
    if sparse := undetermined(result):
        return (sparse, *lengths)
    if not runs:
        reasons = "; ".join(dict.fromkeys(reason for _, reason in result.skipped)) or "no runs"
        return (f"No verdict on the warmdown: no run has one that can be measured ({reasons}).", *lengths)
    sentences = [*_acceleration(runs), _tail(runs), _steps(runs, result.metric), *_shares(runs)]
    sentences += [_driver(runs), *_schedules(runs, result.metric), _peak_rates(runs), *lengths]
    sentences += [_average(runs)]
    return tuple(s for s in sentences if s)


def headline(result: Warmdown) -> str:
    """One sentence: whether improvement accelerates at the end, and what it follows; or why not known."""
    if sparse := undetermined(result):
        return sparse
    if not result.runs:
        return ""
    words = []
    for schedule, runs in _by_schedule(result.runs).items():
        ratios = [r.last_over_first for r in runs]
        text = f"{_pace(ratios, 'slows')} towards the end of a {schedule} warmdown"
        if known := _bounded(ratios):
            unclear = len(ratios) - len(known)
            where = f"; in {unclear} it is within the noise" if unclear else ""
            text += f" (last fifth {_range(known, '.2f')} times as steep as the first{where})"
        words.append(text)
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


def _bounded(estimates: Sequence[Estimate | None]) -> list[Estimate]:
    return [e for e in estimates if e is not None and e.bounded]


def _range(estimates: Sequence[Estimate], digits: str) -> str:
    """'1.92 [1.64, 2.24] to 2.94 [2.59, 3.35]': the least and the greatest, each with its interval."""
    low, high = (pick(estimates, key=lambda e: e.value) for pick in (min, max))
    return low.text(digits) if low is high else f"{low.text(digits)} to {high.text(digits)}"


def _direction(estimates: Sequence[Estimate]) -> int:
    """1 if most intervals lie above 1, -1 if most lie below, else 0."""
    above, below = sum(e.above(1) for e in estimates), sum(e.below(1) for e in estimates)
    return 1 if above > len(estimates) / 2 else -1 if below > len(estimates) / 2 else 0


def _pace(ratios: Sequence[Estimate], slows: str) -> str:
    """'accelerates', 'slows', how many do which, or that it is not clear."""
    faster, slower = sum(e.above(1) for e in ratios), sum(e.below(1) for e in ratios)
    if faster and slower:
        return f"accelerates in {faster} and slows in {slower} of {len(ratios)} runs"
    if 0 < faster + slower <= len(ratios) / 2:  # the others do not say the contrary: they say nothing
        return f"{'accelerates' if faster else slows} in {faster + slower} of {len(ratios)} runs"
    return {1: "accelerates", -1: slows, 0: "does not clearly accelerate or slow"}[_direction(ratios)]


def _by_schedule(runs: Sequence[RunWarmdown]) -> dict[str, list[RunWarmdown]]:
    return {
        schedule: [r for r in runs if r.run.schedule == schedule]
        for schedule in dict.fromkeys(r.run.schedule for r in runs)
    }


def _acceleration(runs: Sequence[RunWarmdown]) -> list[str]:
    """Per schedule: how much steeper the last fifth is than the first."""
    sentences = []
    for schedule, members in _by_schedule(runs).items():
        ratios = [r.last_over_first for r in members]
        faster, slower = sum(e.above(1) for e in ratios), sum(e.below(1) for e in ratios)
        n, known = len(ratios), _bounded(ratios)
        if not known:
            sentences.append(
                f"Under {schedule}, the slopes are within their noise: whether improvement accelerates is "
                "undetermined."
            )
            continue
        text = (
            f"Under {schedule}, improvement per step {_pace(ratios, 'slows down')}: the last fifth of the "
            f"warmdown is {_range(known, '.2f')} times as steep as the first (90 % interval above 1 in "
            f"{faster}, below 1 in {slower} of {n})"
        )
        unclear = n - len(known)
        sentences.append(text + (f"; in {unclear} the slopes are within their noise." if unclear else "."))
    return sentences


def _tail(runs: Sequence[RunWarmdown]) -> str:
    if not any(r.first_over_tail is not None for r in runs):
        return "No constant phase was evaluated often enough to compare the warmdown with."
    known = _bounded([r.first_over_tail for r in runs])
    if not known:
        return "How much steeper the first fifth is than the constant phase before it is within the noise."
    already = "already " if all(e.above(1) for e in known) else ""
    return (
        f"The first fifth is {already}{_range(known, '.1f')} times as steep as the constant phase before it."
    )


def clear_gain(r: RunWarmdown) -> Estimate | None:
    """What the warmdown gained, from its fifths; None where its interval does not exclude 0.

    The fifths' errors are added in quadrature. Slopes of neighbouring pieces err in opposite directions, so
    that the interval is, if anything, too wide.
    """
    if not all(slope.bounded for slope in r.fifth_slopes):
        return None
    part = r.run.warmdown_steps / len(r.fifth_slopes) / 1000
    half = part * float(np.hypot.reduce([slope.value - (slope.low or 0.0) for slope in r.fifth_slopes]))
    return Estimate(r.gain, r.gain - half, r.gain + half) if r.gain > half else None


def _steps(runs: Sequence[RunWarmdown], metric: str) -> str:
    """What the steps alone would have brought, as a share of a gain that is itself clear."""
    known = [(r, s, g) for r in runs if (s := r.steps_gain) and s.bounded and (g := clear_gain(r))]
    if not known:
        return (
            "What the steps alone would have brought is not known: too few evaluations at the constant rate, "
            "or a gain within its noise."
        )
    shares = [_share(brought, gain) for _, brought, gain in known]
    answer = "More steps alone may explain part of the warmdown's gain"
    if all(share.below(33) for share in shares):
        answer = "More steps alone do not explain the warmdown's gain"
    elif all(share.above(33) for share in shares):
        answer = "More steps alone explain part of the warmdown's gain"
    guessed = [r.run.run_id for r, _, _ in known if r.extrapolated]
    text = (
        f"{answer}: as many at the constant rate would have brought "
        f"{_range([s for _, s, _ in known], '.4f')} {unit(metric)}, {_range(shares, '.0f')} % of the gain"
    )
    if any(share.above(100) for share in shares):
        text += "; over 100 %, the constant rate would have gained more over as many steps"
    return text + (f" (extrapolated, not measured, for {_listed(guessed)})." if guessed else ".")


def _share(part: Estimate, whole: Estimate) -> Estimate:
    """part / whole in per cent, with the widest interval that the two ends allow; `whole` is above 0."""
    assert part.low is not None and part.high is not None and whole.low and whole.high
    ends = [100 * p / w for p in (part.low, part.high) for w in (whole.low, whole.high)]
    return Estimate(100 * part.value / whole.value, min(ends), max(ends))


def _listed(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _shares(runs: Sequence[RunWarmdown]) -> list[str]:
    """When the gain comes, as means over three runs or more whose gain is clear."""
    sentences = []
    at = " / ".join(f"{100 * m:.0f}" for m in MILESTONES)
    for schedule, members in _by_schedule([r for r in runs if clear_gain(r)]).items():
        if len(members) < 3:
            continue
        means = [mean_of([r.fractions[m] for r in members]) for m in MILESTONES]
        sentences.append(
            f"At {at} % of a {schedule} warmdown, the {len(members)} runs have reached "
            f"{' / '.join(mean.text('.2f') for mean in means)} of their gain (mean over runs)."
        )
    return sentences


def _driver(runs: Sequence[RunWarmdown]) -> str:
    """Which of remaining rate, progress and steps lines the runs up."""
    known = _bounded([r.q for r in runs])
    exponents = [q for q in known if q.high is not None and q.low is not None and q.high - q.low < _VAGUE]
    found = collapse(runs)
    if not known or found is None:
        few = "With a drop below the constant rate known for fewer than two"
        if len(runs) == 1:
            few = "With one run"
        elif known:
            few = "With warmdowns of one length"
        return f"{few}, the steps cannot be told from the learning rate."
    law = (
        "The drop below what the constant rate would have reached is described by D(r) = D_inf (1 - r^q), "
        "where r is the remaining part of the learning rate: "
    )
    if exponents:
        late = {-1: "the gain comes late", 1: "the gain comes early", 0: "not clearly otherwise"}[
            _direction(exponents)
        ]
        told = (
            "" if len(exponents) == len(known) else f" in the {len(exponents)} of {len(known)} runs that tell"
        )
        law += f"q = {_range(exponents, '.2f')}{told} (1 would be proportional to the rate removed; {late})."
    else:
        law += "these runs do not determine q."
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


def _schedules(runs: Sequence[RunWarmdown], metric: str) -> list[str]:
    """Mean final difference of shapes at equal steps, warmdown and group, over three pairs or more."""
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
    sentences = []
    for shape, values in differences.items():
        mean = mean_of(values)
        if mean.bounded:
            word = "below" if mean.below(0) else "above" if mean.above(0) else "not clearly apart from"
            sentences.append(
                f"At equal length {shape} ends {word} {base}: {mean.text('+.4f')} {unit(metric)} "
                f"(mean over {len(values)} pairs)."
            )
        else:
            sentences.append(f"Too few pairs ({len(values)}) tell {shape} from {base} at equal length.")
    return sentences


def _peak_rates(runs: Sequence[RunWarmdown]) -> str:
    rates = {value for r in runs for name, value in r.run.group if "lr" in name}
    if len(rates) > 1:
        return ""
    return (
        "All runs share one peak learning rate: whether a lower one accelerates as much is not answered here."
    )


def _length(law: LengthLaw, metric: str) -> str:
    """What doubling the warmdown adds, where there is an interval for it."""
    doubling = law.b.scaled(float(np.log(2)))
    if not doubling.bounded:
        return ""
    noise = "" if law.b.above(0) or law.b.below(0) else ", no more than noise"
    text = (
        f"Doubling a {law.schedule} warmdown adds {doubling.text('.4f')} {unit(metric)} to the final "
        f"drop{noise} (a + b ln n, {len(law.drop)} lengths)"
    )
    if law.confounded:
        text += "; longer warmdowns were longer runs here, so that the two cannot be told apart"
    return f"{text}."


def _average(runs: Sequence[RunWarmdown]) -> str:
    """How much of the warmdown's gain averaging alone shows, over three runs or more whose gain is clear."""
    shares = [100 * r.ema_share for r in runs if r.ema_share is not None and clear_gain(r)]
    if len(shares) < 3:
        return ""
    mean = mean_of(shares)
    clear = "" if mean.above(0) or mean.below(0) else "no clear part of the warmdown's gain: "
    of = "" if clear else " of the warmdown's gain"
    return (
        f"Averaging weights (EMA) at the peak rate alone shows {clear}{mean.text('.0f')} %{of} "
        f"(mean over {len(shares)} runs)."
    )
