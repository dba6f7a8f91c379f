"""How a run's learning rate fell, by what its log states; rules of wall-clock time are worked out in steps.

Scripts of the challenge know three rules, all linear. With t the training time, T its cap, r the multiplier
of the peak rate:
    warmdown_frac f of a cap:   r = (1 - t/T) / f from t = (1 - f) T on
    warmdown_frac f, no cap:    the same with step/iterations for t/T
    warmdown_iters w:           r = (T - t) / (w * t/step), or without a cap (iterations - step) / w
and r is not below `min_lr`. Where a log states none of them, multipliers printed on the way tell the length.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace

from analysis.logs.split import Training

TIME, STEPS = "the time", "the steps"
_NOTHING = 0.02  # a clock stops a run up to a step after its cap, and times are rounded
_SHAPES = {
    "linear": "linear", "wsd": "linear", "trapezoid": "linear", "trapezoidal": "linear", "cosine": "cosine",
    "cos": "cosine", "1-sqrt": "1-sqrt", "constant": "constant",
}  # fmt: skip


@dataclass(frozen=True)
class Warmdown:
    """Steps of the warmdown, None if unknown; `fraction` of `of` as the log states it."""

    steps: int | None = None
    schedule: str | None = None
    final: float | None = None  # multiplier at the end, where it is not 0
    fraction: float | None = None
    of: str | None = None
    note: str = ""  # how it is known, or why not


@dataclass(frozen=True)
class Clock:
    """Training time by step, from the log's own times, both increasing."""

    steps: list[int]
    seconds: list[float]
    coarse: float  # seconds to which the worst of them was rounded

    def at(self, step: float) -> float:
        """Seconds at a step, linear between logged ones."""
        return _between(step, self.steps, self.seconds)

    def pace(self, step: int) -> float:
        """Seconds a step took up to the last known time before this one: what comes after may have paused."""
        i = max(bisect_right(self.steps, step) - 1, 1)
        return self.seconds[i] / self.steps[i]


def _between(x: float, xs: list[int] | list[float], ys: list[int] | list[float]) -> float:
    i = min(max(bisect_left(xs, x), 1), len(xs) - 1)
    low, high = xs[i - 1], xs[i]
    return ys[i - 1] + (ys[i] - ys[i - 1]) * (x - low) / (high - low) if high > low else float(ys[i])


def clock(run: Training, ends: dict[int, float]) -> Clock | None:
    """Times of a run's steps, None where fewer than two are known; `ends`: exact ones from other lines.

    Times in whole tenths of minutes are made exact by the throughput, where that is of the same interval.
    """
    known: dict[int, tuple[float, float]] = {0: (0.0, 0.0)}
    batch = run.facts.get("batch_tokens")
    for step, values in run.points.items():
        seconds, coarse = values.get("seconds"), run.coarse.get(step, 0.0)
        if seconds is None or step <= 0:
            continue
        rate = values.get("tokens_per_second")
        if (
            coarse > 1
            and rate
            and isinstance(batch, float)
            and abs(step * batch / rate - seconds) <= coarse / 2 + 0.1
        ):
            seconds, coarse = step * batch / rate, 0.0
        known[step] = (seconds, coarse)
    known |= {step: (seconds, 0.0) for step, seconds in ends.items()}
    steps, times, worst = [0], [0.0], 0.0
    for step in sorted(known)[1:]:
        if known[step][0] > times[-1]:
            steps.append(step)
            times.append(known[step][0])
            worst = max(worst, known[step][1])
    return Clock(steps, times, worst) if len(steps) > 1 else None


def warmdown(
    run: Training, steps: int, planned: int | None, stopped_by: str, times: Clock | None
) -> Warmdown:
    """The warmdown of a finished run of `steps`; see the module."""
    facts = {name: value for name, value in run.facts.items() if isinstance(value, float)}
    fraction, iters = facts.get("warmdown_fraction"), facts.get("warmdown_iters")
    if iters is None and fraction is None and "warmdown_start" in facts:
        iters = max((planned or steps) - facts["warmdown_start"], 0.0)
    shape = _SHAPES.get(str(run.facts.get("shape", "linear")))
    if fraction is None and iters is None:
        return (
            _by_multiplier(run, steps, facts, stopped_by, times)
            if shape == "linear"
            else Warmdown(note=_unstated(run))
        )
    unknown = Warmdown(fraction=fraction)
    if fraction and iters:
        why = f"the log states a fraction, {fraction:g}, and iterations, {iters:g}"
        return replace(unknown, note=f"warmdown unknown: {why}")
    if shape is None:
        return replace(unknown, note=f"warmdown unknown: of the shape '{run.facts['shape']}'")
    if shape == "constant" or not (fraction or iters):
        return replace(unknown, steps=0, schedule="constant", note="no warmdown, as the log states")
    cap = _cap(facts, steps, stopped_by, times)
    if cap is None and stopped_by != "steps":
        return replace(
            unknown, note="warmdown unknown: the log states neither a cap of time nor the last step"
        )
    if cap is not None and times is None:
        why = "it is of wall-clock time, which the log does not print"
        return replace(unknown, of=TIME, note=f"warmdown unknown: {why}")
    rule, how = _rule(fraction, iters or 0.0, float(planned or steps), cap, times)
    found = _fitted(rule, steps, facts.get("lr_floor", 0.0), facts.get("lr_final", 0.0), shape)
    return replace(found, fraction=fraction, of=STEPS if cap is None else TIME, note=found.note or how)


def _rule(
    fraction: float | None, iters: float, total: float, cap: float | None, times: Clock | None
) -> tuple[Callable[[float], float], str]:
    """Multiplier by step, before it is held between 0 and 1, and how it is known."""
    if cap is None or times is None:
        length = fraction * total if fraction else iters
        return lambda step: (total - step) / length, "warmdown as the log states it"
    doubt = round(times.coarse / 2 * times.steps[-1] / times.seconds[-1])
    within = f", +-{doubt} steps" if doubt > 5 else ""
    if fraction:
        return lambda step: (1 - times.at(step) / cap) / fraction, (
            f"warmdown reconstructed from the log's times{within}"
        )
    return lambda step: (cap - times.at(step)) / (iters * max(times.at(step), 1e-9) / max(step, 1)), (
        f"warmdown of stated iterations, placed by the log's times{within}"
    )


def _cap(facts: dict[str, float], steps: int, stopped_by: str, times: Clock | None) -> float | None:
    """Seconds at which the rule ends, None where it goes by steps: a run that was stopped tells it best."""
    stated = facts.get("effective_seconds") or facts.get("cap_seconds")
    if stopped_by == "wallclock":
        return times.at(steps) if times is not None else stated or 1.0
    return stated or None


def _fitted(
    multiplier: Callable[[float], float], steps: int, floor: float, final: float, shape: str
) -> Warmdown:
    """Where a falling multiplier leaves 1, and what it is at the end."""
    low, high = 0, steps
    while low < high:  # the last step of the constant phase, from which the rule is no more than 1
        middle = (low + high) // 2
        low, high = (low, middle) if multiplier(middle) <= 1 + 1e-9 else (middle + 1, high)
    falling = [multiplier(low + 1 + (steps - low - 1) * i // 20) for i in range(21)] if low < steps else []
    if any(later > min(falling[: i + 1]) + 0.02 for i, later in enumerate(falling)):
        why = "by the log's times the rate rises before it falls, as early steps were slow"
        return Warmdown(note=f"warmdown unknown: {why}")
    if low >= steps:
        return Warmdown(0, "constant", note="the run ended before its warmdown began")
    end = max(multiplier(steps), 0.0)
    end = 0.0 if end < _NOTHING else end
    if end < floor < 1:
        return Warmdown(steps - low, "linear-floor" if shape == "linear" else shape, floor)
    end = max(end, final)
    return Warmdown(steps - low, shape, end if 0 < end < 1 else None)


def _unstated(run: Training) -> str:
    default = run.facts.get("warmdown_default")
    hint = f" (its script has {default} by default)" if default else ""
    return f"warmdown unknown: the log does not state it{hint}"


def _by_rate(run: Training) -> list[tuple[int, float]]:
    """Multipliers from learning rates that the log prints, where several of them are the peak's."""
    rates = {int(m.values["step"]): m.values["lr"] for m in run.marks if m.kind == "rate"}
    rates |= {step: values["lr"] for step, values in run.points.items() if "lr" in values}
    peak = max(rates.values(), default=0.0)
    if sum(rate >= 0.999 * peak for rate in rates.values()) < 2 or peak <= 0:
        return []
    return [(step, rate / peak) for step, rate in rates.items()]


def _by_multiplier(
    run: Training, steps: int, facts: dict[str, float], stopped_by: str, times: Clock | None
) -> Warmdown:
    """From multipliers that the log prints during the warmdown, if they agree on a straight line to 0."""
    printed = [(int(m.values["step"]), m.values["scale"]) for m in run.marks if m.kind == "multiplier"]
    printed += [(step, values["lr_scale"]) for step, values in run.points.items() if "lr_scale" in values]
    printed = printed or _by_rate(run)
    floor = facts.get("lr_floor", 0.0)
    peak = max((step for step, scale in printed if scale >= 0.98), default=0)
    falling = [(s, x) for s, x in sorted(printed) if peak < s < steps and floor + 0.02 < x < 0.98]
    cap = None
    if stopped_by == "wallclock" and times is not None and times.coarse < 1:
        cap = times.at(steps)
    lengths = [
        ((steps if cap is None or times is None else cap / times.pace(step)) - step) / scale
        for step, scale in falling
    ]
    if not lengths:
        return Warmdown(note=_unstated(run))
    length = sorted(lengths)[len(lengths) // 2]
    if max(lengths) > 1.1 * min(lengths) or length > steps:
        return Warmdown(note="warmdown unknown: the printed multipliers are not on a straight line to 0")
    step, scale = falling[0]
    note = f"warmdown worked out from the multiplier {scale:g} at step {step:,}, as linear to 0 at the end"
    rule, _ = _rule(None, length, float(steps), cap, times)
    found = _fitted(rule, steps, floor, 0.0, "linear")
    return replace(found, note=found.note or note)
