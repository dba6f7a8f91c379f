"""Measures of warmdowns: when the gain comes, how its speed changes, and what it follows.

Per run: slopes per 1,000 steps on the constant tail and on fifths of the warmdown, their ratios, the
share of the gain at fractions of the warmdown, and the drop below the constant-rate continuation
(continuation.py) against the remaining rate r, D(r) = D_inf (1 - r^q). Per sweep: the final drop against
the warmdown's length. verdict.py puts all of it into words.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from analysis.effects.continuation import continuation_fit
from analysis.effects.slopes import Estimate, fit_linear, log_ratio, piecewise_design
from analysis.runs.table import Origin, Run, Table
from analysis.runs.units import counted

Floats = NDArray[np.float64]

MILESTONES = (0.25, 0.5, 0.75, 0.9)
FIFTHS = 5
TAIL = 1 / 3  # of the constant phase: half of it is still visibly curved in the published 12k run
MAX_GAP = 0.1  # of the warmdown may lie after the last evaluation
MIN_EVALUATIONS = 6  # in the warmdown: fewer leave a fifth without one
LEVEL = 0.9
CONFOUNDED = 0.8  # correlation of the logarithms of warmdown and run length
ANOTHER_RUNS = "its training is another run's"


@dataclass(frozen=True, kw_only=True)
class RunWarmdown:
    """What one run's warmdown did. Values in the metric's units; slopes per 1,000 steps, < 0 = improving."""

    run: Run
    peak_value: float
    final_value: float
    tail_slope: Estimate | None  # None where there is no constant phase to measure
    fifth_slopes: tuple[Estimate, ...]
    first_over_tail: Estimate | None
    last_over_first: Estimate
    fractions: dict[
        float, float
    ]  # share of (peak_value - final_value) reached at each milestone of the warmdown
    continuation: Floats | None = field(repr=False)  # the constant rate's expected value at `step`
    step: NDArray[np.int64] = field(repr=False)  # evaluations from peak_steps on
    value: Floats = field(repr=False)
    remaining: Floats = field(repr=False)  # learning rate as a multiple of the peak, at `step`
    drop_inf: float | None
    q: Estimate | None  # exponent of D(r); below 1 the gain comes late
    steps_gain: Estimate | None  # what the same steps at constant rate would have brought
    extrapolated: bool  # the continuation is measured for less than 90 % of the run
    ema_share: float | None  # share of the gain that averaging alone shows at peak_steps

    @property
    def gain(self) -> float:
        return self.peak_value - self.final_value

    @property
    def drop(self) -> Floats | None:
        """Distance below the constant-rate continuation at `step`."""
        return None if self.continuation is None else self.continuation - self.value

    @property
    def share_of_drop(self) -> Floats | None:
        """The drop as a share of the whole one: the last where the rate ends at 0, else extended by q."""
        drop = self.drop
        if drop is None or drop[-1] <= 0:
            return None
        missing = 0.0 if self.q is None else float(max(self.remaining[-1], 0.0) ** self.q.value)
        return drop / drop[-1] * (1.0 - missing)


@dataclass(frozen=True)
class LengthLaw:
    """Final drop = a + b ln(warmdown_steps) over the runs of one schedule and group."""

    schedule: str
    group: tuple[tuple[str, object], ...]
    a: Estimate
    b: Estimate
    warmdown_steps: Floats
    drop: Floats
    run_ids: tuple[str, ...]
    confounded: bool = False  # the warmdown's length goes with the run's


@dataclass(frozen=True)
class Warmdown:
    """The warmdowns of one metric's runs, the length laws, and why some runs are missing."""

    metric: str
    runs: tuple[RunWarmdown, ...]
    lengths: tuple[LengthLaw, ...]
    skipped: tuple[tuple[str, str], ...]  # (run_id, reason)
    sparse: tuple[Run, ...] = ()  # of those: with too few evaluations in the warmdown
    origin: Origin = "table"


def analyse(table: Table, metric: str, level: float = LEVEL) -> Warmdown:
    """Measure every training whose warmdown has enough evaluations of `metric` (a trajectory column).

    Runs that differ in what follows training only (quantizer, test-time training) count once.
    """
    measured, skipped, sparse = [], [], []
    once = trainings(table, metric)
    ids = {run.run_id for run in once}
    skipped += [(r.run_id, ANOTHER_RUNS) for r in table.runs if r.run_id not in ids]
    for run in once:
        result = _analyse_run(run, table, metric, level)
        if isinstance(result, str):
            skipped.append((run.run_id, result))
            if not run.is_constant and 0 <= evaluations(run, metric) < MIN_EVALUATIONS:
                sparse.append(run)
        else:
            measured.append(result)
    lengths = length_laws(replace(table, runs=once), metric, level)
    return Warmdown(metric, tuple(measured), lengths, tuple(skipped), tuple(sparse), table.origin)


def evaluations(run: Run, metric: str) -> int:
    """Evaluations of a metric after peak_steps; -1 without a trajectory."""
    curve = run.curve(metric)
    return -1 if curve is None else int((curve[0] > run.peak_steps).sum())


def trainings(table: Table, metric: str) -> tuple[Run, ...]:
    """The first run of each training; runs without a trajectory of `metric` are all kept."""
    first: dict[object, Run] = {}
    for run in table.runs:
        curve = run.curve(metric)
        plan = (run.trunk, run.seed, run.steps, run.warmdown_steps, run.schedule, run.final_lr_fraction)
        key = (plan, curve[0].tobytes(), curve[2].tobytes()) if curve and run.trunk else run.run_id
        first.setdefault(key, run)
    return tuple(first.values())


def _analyse_run(run: Run, table: Table, metric: str, level: float) -> RunWarmdown | str:
    if run.is_constant:
        return "constant learning rate, no warmdown"
    curve = run.curve(metric)
    if curve is None:
        return f"no trajectory with {metric}"
    step, value = _with_trunk(run, curve, table, metric)
    if run.steps - step[-1] > MAX_GAP * run.warmdown_steps:
        return f"its last evaluation is at step {step[-1]} of {run.steps}"
    inside = step >= run.peak_steps
    if (seen := int((step > run.peak_steps).sum())) < MIN_EVALUATIONS:
        return f"{counted(seen, 'evaluation')} in the warmdown, {MIN_EVALUATIONS} needed"
    remaining = remaining_rate(run, step)
    if step[0] > run.peak_steps:
        return f"no evaluation at or before peak_steps {run.peak_steps}"
    if len(np.unique(remaining[inside])) < MIN_EVALUATIONS:
        return f"schedule '{run.schedule}' is not a gradual warmdown"
    peak_value = float(np.interp(run.peak_steps, step, value))
    final_value = float(value[-1])
    gain = peak_value - final_value
    if gain == 0:
        return "no change over its warmdown"
    milestones = [run.peak_steps + m * run.warmdown_steps for m in MILESTONES]
    fractions = {
        m: float((peak_value - np.interp(at, step, value)) / gain)
        for m, at in zip(MILESTONES, milestones, strict=True)
    }
    tail, fifths, over_tail, over_first = segment_slopes(run, step.astype(float), value, level)
    continuation = continuation_fit(run, table, metric)
    at = step[inside]
    expected = None if continuation is None else continuation.at(at)
    drop_inf, q = (
        (None, None)
        if expected is None
        else drop_exponent(remaining[inside], expected - value[inside], level)
    )
    return RunWarmdown(
        run=run,
        peak_value=peak_value,
        final_value=final_value,
        tail_slope=tail,
        fifth_slopes=fifths,
        first_over_tail=over_tail,
        last_over_first=over_first,
        fractions=fractions,
        continuation=expected,
        step=at,
        value=value[inside],
        remaining=remaining[inside],
        drop_inf=drop_inf,
        q=q,
        steps_gain=None if continuation is None else continuation.decline(run.peak_steps, run.steps, level),
        extrapolated=continuation is not None and continuation.measured_to < 0.9 * run.steps,
        ema_share=_ema_share(run, metric, peak_value, gain),
    )


def _with_trunk(
    run: Run, curve: tuple[NDArray[np.int64], Floats, Floats], table: Table, metric: str
) -> tuple[NDArray[np.int64], Floats]:
    """(step, value) with the constant phase before the first row taken from a run of the same trunk."""
    step, _, value = curve
    for other in table.runs:
        theirs = other.curve(metric)
        if other.trunk != run.trunk or other.group != run.group or theirs is None:
            continue
        before = theirs[0] < min(
            step[0], run.peak_steps, other.steps if other.is_constant else other.peak_steps
        )
        step, value = np.append(theirs[0][before], step), np.append(theirs[2][before], value)
    return step, value


def remaining_rate(run: Run, step: NDArray[np.int64]) -> Floats:
    """Learning rate after `step` updates as a multiple of its peak: 0 at the end of a linear warmdown."""
    return run.rate(np.minimum(step, run.steps))


def segment_slopes(
    run: Run, step: Floats, value: Floats, level: float
) -> tuple[Estimate | None, tuple[Estimate, ...], Estimate | None, Estimate]:
    """Slopes per 1,000 steps on the constant phase's last third, the tail, and on the warmdown's fifths.

    Returns (tail, fifths, first fifth / tail, last fifth / first fifth); tail and its ratio are None
    where fewer than 3 evaluations precede peak_steps.
    """
    tail_start = max(run.peak_steps * (1 - TAIL), run.warmup_steps)
    has_tail = int(((step >= tail_start) & (step <= run.peak_steps)).sum()) >= 3
    knots = run.peak_steps + np.arange(FIFTHS + 1) / FIFTHS * run.warmdown_steps
    if has_tail:
        knots = np.append(tail_start, knots)
    used = step >= knots[0]
    fit = fit_linear(piecewise_design(step[used], knots), value[used])
    slopes = []
    for column in range(1, len(fit.coef)):
        weights = np.zeros(len(fit.coef))
        weights[column] = 1000.0
        slopes.append(fit.combination(weights, level))
    first = 2 if has_tail else 1
    over_first = log_ratio(fit, first + FIFTHS - 1, first, level)
    if not has_tail:
        return None, tuple(slopes), None, over_first
    return slopes[0], tuple(slopes[1:]), log_ratio(fit, first, 1, level), over_first


def _ema_share(run: Run, metric: str, peak_value: float, gain: float) -> float | None:
    """What the averaged weights gain over the raw ones at peak_steps, as a share of the warmdown's gain."""
    curve = run.curve("ema_val_bpb") if metric == "val_bpb" else None
    if curve is None or gain <= 0 or curve[0][0] > run.peak_steps:
        return None
    return float((peak_value - np.interp(run.peak_steps, curve[0], curve[2])) / gain)


def drop_exponent(remaining: Floats, drop: Floats, level: float) -> tuple[float | None, Estimate | None]:
    """Fit drop = D (1 - r^q) by least squares: (D, q with its interval by linearisation, AR(1) errors).

    (None, None) where the drop is not positive at the end or the exponent runs into 0.05 or 10.
    """
    if drop[-1] <= 0:
        return None, None
    r = np.clip(remaining, 0.0, 1.0)

    def amplitude(q: float) -> tuple[float, float]:
        basis = 1.0 - r**q
        scale = float(basis @ drop / (basis @ basis))
        return scale, float(((drop - scale * basis) ** 2).sum())

    found = optimize.minimize_scalar(
        lambda lq: amplitude(float(np.exp(lq)))[1], bounds=(np.log(0.05), np.log(10.0)), method="bounded"
    )
    q = float(np.exp(found.x))
    if not 0.051 < q < 9.9:
        return None, None
    scale = amplitude(q)[0]
    log_r = np.log(np.maximum(r, 1e-12))
    jacobian = np.stack([1.0 - r**q, -scale * r**q * log_r], axis=1)
    step = fit_linear(jacobian, drop - scale * (1.0 - r**q))
    shift = step.combination(np.array([0.0, 1.0]), level)
    if shift.low is None or shift.high is None:
        return scale, Estimate(q)
    half = (shift.high - shift.low) / 2
    return scale, Estimate(q, q - half, q + half)


def length_laws(table: Table, metric: str, level: float) -> tuple[LengthLaw, ...]:
    """Final drop below the constant-rate continuation against ln(warmdown_steps), per group and schedule.

    A run without a trajectory counts where its siblings' constant phases give the continuation.
    Equal lengths (seeds, other peaks) are averaged first; three different lengths are needed.
    """
    laws = []
    for group, members in table.groups().items():
        for schedule in dict.fromkeys(run.schedule for run in members.runs if not run.is_constant):
            drops: dict[int, list[tuple[str, float]]] = {}
            for run in members.runs:
                if run.schedule != schedule or run.is_constant:
                    continue
                continuation, final = continuation_fit(run, members, metric), _end_value(run, metric)
                if continuation is not None and final is not None:
                    drop = float(continuation.at(np.array([run.steps]))[0]) - final
                    drops.setdefault(run.warmdown_steps, []).append((run.run_id, drop))
            if len(drops) < 3:
                continue
            lengths = np.array(sorted(drops), dtype=float)
            mean = np.array([np.mean([d for _, d in drops[int(n)]]) for n in lengths])
            fit = fit_linear(np.stack([np.ones(len(lengths)), np.log(lengths)], axis=1), mean)
            a, b = (fit.combination(np.eye(2)[i], level) for i in (0, 1))
            ids = tuple(name for n in lengths for name, _ in drops[int(n)])
            totals = np.array(
                [np.mean([members.run(name).steps for name, _ in drops[int(n)]]) for n in lengths]
            )
            laws.append(LengthLaw(schedule, group, a, b, lengths, mean, ids, _go_together(lengths, totals)))
    return tuple(laws)


def _go_together(warmdown: Floats, steps: Floats) -> bool:
    """Whether ln(warmdown steps) is all but a function of ln(steps) over the runs."""
    if np.ptp(steps) < 0.05 * steps.max():
        return False
    return bool(np.corrcoef(np.log(warmdown), np.log(steps))[0, 1] > CONFOUNDED)


def _end_value(run: Run, metric: str) -> float | None:
    """The trajectory's last value if it reaches the end; the table's only for a run without trajectory.

    The two may be evaluated on different data (as in the public 124M curves), so they never mix in one run.
    """
    curve = run.curve(metric)
    if curve is None:
        return run.final(metric)
    return float(curve[2][-1]) if run.steps - curve[0][-1] <= MAX_GAP * run.warmdown_steps else None
