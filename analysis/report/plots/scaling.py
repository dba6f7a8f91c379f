"""Final value against steps, a line a warmdown ratio: measured, predicted with its band, and trials."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.forecast.surface import FARTHEST
from analysis.report.plots.errors import UnavailableError
from analysis.report.plots.style import CATEGORIES, GREY, MARKERS, canvas, shade_legend, shades, steps_axis
from analysis.report.study import Study
from analysis.runs.settings import setting, varying_axes
from analysis.runs.units import axis

NAME, TITLE, ORDER = "scaling", "Result against training steps", 10

_LENGTHS = 9
_LINES = 5


def data(study: Study) -> pd.DataFrame:
    metric = study.final_metric
    rows = [
        {
            "kind": "measured",
            "run_id": run.run_id,
            "steps": run.steps,
            "warmdown_ratio": run.warmdown_ratio,
            "schedule": run.schedule,
            "seed": run.seed,
            "in_forecast": study.forecast is None or run.run_id not in study.forecast.left_out,
            "value": value,
        }
        for run in study.table.runs
        if (value := run.final(metric)) is not None and not run.is_constant
    ]
    if len(rows) < 2:
        raise UnavailableError(f"fewer than two annealed runs have a final {metric}")
    if study.forecast is not None:
        rows += _predicted(study) + _trials(study)
    return pd.DataFrame(rows)


def _predicted(study: Study) -> list[dict[str, object]]:
    """Lines at up to five of the ratios that were run, from the shortest run to twice the longest."""
    assert study.forecast is not None
    runs = [run for run in study.forecast.ensemble.measured.runs if not run.is_constant]
    ratios = sorted({round(run.warmdown_ratio, 1) for run in runs})
    if len(ratios) > _LINES:
        ratios = [ratios[round(i)] for i in np.linspace(0, len(ratios) - 1, _LINES)]
    lengths = np.geomspace(min(r.steps for r in runs), FARTHEST * max(r.steps for r in runs), _LENGTHS)
    rows: list[dict[str, object]] = []
    for ratio in ratios:
        for steps in lengths.round().astype(int).tolist():
            p = study.forecast.at(steps, round(ratio * steps))
            rows.append(
                {
                    "kind": "predicted",
                    "steps": steps,
                    "warmdown_ratio": ratio,
                    "schedule": p.schedule,
                    "value": p.value,
                    "low": p.low,
                    "high": p.high,
                }
            )
    return rows


def _trials(study: Study) -> list[dict[str, object]]:
    """What longer runs were predicted at from shorter ones alone."""
    assert study.forecast is not None
    ensemble = study.forecast.ensemble
    rows: list[dict[str, object]] = []
    for kind, run_id, error in ensemble.held_out:
        run = ensemble.table.run(run_id)
        measured = run.final(study.final_metric)
        if kind == "length" and measured is not None:
            rows.append(
                {
                    "kind": "backtest",
                    "run_id": run_id,
                    "steps": run.steps,
                    "warmdown_ratio": run.warmdown_ratio,
                    "schedule": run.schedule,
                    "seed": run.seed,
                    "value": measured * (1 + error),
                }
            )
    return rows


def draw(frame: pd.DataFrame, study: Study) -> Figure:
    figure, (panel,) = canvas()
    frame = frame.assign(line=frame["warmdown_ratio"].round(1))
    lines = frame[frame["kind"] == "predicted"]
    measured = frame[frame["kind"] == "measured"]
    colours = shades(frame["line"])
    nearest = sorted(set(lines["line"])) or sorted(set(measured["line"]))
    for ratio in nearest:
        rows = lines[lines["line"] == ratio]
        panel.plot(rows["steps"], rows["value"], color=colours[ratio], lw=1.2)
        # Bands of close ratios lie on one another: the outer two lines carry one.
        if len(rows) and rows["low"].notna().any() and ratio in (nearest[0], nearest[-1]):
            low, high = rows["low"].astype(float), rows["high"].astype(float)
            panel.fill_between(rows["steps"], low, high, color=colours[ratio], alpha=0.13, lw=0)
    markers = dict(zip(dict.fromkeys(measured["schedule"]), MARKERS * 3, strict=False))
    for (ratio, schedule, inside), rows in measured.groupby(["line", "schedule", "in_forecast"]):
        seeds, colour = rows.groupby("steps")["value"], colours[float(str(ratio))]
        panel.errorbar(
            seeds.mean().index, seeds.mean(), seeds.std().fillna(0.0), fmt=markers[schedule], ms=4.5, lw=1,
            color=colour, mfc=colour if inside else "white",
        )  # fmt: skip
    trials = frame[frame["kind"] == "backtest"]
    panel.plot(trials["steps"], trials["value"], "x", ms=5.5, mew=1.2, color=CATEGORIES[1])
    longest = measured["steps"].max()
    if len(lines):
        panel.axvline(longest, color=GREY, lw=0.8, ls=(0, (2, 2)))
        panel.annotate(
            "extrapolated →", (longest, 0.99), (4, 0), xycoords=("data", "axes fraction"),
            textcoords="offset points", va="top", fontsize=8, color=GREY,
        )  # fmt: skip
    steps_axis(panel, log_ticks=[*measured["steps"], *(lines["steps"].iloc[-1:])])
    panel.set_ylabel(axis(study.final_metric))
    others: dict[str, dict[str, object]] = {}
    if len(trials):
        others["predicted from\nshorter runs"] = {"ls": "", "marker": "x", "mew": 1.2, "color": CATEGORIES[1]}
    plain: dict[str, object] = {"ls": "", "color": GREY}
    if len(markers) > 1:
        others |= {name: plain | {"marker": marker} for name, marker in markers.items()}
    if not measured["in_forecast"].all():
        others["other settings"] = plain | {"marker": "o", "mfc": "white"}
    shade_legend(figure, "warmdown ratio", colours, others)
    return figure


def caption(frame: pd.DataFrame, study: Study) -> str:
    text = "Discs: measured, mean over seeds with their SD."
    if study.forecast is None:
        return f"{text} No predictions: {study.no_forecast}."
    if study.forecast.left_out:
        of = setting(study.forecast.ensemble.table.runs[0], varying_axes(study.table))
        text += f" Full discs and lines: {of}."
    if frame.get("low") is None or frame["low"].isna().all():
        return f"{text} Lines: predicted; too few run lengths for an honest interval."
    return (
        f"{text} Lines: predicted, ratios rounded to .1; bands: 90 % intervals of the outer two. Crosses: "
        "what these laws said of a run when only shorter ones were known."
    )
