"""The laws that a table can carry, fitted: the members of an ensemble."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.forecast.gaps import BASES, StageGap, fit_gap
from analysis.laws import FINAL_LAWS, TRAJECTORY_LAWS
from analysis.laws.design import Design
from analysis.laws.fit import Fit, fit
from analysis.laws.law import Law
from analysis.laws.observations import BURN_IN, BURN_INS, final_rows, trajectory_rows
from analysis.laws.plans import last_known, lengths
from analysis.runs.table import Floats, Ints, Run, Table

Fitted = Fit | StageGap


def fit_laws(
    table: Table, metric: str, *, baselines: bool = False, beginnings: Sequence[float] = BURN_INS
) -> dict[str, Fitted]:
    """Every law of the ensemble that the table can carry, or instead the baselines it is compared with.

    With one run length each law of trajectories is fitted from several beginnings (burn-ins), as nothing in
    the table tells where to begin.
    """
    base = metric
    if metric in BASES and not any(run.curve(metric) is not None for run in table.runs):
        base = BASES[metric]
    fits: dict[str, Fit] = {}
    if any(run.curve(base) is not None for run in table.runs):
        several = len(known_lengths(table, base)) == 1 and not baselines and len(beginnings) > 1
        for burn_in in beginnings if several else (BURN_IN,):
            suffix = f" from {100 * burn_in:.0f} %" if several else ""
            found = _fit_trajectories(table, base, burn_in, baselines)
            fits |= {name + suffix: fitted for name, fitted in found.items()}
    result: dict[str, Fitted] = {**fits}
    if base != metric:
        gap = fit_gap(table, metric)
        result = {} if gap is None else {f"{name} + gap": StageGap(f, gap) for name, f in fits.items()}
    return result | _fit_finals(table, metric, baselines)


def known_lengths(table: Table, metric: str) -> set[int]:
    """Lengths of the annealed runs that say something of the metric; those within 5 % are one."""
    annealed = [r for r in table.runs if not r.is_constant and last_known(r, metric) is not None]
    return set(lengths(annealed).values())


def _fit_trajectories(table: Table, metric: str, burn_in: float, baselines: bool) -> dict[str, Fit]:
    data = trajectory_rows(table, metric, burn_in)
    if not data.design.anneals:
        return {}
    return {
        law.name: fit(law, data)
        for law in TRAJECTORY_LAWS
        if law.baseline == baselines and len(data.value) >= 2 * len(law.parameters) + len(law.linear)
    }


def _fit_finals(table: Table, metric: str, baselines: bool) -> dict[str, Fitted]:
    annealed = table.where(lambda run: not run.is_constant and run.final(metric) is not None)
    if not annealed.runs:
        return {}
    data = final_rows(annealed, metric)
    return {
        law.name: fit(law, data)
        for law in FINAL_LAWS
        if law.baseline == baselines and _carries(law, data.design, metric)
    }


def _carries(law: Law, design: Design, metric: str) -> bool:
    """Whether finals tell a law's coefficients apart; its exponent may be the prior's."""
    known = len(set(design.steps_total))
    if law.name == "size":
        return metric.endswith("bytes") and len(set(design.warmdown)) >= 2
    if law.of_steps_alone:
        return known >= 2
    # A surface needs its two directions told apart: more plans than lengths.
    return known >= 3 and len(design) >= max(2 * len(law.parameters) + len(law.linear), known + 1)


def evaluate(fitted: Fitted, run: Run, steps: Ints, final: bool) -> Floats:
    """A law's values at steps of a run, [n]; `final`: as final values are measured."""
    if len(steps) == 0:
        return np.empty(0)
    return fitted.predict(Design([(run, steps)])) + fitted.offset * final
