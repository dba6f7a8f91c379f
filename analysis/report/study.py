"""Everything known about a sweep, computed once: what figures, tables and the report are made from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.effects.confounds import confounds, replicate_sd
from analysis.effects.soundness import LongerWorse, effect_of_warmdown, longer_worse, unstable_trunk
from analysis.effects.stages import Decomposition, decompose
from analysis.effects.verdict import headline, warmdown_verdict
from analysis.effects.warmdown import Warmdown
from analysis.effects.warmdown import analyse as analyse_warmdowns
from analysis.forecast.advise import Advice, advise
from analysis.forecast.predict import Prediction
from analysis.forecast.surface import Forecast, forecast
from analysis.laws.plans import last_known
from analysis.report.residuals import fitted_metric, residuals, rms
from analysis.runs.errors import AnalysisError
from analysis.runs.table import Run, Table, default_metric
from analysis.runs.units import STAGES, unit


@dataclass(frozen=True)
class Study:
    """A table of runs and what was found in it.

    `metric` is the trajectories', `final_metric` that of the finished job. `findings` are what a reader has
    to know before any other number: longer runs that were worse, an unstable trunk, laws that do not fit.
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
    longer_worse: LongerWorse | None = None
    unstable: str = ""  # a sentence on the trunk
    findings: tuple[str, ...] = ()
    residuals: pd.DataFrame | None = None  # of the trajectory laws, on the rows they were fitted to

    @property
    def best(self) -> tuple[Run, float] | None:
        """The run with the lowest final metric, and its value."""
        known = [(r, value) for r in self.table.runs if (value := r.final(self.final_metric)) is not None]
        return min(known, key=lambda pair: pair[1]) if known else None


def study(table: Table) -> Study:
    """Analyse a table.

    Raises:
        AnalysisError: no metric that can be analysed is known.
    """
    metric = default_metric(table)
    wanted = final_metric(table, metric)
    worse = longer_worse(table, wanted)
    found, reason = _forecast(table, wanted, relative_noise(table, metric), worse)
    warmdown = analyse_warmdowns(table, metric)
    left_over = residuals(found) if found else None
    unstable = unstable_trunk(table, metric)
    findings = [worse.sentence(wanted) if worse else "", unstable]
    if found is not None and left_over is not None:
        findings.append(_misfit(found, left_over))
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
        longer_worse=worse,
        unstable=unstable,
        findings=tuple(text for text in findings if text),
        residuals=left_over,
    )


def cautioned(result: Prediction, table: Table) -> Prediction:
    """A prediction with what the report finds to warn of in its runs, and what of them could not be used."""
    worse, default = longer_worse(table, result.metric), default_metric(table)
    found = (worse.sentence(result.metric) if worse else "", unstable_trunk(table, default))
    return replace(result, warnings=(*result.warnings, *(text for text in found if text), *table.notes))


def relative_noise(table: Table, metric: str) -> float | None:
    """Replicate SD of the trajectories' metric as a share of its level, so that it holds in other units."""
    noise = replicate_sd(table, metric)
    level = [known[1] for run in table.runs if (known := last_known(run, metric)) is not None]
    return None if noise is None else noise[0] / float(np.median(level))


def _forecast(
    table: Table, metric: str, noise: float | None, worse: LongerWorse | None
) -> tuple[Forecast | None, str]:
    """A forecast, or why the runs do not carry one: a report without predictions is still a report."""
    if worse is not None:
        return None, (
            f"the runs of {worse.longest.steps:,} steps ended above those of {worse.best.steps:,}, and the "
            "laws describe how results improve with length"
        )
    try:
        return forecast(table, metric, noise), ""
    except AnalysisError as error:
        return None, str(error).removeprefix(f"{table.source}: ")


def _misfit(found: Forecast, left_over: pd.DataFrame) -> str:
    """A sentence where the laws miss the curves by more than the warmdown's length changes."""
    metric = fitted_metric(found)
    effect, size = effect_of_warmdown(found.ensemble.table, metric), rms(left_over)
    if effect is None or size <= effect:
        return ""
    return (
        f"The laws miss the curves by {size:.4f} {unit(metric)} (RMS), more than the warmdown's length "
        f"changes at equal steps ({effect:.4f}): what they say of the best ratio is not to be relied on."
    )


def final_metric(table: Table, metric: str) -> str:
    """The last stage known for most runs that any stage is known for; the trajectories' metric where that is
    known for more than twice as many.
    """
    counts = {stage: sum(stage in run.metrics for run in table.runs) for stage in STAGES}
    most = max(counts.values())
    if 2 * most < sum(run.final(metric) is not None for run in table.runs) or most == 0:
        return metric
    return next(stage for stage in reversed(STAGES) if counts[stage] == most)
