"""`load_study`: a sweep's results, or anyone's CSV, for a notebook or a script."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from analysis.forecast.predict import Prediction, predict
from analysis.reach.remote import Copied, copy_of, is_url
from analysis.report.answer import Answer, answer
from analysis.report.report import fits, write_report
from analysis.report.study import Study, cautioned, final_metric, study
from analysis.report.tables import all_tables
from analysis.runs.errors import AnalysisError
from analysis.runs.load import load
from analysis.runs.parquet import read_parquet
from analysis.runs.sweepfile import read_sweep_file
from analysis.runs.table import Run, Table, default_metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def load_study(source: str | Path = "results", trajectories: str | Path | None = None) -> LoadedStudy:
    """A study to ask. `source`: a sweep's folder (a path, or an s3:// or gs:// URL), a store with one sweep
    in it, or a CSV of runs, with `trajectories` the CSV of their curves.

    Loading reads; laws are fitted when they are first asked for.

    Raises:
        AnalysisError: there is nothing that can be read, or no finished run.
    """
    copied = copy_of(str(source)) if is_url(source) else None
    folder = _sweep_of(Path(source) if copied is None else copied.folder)
    table = load(folder, trajectories)
    frame = read_parquet(folder / "runs.parquet") if folder.is_dir() else pd.read_csv(folder)
    return LoadedStudy(table, frame, str(source), copied)


def _sweep_of(path: Path) -> Path:
    """The sweep's folder itself, or the only one in a store."""
    if not path.is_dir() or (path / "runs.parquet").is_file():
        return path
    inside = sorted(table.parent for table in path.glob("*/runs.parquet"))
    if len(inside) == 1:
        return inside[0]
    names = ", ".join(sweep.name for sweep in inside) or "none"
    raise AnalysisError(f"{path}: give the folder of one sweep; it holds {names}")


class LoadedStudy:
    """Runs, curves, laws, predictions and figures of a study."""

    def __init__(self, table: Table, runs: pd.DataFrame, source: str, copied: Copied | None = None) -> None:
        self.table = table
        """Finished runs as the analysis sees them."""
        self.runs = runs.set_index("run_id", drop=False) if "run_id" in runs else runs
        """Every run, finished or not: the table as it was written, by run_id. Units are in docs/python.md."""
        self.source = source
        self._copied = copied  # a URL's tables, which live as long as the study
        self.notes = table.notes
        """What of the input could not be used, in words."""

    def __repr__(self) -> str:
        return f"<study of {len(self.table.runs)} finished runs in {self.source}>"

    @cached_property
    def found(self) -> Study:
        """Everything the report says, as typed values."""
        return study(self.table)

    @cached_property
    def answer(self) -> Answer:
        """The report's first screen: `headline`, one sentence, and `facts`, labelled ones."""
        return answer(self.found, read_sweep_file(self.table.folder))

    @property
    def verdict(self) -> tuple[str, ...]:
        """What the warmdowns show, the answer first."""
        return self.found.verdict

    @property
    def advice(self) -> tuple[str, ...]:
        """What to run next; nothing where the runs carry no prediction."""
        return self.found.advice.sentences if self.found.advice else ()

    @property
    def best(self) -> pd.Series:
        """The row of the run with the best final metric."""
        metric = self.metric
        known = [run for run in self.table.runs if run.final(metric) is not None]
        if not known:
            raise AnalysisError(f"{self.source}: no run has a final {metric}")
        best = min(known, key=lambda run: run.final(metric) or 0.0).run_id
        return self.runs[self.runs["run_id"] == best].iloc[0]

    @property
    def metric(self) -> str:
        """The metric of the finished job: the last stage measured."""
        return final_metric(self.table, default_metric(self.table))

    def run(self, run_id: str) -> Run:
        """A finished run by its id, or by as much of its beginning (or of its digest) as is unique.

        Raises:
            AnalysisError: none or several are meant.
        """
        ids = [run.run_id for run in self.table.runs]
        meant = [id_ for id_ in ids if id_ == run_id] or [
            id_ for id_ in ids if id_.startswith(run_id) or id_.rpartition("-")[2].startswith(run_id)
        ]
        if len(meant) != 1 or not run_id:
            found = ", ".join((meant or ids)[:5])
            raise AnalysisError(f"{run_id!r}: {len(meant)} runs are meant; there are {found}")
        return self.table.run(meant[0])

    def curve(self, run_id: str) -> pd.DataFrame:
        """A run's whole curve, joined over the trunks it shares: columns lr_scale and what was evaluated
        (val_bpb, ...; NaN where it was not), indexed by step.

        Raises:
            AnalysisError: no such run, or it has no curve.
        """
        run = self.run(run_id)
        if run.trajectory is None:
            raise AnalysisError(f"{run.run_id}: has no curve, only final values")
        columns = {"lr_scale": run.trajectory.lr_scale, **run.trajectory.values}
        return pd.DataFrame(columns, index=pd.Index(run.trajectory.step, name="step"))

    def predict(
        self,
        *,
        steps: int,
        warmdown: int,
        metric: str | None = None,
        level: float = 0.9,
        schedule: str | None = None,
        where: dict[str, object] | None = None,
    ) -> Prediction:
        """The final `metric` (default: the last stage measured) of a run of `steps` with `warmdown` of decay.

        Raises:
            AnalysisError: the plan is impossible, or the runs carry no law; see `analysis.forecast.predict`.
        """
        found = predict(
            self.table,
            steps=steps,
            warmdown=warmdown,
            metric=metric or self.metric,
            level=level,
            schedule=schedule,
            where=where,
        )
        return cautioned(found, self.table)

    @cached_property
    def fits(self) -> dict[str, object]:
        """Every fitted number, as in fits.json."""
        return fits(self.found)

    @cached_property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The report's tables by name."""
        return {table.name: table.frame for table in all_tables(self.found)}

    @property
    def figures(self) -> dict[str, str]:
        """Names of the figures that this study has numbers for, and their titles."""
        from analysis.report.plots import UnavailableError, figure_modules

        names = {}
        for module in figure_modules():
            try:
                module.data(self.found)
            except UnavailableError:
                continue
            names[module.NAME] = module.TITLE
        return names

    def figure(self, name: str) -> Figure:
        """A figure of the report as a matplotlib Figure, to change or to save.

        Raises:
            AnalysisError: there is no such figure, or no numbers for it.
        """
        from analysis.report.plots.style import style

        module, frame = self._drawn(name)
        with style():
            figure: Figure = module.draw(frame, self.found)  # type: ignore[attr-defined]
        return figure

    def figure_data(self, name: str) -> pd.DataFrame:
        """The numbers that a figure shows. Raises as `figure`."""
        return self._drawn(name)[1]

    def _drawn(self, name: str) -> tuple[object, pd.DataFrame]:
        from analysis.report.plots import UnavailableError, figure_modules

        modules = {module.NAME: module for module in figure_modules()}
        if name not in modules:
            raise AnalysisError(f"no figure {name!r}; there are {', '.join(modules)}")
        try:
            return modules[name], modules[name].data(self.found)
        except UnavailableError as reason:
            raise AnalysisError(f"no figure {name!r}: {reason}") from None

    def report(self, out: str | Path) -> Path:
        """Write report.html with its figures and tables under `out`; returns its path."""
        return write_report(self.found, Path(out), f"load_study({self.source!r}).report({str(out)!r})")
