"""Figures. Every module of this package with a NAME is one; adding a figure is adding a file.

A figure module has
    NAME: str                                   file name
    TITLE: str
    ORDER: int                                  place in the report
    SECTION: str                                the question it answers (report.py); further figures without
    def data(study) -> DataFrame                the numbers it shows; raises UnavailableError with the reason
    def draw(frame, study) -> Figure            from those numbers alone, with labels taken from the study
    def caption(frame, study) -> str

Every figure is drawn twice: for paper and a wide screen, and narrow for a phone (style.canvas stacks panels).
"""

from __future__ import annotations

import importlib
import io
import pkgutil
import re
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pandas as pd
from matplotlib.figure import Figure

from analysis.report.plots.errors import UnavailableError
from analysis.report.plots.style import TIP, style
from analysis.report.study import Study
from analysis.runs.tabular import csv_text

__all__ = ["FORMATS", "Drawn", "UnavailableError", "draw_all", "figure_modules"]

FORMATS = ("svg", "pdf", "png")


@dataclass(frozen=True)
class Drawn:
    """A figure on disk: `files` by suffix (csv, svg, pdf, png); `pictures` are the SVGs
    of the page (wide, narrow)."""

    name: str
    title: str
    caption: str
    section: str
    files: dict[str, Path]
    pictures: dict[str, str]


def figure_modules() -> list[ModuleType]:
    """All figure modules, in the report's order."""
    found = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    return sorted((m for m in found if hasattr(m, "NAME")), key=lambda m: (m.ORDER, m.NAME))


def draw_all(
    study: Study, folder: Path, only: Collection[str] | None = None
) -> tuple[list[Drawn], list[tuple[str, str]]]:
    """Draw what the study has numbers for; returns (figures, [(title, why it is missing)])."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn, missing = [], []
    for module in figure_modules():
        if only is not None and module.NAME not in only:
            continue
        try:
            frame = module.data(study)
        except UnavailableError as reason:
            missing.append((module.TITLE, str(reason)))
            for suffix in ("csv", *FORMATS):  # of an earlier report, no longer true
                (folder / f"{module.NAME}.{suffix}").unlink(missing_ok=True)
            continue
        files, pictures = _save(module, frame, study, folder)
        section = getattr(module, "SECTION", "")
        caption = module.caption(frame, study)
        drawn.append(Drawn(module.NAME, module.TITLE, caption, section, files, pictures))
    return drawn, missing


def _save(
    module: ModuleType, frame: pd.DataFrame, study: Study, folder: Path
) -> tuple[dict[str, Path], dict[str, str]]:
    files = {suffix: folder / f"{module.NAME}.{suffix}" for suffix in ("csv", *FORMATS)}
    files["csv"].write_text(csv_text(frame), encoding="utf-8")
    # Without these matplotlib writes the time of drawing, and equal numbers give unequal files.
    undated = {"pdf": {"CreationDate": None}, "png": {"Software": None}}
    pictures = {}
    with warnings.catch_warnings(), style():
        # Names in scripts that the font lacks are drawn as boxes: no reason to alarm anyone.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = module.draw(frame, study)
        _lay_out(figure)
        for suffix, metadata in undated.items():
            figure.savefig(files[suffix], metadata=metadata)
        pictures["wide"] = _svg(figure)
        files["svg"].write_text(pictures["wide"], encoding="utf-8")
        with style(narrow=True):
            figure = module.draw(frame, study)
            _lay_out(figure)
            pictures["narrow"] = _svg(figure)
    return files, pictures


def _lay_out(figure: Figure) -> None:
    """Once, not once a format."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def _svg(figure: Figure) -> str:
    """The SVG, with what style.tip() marked as elements that tell what they are."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return re.sub(rf'<g id="{TIP}([^"]*)">', r'<g class="run"><title>\1</title>', text.getvalue())
