"""Final value against steps, a line a warmdown ratio: measured, predicted with a band, and trials."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter1d

from analysis.forecast.surface import FARTHEST, evaluate
from analysis.report.answer import doubled
from analysis.report.plots.errors import UnavailableError
from analysis.report.plots.style import (
    GREY,
    MARKERS,
    Colour,
    canvas,
    shade_legend,
    shades,
    steps_axis,
    tip,
    told_apart,
    two_digits,
)
from analysis.report.study import Study
from analysis.runs.settings import setting, varying_axes
from analysis.runs.table import Floats
from analysis.runs.units import axis

NAME, TITLE, ORDER, SECTION = "scaling", "Result against training steps", 10, "answer"

_LENGTHS = 25
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
        raise UnavailableError(f"fewer than two runs with a warmdown have a final {metric}")
    if study.forecast is not None:
        rows += _predicted(study) + _trials(study)
    return pd.DataFrame(rows)


def _predicted(study: Study) -> list[dict[str, object]]:
    """Lines at up to five of the ratios that were run, from the shortest run to twice the longest, and one
    with an interval at the ratio that the page predicts twice the longest run at.
    """
    ahead = doubled(study)
    assert study.forecast is not None and ahead is not None
    runs = [run for run in study.forecast.ensemble.measured.runs if not run.is_constant]
    banded = round(ahead.warmdown / ahead.steps, 2)
    ratios = sorted({round(run.warmdown_ratio, 2) for run in runs} | {banded})
    if len(ratios) > _LINES:
        others = [ratio for ratio in ratios if ratio != banded]
        spread = {others[round(i)] for i in np.linspace(0, len(others) - 1, _LINES - 1)}
        ratios = sorted({*spread, banded})
    lengths = np.geomspace(
        min(r.steps for r in runs), FARTHEST * max(r.steps for r in runs), _LENGTHS
    ).round()
    surface = evaluate(study.forecast.ensemble, lengths, np.array(ratios))
    rows: list[dict[str, object]] = []
    for column, ratio in enumerate(ratios):
        for index, steps in enumerate(lengths.astype(int).tolist()):
            row = {
                "kind": "predicted",
                "steps": steps,
                "warmdown_ratio": ratio,
                "schedule": study.forecast.schedule,
                "value": float(surface.value[index, column]),
            }
            if ratio == banded:
                p = study.forecast.at(steps, round(ratio * steps))
                row |= {"low": p.low, "high": p.high}
            rows.append(row)
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
    frame = frame.assign(ratio=two_digits(frame["warmdown_ratio"]))
    lines = frame[frame["kind"] == "predicted"]
    measured = frame[frame["kind"] == "measured"]
    colours = shades(frame["ratio"])
    for ratio, rows in lines.groupby("ratio"):
        colour = colours[float(str(ratio))]
        panel.plot(rows["steps"], rows["value"], color=colour, lw=1.2)
        if rows.get("low") is not None and rows["low"].notna().any():
            half = _smooth((rows["high"] - rows["low"]).to_numpy(float) / 2)
            low, high = rows["value"] - half, rows["value"] + half
            panel.fill_between(rows["steps"], low, high, color=colour, alpha=0.16, lw=0, zorder=0.5)
    markers = told_apart(measured["schedule"], MARKERS)
    for row in measured.to_dict("records"):
        colour = colours[row["ratio"]]
        look: dict[str, Any] = {"color": colour, "mfc": colour if row["in_forecast"] else "white"}
        (disc,) = panel.plot(row["steps"], row["value"], markers[row["schedule"]], ms=4.8, zorder=3, **look)
        tip(disc, row["run_id"], f"{row['value']:.4f}", f"warmdown {row['warmdown_ratio']:.2f}")
    _seeds(panel, measured, colours)
    trials = frame[frame["kind"] == "backtest"]
    for row in trials.to_dict("records"):
        (cross,) = panel.plot(row["steps"], row["value"], "x", ms=5.5, mew=1.3, color=colours[row["ratio"]])
        tip(cross, row["run_id"], f"predicted from shorter runs: {row['value']:.4f}")
    if study.best is not None:
        panel.plot(study.best[0].steps, study.best[1], "o", ms=10, mfc="none", mec="black", mew=0.9)
    longest = measured["steps"].max()
    if len(lines):
        panel.axvline(longest, color=GREY, lw=0.8, ls=(0, (2, 2)))
        panel.annotate(
            "extrapolated →", (longest, 0.99), (4, 0), xycoords=("data", "axes fraction"),
            textcoords="offset points", va="top", fontsize=8, color=GREY,
        )  # fmt: skip
    steps_axis(panel, log_ticks=[*measured["steps"], *(lines["steps"].iloc[-1:])])
    panel.set_ylabel(axis(study.final_metric))
    plain: dict[str, object] = {"ls": "", "color": GREY}
    others: dict[str, dict[str, object]] = {}
    if study.best is not None:
        others["best run"] = plain | {"marker": "o", "mfc": "none", "ms": 8, "color": "black"}
    if len(trials):
        others["predicted from\nshorter runs"] = plain | {"marker": "x", "mew": 1.3}
    if len(markers) > 1:
        others |= {name: plain | {"marker": marker} for name, marker in markers.items()}
    if not measured["in_forecast"].all():
        others["other settings"] = plain | {"marker": "o", "mfc": "white"}
    shade_legend(figure, "warmdown ratio", colours, others)
    return figure


def _smooth(half: Floats) -> Floats:
    """Half-widths [n] without the corner that an interval has where extrapolation sets in."""
    padded = np.pad(np.log(half), 6, mode="reflect", reflect_type="odd")
    return np.asarray(np.exp(gaussian_filter1d(padded, 2.0)[6:-6]))


def _seeds(panel: Axes, measured: pd.DataFrame, colours: dict[float, Colour]) -> None:
    """Mean and SD over seeds of one plan."""
    for (ratio, steps, _), rows in measured.groupby(["ratio", "steps", "schedule"]):
        if rows["seed"].nunique() > 1:
            mean, sd = rows["value"].mean(), rows["value"].std()
            panel.errorbar(float(str(steps)), mean, sd, lw=1.2, capsize=3, color=colours[float(str(ratio))])


def caption(frame: pd.DataFrame, study: Study) -> str:
    measured = frame[frame["kind"] == "measured"]
    seeds = measured["seed"].nunique() > 1
    text = "Discs: measured runs" + (", bars: SD over seeds." if seeds else ".")
    if study.forecast is None:
        return f"{text} No predictions: {study.no_forecast}."
    if study.forecast.left_out:
        of = setting(study.forecast.ensemble.table.runs[0], varying_axes(study.table))
        text += f" Full discs and lines: {of}."
    if frame.get("low") is None or frame["low"].isna().all():
        return f"{text} Lines: predicted; too few run lengths for an honest interval."
    banded = frame.loc[frame["low"].notna(), "warmdown_ratio"].iloc[0]
    return (
        f"{text} Lines: predicted; band: 90 % interval at ratio {banded:.2f}. Crosses: what these laws said "
        "of a run when only shorter ones were known, in the colour of its ratio."
    )
