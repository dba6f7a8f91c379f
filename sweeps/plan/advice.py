"""What a plan can tell its author before a step is paid for. Pure; each rule one function of the sweep."""

from collections.abc import Callable, Iterator

from gepa_core.config import RunConfig
from gepa_core.sizes import quantized_fraction
from sweeps.spec.sweep import Sweep

LONG_WARMDOWN = 0.5
EMA_LEFTOVER = 0.01
"""Share of the initial weights that an EMA may still hold when a run ends."""
MIN_QUANTIZED = 0.9
MIN_EVALUATIONS = 6
"""In a warmdown, below which the report cannot tell how its gain comes (analysis.effects.warmdown)."""


def advise(sweep: Sweep) -> list[str]:
    """Advice for the whole sweep, most consequential first; empty where nothing is to be said."""
    return [advice for rule in RULES for advice in rule(sweep)]


def one_length(sweep: Sweep) -> Iterator[str]:
    lengths = {run.steps for run in sweep.runs}
    if len(lengths) < 3:
        have = "one run length" if len(lengths) == 1 else "two run lengths"
        yield f"{have} only: no prediction for more steps can be tested on these runs; give three or more"


def no_long_warmdown(sweep: Sweep) -> Iterator[str]:
    longest = max(run.warmdown_ratio for run in sweep.runs)
    if longest < LONG_WARMDOWN:
        yield (
            f"no long warmdown in the grid (the longest is {longest:.2f} of its run): whether a longer "
            f"one is better stays open; add a ratio of {LONG_WARMDOWN} or more"
        )


def no_replicates(sweep: Sweep) -> Iterator[str]:
    if len({run.seed for run in sweep.runs}) == 1:
        yield (
            "no replicate seeds: the noise floor is unknown (repeats of the published trunk differ by 0.0013 "
            "BPB); add seeds, at least to one cell"
        )


def ema_horizon(sweep: Sweep) -> Iterator[str]:
    slow = [run for run in sweep.recipe_runs if run.ema_decay**run.steps > EMA_LEFTOVER]
    if slow:
        worst = max(slow, key=lambda run: run.ema_decay**run.steps)
        fitting = EMA_LEFTOVER ** (1 / min(run.steps for run in slow))
        yield (
            f"EMA horizon too long for {len(slow)} of {len(sweep.recipe_runs)} runs: with ema_decay "
            f"{worst.ema_decay:g} over {worst.steps} steps, {worst.ema_decay**worst.steps:.0%} of the EMA is "
            f"still the initial weights; ema_decay {int(fitting * 1000) / 1000:g} or less fits"
        )


def few_evaluations(sweep: Sweep) -> Iterator[str]:
    """Most warmdowns could not be measured: said before they are paid for."""
    warmdowns = sorted(run.warmdown_steps for run in sweep.recipe_runs if run.warmdown_steps)
    few = [run for run in sweep.recipe_runs if run.warmdown_steps and _evaluations(run) < MIN_EVALUATIONS]
    if 2 * len(few) > len(warmdowns):
        # Enough for three quarters of them: the shortest warmdown of a grid would make all others pay.
        enough = warmdowns[len(warmdowns) // 4] // MIN_EVALUATIONS
        every = max((m * 10**k for k in range(9) for m in (1, 2, 5) if m * 10**k <= enough), default=1)
        yield (
            f"{len(few)} of {len(warmdowns)} warmdowns would have fewer than {MIN_EVALUATIONS} evaluations: "
            f"whether improvement accelerates would stay undetermined; set eval.every: {every}, "
            f"or eval.warmdown_points: {MIN_EVALUATIONS}, which is that many in each"
        )


def _evaluations(run: RunConfig) -> int:
    """Evaluations after the peak, at least: at multiples of the period and the end, or at equal parts."""
    every = run.eval.every
    periodic = run.steps // every - run.peak_steps // every + (run.steps % every > 0)
    return max(periodic, min(run.eval.warmdown_points, run.warmdown_steps))


def momentum_warmup(sweep: Sweep) -> Iterator[str]:
    long = [run for run in sweep.recipe_runs if run.optim.muon_momentum_warmup_steps > run.steps]
    if long:
        steps = max(run.optim.muon_momentum_warmup_steps for run in long)
        yield (
            f"Muon's momentum warms up for {steps} steps, longer than {len(long)} of the runs (the shortest "
            f"has {min(run.steps for run in long)}); lower optim.muon_momentum_warmup_steps"
        )


def uneven_ranks(sweep: Sweep) -> Iterator[str]:
    uneven = sorted({run.batch.spans for run in sweep.recipe_runs if run.batch.spans % sweep.exec.ranks})
    if uneven:
        spans = ", ".join(map(str, uneven))
        yield (
            f"{spans} spans a step do not divide among {sweep.exec.ranks} ranks; choose ranks (gpus_per_run) "
            "that divide batch.spans"
        )


def little_quantized(sweep: Sweep) -> Iterator[str]:
    least = min(sweep.recipe_runs, key=quantized_fraction, default=None)
    if least and quantized_fraction(least) < MIN_QUANTIZED and "int6" in "".join(sweep.stages):
        yield (
            f"int6 reaches only {quantized_fraction(least):.0%} of the parameters: "
            f"quant.keep_float_max_numel {least.quant.keep_float_max_numel} is too high for this width"
        )


RULES: tuple[Callable[[Sweep], Iterator[str]], ...] = (
    uneven_ranks,
    ema_horizon,
    momentum_warmup,
    one_length,
    no_long_warmdown,
    few_evaluations,
    no_replicates,
    little_quantized,
)
