"""A study as files: figures, tables, fits.json and report.html, under one folder."""

from __future__ import annotations

from html import escape
from pathlib import Path

from analysis.forecast.advise import interval
from analysis.report import page
from analysis.report.plots import Drawn, draw_all
from analysis.report.study import Study, study
from analysis.report.tables import all_tables, law_parameters
from analysis.runs import strictjson
from analysis.runs.load import load
from analysis.runs.sweepfile import SweepFile, read_sweep_file
from analysis.runs.tabular import ReportTable
from analysis.runs.units import LABELS, unit


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
    return write_report(study(table), folder, command or f"python -m analysis {source}"), table.notes


def write_report(found: Study, out: Path, command: str) -> Path:
    """Write everything under `out` and return the path of report.html. `command` is what made the report.

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
    path.write_text(_html(found, sweep, figures, missing, tables, command), encoding="utf-8")
    return path


def _html(
    study: Study,
    sweep: SweepFile,
    figures: list[Drawn],
    missing: list[tuple[str, str]],
    tables: list[ReportTable],
    command: str,
) -> str:
    name = sweep.name or Path(study.table.source).stem
    made = [f"<code>{escape(command)}</code>"]
    if sweep.command:
        made.insert(0, f"<code>{escape(sweep.command)}</code>")
    commit = f" at commit <code>{escape(sweep.commit[:12])}</code>" if sweep.commit else ""
    gaps = [f"No figure “{title}”: {reason}." for title, reason in missing]
    body = [
        f"<h1>{escape(name)}</h1>",
        f'<p class="soft">{len(study.table.runs)} finished runs of {escape(study.table.source)}. '
        f"Made by {', then '.join(made)}{commit}.</p>",
        f'<div class="verdict">{page.paragraphs(summary(study, sweep))}</div>',
        page.section("Does improvement accelerate, and why", page.bullets(study.verdict)),
        page.section("What to run next", page.bullets(_advice(study))),
        page.section("What the stages do", page.bullets((*study.stages.sentences, *study.stages.notes))),
        page.section("What else may explain the differences", page.bullets(study.confounds)),
        page.section("Figures", "\n".join(page.figure(f.title, f.caption, f.files) for f in figures)),
        page.section("Tables", "\n".join(table.html() for table in tables)),
        page.section("What was left out", page.bullets((*study.table.notes, *_skipped(study), *gaps))),
    ]
    return page.page(name, "\n".join(part for part in body if part))


def _advice(study: Study) -> tuple[str, ...]:
    """Advice, or why there is none."""
    if study.advice is None or study.forecast is None:
        return (f"No predictions: {study.no_forecast}.",)
    others = study.forecast.left_out
    mixed = (f"Made from the largest group of like runs; not from {', '.join(others)}.",) if others else ()
    return (*study.advice.sentences, *mixed)


def _skipped(study: Study) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for run_id, reason in study.warmdown.skipped:
        reasons.setdefault(reason, []).append(run_id)
    return [f"Warmdown not measured for {', '.join(ids)}: {reason}." for reason, ids in reasons.items()]


def summary(study: Study, sweep: SweepFile) -> list[str]:
    """The verdict first, then the best run, the main advice, and what compressors reach."""
    paragraphs = [study.headline or study.verdict[0], best_run(study)]
    if study.advice is not None:
        paragraphs += [study.advice.sentences[0], longer_run(study)]
    if sweep.compressor_bpb:
        others = " and ".join(f"{name} {bpb:.3f}" for name, bpb in sweep.compressor_bpb)
        paragraphs.append(f"On the same validation text, general compressors reach {others} bits per byte.")
    return [text for text in paragraphs if text]


def longer_run(study: Study) -> str:
    """What twice the longest run is predicted to give."""
    if study.forecast is None:
        return ""
    best = study.forecast.best[-1]
    longest = max(run.steps for run in study.forecast.ensemble.measured.runs)
    return (
        f"{best.steps:,} steps, {best.steps / longest:.2g} times the longest run, are predicted to reach "
        f"{interval(best.prediction)} at ratio {best.ratio:.2f}."
    )


def best_run(study: Study) -> str:
    """The run with the best final metric, beside its raw validation."""
    known = [(value, run) for run in study.table.runs if (value := run.final(study.final_metric)) is not None]
    if not known:
        return ""
    value, run = min(known, key=lambda pair: pair[0])
    what = LABELS.get(study.final_metric, study.final_metric)
    text = (
        f"Best of {len(known)} runs: {run.run_id}, {value:.4f} {unit(study.final_metric)} ({what}), "
        f"{run.steps:,} steps of which {run.warmdown_steps:,} are {run.schedule} warmdown"
    )
    size = run.metrics.get("artifact_bytes")
    return text + (f"; compressed model {size:,.0f} bytes." if size else ".")


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
