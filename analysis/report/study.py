"""Everything known about a sweep, computed once: what figures, tables and the report are made from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.effects.confounds import confounds, replicate_sd
from analysis.effects.stages import Decomposition, decompose
from analysis.effects.verdict import headline, warmdown_verdict
from analysis.effects.warmdown import Warmdown
from analysis.effects.warmdown import analyse as analyse_warmdowns
from analysis.forecast.advise import Advice, advise
from analysis.forecast.folds import last_known
from analysis.forecast.surface import Forecast, forecast
from analysis.runs.errors import AnalysisError
from analysis.runs.table import Table, default_metric
from analysis.runs.units import STAGES


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
    forecast: Forecast | None
    no_forecast: str  # why there is none
    advice: Advice | None


def study(table: Table) -> Study:
    """Analyse a table.

    Raises:
        AnalysisError: no metric that can be analysed is known.
    """
    metric = default_metric(table)
    wanted = final_metric(table, metric)
    found, reason = _forecast(table, wanted, relative_noise(table, metric))
    warmdown = analyse_warmdowns(table, metric)
    return Study(
        table=table,
        metric=metric,
        final_metric=wanted,
        warmdown=warmdown,
        headline=headline(warmdown),
        verdict=warmdown_verdict(warmdown),
        stages=decompose(table),
        confounds=confounds(table, metric),
        forecast=found,
        no_forecast=reason,
        advice=advise(found) if found else None,
    )


def relative_noise(table: Table, metric: str) -> float | None:
    """Replicate SD of the trajectories' metric as a share of its level, so that it holds in other units."""
    noise = replicate_sd(table, metric)
    level = [known[1] for run in table.runs if (known := last_known(run, metric)) is not None]
    return None if noise is None else noise[0] / float(np.median(level))


def _forecast(table: Table, metric: str, noise: float | None) -> tuple[Forecast | None, str]:
    """A forecast, or why the runs do not carry one: a report without predictions is still a report."""
    try:
        return forecast(table, metric, noise), ""
    except AnalysisError as error:
        return None, str(error)


def final_metric(table: Table, metric: str) -> str:
    """The last stage known for most runs that any stage is known for; else the trajectories' metric."""
    counts = {stage: sum(stage in run.metrics for run in table.runs) for stage in STAGES}
    most = max(counts.values())
    return next((stage for stage in reversed(STAGES) if counts[stage] == most), metric) if most else metric
