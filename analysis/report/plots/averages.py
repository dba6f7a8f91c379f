"""Warmdowns, averages of the weights and merges at equal steps, against no warmdown."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.report.plots.errors import UnavailableError
from analysis.report.plots.style import CATEGORIES, GREY, MARKERS, canvas, legend, sequential, steps_axis, tip
from analysis.report.study import Study

NAME, TITLE, ORDER, SECTION = "averages", "What stands in for a warmdown", 58, "stages"

_DASHES = {"warmdown": "-", "EMA": (0, (4, 1.5)), "merged": ":"}


def data(study: Study) -> pd.DataFrame:
    rows = [
        {
            "run_id": arrival.run.run_id,
            "steps": arrival.run.steps,
            "seed": arrival.run.seed,
            "kind": arrival.kind,
            "way": arrival.way,
            "bpb": arrival.bpb,
            "gain_bpb": arrival.gain.value,
            "gain_error": arrival.gain.error,
        }
        for arrival in study.stages.arrivals
        if arrival.kind != "constant"
    ]
    if not rows:
        raise UnavailableError("no run without a warmdown stands beside one of equal steps")
    return pd.DataFrame(rows).sort_values(["kind", "way", "steps"], kind="stable")


def draw(frame: pd.DataFrame, study: Study) -> Figure:
    figure, (panel,) = canvas()
    looks = _looks(frame)
    for way, rows in frame.groupby("way", sort=False):
        look = looks[str(way)]
        means = rows.groupby("steps")["gain_bpb"].mean()
        panel.plot(means.index, means, lw=1.0, **look)
        for row in rows.to_dict("records"):
            error = None if pd.isna(row["gain_error"]) else float(row["gain_error"])
            drawn = panel.errorbar(
                row["steps"], row["gain_bpb"], error, fmt="", ls="", lw=0.8, color=look["color"]
            )
            tip(drawn[0], row["run_id"], f"{way}: {row['gain_bpb']:+.4f}")
    panel.axhline(0, color=GREY, lw=0.8)
    panel.set_ylabel("change of val BPB against no warmdown")
    steps_axis(panel, log_ticks=frame["steps"])
    legend(figure, [Line2D([], [], label=way, **look) for way, look in looks.items()])
    return figure


def _looks(frame: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Warmdowns in shades by ratio; averages and merges in colours of their own, dashed."""
    ways = frame.drop_duplicates("way")[["way", "kind"]].to_dict("records")
    warmdowns = [row["way"] for row in ways if row["kind"] == "warmdown"]
    looks: dict[str, dict[str, Any]] = {}
    colours, markers = cycle(CATEGORIES[1:]), cycle(MARKERS[1:])
    for row in ways:
        way, kind = str(row["way"]), str(row["kind"])
        if kind == "warmdown":
            colour: Any = sequential()(warmdowns.index(way) / max(len(warmdowns) - 1, 1))
            marker = MARKERS[0]
        else:
            colour, marker = next(colours), next(markers)
        looks[way] = {"color": colour, "marker": marker, "ms": 4, "ls": _DASHES[kind]}
    return looks


def caption(frame: pd.DataFrame, study: Study) -> str:
    errors = " Bars: ± 1 standard error, paired over validation blocks." if _has_errors(frame) else ""
    return (
        "BPB of each way less that of the raw weights of a run of as many steps at a constant rate; below "
        f"0 is better. EMA and merged weights are of that same run, at no further step.{errors}"
    )


def _has_errors(frame: pd.DataFrame) -> bool:
    return bool(frame["gain_error"].notna().any())
