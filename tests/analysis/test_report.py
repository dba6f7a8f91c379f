"""The report: every figure and table on disk, one page that needs nothing else, opened in a real browser."""

import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from analysis.report.page import short_ids, view
from analysis.report.plots import UnavailableError, draw_all, figure_modules
from analysis.report.plots.style import CATEGORIES, sequential
from analysis.report.report import make_report, write_report
from analysis.report.study import Study, relative_noise, study
from analysis.runs.load import load
from analysis.runs.sweepfile import read_sweep_file
from analysis.runs.tabular import Column, ReportTable
from tests.synthetic_results import write_sweep

FIGURES = (
    "scaling", "surface", "trajectories", "acceleration", "drop", "stages", "effects", "repair", "tax",
    "size", "predicted", "residuals",
)  # fmt: skip
ELSEWHERE = ("averages", "quantizers")
"""Figures that this study has no numbers for (test_averages.py draws them)."""
COMMAND = "python -m analysis results/small --out out"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    small = tmp_path_factory.mktemp("small")
    folder = write_sweep(small, steps=(2000, 3000, 4000), ratios=(0.3, 0.6), pending=1, on_float=True)
    (folder / "artifacts").mkdir()
    (folder / "artifacts" / "4000-1200-linear-s42.int6").write_bytes(b"model")
    sizes = {"text_bytes": 1_000_000, "zstd_22_bytes": 250_000, "xz_9e_bytes": 260_000}
    content = json.loads((folder / "sweep.json").read_text()) | {
        "data": [{"val": sizes}],
        "commit": "ab" * 20,
        "hardware": {"processor": "AMD EPYC", "machine": "x86_64"},
        "versions": {"python": "3.12.1", "torch": "2.13.0"},
    }
    (folder / "sweep.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def small(folder: Path) -> Study:
    return study(load(folder))


@pytest.fixture(scope="module")
def out(small: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    write_report(small, out, COMMAND)
    return out


def test_every_figure_has_vector_raster_and_numbers(out: Path) -> None:
    for name in FIGURES:
        for suffix in ("svg", "pdf", "png", "csv"):
            path = out / "figures" / f"{name}.{suffix}"
            assert path.stat().st_size > 100, path
        assert len(pd.read_csv(out / "figures" / f"{name}.csv")) > 0
        pixels = np.asarray(Image.open(out / "figures" / f"{name}.png").convert("L"))
        assert pixels.shape[1] > 1000 and (pixels < 128).mean() > 0.002  # drawn, and not blank
    assert {module.NAME for module in figure_modules()} == {*FIGURES, *ELSEWHERE}


def test_tables_hold_the_runs_figures_in_three_formats(small: Study, out: Path) -> None:
    for name in ("runs", "advice", "warmdown", "length", "stages", "repair", "laws"):
        frame = pd.read_csv(out / "tables" / f"{name}.csv")
        assert len(frame) > 0
        for suffix in ("md", "tex"):
            assert (out / "tables" / f"{name}.{suffix}").stat().st_size > 50
    runs = pd.read_csv(out / "tables" / "runs.csv")
    for row in runs.to_dict("records"):
        assert row["ttt_bpb"] == small.table.run(str(row["run_id"])).metrics["ttt_bpb"]


def test_fits_json_is_strict_json_with_every_law(small: Study, out: Path) -> None:
    fits = json.loads((out / "fits.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert small.forecast is not None
    assert set(fits["laws"]) == set(small.forecast.ensemble.fits)
    assert sum(law["weight"] for law in fits["laws"].values()) == pytest.approx(1)
    assert len(fits["warmdown"]) == len(small.table.runs)


def test_the_page_is_one_file_that_loads_nothing(out: Path) -> None:
    page = (out / "report.html").read_text()
    assert not re.search(r"<(?:img|link|script|iframe)[^>]*(?:src|href)=", page)
    assert not re.search(r"url\((?!#)|@import|fetch\(|XMLHttpRequest", page)
    for kind in ("wide", "narrow"):
        assert page.count(f'<svg class="{kind}"') == len(FIGURES)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)), "figures share no names with one another"


def test_every_link_leads_to_a_file(out: Path, folder: Path) -> None:
    page = (out / "report.html").read_text()
    links = set(re.findall(r'<a href="([^"]+)"', page))
    anchors = {link[1:] for link in links if link.startswith("#")}
    assert all((out / link).exists() for link in links if not link.startswith("#"))
    assert all(f'id="{anchor}"' in page for anchor in anchors) and len(anchors) > 6
    names = {Path(link).name for link in links}
    assert {"runs.parquet", "sweep.json", "4000-1200-linear-s42.int6", "runs.csv", "scaling.csv"} <= names


def words(page: str) -> str:
    """The page's text as a reader meets it, without figures."""
    body = re.sub(r"<(svg|style|script).*?</\1>", "", page[page.index("<body>") :], flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


def test_the_page_leads_with_the_answer_and_says_what_made_it(out: Path) -> None:
    page = (out / "report.html").read_text()
    text = words(page)
    order = [
        "Train longer than 4,000 steps",
        "Best run",
        "Twice as long",
        "Its cost",
        "Improvement accelerates",
    ]
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)
    assert page.index('id="figure-scaling"') < page.index("<nav") < page.index('id="figure-surface"')
    assert "python launch.py synthetic.yaml" in text and COMMAND in text
    assert "AMD EPYC, x86_64" in text and "torch 2.13.0" in text and "abababababab" in text
    assert "zstd -22 2.000 and xz -9e 2.080 bits per byte" in text
    assert "1 run left out as pending" in text
    assert "One seed" in text
    for word in ("Not the prompt optimizer", "16,000,000 bytes", "Legal TTT", "Bits per byte"):
        assert word in text
    assert text.count("★") == len(re.findall('<tr class="best">', page)) == 4


def test_figures_stand_under_the_question_they_answer(out: Path) -> None:
    page = (out / "report.html").read_text()
    for name, section in (("drop", "warmdown"), ("repair", "stages"), ("residuals", "certainty")):
        inside = page[page.index(f'<section id="{section}"') :]
        assert f'id="figure-{name}"' in inside[: inside.index("</section>")]


def test_a_drawn_run_says_which_it_is(out: Path) -> None:
    """On the page and in the SVG beside it; the page's own tooltips come from the same marks."""
    svg = (out / "figures" / "scaling.svg").read_text()
    assert (
        len(re.findall(r'<g class="run"><title>4000-1200-linear-s42, ', svg)) == 2
    )  # measured and predicted
    assert 'data-tip="4000-1200-linear-s42, ' in (out / "report.html").read_text()
    assert "tip:" not in svg


def test_browser_shows_figures_and_sorts_tables(browser: Any, out: Path) -> None:
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else problems.append(r.url))
    page.goto((out / "report.html").as_uri())
    sizes = page.eval_on_selector_all(
        "figure svg.wide", "all => all.map(s => s.getBoundingClientRect().width)"
    )
    assert len(sizes) == len(FIGURES) and min(sizes) > 400
    box = page.locator("#figure-scaling svg.wide .run").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert "linear-s42" in page.locator("#tip").inner_text()
    filled = page.eval_on_selector_all("table", "all => all.map(t => t.tBodies[0].rows.length)")
    assert len(filled) == 7 and all(filled)
    header = page.locator("#table-runs th button", has_text=re.compile("^TTT"))
    column = "rows => rows.map(r => parseFloat(r.cells[INDEX].dataset.value))"
    headings = page.eval_on_selector_all("#table-runs th", "all => all.map(t => t.innerText)")
    index = next(i for i, heading in enumerate(headings) if heading.startswith("TTT"))
    for direction in (1, -1):
        header.click()
        values = page.eval_on_selector_all("#table-runs tbody tr", column.replace("INDEX", str(index)))
        assert values == sorted(values, reverse=direction < 0) and len(set(values)) > 2
    assert problems == []


def test_page_fits_a_phone_in_the_dark_and_prints(browser: Any, out: Path, tmp_path: Path) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
    page.goto((out / "report.html").as_uri())
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(background) == "rgb(20, 24, 28)"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    # Lettering one can read: 8 points of the narrow drawings are 11 pixels or more.
    points = "s => s.getBoundingClientRect().width / s.viewBox.baseVal.width"
    scales = page.eval_on_selector_all("figure svg.narrow", f"all => all.map({points})")
    assert len(scales) == len(FIGURES) and 8 * min(scales) >= 11
    clipped = (
        "all => all.filter(d => d.scrollWidth > d.clientWidth && getComputedStyle(d).overflowX != 'auto')"
    )
    assert page.eval_on_selector_all(".scroll", f"all => ({clipped})(all).length") == 0
    page.set_viewport_size({"width": 720, "height": 1000})  # A4 less its margins, in CSS pixels
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate(background) == "rgb(255, 255, 255)"
    assert page.evaluate("document.documentElement.scrollWidth") <= 720
    page.pdf(path=str(tmp_path / "report.pdf"))
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")


def test_same_numbers_give_the_same_bytes(small: Study, out: Path, tmp_path: Path) -> None:
    """No time of drawing, no random ids."""
    draw_all(small, tmp_path, only=("drop", "stages"))
    files = sorted(tmp_path.iterdir())
    assert len(files) == 8
    for path in files:
        assert path.read_bytes() == (out / "figures" / path.name).read_bytes(), path.name


def test_a_table_without_trajectories_is_a_stated_reduced_analysis(shared: Path, tmp_path: Path) -> None:
    page, notes = make_report(shared / "reference" / "gepa_runs.csv", out=tmp_path / "report")
    text = page.read_text()
    assert any("no trajectories" in note for note in notes)
    assert "No verdict on the warmdown" in text
    assert "No figure “Validation along training”: no trajectories" in text
    assert "Undetermined" in text and "times as steep" not in text
    assert not (tmp_path / "report" / "figures" / "acceleration.png").exists()
    assert (tmp_path / "report" / "figures" / "scaling.png").exists()


def test_tables_escape_what_they_show() -> None:
    frame = pd.DataFrame({"name": ["a|b <i> & 5 % _x", None], "value": [1.5, float("nan")]})
    table = ReportTable("t", "T", frame, {"name": Column("name"), "value": Column("value [%]", ".2f")})
    assert "a\\|b" in table.markdown() and "| 1.50 |" in table.markdown()
    shown = view(table, "", {}, {}).rows[0][1]
    assert [cell.text for cell in shown] == ["a|b <i> & 5 % _x", "1.50"] and shown[1].value == "1.5"
    assert r"5 \% \_x" in table.latex()
    assert table.cells()[1] == ["", ""]


def test_no_cell_of_a_csv_is_a_formula(tmp_path: Path) -> None:
    names = ["=cmd|' /C calc'!A0", "+1", "-1+2", "@x", "\t=1", "a=b", "", None]
    frame = pd.DataFrame({"=name": names, "value": [-1.5] * len(names)})
    ReportTable("t", "T", frame, {}).write(tmp_path)
    read = pd.read_csv(tmp_path / "t.csv", keep_default_na=False)
    assert list(read.columns) == ["'=name", "value"] and set(read["value"]) == {-1.5}
    assert list(read["'=name"]) == [*(f"'{name}" for name in names[:5]), "a=b", "", ""]


def test_unknown_columns_are_not_shown_but_kept() -> None:
    frame = pd.DataFrame({"a": [1.0], "empty": [None], "extra": [2]})
    table = ReportTable("t", "T", frame, {"a": Column("a", ".0f"), "empty": Column("empty", ".0f")})
    assert list(table.shown()) == ["a"]
    assert "extra" in frame.to_csv()


def test_replicate_noise_holds_in_the_unit_of_the_finals(folder: Path) -> None:
    """Trajectories in nats, 1.6 times the BPB of the final stage."""
    table = load(folder)
    twins = [
        replace(
            run,
            run_id=f"{run.run_id}-2",
            trunk="2",
            metrics={"val_loss": 1.001 * run.metrics["val_loss"]},
            trajectory=None,
        )
        for run in table.runs
    ]
    noise = relative_noise(replace(table, runs=(*table.runs, *twins)), "val_loss")
    assert noise == pytest.approx(0.001 / 2**0.5, rel=0.05)


def test_a_figure_without_numbers_says_why(small: Study) -> None:
    module = next(m for m in figure_modules() if m.NAME == "surface")
    with pytest.raises(UnavailableError, match="because"):
        module.data(replace(small, forecast=None, no_forecast="because"))


def test_palette_is_told_apart_without_colour_vision() -> None:
    """Lightness of the sequential map rises monotonically; categories differ under simulated deuteranopia."""
    rgb = sequential()(np.linspace(0, 1, 20))[:, :3]
    lightness = rgb @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness) > 0).all()
    # Machado, Oliveira & Fernandes 2009, severity 1.
    deuteranopia = np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]])
    seen = [np.clip(deuteranopia @ np.array(matplotlib.colors.to_rgb(c)), 0, 1) for c in CATEGORIES[:4]]
    apart = [np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]]
    assert min(apart) > 0.12


def test_sweep_file_is_optional_and_foreign_content_harmless(tmp_path: Path) -> None:
    assert read_sweep_file(None).command is None
    assert read_sweep_file(tmp_path).name is None
    (tmp_path / "sweep.json").write_text("[1, 2")
    assert read_sweep_file(tmp_path).name is None
    (tmp_path / "sweep.json").write_text('{"name": 3, "argv": "x", "val": {"text_bytes": 0}}')
    found = read_sweep_file(tmp_path)
    assert found.name is None and found.command is None and found.compressor_bpb == ()


def test_fingerprints_are_shortened_as_far_as_runs_stay_apart() -> None:
    ids = ["600-360-linear-s42-fcc8e9c772", "600-240-linear-s42-fcc8e10000", "plain"]
    assert list(short_ids(ids).values()) == ["600-360-linear-s42-fcc8", "600-240-linear-s42-fcc8", "plain"]
    twins = ["600-360-linear-s42-fcc8e9c772", "600-360-linear-s42-fcc8e10000"]
    assert list(short_ids(twins).values()) == ["600-360-linear-s42-fcc8e9", "600-360-linear-s42-fcc8e1"]
    assert len(short_ids(["r" * 300])["r" * 300]) < 48
