"""What laws are functions of: cumulative learning rates and lagged drops at the rows
of a fit, from blocks of LR.

A run's LR curve is merged into blocks over which it changes by at most 2 % of the peak (and 20 %
of itself), 400 at most. A law asks a Design for S_kappa(t) = sum of r^kappa before t, and for
drops seen through a kernel: sum over drops k of (r_{k-1}^q - r_k^q) F(age of k), where the age is
time in S_kappa or in steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np

from analysis.runs.table import Floats, Ints, Run

MAX_BLOCKS = 400
_SAMPLES = 2048  # of a phase
_STEPS_UNIT = 1000.0  # S is counted in thousands of peak-LR steps, so that parameters are near 1


def lr_blocks(run: Run) -> tuple[Ints, Floats]:
    """Block starts [b] (first is 0) and mean multipliers [b] of a run's learning rates."""
    if run.schedule == "observed":
        return _blocks(run)
    return _planned_blocks(run.steps, run.peak_steps, run.schedule, run.final_lr_fraction, run.warmup_steps)


@lru_cache(maxsize=4096)
def _planned_blocks(steps: int, peak: int, schedule: str, final: float, warmup: int) -> tuple[Ints, Floats]:
    return _blocks(
        Run(
            run_id="", steps=steps, peak_steps=peak, warmdown_steps=steps - peak, schedule=schedule,
            final_lr_fraction=final, warmup_steps=warmup,
        )
    )  # fmt: skip


def _blocks(run: Run) -> tuple[Ints, Floats]:
    at = _samples(run)
    lr = run.rate(at)
    if (
        run.schedule == "step" and run.peak_steps < run.steps
    ):  # its jump lies before the first step of the low rate
        total = _sums(at, lr, np.flatnonzero(at == run.peak_steps) - 1)
    else:
        total = _sums(at, lr, np.empty(0, np.int64))
    forced = np.flatnonzero(
        np.isin(at, [0, min(run.warmup_steps, run.steps - 1), min(run.peak_steps, run.steps - 1)])
    )
    # Position along the curve in units of the tolerated change, absolute and relative: cut at whole numbers.
    change = np.abs(np.diff(lr, prepend=lr[:1]))
    relative = change / np.maximum(lr, 1e-12)
    tolerance = 0.02
    while True:
        way = np.cumsum(np.maximum(change / tolerance, relative / (10 * tolerance)))
        cuts = np.flatnonzero(np.diff(np.floor(way), prepend=0.0) > 0)
        starts = np.unique(np.concatenate([forced, cuts]))
        starts = starts[at[starts] < run.steps]
        if len(starts) <= MAX_BLOCKS:
            ends = np.append(starts[1:], len(at) - 1)
            return at[starts], (total[ends] - total[starts]) / (at[ends] - at[starts])
        tolerance *= 1.5


def _samples(run: Run) -> Ints:
    """Steps 0 .. steps between which the rate is all but straight: some thousands, however long the run."""
    edges = [0, min(run.warmup_steps, run.steps), min(run.peak_steps, run.steps), run.steps]
    spans = [np.linspace(a, b, min(b - a, _SAMPLES) + 1) for a, b in pairwise(sorted(edges)) if b > a]
    logged = []
    if run.schedule == "observed" and run.trajectory is not None:
        logged = [run.trajectory.step[run.trajectory.step < run.steps].astype(float)]
    return np.unique(np.concatenate([*spans, *logged]).astype(np.int64))


def _sums(at: Ints, lr: Floats, jumps: Ints) -> Floats:
    """Sum of the rate over the steps before each sample, [n]: exact where it is straight between samples."""
    width = np.diff(at)
    part = width * (lr[:-1] + lr[1:]) / 2 - np.diff(lr) / 2
    part[jumps] = width[jumps] * lr[jumps]
    return np.concatenate([[0.0], np.cumsum(part)])


class Design:
    """Rows (run, step) of a fit or of a prediction, with the LR history of each.

    Args:
        rows: for each run the steps (updates done) at which a value is wanted, each [n_i], 1 <= step <=
        run.steps.
    """

    def __init__(self, rows: Sequence[tuple[Run, Ints]]) -> None:
        self.runs = [run for run, _ in rows]
        self.run_of_row = np.repeat(np.arange(len(rows)), [len(steps) for _, steps in rows])
        self.step = np.concatenate([np.asarray(steps, float) for _, steps in rows])  # [n]
        self.warmdown = np.concatenate([np.full(len(s), r.warmdown_steps, float) for r, s in rows])
        self.steps_total = np.concatenate([np.full(len(s), r.steps, float) for r, s in rows])
        starts, rates, first, blocks = [], [], [], 0
        pair_row, pair_drop, row0 = [], [], 0
        block_of_row = []
        for run, steps in rows:
            start, rate = lr_blocks(run)
            at = np.asarray(steps)
            block = np.searchsorted(start, at, side="left") - 1  # the block of the last update before the row
            block_of_row.append(blocks + block)
            drops = np.flatnonzero(start > run.warmup_steps)
            row, drop = np.nonzero(drops[None, :] <= block[:, None])
            pair_row.append(row0 + row)
            pair_drop.append(blocks + drops[drop])
            starts.append(start.astype(float))
            rates.append(rate)
            first += [blocks] * len(start)
            blocks += len(start)
            row0 += len(at)
        self.start = np.concatenate(starts)  # [blocks]
        self.rate = np.maximum(np.concatenate(rates), 1e-9)  # [blocks]
        self.first = np.asarray(first)  # first block of the block's run, [blocks]
        self.block_of_row = np.concatenate(block_of_row)  # [n]
        self.pair_row = np.concatenate(pair_row)
        self.pair_drop = np.concatenate(pair_drop)
        # Pairs come row by row: where each row's begin.
        self._first_pair = np.flatnonzero(np.diff(self.pair_row, prepend=-1))
        self._rows_with_drops = self.pair_row[self._first_pair]
        self.length = np.maximum(np.diff(self.start, append=0.0), 0.0)  # 0 for the last block of a run
        self.previous = np.maximum(np.arange(blocks) - 1, self.first)

    def __len__(self) -> int:
        return len(self.step)

    @property
    def anneals(self) -> bool:
        """Whether the learning rate falls before any row."""
        before, after = self.rate[self.previous[self.pair_drop]], self.rate[self.pair_drop]
        return bool((after < before - 1e-6).any())

    def clock(self, kappa: float) -> tuple[Floats, Floats]:
        """S_kappa in thousands at the rows [n] and at the block starts [blocks]. kappa 0 counts steps."""
        speed = self.rate**kappa / _STEPS_UNIT
        total = np.cumsum(self.length * speed) - self.length * speed
        at_start = total - total[self.first]
        b = self.block_of_row
        return at_start[b] + (self.step - self.start[b]) * speed[b], at_start

    def lagged_drops(self, kappa: float, q: float, kernel: Callable[[Floats, Floats], Floats]) -> Floats:
        """Sum over drops of (r_before^q - r_after^q) kernel(age, r_after), [n];
        ages in thousands of S_kappa.
        """
        at_row, at_start = self.clock(kappa)
        rq = self.rate**q
        drop = rq[self.previous] - rq
        age = at_row[self.pair_row] - at_start[self.pair_drop]
        seen = drop[self.pair_drop] * kernel(age, self.rate[self.pair_drop])
        total = np.zeros(len(self.step))
        if len(seen):
            total[self._rows_with_drops] = np.add.reduceat(seen, self._first_pair)
        return total
