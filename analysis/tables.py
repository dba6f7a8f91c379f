"""The report's tables, from a study. To add one, add a function to TABLES; None where it has no rows."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from analysis.slopes import Estimate
from analysis.study import Study
from analysis.tabular import Column, ReportTable
from analysis.units import LABELS, STAGES, unit


def runs(study: Study) -> ReportTable:
    """Every finished run: plan, measured stages, size, cost."""
    rows = []
    for run in study.table.runs:
        hours = gpu_hours(run.metrics)
        rows.append(
            {
                "run_id": run.run_id,
                "steps": run.steps,
                "warmdown_steps": run.warmdown_steps,
                "warmdown_ratio": run.warmdown_ratio,
                "schedule": run.schedule,
                "seed": run.seed,
                study.metric: run.final(study.metric),
                **{stage: run.metrics.get(stage) for stage in STAGES},
                "artifact_bytes": run.metrics.get("artifact_bytes"),
                "quant_rows_at_floor": run.metrics.get("quant_rows_at_floor"),
                "gpu_hours": hours,
            }
        )
    columns = {
        "run_id": Column("run"),
        "steps": Column("steps", ",.0f"),
        "warmdown_steps": Column("warmdown steps", ",.0f"),
        "warmdown_ratio": Column("ratio", ".2f"),
        "schedule": Column("schedule"),
        "seed": Column("seed", ".0f"),
    }
    stages = [stage for stage in STAGES if any(stage in run.metrics for run in study.table.runs)]
    shown = stages or [study.metric]
    columns |= {stage: Column(f"{LABELS[stage]} [{unit(stage)}]", ".4f") for stage in shown}
    columns |= {
        "artifact_bytes": Column("artifact [bytes]", ",.0f"),
        "quant_rows_at_floor": Column("rows at floor", ",.0f"),
        "gpu_hours": Column("device hours", ".3g"),
    }
    return ReportTable("runs", "Runs", pd.DataFrame(rows), columns)


def gpu_hours(metrics: dict[str, float]) -> float | None:
    """Device hours of a run trained alone: own and shared work, else training and evaluation wall time."""
    for parts in (
        ("gpu_seconds_own", "gpu_seconds_shared"),
        ("train_seconds", "eval_seconds"),
        ("train_seconds",),
    ):
        if all(part in metrics for part in parts):
            return sum(metrics[part] for part in parts) / 3600
    return None


def _spread(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    if estimate is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _text(estimate: Estimate | None, digits: str) -> str | None:
    return None if estimate is None else estimate.text(digits)


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
        "steps_gain": Column(f"of it by steps alone [{u}]", ".4f"),
        "continuation": Column("constant rate"),
        "tail_slope": Column(f"tail slope [{u} / 1k steps]", ".5f"),
        "fifth_1_slope": Column("first fifth", ".5f"),
        "fifth_5_slope": Column("last fifth", ".5f"),
        "first_over_tail_text": Column("first / tail"),
        "last_over_first_text": Column("last / first"),
        "share_at_25": Column("gain at 25 %", ".2f"),
        "share_at_50": Column("50 %", ".2f"),
        "share_at_75": Column("75 %", ".2f"),
        "share_at_90": Column("90 %", ".2f"),
        "q_text": Column("q"),
    }
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


TABLES: tuple[Callable[[Study], ReportTable | None], ...] = (runs, warmdowns, lengths, stages)


def all_tables(study: Study) -> list[ReportTable]:
    """The tables that have rows."""
    return [table for make in TABLES if (table := make(study)) is not None]
