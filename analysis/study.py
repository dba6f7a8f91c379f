"""Everything known about a sweep, computed once: what figures, tables and the report are made from."""

from __future__ import annotations

from dataclasses import dataclass

from analysis.confounds import confounds
from analysis.decompose import Decomposition, decompose
from analysis.table import Table, default_metric
from analysis.units import STAGES
from analysis.verdict import headline, warmdown_verdict
from analysis.warmdown import Warmdown
from analysis.warmdown import analyse as analyse_warmdowns


@dataclass(frozen=True)
class Study:
    """A table of runs and what was found in it.

    `metric` is the trajectories', `final_metric` that of the finished job.
    """

    table: Table
    metric: str
    final_metric: str
    warmdown: Warmdown
    headline: str
    verdict: tuple[str, ...]
    stages: Decomposition
    confounds: tuple[str, ...]


def study(table: Table) -> Study:
    """Analyse a table.

    Raises:
        AnalysisError: no metric that can be analysed is known.
    """
    metric = default_metric(table)
    warmdown = analyse_warmdowns(table, metric)
    return Study(
        table=table,
        metric=metric,
        final_metric=final_metric(table, metric),
        warmdown=warmdown,
        headline=headline(warmdown),
        verdict=warmdown_verdict(warmdown),
        stages=decompose(table),
        confounds=confounds(table, metric),
    )


def final_metric(table: Table, metric: str) -> str:
    """The last stage known for most runs that any stage is known for; else the trajectories' metric."""
    counts = {stage: sum(stage in run.metrics for run in table.runs) for stage in STAGES}
    most = max(counts.values())
    return next((stage for stage in reversed(STAGES) if counts[stage] == most), metric) if most else metric
