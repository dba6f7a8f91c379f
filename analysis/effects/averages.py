"""What stands in for a warmdown at equal steps: averages of the weights (EMA) and merges of trunk states.

A run without a warmdown is the baseline, raw. Beside it stand its own averages and merge, which cost no step
of training, and the runs of as many steps that warmed down. Differences are paired over validation blocks.
Merging in place of a decay: WSM, arXiv:2507.17634.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from analysis.effects.confounds import config_value
from analysis.effects.slopes import Estimate, mean_of
from analysis.runs.blocks import Effect, paired_effect, read_blocks
from analysis.runs.table import Run, Table

Z = 1.645  # of a 90 % interval
OBSERVERS = ("ema", "merge", "quant", "ttt")
"""Axes that begin so leave the raw weights as they are."""
_STAGE_OF_KIND = {"EMA": "ema", "merged": "merged"}


@dataclass(frozen=True)
class Arrival:
    """One way to a result after `run.steps` steps, and what it gains on the raw weights of a run without a
    warmdown (BPB, negative = better)."""

    run: Run
    stage: str  # the stage that measured it
    kind: str  # constant, EMA, merged, warmdown
    way: str  # the kind with its horizon or ratio
    bpb: float
    gain: Effect


def arrivals(table: Table) -> tuple[Arrival, ...]:
    """Of every length that was run without a warmdown, where another way was measured at equal steps."""
    found: list[Arrival] = []
    for runs in _cells(table):
        constant = next(run for run in runs if run.is_constant)
        bpb = constant.metrics["float_bpb"]
        here = {"": Arrival(constant, "float", "constant", "no warmdown", bpb, Effect(0.0, 0.0))}
        for run in runs:
            for kind, way, stage in _ways(run):
                if way not in here:
                    gain = _change(table, constant, "float", run, stage)
                    here[way] = Arrival(run, stage, kind, way, run.metrics[f"{stage}_bpb"], gain)
        if len(here) > 1:
            found += here.values()
    return tuple(found)


def _cells(table: Table) -> Iterator[list[Run]]:
    """Runs that are equal in all but the warmdown and what observes it, one without a warmdown among them."""
    cells: dict[tuple[object, ...], list[Run]] = {}
    for run in table.runs:
        if "float_bpb" in run.metrics:
            group = tuple((axis, value) for axis, value in run.group if not axis.startswith(OBSERVERS))
            cells.setdefault((group, run.seed, run.steps), []).append(run)
    for key in sorted(cells, key=lambda key: (str(key[:2]), key[2])):
        if any(run.is_constant for run in cells[key]):
            yield sorted(cells[key], key=lambda run: run.warmdown_steps)


def _ways(run: Run) -> Iterator[tuple[str, str, str]]:
    """(kind, way, stage) of a run: its averages without a warmdown, or its raw weights after one."""
    if not run.is_constant:
        shape = "" if run.schedule == "linear" else f" {run.schedule}"
        yield "warmdown", f"warmdown {run.warmdown_ratio:.2f}{shape}", "float"
        return
    for kind, stage in _STAGE_OF_KIND.items():
        if f"{stage}_bpb" in run.metrics:
            horizon = config_value(run, "ema_decay") if kind == "EMA" else None
            yield kind, kind if horizon is None else f"{kind} {horizon:g}", stage


def _change(table: Table, before: Run, stage: str, after: Run, other: str) -> Effect:
    """BPB of one run's stage after another's, paired where both have the same blocks."""
    value = after.metrics[f"{other}_bpb"] - before.metrics[f"{stage}_bpb"]
    if table.folder is None:
        return Effect(value)
    a = read_blocks(table.folder, before.run_id).get(stage)
    b = read_blocks(table.folder, after.run_id).get(other)
    paired = None if a is None or b is None else paired_effect(a, b)
    return Effect(value, paired.error if paired else None)


def average_sentences(table: Table, found: tuple[Arrival, ...]) -> list[str]:
    """At the longest length: what the best of each kind gains, and whether an average equals a warmdown."""
    if not found:
        return []
    longest = max(arrival.run.steps for arrival in found)
    best = {
        kind: way
        for kind in ("EMA", "merged", "warmdown")
        if (way := _best([a for a in found if a.run.steps == longest and a.kind == kind]))
    }
    if not best:
        return []
    gains = [f"{way[0].way} {_over([a.gain for a in way]).text('+.4f')}" for way in best.values()]
    text = (
        f"Against the raw weights after {longest:,} steps without a warmdown, the best of each kind "
        f"changes BPB by: {', '.join(gains)}."
    )
    averages = [best[kind] for kind in ("EMA", "merged") if kind in best]
    if not averages or "warmdown" not in best:
        return [text]
    return [f"{text} {_verdict(table, min(averages, key=_mean), best['warmdown'])}"]


def _best(ways: list[Arrival]) -> list[Arrival]:
    """The way with the lowest mean change, one entry a seed."""
    by_way: dict[str, list[Arrival]] = {}
    for arrival in ways:
        by_way.setdefault(arrival.way, []).append(arrival)
    return min(by_way.values(), key=_mean, default=[])


def _mean(way: list[Arrival]) -> float:
    return float(np.mean([arrival.gain.value for arrival in way]))


def _verdict(table: Table, averages: list[Arrival], warmdowns: list[Arrival]) -> str:
    """The average less the warmdown of the same seed, with what the difference carries."""
    cells = {(arrival.run.seed): arrival for arrival in warmdowns}
    pairs = [(cells[a.run.seed], a) for a in averages if a.run.seed in cells]
    if not pairs:
        return "No seed has both."
    difference = _over([_change(table, w.run, w.stage, a.run, a.stage) for w, a in pairs])
    name = averages[0].way
    if not difference.bounded:
        return f"Whether {name} stands in for the warmdown is undetermined: one run, and no errors per block."
    if difference.above(0):
        return f"{name} does not stand in for the warmdown: it ends {difference.text('.4f')} BPB above it."
    if difference.below(0):
        return f"{name} ends below the warmdown, {difference.text('+.4f')} BPB, at no step of training."
    return f"{name} and the warmdown are not told apart ({difference.text('+.4f')} BPB)."


def _over(effects: list[Effect]) -> Estimate:
    """Over seeds from three on; else with the largest of the blocks' errors."""
    mean = mean_of([effect.value for effect in effects])
    errors = [effect.error for effect in effects if effect.error is not None]
    if mean.bounded or len(errors) < len(effects):
        return mean
    half = Z * max(errors)
    return Estimate(mean.value, mean.value - half, mean.value + half)
