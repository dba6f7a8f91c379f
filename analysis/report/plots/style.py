"""One look for all figures: colour-blind safe, legible in print, the same bytes for the same numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Any, TypeVar

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

# Okabe & Ito 2008, "Color Universal Design", ordered for contrast on white; yellow left out.
Colour = tuple[float, float, float, float]
Look = TypeVar("Look")

CATEGORIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#6b6b6b"
LIGHT = "#c9c9c9"

WIDTH, HEIGHT = 6.4, 3.9  # inches: a text column's full width
NARROW = 3.4  # of a phone's screen, where 8 points are then 12 pixels
TIP = "tip:"

_RC: Any = {
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 5,
    "figure.constrained_layout.use": True,
    "figure.dpi": 110,
    "savefig.dpi": 200,
    "svg.hashsalt": "gepa-sweeps",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
}


@contextmanager
def style(narrow: bool = False) -> Iterator[None]:
    """The figures' settings, for paper or for a phone; nothing leaks out."""
    with plt.rc_context(_RC | {"figure.figsize": (NARROW, HEIGHT) if narrow else (WIDTH, HEIGHT)}):
        yield


def is_narrow() -> bool:
    """Whether a figure for a phone is being drawn."""
    return bool(plt.rcParams["figure.figsize"][0] < WIDTH)


def tip(artist: Artist, run_id: object, *facts: str) -> None:
    """Marks what was drawn of one run: hovered, it says which run it is."""
    artist.set_gid(TIP + ", ".join([str(run_id), *facts]))


def canvas(
    columns: int = 1, *, height: float = HEIGHT, width: float = WIDTH, rows: int = 1, **axes: object
) -> tuple[Figure, list[Axes]]:
    """A figure of panels side by side (one above the other on a phone), and its axes, row by row.

    Not registered with pyplot.
    """
    if is_narrow():
        rows, columns, width = rows * columns, 1, NARROW
        height = (2.9 if rows == 1 else 2.3 * rows) + 0.7
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, **axes)  # type: ignore[call-overload]
    return figure, list(grid.ravel())


def told_apart(names: Iterable[str], looks: Sequence[Look]) -> dict[str, Look]:
    """A look for each distinct name, in order of appearance; with more names than looks these repeat."""
    return dict(zip(dict.fromkeys(names), cycle(looks), strict=False))


def two_digits(values: pd.Series) -> pd.Series:
    """Ratios as legends tell them apart: to two decimals, 0.25 and not 0.2."""
    return values.astype(float).round(2)


def sequential() -> Colormap:
    """Viridis without its palest part, which does not show on white."""
    return ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0.0, 0.8, 256)))


def shades(values: Iterable[float]) -> dict[float, Colour]:
    """A colour for each distinct value, dark to light in ascending order."""
    ordered = sorted(set(values))
    at = np.linspace(0.0, 1.0, max(len(ordered), 2))
    return {value: tuple(sequential()(position)) for value, position in zip(ordered, at, strict=False)}


def steps_axis(axes: Axes, *, log_ticks: Iterable[float] | None = None) -> None:
    """Training steps on x, ticks as 500, 2k, 12.5k; logarithmic where the values to tick are given."""
    axes.set_xlabel("training steps")
    if log_ticks is None:
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    else:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(_apart(sorted(set(log_ticks)))))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: thousands(x)))


def _apart(values: list[float], least: float = 1.15) -> list[float]:
    """Values at least a factor apart, so that labels do not touch."""
    kept: list[float] = []
    for value in values:
        if not kept or value >= least * kept[-1]:
            kept.append(value)
    return kept


def shade_legend(
    figure: Figure,
    title: str,
    colours: dict[float, Colour],
    others: dict[str, dict[str, object]] | None = None,
) -> None:
    """A legend beside the panels: the shades, thinned to 8, and `others` (label -> line properties)."""
    values = list(colours)
    if len(values) > 8:
        values = [values[round(i)] for i in np.linspace(0, len(values) - 1, 7)]
    handles = [
        Line2D([], [], color=colours[value], marker="o", ms=4, label=thousands(value)) for value in values
    ]
    handles += [Line2D([], [], label=label, **look) for label, look in (others or {}).items()]  # type: ignore[arg-type]
    legend(figure, handles, title)


def legend(figure: Figure, handles: list[Line2D], title: str | None = None) -> None:
    """A legend outside the panels: on their right, below them on a phone."""
    if is_narrow():
        words = title.replace("\n", " ") if title else None
        look: dict[str, Any] = {"loc": "outside lower left", "ncols": 3 if len(handles) > 2 else len(handles)}
    else:
        words, look = title, {"loc": "outside right upper"}
    made = figure.legend(handles=handles, title=words, alignment="left", **look)
    for text in made.get_texts():
        text.set_parse_math(False)  # settings are named by whoever made the runs


def thousands(value: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}"


def marker_lines(markers: dict[str, str]) -> dict[str, dict[str, object]]:
    """Legend entries of settings; none where there is one only."""
    if len(markers) < 2:
        return {}
    return {name.replace(", ", "\n"): {"ls": "", "marker": m, "color": GREY} for name, m in markers.items()}


def main_schedules(schedules: Iterable[str], most: int = 3) -> list[str]:
    """The commonest schedules that have a warmdown, in order of appearance."""
    counts = Counter(schedules)
    varied = [name for name in counts if name != "constant"] or list(counts)
    kept = sorted(varied, key=lambda name: -counts[name])[:most]
    return [name for name in counts if name in kept]
