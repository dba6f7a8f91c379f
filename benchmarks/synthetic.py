"""Sweeps whose truth is known: a planted law, or a process outside every law, with
the noise that training has.

Trunk noise is AR(1) and shared by all branches of a trunk; each seed has a trunk of its own; branches go on
with their own noise, which shrinks with the learning rate; each final value has a little of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from analysis.laws import fsl, kappa_relax
from analysis.laws.design import Design
from analysis.runs.table import Floats, Ints, Run, Table, Trajectory

EVERY = 250
NOISE_SD, NOISE_RHO = 0.0012, 0.8  # nats: what is left of public constant-rate curves after a smooth fit
TRUNK_SD, FINAL_SD = 0.001, 0.0004  # retrained pairs of public runs differ by 0.0016

Truth = Callable[[Run, Ints], Floats]


@dataclass(frozen=True)
class Synthetic:
    """Training runs, and runs to predict with their noise-free and measured final losses."""

    table: Table
    targets: tuple[Run, ...]  # `metrics` hold the measured finals
    kind: str


def planted(rng: np.random.Generator) -> Truth:
    """A law of the ensemble with random parameters in the range of published fits."""
    law = (kappa_relax.LAW, fsl.POWER_LAW)[rng.integers(2)]
    draw = {
        "alpha": rng.uniform(0.4, 0.6),
        "kappa": rng.uniform(0.5, 1.0),
        "q": rng.uniform(0.45, 1.1),
        "tau": np.exp(rng.uniform(np.log(0.03), np.log(0.5))),
        "beta": rng.uniform(0.3, 1.5),
    }
    theta = np.array([draw[p.name] for p in law.parameters])
    linear = np.array([rng.uniform(2.4, 2.9), rng.uniform(0.7, 1.1), rng.uniform(0.08, 0.25)])
    return lambda run, steps: law.terms(theta, Design([(run, steps)])) @ linear


def noisy_quadratic(rng: np.random.Generator, modes: int = 48) -> Truth:
    """SGD on a power-law spectrum of curvatures: no closed form, and outside every law here.

    Per mode: the bias shrinks by exp(-2 h r dt), the variance relaxes towards a level in proportion to r^p at
    the same rate. Source: Zhang et al. 2019, Which Algorithmic Choices Matter at Which Batch Sizes?
    """
    curvature = np.geomspace(1e-5, 0.03, modes)
    bias = curvature ** rng.uniform(0.4, 0.6)
    bias *= rng.uniform(1.2, 2.0) / bias.sum() * modes / 10
    noise = curvature ** rng.uniform(0.1, 0.5)
    noise *= rng.uniform(0.12, 0.3) / noise.sum()
    power, floor, block = rng.uniform(0.7, 1.3), rng.uniform(2.4, 2.9), 25

    def truth(run: Run, steps: Ints) -> Floats:
        edges = np.unique(np.concatenate([np.arange(0, run.steps + 1, block), steps]))
        mean, variance, losses = np.ones(modes), np.zeros(modes), [floor + bias.sum()]
        for start, stop in pairwise(edges):
            rate = run.rate(np.arange(start, stop)).mean()
            decay = np.exp(-2 * curvature * rate * (stop - start))
            mean, variance = mean * decay, variance * decay + rate**power * (1 - decay)
            losses.append(floor + float(bias @ mean + noise @ variance))
        return np.array(losses)[np.searchsorted(edges, steps)]

    return truth


def sweep(rng: np.random.Generator, kind: str) -> Synthetic:
    """A small grid of steps x ratio on one or two trunks, and longer runs and other ratios to predict.

    Args:
        kind: "planted" or "outside".
    """
    truth = {"planted": planted, "outside": noisy_quadratic}[kind](rng)
    lengths = [(5000, 8000, 12000), (6000, 10000, 15000), (6000, 9000, 12000, 16000)][rng.integers(3)]
    ratios = [(0.2, 0.4), (0.3, 0.5), (0.2, 0.5)][rng.integers(3)]
    runs: list[Run] = []
    for seed in range(1 + int(rng.integers(2))):
        trunk, level = _ar1(rng, max(lengths) // EVERY, NOISE_SD), rng.normal(0, TRUNK_SD)
        plans = [(n, round(r * n)) for n in lengths for r in ratios]
        runs += [_measured(rng, truth, _run(n, warmdown, seed), trunk, level) for n, warmdown in plans]
    longest = lengths[-1]
    wanted = [(round(f * longest), r) for f in (1.5, 2.0) for r in (*ratios, 0.6)] + [(longest, 0.65)]
    targets = []
    for n, ratio in wanted:
        run = _run(n, round(ratio * n), seed=99)
        trunk, level = _ar1(rng, n // EVERY, NOISE_SD), rng.normal(0, TRUNK_SD)
        targets.append(replace(_measured(rng, truth, run, trunk, level), trajectory=None))
    return Synthetic(Table(tuple(runs), f"synthetic {kind}"), tuple(targets), kind)


def grid(rng: np.random.Generator, runs: int, evaluations: int) -> Table:
    """A planted sweep of runs with so many rows each, branches of one trunk: for timing."""
    truth, made = planted(rng), []
    for i in range(runs):
        steps = 5000 * (1 + i % 5)
        run = _run(steps, round(steps * (0.1 + 0.8 * (i // 5) / max(runs // 5 - 1, 1))), seed=0)
        at = np.unique(np.linspace(0, steps, evaluations + 1).astype(np.int64)[1:])
        value = truth(run, at) * np.exp(rng.normal(0, 3e-4, len(at)))
        curve = Trajectory(at, run.rate(at - 1), {"val_loss": value})
        made.append(replace(run, trajectory=curve, metrics={"final_loss": float(value[-1])}))
    return Table(tuple(made), "synthetic grid")


def _run(steps: int, warmdown: int, seed: int) -> Run:
    name = f"{steps}-{warmdown}-s{seed}"
    return Run(
        run_id=name, steps=steps, peak_steps=steps - warmdown, warmdown_steps=warmdown, seed=seed,
        trunk=f"trunk-{seed}",
    )  # fmt: skip


def _ar1(rng: np.random.Generator, n: int, sd: float, start: float = 0.0) -> Floats:
    noise = np.empty(n + 1)
    noise[0] = start
    for i in range(1, n + 1):
        noise[i] = NOISE_RHO * noise[i - 1] + rng.normal(0, sd * np.sqrt(1 - NOISE_RHO**2))
    return noise[1:]


def _measured(rng: np.random.Generator, truth: Truth, run: Run, trunk: Floats, level: float) -> Run:
    steps = np.arange(EVERY, run.steps + 1, EVERY)
    on_trunk = int(np.sum(steps <= run.peak_steps))
    rate = run.rate(steps - 1)
    own = _ar1(rng, len(steps) - on_trunk, NOISE_SD, float(trunk[on_trunk - 1]))
    noise = np.concatenate([trunk[:on_trunk], own * np.sqrt(rate[on_trunk:])])
    value = truth(run, steps) + noise + level
    final = float(value[-1] + rng.normal(0, FINAL_SD))
    value[-1] = final
    trajectory = Trajectory(steps, rate, {"val_loss": value})
    return replace(run, trajectory=trajectory, metrics={"final_loss": final})
