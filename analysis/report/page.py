"""The report's page: one HTML file that needs nothing else, on a screen, a phone or paper."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path

CSS = """
:root { --ink: #1b1b1b; --soft: #5c5c5c; --line: #d9d9d9; --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 62rem; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
p, ul { margin: .5rem 0; max-width: 46rem; } li { margin: .25rem 0; } ul { padding-left: 1.2rem; }
.soft { color: var(--soft); font-size: .9rem; }
.verdict { border-left: 4px solid var(--accent); padding: .2rem 0 .2rem 1rem; }
.verdict p:first-child { font-size: 1.1rem; font-weight: 600; }
figure { margin: 1.4rem 0; } figure img { width: 100%; max-width: 46rem; height: auto; display: block; }
figcaption { max-width: 46rem; font-size: .9rem; color: var(--soft); } figcaption b { color: var(--ink); }
.scroll { overflow-x: auto; margin: 1rem 0 1.6rem; }
table { border-collapse: collapse; font-size: .82rem; overflow-wrap: normal;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; font-size: .95rem; }
th, td { padding: .25rem .55rem; border-bottom: 1px solid var(--line); text-align: left;
  white-space: nowrap; }
th { vertical-align: bottom; border-bottom: 2px solid var(--ink); white-space: normal; min-width: 4rem; }
.num { text-align: right; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid var(--accent); }
th button::after { content: "\\2195"; color: #b0b0b0; padding-left: .25em; }
th[aria-sort=ascending] button::after { content: "\\2191"; color: var(--accent); }
th[aria-sort=descending] button::after { content: "\\2193"; color: var(--accent); }
tbody tr:hover td { background: #f4f8fb; }
th:first-child, td:first-child { position: sticky; left: 0; background: #fff; }
code { background: #f3f3f3; padding: .1em .3em; border-radius: 3px; font-size: .88em; }
@media (max-width: 40rem) { body { font-size: 15px; } h1 { font-size: 1.4rem; } }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; } h2 { break-after: avoid; }
  figure, tr { break-inside: avoid; } th button::after { content: ""; } .scroll { overflow: visible; }
  table { font-size: 6pt; width: 100%; }
  th, td { padding: .1rem .15rem; white-space: normal; min-width: 0; }
  td.num { white-space: nowrap; } td:first-child { overflow-wrap: anywhere; min-width: 5em; }
}
"""

# Sorts by the raw numbers in data-value; unknown cells stay last in both directions.
JS = """
document.querySelectorAll("th button").forEach((button) => button.addEventListener("click", () => {
  const th = button.closest("th"), table = th.closest("table"), body = table.tBodies[0];
  const column = [...th.parentNode.children].indexOf(th);
  const up = th.getAttribute("aria-sort") !== "ascending";
  table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
  th.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = (row) => row.cells[column].dataset.value;
  const compare = (a, b) => {
    const x = key(a), y = key(b);
    if (x === "" || y === "") return (x === "") - (y === "");
    const order = isNaN(x) || isNaN(y) ? x.localeCompare(y, undefined, {numeric: true}) : x - y;
    return up ? order : -order;
  };
  [...body.rows].sort(compare).forEach((row) => body.append(row));
}));
"""

_MAX_SVG_BYTES = 600_000  # beyond it a figure is shown as PNG


def page(title: str, body: str) -> str:
    """The whole document; `body` is HTML, `title` is not."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>\n"
        f"<body>\n{body}\n<script>{JS}</script></body></html>\n"
    )


def figure(title: str, caption: str, files: dict[str, Path]) -> str:
    """An image in the page itself: the SVG, or the PNG where that is very large."""
    kind = "svg" if files["svg"].stat().st_size <= _MAX_SVG_BYTES else "png"
    media = {"svg": "image/svg+xml", "png": "image/png"}[kind]
    data = base64.b64encode(files[kind].read_bytes()).decode()
    return (
        f'<figure><img alt="{escape(title)}" src="data:{media};base64,{data}">'
        f"<figcaption><b>{escape(title)}.</b> {escape(caption)} "
        f"Numbers: <code>figures/{escape(files['csv'].name)}</code></figcaption></figure>"
    )


def bullets(items: list[str] | tuple[str, ...]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>" if items else ""


def paragraphs(items: list[str] | tuple[str, ...]) -> str:
    return "".join(f"<p>{escape(item)}</p>" for item in items)


def section(title: str, body: str) -> str:
    """Nothing where the body is empty."""
    return f"<h2>{escape(title)}</h2>\n{body}\n" if body else ""
