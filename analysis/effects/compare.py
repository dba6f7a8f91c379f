"""Two sweeps run by run: the same configurations, the difference of every metric, and how sure it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from analysis.effects.slopes import Estimate
from analysis.runs.blocks import StageBlocks, paired_effect, read_blocks, same_text
from analysis.runs.errors import AnalysisError
from analysis.runs.rows import UNKNOWN
from analysis.runs.strictjson import plain
from analysis.runs.table import Run, Table
from analysis.runs.tabular import Column, ReportTable
from analysis.runs.units import STAGES, unit

METRICS = (*STAGES, "val_bpb", "val_loss", "artifact_bytes", "train_seconds")
TRAININGS, TEXT = "trainings", "text, of these two trainings"
_STEPS_APART, _RATIO_APART = 1.2, 0.02
_IGNORED = ("data_fingerprint",)  # differs where the comparison is of data


_Blocks = Mapping[str, StageBlocks]


@dataclass(frozen=True)
class MetricDifference:
    """Mean of (after - before), trainings counting alike, with its 90 % interval."""

    metric: str
    mean: Estimate
    pairs: int
    better: int  # pairs in which `after` is lower
    trainings: int  # groups of pairs that share no trunk with one another
    interval_of: str  # what may vary within it: TRAININGS, TEXT, or '' without an interval


@dataclass(frozen=True)
class Comparison:
    """Paired runs of two sweeps: a row per pair, and a summary per metric."""

    frame: pd.DataFrame
    summary: tuple[MetricDifference, ...]
    unpaired: tuple[str, ...]
    notes: tuple[str, ...] = ()  # on pairs that are not of one plan step by step

    def as_json(self) -> dict[str, object]:
        """For programs: the summary and every pair; unknown values are null."""
        pairs = plain(self.frame.to_dict("records"))
        summary = [
            {
                "metric": d.metric,
                "difference": d.mean.value,
                "low": d.mean.low,
                "high": d.mean.high,
                "interval_of": d.interval_of or None,
                "trainings": d.trainings,
                "pairs": d.pairs,
                "lower_in": d.better,
            }
            for d in self.summary
        ]
        return {
            "summary": summary,
            "pairs": pairs,
            "unpaired": list(self.unpaired),
            "notes": list(self.notes),
        }

    def table(self) -> ReportTable:
        """The summary, for reading."""
        rows = [
            {
                "metric": d.metric,
                "unit": unit(d.metric),
                "pairs": d.pairs,
                "trainings": d.trainings,
                "mean": d.mean.value,
                "low": d.mean.low,
                "high": d.mean.high,
                "interval_of": d.interval_of or None,
                "lower_in": d.better,
            }
            for d in self.summary
        ]
        columns = {
            "metric": Column("metric"),
            "unit": Column("unit"),
            "pairs": Column("pairs", ".0f"),
            "trainings": Column("independent", ".0f"),
            "mean": Column("after - before", "+.5g"),
            "low": Column("low", "+.5g"),
            "high": Column("high", "+.5g"),
            "interval_of": Column("over"),
            "lower_in": Column("lower in", ".0f"),
        }
        return ReportTable(
            "compare",
            "After less before, mean over independent trainings, 90 % interval",
            pd.DataFrame(rows),
            columns,
        )


def compare(before: Table, after: Table, level: float = 0.9) -> Comparison:
    """Pair runs by plan, seed and the axes both tables have; runs that a clock ended by its cap in place of
    the steps, which differ a little from run to run.

    Errors: of one pair, from its validation blocks where both runs scored the same ones. Of the mean, from
    the spread of trainings: branches of a trunk share its noise, so that pairs with a trunk in common, on
    either side, are averaged and count once. Of one training nothing tells that spread: what is left is
    its pairs' own error, which says how far other text of this kind would move the difference, no more.

    Raises:
        AnalysisError: no run has a counterpart, or one has several.
    """
    shared = before.axes() & after.axes() - set(_IGNORED)
    pairs = [*_planned_pairs(before, after, shared), *_clocked_pairs(before, after, shared - {"params"})]
    if not pairs:
        raise AnalysisError(
            f"no run of {before.source} has the plan of one of {after.source} (steps, or for runs ended by "
            f"wall clock the cap; warmdown, schedule, seed{''.join(f', {name}' for name in sorted(shared))})"
        )
    blocks = [(_blocks(before, a), _blocks(after, b)) for a, b in pairs]
    frame = pd.DataFrame([row for (a, b), of in zip(pairs, blocks, strict=True) for row in _rows(a, b, *of)])
    if frame.empty:
        raise AnalysisError(f"{before.source} and {after.source} have no metric in common")
    summary = tuple(
        _summary(metric, frame[frame["metric"] == metric], level)
        for metric in METRICS
        if (frame["metric"] == metric).any()
    )
    paired = {id(run) for pair in pairs for run in pair}
    alone = [run.run_id for table in (before, after) for run in table.runs if id(run) not in paired]
    notes = (*_text_notes(blocks), *_clock_notes(pairs))
    return Comparison(frame, summary, tuple(alone), notes)


def _planned_pairs(before: Table, after: Table, shared: set[str]) -> list[tuple[Run, Run]]:
    ours, theirs = _by_key(before, shared), _by_key(after, shared)
    return [(ours[key], theirs[key]) for key in ours if key in theirs]


def _by_key(table: Table, shared: set[str]) -> dict[tuple[object, ...], Run]:
    runs: dict[tuple[object, ...], Run] = {}
    for run in table.runs:
        if _cap(run) is not None:
            continue
        key = (
            run.steps,
            run.warmdown_steps,
            run.schedule,
            run.final_lr_fraction,
            run.seed,
            *_axes(run, shared),
        )
        if key in runs:
            raise AnalysisError(_not_unique(table, runs[key], run))
        runs[key] = run
    return runs


def _axes(run: Run, shared: set[str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, str(value)) for name, value in run.group if name in shared))


def _not_unique(table: Table, a: Run, b: Run) -> str:
    return (
        f"{table.source}: '{a.run_id}' and '{b.run_id}' have one plan and seed; they differ in something the "
        "other sweep does not know, so pairs are not unique"
    )


def _cap(run: Run) -> float | None:
    """Seconds at which a clock ended the run; None for a run that made its steps."""
    if run.columns.get("stopped_by") != "wallclock":
        return None
    cap = run.columns.get("cap_seconds")
    if isinstance(cap, int | float) and cap > 0:
        return float(cap)
    spent = run.metrics.get("train_seconds")
    return None if spent is None else round(spent, -1)


def _clocked_pairs(before: Table, after: Table, shared: set[str]) -> list[tuple[Run, Run]]:
    """Each run that a clock ended with its one counterpart; of several, the one of as many parameters."""
    pairs = []
    for table, other, forward in ((before, after, True), (after, before, False)):
        for run in table.runs:
            found = [twin for twin in other.runs if _same_clock(run, twin, shared)]
            alike = [twin for twin in found if twin.metrics.get("params") == run.metrics.get("params")]
            found = alike if len(found) > 1 else found
            if len(found) > 1:
                raise AnalysisError(_not_unique(other, found[0], found[1]))
            if found and forward:
                pairs.append((run, found[0]))
    for i, (_, b) in enumerate(pairs):
        if (twice := next((a for a, other in pairs[:i] if other is b), None)) is not None:
            raise AnalysisError(_not_unique(before, twice, pairs[i][0]))
    return pairs


def _same_clock(a: Run, b: Run, shared: set[str]) -> bool:
    """Equal caps, seeds and axes; steps within a fifth (other machines are other trainings); and warmdowns
    alike, where both are known.
    """
    caps = _cap(a), _cap(b)
    if caps[0] is None or caps[1] is None or abs(caps[0] - caps[1]) > 0.01 * caps[0]:
        return False
    if a.seed != b.seed or _axes(a, shared) != _axes(b, shared):
        return False
    if not 1 / _STEPS_APART <= a.steps / b.steps <= _STEPS_APART:
        return False
    fractions = a.columns.get("warmdown_fraction"), b.columns.get("warmdown_fraction")
    if all(isinstance(f, float) and f == f for f in fractions):
        return fractions[0] == fractions[1]
    if UNKNOWN in (a.schedule, b.schedule):
        return True
    return abs(a.warmdown_ratio - b.warmdown_ratio) <= _RATIO_APART


def _blocks(table: Table, run: Run) -> _Blocks:
    return read_blocks(table.folder, run.run_id) if table.folder else {}


def _text_notes(blocks: list[tuple[_Blocks, _Blocks]]) -> list[str]:
    other = sum(
        any(not same_text(ours, theirs, stage) for stage in ours.keys() & theirs.keys())
        for ours, theirs in blocks
    )
    if not other:
        return []
    return [
        f"{other} of {len(blocks)} pairs were scored on different validation texts: their differences are of "
        "the texts as well as of the models, and of one training they have no interval"
    ]


def _clock_notes(pairs: list[tuple[Run, Run]]) -> tuple[str, ...]:
    clocked = [(a, b) for a, b in pairs if _cap(a) is not None]
    if not clocked:
        return ()
    apart = max(abs(b.steps / a.steps - 1) for a, b in clocked)
    notes = [
        f"{len(clocked)} pairs share a cap of wall-clock time, with steps up to {100 * apart:.2g} % apart"
    ]
    if any(UNKNOWN in (a.schedule, b.schedule) for a, b in clocked):
        notes.append("of some the warmdown is unknown, and may differ within the pair")
    return tuple(notes)


def _rows(a: Run, b: Run, ours: _Blocks, theirs: _Blocks) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for metric in METRICS:
        x, y = a.final(metric), b.final(metric)
        if x is None or y is None or (metric == "val_bpb" and "float_bpb" in a.metrics):
            continue
        stage = metric.removesuffix("_bpb")
        error = None
        if same_text(ours, theirs, stage):
            effect = paired_effect(ours[stage], theirs[stage])
            error = effect.error if effect else None
        rows.append(
            {
                "metric": metric,
                "before_run": a.run_id,
                "after_run": b.run_id,
                "before_trunk": a.trunk or a.run_id,
                "after_trunk": b.trunk or b.run_id,
                "steps": a.steps,
                "after_steps": b.steps,
                "warmdown_steps": a.warmdown_steps,
                "schedule": a.schedule,
                "seed": a.seed,
                "before": x,
                "after": y,
                "difference": y - x,
                "standard_error": error,
            }
        )
    return rows


def _summary(metric: str, rows: pd.DataFrame, level: float) -> MetricDifference:
    difference = rows.groupby(_trainings(rows))["difference"].mean().to_numpy(float)
    n, mean = len(difference), float(difference.mean())
    # The mean's error is the mean of the pairs' at most: where they share all of it.
    error = float(rows["standard_error"].astype(float).mean(skipna=False))
    half, interval_of = None, ""
    if n > 1:
        half = float(stats.t.ppf(0.5 + level / 2, n - 1) * difference.std(ddof=1) / np.sqrt(n))
        interval_of = TRAININGS
    elif np.isfinite(error):
        half, interval_of = float(stats.norm.ppf(0.5 + level / 2) * error), TEXT
    found = Estimate(mean) if half is None else Estimate(mean, mean - half, mean + half)
    lower = int((rows["difference"] < 0).sum())
    return MetricDifference(metric, found, len(rows), lower, n, interval_of)


def _trainings(rows: pd.DataFrame) -> NDArray[np.int32]:
    """For each pair the number of its training, [n]: pairs linked by a trunk, on either side, are one."""
    before, after = (pd.factorize(rows[side])[0] for side in ("before_trunk", "after_trunk"))
    links = coo_array((np.ones(len(rows)), (before, before.max() + 1 + after)), shape=(2 * len(rows),) * 2)
    labels: NDArray[np.int32] = connected_components(links, directed=False)[1][before]
    return labels
