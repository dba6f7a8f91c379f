"""What to know before believing any number of a study: were longer runs worse, is the trunk stable?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.effects.confounds import replicate_sd
from analysis.effects.slopes import fit_linear
from analysis.runs.table import Run, Table
from analysis.runs.units import unit

ONE_LENGTH = 1.05  # runs whose steps differ by less are of one length: a clock or a cap ended them
USUAL_NOISE = 0.001  # relative SD between seeds in public studies, where the runs measure none
CLEAR = 1.645 * 2**0.5  # standard deviations of one run that a difference of two exceeds by chance in 5 %
_LEAP = 6.0  # times the median change between evaluations: four standard deviations of Gaussian noise
BURN_IN = 1 / 6  # of the longest run, as for the laws


@dataclass(frozen=True)
class LongerWorse:
    """The best run of the greatest length ends clearly above the best run of all."""

    best: Run
    best_value: float
    longest: Run  # the best of the greatest length
    longest_value: float
    noise: float  # SD of one run, in the metric's unit
    measured: bool  # between equal trainings of this study, or what is usual

    def sentence(self, metric: str) -> str:
        """What was measured, with the noise it is judged by and what the data say of the reason."""
        source = "between equal trainings here" if self.measured else "usual between seeds"
        text = (
            f"Longer was worse: the best run of {self.longest.steps:,} steps ends at "
            f"{self.longest_value:.4f} {unit(metric)}, {self.longest_value - self.best_value:.4f} above the "
            f"best of {self.best.steps:,} steps ({self.best_value:.4f}); the noise of one run is "
            f"{self.noise:.4f} ({source})."
        )
        epochs = self.longest.metrics.get("epochs", 0.0)
        if epochs > 1:
            return f"{text} The longer run saw its data {epochs:.1f} times: it may learn them by heart."
        return f"{text} The laws assume that length helps, so that nothing is predicted from these runs."


def longer_worse(table: Table, metric: str) -> LongerWorse | None:
    """Compares the best run of the greatest length with the best of all, in the largest group of runs.

    None where the longest is best, where the difference is within the noise, and with one length.
    """
    groups = table.groups()
    members = max(groups.values(), key=lambda part: len(part.runs)).runs if groups else ()
    annealed = [run for run in members if not run.is_constant] or list(members)
    known = [(run, value) for run in annealed if (value := run.final(metric)) is not None]
    if not known:
        return None
    longest_steps = max(run.steps for run, _ in known)
    best, best_value = min(known, key=lambda pair: pair[1])
    long = [pair for pair in known if pair[0].steps * ONE_LENGTH >= longest_steps]
    longest, longest_value = min(long, key=lambda pair: pair[1])
    if best.steps * ONE_LENGTH >= longest_steps:
        return None
    noise, measured = noise_of(table, metric, best_value)
    if longest_value - best_value <= CLEAR * noise:
        return None
    return LongerWorse(best, best_value, longest, longest_value, noise, measured)


def noise_of(table: Table, metric: str, level: float) -> tuple[float, bool]:
    """(SD of one run's final value, whether these runs measure it) around a value of `level`."""
    replicates = replicate_sd(table, metric)
    return (USUAL_NOISE * level, False) if replicates is None else (replicates[0], True)


def effect_of_warmdown(table: Table, metric: str) -> float | None:
    """The widest range of final values among runs of one length, schedule and group; None without two."""
    finals: dict[tuple[object, ...], dict[int, list[float]]] = {}
    for run in table.runs:
        if not run.is_constant and (value := run.final(metric)) is not None:
            plan = (run.group, run.schedule, run.steps)
            finals.setdefault(plan, {}).setdefault(run.warmdown_steps, []).append(value)
    ranges = [
        float(np.ptp([np.mean(seeds) for seeds in ratios.values()]))
        for ratios in finals.values()
        if len(ratios) > 1
    ]
    return max(ranges) if ranges else None


def unstable_trunk(table: Table, metric: str, level: float = 0.9) -> str:
    """A sentence where validation rises at the full learning rate, over its later half or by one leap larger
    than all that the warmdown's length changes; '' where it does neither.
    """
    effect, of = effect_of_warmdown(table, metric), "the warmdown's length changes in any result"
    if effect is None:
        finals = [final for run in table.runs if (final := run.final(metric)) is not None]
        effect, of = float(np.ptp(finals)) if finals else 0.0, "all results differ"
    found: list[tuple[float, str]] = []
    for run in _longest_of_each_trunk(table, metric):
        curve = run.curve(metric)
        assert curve is not None
        end = run.steps if run.is_constant else run.peak_steps
        at = (curve[0] <= end) & (curve[0] >= max(BURN_IN * end, 2 * run.warmup_steps, 1))
        step, value = curve[0][at], curve[2][at]
        late = step >= end / 2
        if late.sum() >= 4:
            fit = fit_linear(np.stack([np.ones(late.sum()), step[late].astype(float)], axis=1), value[late])
            rise = fit.combination(np.array([0.0, float(step[late][-1] - step[late][0])]), level)
            if rise.above(0):
                found.append(
                    (
                        rise.value,
                        f"validation rises by {rise.text('.4f')} {unit(metric)} at the full learning rate, "
                        f"from step {step[late][0]:,} to {step[late][-1]:,}",
                    )
                )
        if len(step) >= 4:
            leaps = value - np.minimum.accumulate(value)
            worst = int(leaps.argmax())
            change = np.diff(value)  # of which most is noise and a smooth descent
            usual = float(np.median(np.abs(change - np.median(change))))
            if leaps[worst] > max(effect, _LEAP * usual):
                found.append(
                    (
                        float(leaps[worst]),
                        f"at step {step[worst]:,} validation stands {leaps[worst]:.4f} {unit(metric)} above "
                        f"what it had reached before, more than {of} ({effect:.4f})",
                    )
                )
    if not found:
        return ""
    text = max(found)[1]
    return (
        f"The trunk is unstable: {text}. A lower learning rate, a longer warm-up or a shuffled text comes "
        "first."
    )


def _longest_of_each_trunk(table: Table, metric: str) -> list[Run]:
    """Of every trunk the run that holds the full rate longest, where its curve is known."""
    longest: dict[str, Run] = {}
    for run in table.runs:
        if run.curve(metric) is None:
            continue
        key = run.trunk or run.run_id
        held = longest.get(key)
        if held is None or _held(run) > _held(held):
            longest[key] = run
    return list(longest.values())


def _held(run: Run) -> int:
    return run.steps if run.is_constant else run.peak_steps
