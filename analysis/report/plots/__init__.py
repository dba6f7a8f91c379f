"""Figures. Every module of this package with a NAME is one; adding a figure is adding a file.

A figure module has
    NAME: str                                   file name
    TITLE: str
    ORDER: int                                  place in the report
    def data(study) -> DataFrame                the numbers it shows; raises UnavailableError with the reason
    def draw(frame, study) -> Figure            from those numbers alone, with labels taken from the study
    def caption(frame, study) -> str
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pandas as pd

from analysis.report.plots.errors import UnavailableError
from analysis.report.plots.style import style
from analysis.report.study import Study

__all__ = ["FORMATS", "Drawn", "UnavailableError", "draw_all", "figure_modules"]

FORMATS = ("svg", "pdf", "png")


@dataclass(frozen=True)
class Drawn:
    """A figure on disk: `files` by suffix (svg, pdf, png, csv)."""

    name: str
    title: str
    caption: str
    files: dict[str, Path]


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
        files = _save(module, frame, study, folder)
        drawn.append(Drawn(module.NAME, module.TITLE, module.caption(frame, study), files))
    return drawn, missing


def _save(module: ModuleType, frame: pd.DataFrame, study: Study, folder: Path) -> dict[str, Path]:
    files = {"csv": folder / f"{module.NAME}.csv"}
    frame.to_csv(files["csv"], index=False, lineterminator="\n")
    # Without these matplotlib writes the time of drawing, and equal numbers give unequal files.
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {"Software": None}}
    with style():
        figure = module.draw(frame, study)
        figure.draw_without_rendering()  # lays the figure out once, not once a format
        figure.set_layout_engine("none")
        for suffix in FORMATS:
            files[suffix] = folder / f"{module.NAME}.{suffix}"
            figure.savefig(files[suffix], metadata=undated[suffix])
    return files
