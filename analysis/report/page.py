"""The report's page from its templates: one HTML file that needs nothing else, on screen, phone or paper."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from analysis.report.next_steps import Step
from analysis.report.plots import Drawn
from analysis.runs.settings import shortened
from analysis.runs.tabular import ReportTable, raw

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Link:
    """A file beside the page."""

    text: str
    href: str


@dataclass(frozen=True)
class Section:
    """A question, what answers it in words, and the figures and tables that show it."""

    name: str  # its anchor
    title: str
    sentences: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    figures: tuple[Drawn, ...] = ()
    tables: tuple[TableView, ...] = ()
    details: tuple[str, ...] = ()  # caveats, in small
    links: tuple[Link, ...] = ()
    always: bool = False  # the template fills it in

    def __bool__(self) -> bool:
        parts = (self.sentences, self.steps, self.figures, self.tables, self.details, self.links)
        return self.always or any(parts)


@dataclass(frozen=True)
class Cell:
    """What is shown, the value behind it (for sorting), and where it leads."""

    text: str
    value: str
    is_number: bool = False
    title: str = ""  # the whole text, where `text` is a shortened one
    href: str = ""


@dataclass(frozen=True)
class TableView:
    """A table as the page shows it: `rows` of (is it the best run's, cells)."""

    table: ReportTable
    rows: tuple[tuple[bool, tuple[Cell, ...]], ...]


@dataclass(frozen=True)
class Page:
    """Everything the template fills in."""

    title: str
    facts_of: str  # how many runs, of what, where
    headline: str
    findings: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    lead: Drawn | None  # the figure beside the answer
    sections: tuple[Section, ...]
    made: tuple[tuple[str, str, bool], ...] = ()  # (what, command or version, is it a command)
    words: tuple[tuple[str, str], ...] = ()
    best_link: Link | None = None
    short: Mapping[str, str] = field(default_factory=dict)  # run ids as the page shows them


def render(page: Page) -> str:
    """The whole document."""
    return _environment().get_template("report.html").render(page=page)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["file"] = lambda name: Markup((TEMPLATES / name).read_text(encoding="utf-8"))
    environment.filters["svg"] = inline_svg
    environment.filters["with_ids"] = replace_ids
    return environment


def view(table: ReportTable, best: str, short: Mapping[str, str], links: Mapping[str, str]) -> TableView:
    """A table with its run ids shortened, the best run marked and artifacts linked (`links`: id -> href)."""
    shown = table.shown()
    rows = []
    for record, texts in zip(table.frame.to_dict("records"), table.cells(), strict=True):
        run_id = str(record.get("run_id", ""))
        cells = []
        for (name, column), text in zip(shown.items(), texts, strict=True):
            brief = short.get(text, text) if name == "run_id" else shortened(text)
            href = links.get(run_id, "") if name == "artifact_bytes" and text else ""
            title = text if brief != text else ""
            cells.append(Cell(brief, raw(record[name]), bool(column.digits), title, href))
        rows.append((bool(best) and run_id == best, tuple(cells)))
    return TableView(table, tuple(rows))


def short_ids(run_ids: Iterable[str]) -> dict[str, str]:
    """Run ids without most of their fingerprint: as many digits as tell them apart, 4 at least; long ones
    without their middle.
    """
    ids = list(run_ids)
    for digits in (4, 6, 8):
        brief = {run_id: shortened(run_id, digits).removesuffix("…") for run_id in ids}
        if len(set(brief.values())) == len(set(ids)):
            break
    else:
        brief = {run_id: run_id for run_id in ids}
    cut = {run_id: f"{text[:24]}…{text[-12:]}" if len(text) > 48 else text for run_id, text in brief.items()}
    return cut if len(set(cut.values())) == len(set(ids)) else brief


def replace_ids(text: str, short: Mapping[str, str]) -> str:
    """A sentence with its run ids as the page shows them."""
    for run_id in sorted(short, key=len, reverse=True):
        if short[run_id] != run_id:
            text = text.replace(run_id, short[run_id])
    return text


def inline_svg(svg: str, name: str, kind: str) -> Markup:
    """An SVG as part of the page: ids of its own, no fixed size, and what is hovered told apart.

    `kind` (wide or narrow) is the class by which the style sheet shows one of the two.
    """
    svg = re.sub(
        r'<g class="run"><title>([^<]*)</title>', r'<g class="run" data-tip="\1">', svg[svg.index("<svg") :]
    )
    prefix = f"{name}-{kind}-"
    svg = re.sub(r'\bid="([^"]*)"', lambda m: f'id="{prefix}{m[1]}"', svg)
    svg = re.sub(r'(xlink:href|href)="#', rf'\1="#{prefix}', svg)
    svg = svg.replace("url(#", f"url(#{prefix}")
    opening = svg[: svg.index(">") + 1]
    box = re.search(r'viewBox="[^"]*"', opening)
    head = (
        f'<svg class="{kind}" {box[0] if box else ""} role="img" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return Markup(head + svg[len(opening) :])


def sections_of(sections: Sequence[Section]) -> tuple[Section, ...]:
    """Those that have something to show."""
    return tuple(section for section in sections if section)
