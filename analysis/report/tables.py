"""The report's tables, from a study. To add one, add a function to TABLES; None where it has no rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.effects.slopes import Estimate
from analysis.forecast.cost import device_of, run_hours
from analysis.forecast.experience import EXPERIENCE, law_of
from analysis.forecast.gaps import StageGap
from analysis.forecast.members import known_lengths
from analysis.laws.fit import Fit
from analysis.report.study import Study
from analysis.runs.settings import setting, varying_axes
from analysis.runs.table import Floats, Run
from analysis.runs.tabular import Column, ReportTable
from analysis.runs.units import BESIDE, LABELS, STAGES, axis, unit


def runs(study: Study) -> ReportTable:
    """Every finished run: plan, measured stages, size, cost."""
    rows, axes = [], varying_axes(study.table)
    for run in study.table.runs:
        rows.append(
            {
                "run_id": run.run_id,
                "steps": run.steps,
                "warmdown_steps": run.warmdown_steps,
                "warmdown_ratio": run.warmdown_ratio,
                "schedule": run.schedule,
                "seed": run.seed,
                "setting": setting(run, axes) or None,
                study.metric: run.final(study.metric),
                **{stage: run.metrics.get(stage) for stage in (*STAGES, *BESIDE)},
                "artifact_bytes": run.metrics.get("artifact_bytes"),
                "quant_rows_at_floor": run.metrics.get("quant_rows_at_floor"),
                "hours": run_hours(run),
            }
        )
    columns = {
        "run_id": Column("run"),
        "steps": Column("steps", ",.0f"),
        "warmdown_steps": Column("warmdown steps", ",.0f"),
        "warmdown_ratio": Column("ratio", ".2f"),
        "schedule": Column("schedule"),
        "seed": Column("seed", ".0f"),
        "setting": Column("setting"),
    }
    stages = [stage for stage in (*STAGES, *BESIDE) if any(stage in run.metrics for run in study.table.runs)]
    shown = stages or [study.metric]
    columns |= {stage: Column(f"{LABELS[stage]} [{unit(stage)}]", ".4f") for stage in shown}
    columns |= {
        "artifact_bytes": Column("artifact [bytes]", ",.0f"),
        "quant_rows_at_floor": Column("rows at floor", ",.0f"),
        "hours": Column(f"{device_of(study.table)}-hours", ".3g"),
    }
    return ReportTable("runs", "Runs", pd.DataFrame(rows), columns)


def _spread(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    if estimate is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _text(estimate: Estimate | None, digits: str) -> str | None:
    """The estimate with its interval, which may be too wide to be one; nothing without an estimate."""
    if estimate is None:
        return None
    return estimate.text(digits) if estimate.bounded else "within noise"


def warmdowns(study: Study) -> ReportTable | None:
    """Slopes, ratios, shares and the exponent q of every measured warmdown."""
    rows = []
    for r in study.warmdown.runs:
        row: dict[str, object] = {
            "run_id": r.run.run_id,
            "schedule": r.run.schedule,
            "steps": r.run.steps,
            "warmdown_steps": r.run.warmdown_steps,
            "gain": r.gain,
            "steps_gain": None if r.steps_gain is None else r.steps_gain.value,
            "continuation": "extrapolated" if r.extrapolated else "measured",
            **_spread("tail_slope", r.tail_slope),
        }
        for i, slope in enumerate(r.fifth_slopes, start=1):
            row |= _spread(f"fifth_{i}_slope", slope)
        row |= _spread("first_over_tail", r.first_over_tail) | _spread("last_over_first", r.last_over_first)
        row |= {f"share_at_{100 * m:.0f}": share for m, share in r.fractions.items()}
        row |= {"drop_inf": r.drop_inf, **_spread("q", r.q), "ema_share": r.ema_share}
        row |= {
            "tail_text": _text(r.tail_slope, ".4f"),
            "steps_gain_text": _text(r.steps_gain, ".4f"),
            "first_over_tail_text": _text(r.first_over_tail, ".2f"),
            "last_over_first_text": _text(r.last_over_first, ".2f"),
            "q_text": _text(r.q, ".2f"),
        }
        rows.append(row)
    if not rows:
        return None
    u = unit(study.metric)
    columns = {
        "run_id": Column("run"),
        "schedule": Column("schedule"),
        "warmdown_steps": Column("warmdown steps", ",.0f"),
        "gain": Column(f"gain [{u}]", ".4f"),
        "steps_gain_text": Column(f"the steps alone [{u}]"),
        "continuation": Column("constant rate"),
        "tail_text": Column(f"slope before it [{u} / 1k steps]"),
        "first_over_tail_text": Column("first / before"),
        "last_over_first_text": Column("last / first"),
        "q_text": Column("q"),
    }
    if len({row["schedule"] for row in rows}) == 1:
        del columns["schedule"]
    return ReportTable("warmdown", "Warmdowns, 90 % intervals in brackets", pd.DataFrame(rows), columns)


def stages(study: Study) -> ReportTable | None:
    """Stage effects of every run, with paired standard errors."""
    rows, names = [], study.stages.effect_names()
    for result in study.stages.runs:
        row: dict[str, object] = {
            "run_id": result.run.run_id,
            "steps": result.run.steps,
            "warmdown_ratio": result.run.warmdown_ratio,
        }
        for step in result.steps:
            row[step.name] = step.effect.value
            row[f"{step.name}, standard error"] = step.effect.error
        rows.append(row)
    if not rows:
        return None
    columns = {
        "run_id": Column("run"),
        "steps": Column("steps", ",.0f"),
        "warmdown_ratio": Column("ratio", ".2f"),
    }
    for name in names:
        columns[name] = Column(f"{name} [BPB]", "+.5f")
        columns[f"{name}, standard error"] = Column("± SE", ".5f")
    return ReportTable(
        "stages", "Stage effects (after less before, negative is better)", pd.DataFrame(rows), columns
    )


def repair(study: Study) -> ReportTable | None:
    """What TTT gains on float and on int6 weights, and what it mends, with paired standard errors."""
    names = {
        "on_float": "TTT on float",
        "on_int6": "TTT on int6",
        "tax_before": "int6 less float before TTT",
        "tax_after": "after TTT",
        "mended": "mended",
    }
    rows: list[dict[str, object]] = []
    for found in study.stages.repairs:
        row: dict[str, object] = {
            "run_id": found.run.run_id,
            "steps": found.run.steps,
            "warmdown_ratio": found.run.warmdown_ratio,
        }
        for name in names:
            row |= {name: getattr(found, name).value, f"{name}_error": getattr(found, name).error}
        rows.append(row)
    if not rows:
        return None
    columns = {
        "run_id": Column("run"),
        "steps": Column("steps", ",.0f"),
        "warmdown_ratio": Column("ratio", ".2f"),
    }
    for name, heading in names.items():
        columns[name] = Column(f"{heading} [BPB]", "+.5f")
        columns[f"{name}_error"] = Column("± SE", ".5f")
    title = "What test-time training gains on float weights and mends of int6 (negative is better)"
    return ReportTable("repair", title, pd.DataFrame(rows), columns)


def averages(study: Study) -> ReportTable | None:
    """Warmdowns, averages and merges at equal steps, against the raw weights of a run without a warmdown."""
    rows = [
        {
            "steps": arrival.run.steps,
            "seed": arrival.run.seed,
            "way": arrival.way,
            "bpb": arrival.bpb,
            "gain": arrival.gain.value if arrival.kind != "constant" else None,
            "gain_error": arrival.gain.error if arrival.kind != "constant" else None,
            "run_id": arrival.run.run_id,
        }
        for arrival in study.stages.arrivals
    ]
    if not rows:
        return None
    columns = {
        "steps": Column("steps", ",.0f"),
        "seed": Column("seed", ".0f"),
        "way": Column("way"),
        "bpb": Column("val BPB", ".4f"),
        "gain": Column("change [BPB]", "+.4f"),
        "gain_error": Column("± SE", ".4f"),
        "run_id": Column("run"),
    }
    title = "Warmdown, averages and merges at equal steps (change against no warmdown, negative is better)"
    return ReportTable("averages", title, pd.DataFrame(rows), columns)


def lengths(study: Study) -> ReportTable | None:
    """Final drop = a + b ln(warmdown steps), per schedule and group."""
    rows = [
        {
            "schedule": law.schedule,
            "group": ", ".join(f"{name}={value}" for name, value in law.group),
            "lengths": len(law.drop),
            **_spread("a", law.a),
            **_spread("b", law.b),
            "a_text": law.a.text(".4f"),
            "b_text": law.b.text(".4f"),
        }
        for law in study.warmdown.lengths
    ]
    if not rows:
        return None
    columns = {
        "schedule": Column("schedule"),
        "group": Column("group"),
        "lengths": Column("lengths", ".0f"),
        "a_text": Column(f"a [{unit(study.metric)}]"),
        "b_text": Column(f"b [{unit(study.metric)} per e-fold]"),
    }
    return ReportTable("length", "Final drop = a + b ln(warmdown steps)", pd.DataFrame(rows), columns)


def best_ratios(study: Study) -> ReportTable | None:
    """Best warmdown ratio and predicted result, per number of steps."""
    if study.forecast is None or not study.forecast.knows_ratios:
        return None
    known = [r for r in study.forecast.ensemble.measured.runs if not r.is_constant]
    rows = [
        {
            "steps": best.steps,
            "reach": best.prediction.extrapolation["factor"],
            "ratio": best.ratio,
            "ratio_low": best.low,
            "ratio_high": best.high,
            "ratio_is": _where_run(best.ratio, best.steps, known),
            "at_edge": _beyond(best.ratio, study.forecast.tried) if best.at_edge else "",
            "value": best.prediction.value,
            "low": best.prediction.low,
            "high": best.prediction.high,
            "how_far": best.prediction.extrapolation["label"],
        }
        for best in study.forecast.best
    ]
    u = unit(study.final_metric)
    columns = {
        "steps": Column("steps", ",.0f"),
        "reach": Column("times the longest run", ".2f"),
        "ratio": Column("best ratio", ".2f"),
        "ratio_low": Column("as good from", ".2f"),
        "ratio_high": Column("to", ".2f"),
        "ratio_is": Column("that ratio was run"),
        "at_edge": Column("optimum"),
        "value": Column(f"predicted [{u}]", ".4f"),
        "low": Column("low", ".4f"),
        "high": Column("high", ".4f"),
    }
    title = f"Best warmdown ratio for a number of steps, by {axis(study.final_metric)}"
    return ReportTable("advice", title, pd.DataFrame(rows), columns)


def _beyond(ratio: float, tried: Floats) -> str:
    """On which side of the ratios that were run the optimum may lie."""
    return f"may lie {'above' if ratio == tried[-1] else 'below'}"


def _where_run(ratio: float, steps: int, runs: Sequence[Run]) -> str:
    lengths = {run.steps for run in runs if abs(ratio - run.warmdown_ratio) < 0.005}
    return "at this length" if steps in lengths else "at other lengths" if lengths else "no"


def laws(study: Study) -> ReportTable | None:
    """The laws that were fitted: weight, error in backtests, parameters."""
    if study.forecast is None:
        return None
    ensemble = study.forecast.ensemble
    one = len(known_lengths(ensemble.table, ensemble.metric)) < 2
    errors = EXPERIENCE.law_error_one if one else EXPERIENCE.law_error
    rows = []
    for name, fitted in ensemble.fits.items():
        fit = fitted.base if isinstance(fitted, StageGap) else fitted
        parameters = [f"{name} = {value:.4g}" for name, value in law_parameters(fitted).items()]
        rows.append(
            {
                "law": name,
                "weight": ensemble.weights[name],
                "backtest_error": ensemble.scores[name],
                "studies_error": errors.get(law_of(name)),
                "formula": fit.law.formula,
                "parameters": ", ".join(parameters),
                "warnings": "; ".join(fitted.warnings),
                "source": fit.law.source,
            }
        )
    columns = {
        "law": Column("law"),
        "weight": Column("weight", ".3f"),
        "backtest_error": Column("error here", ".5f"),
        "studies_error": Column("error in studies", ".5f"),
        "formula": Column("form"),
        "parameters": Column("parameters"),
        "warnings": Column("warnings"),
        "source": Column("source"),
    }
    if not any(row["warnings"] for row in rows):
        del columns["warnings"]
    frame = pd.DataFrame(rows).sort_values("weight", ascending=False, kind="stable")
    title = (
        "Laws. Each weighs by its relative errors (RMS) on runs held out, here and in public studies; where "
        "a law could not be tried it counts as the middle of the others"
    )
    return ReportTable("laws", title, frame, columns)


def law_parameters(fitted: Fit | StageGap) -> dict[str, float]:
    """Exponents, then linear coefficients, then what a stage's gap adds."""
    fit = fitted.base if isinstance(fitted, StageGap) else fitted
    found = {p.name: value for p, value in zip(fit.law.parameters, fit.theta.tolist(), strict=True)}
    found |= dict(zip(fit.law.linear, fit.coefficients.tolist(), strict=True))
    if isinstance(fitted, StageGap):
        for name, (intercept, slope) in fitted.gap.lines.items():
            found |= {f"gap in {name}": intercept, f"gap per {name}": slope}
    return found


def backtest_table(result: Mapping[str, Any]) -> ReportTable:
    """`backtest` for reading: one row a test run."""
    digits = {
        "mae": ".5f",
        "rmse": ".5f",
        "r2": ".5f",
        "pred_e": ".5f",
        "worst_e": ".5f",
        "final_error": "+.5f",
    }
    columns = {"run_id": Column("run")} | {name: Column(name, form) for name, form in digits.items()}
    columns |= {"low": Column("low", ".4f"), "high": Column("high", ".4f"), "covered": Column("covered")}
    frame = pd.DataFrame([{"run_id": run_id, **scores} for run_id, scores in result["runs"].items()])
    title = f"{result['metric']}: fitted on {result['split']} = train, scored on test"
    return ReportTable("backtest", title, frame, columns)


TABLES: tuple[Callable[[Study], ReportTable | None], ...] = (
    runs,
    best_ratios,
    warmdowns,
    lengths,
    stages,
    repair,
    averages,
    laws,
)


def all_tables(study: Study) -> list[ReportTable]:
    """The tables that have rows."""
    return [table for make in TABLES if (table := make(study)) is not None]
