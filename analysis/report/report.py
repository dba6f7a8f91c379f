"""A study as files: figures, tables, fits.json and report.html, under one folder."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from analysis.report.answer import answer
from analysis.report.next_steps import Step, next_steps
from analysis.report.page import Link, Page, Section, TableView, render, sections_of, short_ids, view
from analysis.report.plots import Drawn, draw_all
from analysis.report.study import Study, study
from analysis.report.tables import all_tables, law_parameters
from analysis.report.words import words_of
from analysis.runs import strictjson
from analysis.runs.load import load
from analysis.runs.sweepfile import SweepFile, read_sweep_file
from analysis.runs.tabular import ReportTable
from analysis.runs.units import counted, span


def make_report(
    source: str | Path, trajectories: str | Path | None = None, out: Path | None = None, command: str = ""
) -> tuple[Path, tuple[str, ...]]:
    """Load, analyse and report; returns (report.html, notes on what of the input was left out).

    Without `out`: DIR/report of a results folder, ./report for a CSV.

    Raises:
        AnalysisError: the input carries no analysis.
    """
    table = load(source, trajectories)
    folder = out or (table.folder / "report" if table.folder else Path("report"))
    found = study(table)
    return write_report(found, folder, command or f"python -m analysis {source}", trajectories), table.notes


def write_report(found: Study, out: Path, command: str, trajectories: str | Path | None = None) -> Path:
    """Write everything under `out` and return the path of report.html. `command` is what made the report,
    `trajectories` the file of curves that was given beside a CSV.

    Raises:
        AnalysisError: from the analysis of blocks; OSError where `out` cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    figures, missing = draw_all(found, out / "figures")
    tables = all_tables(found)
    for table in tables:
        table.write(out / "tables")
    (out / "fits.json").write_text(strictjson.dumps(fits(found), indent=1) + "\n", encoding="utf-8")
    sweep = read_sweep_file(found.table.folder)
    path = out / "report.html"
    steps = next_steps(found, sweep, trajectories)
    page = _page(found, sweep, figures, missing, tables, steps, command, out)
    path.write_text(render(page), encoding="utf-8")
    return path


def _page(
    study: Study,
    sweep: SweepFile,
    figures: list[Drawn],
    missing: list[tuple[str, str]],
    tables: list[ReportTable],
    steps: list[Step],
    command: str,
    out: Path,
) -> Page:
    name = sweep.name or _name(Path(study.table.source))
    best = study.best[0].run_id if study.best else ""
    short = short_ids(run.run_id for run in study.table.runs)
    artifacts = _artifacts(study, out)
    shown = {table.name: view(table, best, short, artifacts) for table in tables}
    answered = answer(study, sweep)
    by_section: dict[str, list[Drawn]] = {}
    for drawn in figures:
        by_section.setdefault(drawn.section, []).append(drawn)
    lead = next(iter(by_section.pop("answer", [])), None)
    return Page(
        title=name,
        facts_of=f"{_trained(study)}. {words_of(study).line}",
        headline=answered.headline,
        findings=study.findings,
        facts=answered.facts,
        lead=lead,
        sections=sections_of(_sections(study, sweep, by_section, missing, shown, steps, out)),
        made=_made(sweep, command),
        words=words_of(study).words,
        best_link=Link("artifact", artifacts[best]) if best in artifacts else None,
        short=short,
    )


def _trained(study: Study) -> str:
    """How many runs, of what size, on what."""
    runs = study.table.runs
    parts = [f"{counted(len(runs), 'finished run')} of {study.table.source}"]
    sizes = {run.metrics["params"] for run in runs if "params" in run.metrics}
    if sizes:
        parts.append(f"{span(sizes, ',.0f')} parameters")
    devices = sorted({str(of) for run in runs if isinstance(of := run.columns.get("device"), str)})
    if devices:
        parts.append(f"trained on {' and '.join(devices)}")
    return ", ".join(parts)


def _name(source: Path) -> str:
    """Of a file called runs.csv its folder says more."""
    return source.resolve().parent.name if source.stem in ("runs", "results") else source.stem


def _sections(
    study: Study,
    sweep: SweepFile,
    figures: dict[str, list[Drawn]],
    missing: list[tuple[str, str]],
    tables: dict[str, TableView],
    steps: list[Step],
    out: Path,
) -> list[Section]:
    """The page by question: words, then the figures and tables that show them."""

    def drawn(name: str) -> tuple[Drawn, ...]:
        return tuple(figures.get(name, ()))

    def of(*names: str) -> tuple[TableView, ...]:
        return tuple(tables[name] for name in names if name in tables)

    reasons: dict[str, list[str]] = {}
    for title, reason in missing:
        reasons.setdefault(reason, []).append(f"“{title}”")
    gaps = tuple(f"No figure {', '.join(titles)}: {reason}." for reason, titles in reasons.items())
    return [
        Section("length", "How long, how much warmdown", figures=drawn("length"), tables=of("advice")),
        Section("next", "What to run next", steps=tuple(steps), details=_no_predictions(study)),
        Section(
            "warmdown",
            "Does improvement accelerate, and why",
            study.verdict,
            figures=drawn("warmdown"),
            tables=of("warmdown", "length"),
        ),
        Section(
            "stages",
            "What the stages do",
            study.stages.sentences,
            figures=drawn("stages"),
            tables=of("stages", "repair", "averages"),
            details=study.stages.notes,
        ),
        Section("confounds", "What else may explain the differences", study.confounds),
        Section(
            "certainty", "How far predictions can be trusted", figures=drawn("certainty"), tables=of("laws")
        ),
        Section("more", "Further figures", figures=drawn("")),
        Section("runs", "All runs", tables=of("runs"), links=_files(study, out)),
        Section("left-out", "What was left out", (*study.table.notes, *_skipped(study), *gaps)),
        Section("made", "How this was made", always=True),
        Section("words", "Words", always=True),
    ]


def _no_predictions(study: Study) -> tuple[str, ...]:
    if study.forecast is None:
        return (f"No predictions: {study.no_forecast}.",)
    others = study.forecast.left_out
    return (f"Made from the largest group of like runs; not from {', '.join(others)}.",) if others else ()


def _skipped(study: Study) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for run_id, reason in study.warmdown.skipped:
        reasons.setdefault(reason, []).append(run_id)
    return [f"Warmdown not measured for {', '.join(ids)}: {reason}." for reason, ids in reasons.items()]


def _relative(path: Path, out: Path) -> str:
    return Path(os.path.relpath(path, out)).as_posix()


def _artifacts(study: Study, out: Path) -> dict[str, str]:
    """run id -> its compressed model, as seen from the page."""
    folder = study.table.folder
    if folder is None:
        return {}
    paths = {run.run_id: folder / "artifacts" / f"{run.run_id}.int6" for run in study.table.runs}
    return {run_id: _relative(path, out) for run_id, path in paths.items() if path.is_file()}


def _files(study: Study, out: Path) -> tuple[Link, ...]:
    """What lies beside the page, for programs and for people."""
    names = ("runs.parquet", "trajectory", "blocks", "artifacts", "plan.json", "sweep.json")
    folder = study.table.folder
    there = [folder / name for name in names if (folder / name).exists()] if folder else []
    if folder is None and Path(study.table.source).is_file():
        there = [Path(study.table.source)]
    links = [Link(path.name + "/" * path.is_dir(), _relative(path, out)) for path in there]
    return (*links, Link("fits.json", "fits.json"), Link("figures/", "figures"), Link("tables/", "tables"))


def _made(sweep: SweepFile, command: str) -> tuple[tuple[str, str, bool], ...]:
    """(what, text, is it a command): commands, machine and versions."""
    versions = ", ".join(f"{name} {number}" for name, number in sweep.versions)
    made = [
        ("Runs", sweep.command, True),
        ("Report", command, True),
        ("Machine", sweep.machine, False),
        ("Versions", versions, False),
        ("Commit", (sweep.commit or "")[:12], False),
        ("Analysis", f"gepa-sweeps {_version()}", False),
    ]
    return tuple((what, text, is_command) for what, text, is_command in made if text)


def _version() -> str:
    try:
        return version("gepa-sweeps")
    except PackageNotFoundError:
        return "not installed"


def fits(study: Study) -> dict[str, object]:
    """Every fitted number, for programs: warmdowns, length laws, trends."""
    return {
        "metric": study.metric,
        "final_metric": study.final_metric,
        "warmdown": [
            {
                "run_id": r.run.run_id,
                "drop_inf": r.drop_inf,
                "q": None if r.q is None else vars(r.q),
                "last_over_first": vars(r.last_over_first),
                "shares": {str(m): share for m, share in r.fractions.items()},
            }
            for r in study.warmdown.runs
        ],
        "length": [
            {"schedule": law.schedule, "a": vars(law.a), "b": vars(law.b), "lengths": len(law.drop)}
            for law in study.warmdown.lengths
        ],
        "laws": _laws(study),
        "trends": [
            {"what": trend.what, "slope": vars(trend.slope), "points": trend.points}
            for trend in (*study.stages.ttt_on_base, *study.stages.bytes_on_steps)
        ],
    }


def _laws(study: Study) -> dict[str, object]:
    """Weights, held-out errors and parameters of every law; empty without a forecast."""
    if study.forecast is None:
        return {}
    ensemble = study.forecast.ensemble
    return {
        name: {
            "weight": ensemble.weights[name],
            "held_out_error": ensemble.scores[name],
            "parameters": law_parameters(fitted),
        }
        for name, fitted in ensemble.fits.items()
    }
