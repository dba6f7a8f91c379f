"""A table for reading: Markdown, CSV and LaTeX from one frame; the report's page shows it too.

Raw values in the CSV, rounded ones elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pandas as pd


def csv_text(frame: pd.DataFrame) -> str:
    """The frame as CSV that a spreadsheet takes for text where it is text: a cell or heading that would be a
    formula there (it begins with =, +, - or @) gets an apostrophe in front.
    """
    text = frame.select_dtypes(exclude="number").columns
    plain = frame.assign(**{name: frame[name].map(_no_formula) for name in text})
    return plain.rename(columns=_no_formula).to_csv(index=False, lineterminator="\n")


def _no_formula(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value[:1] in _FORMULA and value else value


_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Column:
    """A column's heading with its unit, and the format of its numbers ('' = as text)."""

    heading: str
    digits: str = ""


@dataclass(frozen=True)
class ReportTable:
    """A named frame and how to show it; columns of the frame that are not listed are in the CSV only."""

    name: str
    title: str
    frame: pd.DataFrame
    columns: dict[str, Column]

    def shown(self) -> dict[str, Column]:
        """Listed columns that the frame has with at least one known value."""
        return {
            name: column
            for name, column in self.columns.items()
            if name in self.frame and self.frame[name].notna().any()
        }

    def cells(self) -> list[list[str]]:
        """Rows of formatted text; unknown values are empty."""
        shown = self.shown()
        records = self.frame[list(shown)].to_dict("records")
        return [[_cell(row[name], column.digits) for name, column in shown.items()] for row in records]

    def markdown(self) -> str:
        headings = [column.heading.replace("|", "\\|") for column in self.shown().values()]
        ruler = ["---:" if column.digits else "---" for column in self.shown().values()]
        rows = [headings, ruler, *([cell.replace("|", "\\|") for cell in row] for row in self.cells())]
        return f"**{self.title}**\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"

    def latex(self) -> str:
        """A booktabs tabular."""
        shown = list(self.shown().values())
        align = "".join("r" if column.digits else "l" for column in shown)
        head = " & ".join(_tex(column.heading) for column in shown)
        body = "\n".join("  " + " & ".join(_tex(cell) for cell in row) + r" \\" for row in self.cells())
        return (
            f"% {self.title}\n\\begin{{tabular}}{{{align}}}\n  \\toprule\n  {head} \\\\\n  \\midrule\n"
            f"{body}\n  \\bottomrule\n\\end{{tabular}}\n"
        )

    def write(self, folder: Path) -> list[Path]:
        """NAME.md, NAME.csv and NAME.tex in the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{self.name}.{suffix}" for suffix in ("md", "csv", "tex")]
        texts = (self.markdown(), csv_text(self.frame), self.latex())
        for path, text in zip(paths, texts, strict=True):
            path.write_text(text, encoding="utf-8")
        return paths


def _unknown(value: object) -> bool:
    return value is None or value is pd.NaT or (isinstance(value, float) and math.isnan(value))


def _cell(value: object, digits: str) -> str:
    if _unknown(value):
        return ""
    if digits and isinstance(value, int | float):
        return format(value, digits)
    return str(value)


def raw(value: object) -> str:
    """The unrounded value as text, '' where it is unknown."""
    return "" if _unknown(value) else str(value)


def _tex(text: str) -> str:
    for plain, escaped in (
        ("\\", "\\textbackslash{}"),
        ("&", r"\&"),
        ("%", r"\%"),
        ("_", r"\_"),
        ("#", r"\#"),
    ):
        text = text.replace(plain, escaped)
    return (
        text.replace("Δ", r"$\Delta$")
        .replace("±", r"$\pm$")
        .replace("×", r"$\times$")
        .replace("∞", r"$\infty$")
    )
