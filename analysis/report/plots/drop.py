"""The drop below the constant rate: lined up by remaining learning rate, and by steps since the peak."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.report.plots.errors import UnavailableError
from analysis.report.plots.style import CATEGORIES, GREY, canvas, shade_legend, shades, thousands, tip
from analysis.report.study import Study

NAME, TITLE, ORDER = "drop", "What the drop follows: the rate left, or the steps taken", 40
SECTION = "warmdown"

_LEAST, _MOST = -60.0, 160.0
"""Percent of the final drop that are drawn: where that is near 0, its parts are many times it."""
_DASHES = ("-", "--", ":")


def data(study: Study) -> pd.DataFrame:
    rows = []
    for result in study.warmdown.runs:
        drop, share = result.drop, result.share_of_drop
        if drop is None or share is None:
            continue
        for step, remaining, value, part in zip(result.step, result.remaining, drop, share, strict=True):
            rows.append(
                {
                    "run_id": result.run.run_id,
                    "schedule": result.run.schedule,
                    "warmdown_steps": result.run.warmdown_steps,
                    "steps_since_peak": int(step) - result.run.peak_steps,
                    "remaining_lr": float(remaining),
                    "drop": float(value),
                    "share_of_drop": float(part),
                    "q": None if result.q is None else result.q.value,
                }
            )
    if not rows:
        raise UnavailableError("no warmdown whose constant-rate continuation is known")
    return pd.DataFrame(rows)


def draw(frame: pd.DataFrame, study: Study) -> Figure:
    figure, (left, right) = canvas(2, sharey=True)
    colours = shades(frame["warmdown_steps"])
    dashes = dict(zip(dict.fromkeys(frame["schedule"]), _DASHES * 3, strict=False))
    for run_id, run in frame.groupby("run_id", sort=False):
        look: dict[str, Any] = {
            "color": colours[run["warmdown_steps"].iloc[0]],
            "ls": dashes[run["schedule"].iloc[0]],
            "lw": 1.0,
        }
        for panel, x in ((left, 1 - run["remaining_lr"]), (right, run["steps_since_peak"])):
            (line,) = panel.plot(x, 100 * run["share_of_drop"], alpha=0.85, **look)
            tip(line, run_id)
    removed = np.linspace(0, 1, 200)
    left.plot(removed, 100 * removed, color=GREY, lw=0.8, ls=(0, (1, 1.5)), label="proportional, q = 1")
    if label := _exponent(study):
        q = float(frame.groupby("run_id")["q"].first().dropna().median())
        left.plot(removed, 100 * (1 - (1 - removed) ** q), color=CATEGORIES[1], lw=1.6, label=label)
    low, high = left.get_ylim()
    left.set_ylim(max(low, _LEAST), min(high, _MOST))
    left.set_xlabel("learning rate removed, 1 − r (of the peak)")
    left.set_ylabel("drop below the\nconstant rate (% of\nthe final one)")
    left.legend(loc="upper left")
    left.set_title("by remaining rate")
    right.set_title("by steps")
    right.set_xlabel("steps since the peak")
    right.xaxis.set_major_formatter(lambda x, _: thousands(x))
    others = {name: {"color": GREY, "ls": dash} for name, dash in dashes.items()} if len(dashes) > 1 else {}
    shade_legend(figure, "warmdown\nsteps", colours, others)
    return figure


def _exponent(study: Study) -> str:
    """The label of the fitted power, with the interval of its one run or the range of several."""
    known = [
        r.q for r in study.warmdown.runs if r.q is not None and r.q.bounded and r.share_of_drop is not None
    ]
    if not known:
        return ""
    if len(known) == 1:
        return f"$1 - r^q$, q = {known[0].text('.2f')}"
    values = [q.value for q in known]
    return f"$1 - r^q$, median of\nq = {min(values):.2f} to {max(values):.2f}"


def caption(frame: pd.DataFrame, study: Study) -> str:
    share = 100 * frame["share_of_drop"]
    cut = " What lies beyond is cut off." if share.min() < _LEAST or share.max() > _MOST else ""
    return (
        "The drop is measured from the constant-rate continuation (the constant phase fitted in step^-1/2). "
        "Curves that lie on one another on the left but not on the right follow the rate left rather than "
        "the steps taken." + cut
    )
