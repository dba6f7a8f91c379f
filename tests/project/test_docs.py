"""Documentation: links lead somewhere, examples work, and the API reference is that of the source."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import shell
from tests.synthetic_results import write_sweep

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "deploy" / "README.md", *(ROOT / "docs").glob("*.md")])


def prose(page: Path) -> str:
    """A page without its code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", lambda match: match[0] if match[0].endswith("](") else "``", text)


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found.add(next(s for s in (slug, *(f"{slug}-{i}" for i in range(1, 999))) if s not in found))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Relative links only: pages elsewhere are named, not checked."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


def test_the_check_of_links_can_fail(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A `code` title, too\n\n[a](#a-code-title-too) [b](gone.md) [c](#nowhere)\n")
    assert anchors(page) == {"a-code-title-too"}
    with pytest.raises(AssertionError, match=r"gone\.md"):
        test_links_lead_somewhere(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_brackets_are_quoted_for_zsh(page: Path) -> None:
    """Unquoted, zsh takes them for a pattern and refuses the command."""
    for _, text in shell.blocks(page):
        for command in shell.commands(text):
            plain = re.sub(r"'[^']*'|\"[^\"]*\"", "", command)
            assert not re.search(r"[\[\]]", plain), command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_can_be_pasted_into_zsh(page: Path) -> None:
    """By default it takes no comments at its prompt: the words of one would be arguments."""
    for _, text in shell.blocks(page):
        for line in text.splitlines():
            assert not re.search(r"(^|\s)#", re.sub(r"'[^']*'|\"[^\"]*\"", "", line)), line


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index, page.name


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages with every block of extending.md in the place that its first line names."""
    copy = tmp_path_factory.mktemp("extended")
    for package in ("gepa_core", "sweeps", "analysis"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "launch.py", copy)
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    blocks = re.findall(
        r"^```python\n# (append to|new file) (\S+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL
    )
    assert len(blocks) == text.count("```python") == 6
    for how, path, code in blocks:
        target = copy / path
        assert target.exists() == (how == "append to"), path
        with target.open("a", encoding="utf-8") as file:
            file.write(("\n\n" if how == "append to" else "") + code)
    return copy


def run(arguments: list[str], cwd: Path) -> str:
    result = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_schedule_and_recipe_examples(extended: Path) -> None:
    """A sweep of both plans, the new shape forking off the old one's trunk."""
    sweep = [
        *("launch.py", "sweeps/quickstart.yaml", "recipe=gepa-wide", "schedule=[linear, quadratic]"),
        *("steps=[300]", "warmdown_ratio=[0.4]", "--plan", "--json"),
    ]
    figures = json.loads(run(sweep, extended).splitlines()[-1])
    assert (figures["runs"], figures["trunks"]) == (2, 1)
    assert (figures["steps_naive"], figures["steps_shared"]) == (600, 420)
    multiplier = run(
        [
            "-c",
            "from gepa_core.schedule import lr_multiplier as r\n"
            "print([r(n, steps=10, warmdown_steps=4, schedule='quadratic') for n in (6, 8, 9)])",
        ],
        extended,
    )
    assert json.loads(multiplier) == [1.0, 0.25, 0.0625]


def test_stage_example(extended: Path) -> None:
    """It is planned once a run, after the training, and has its column."""
    sweep = ["launch.py", "sweeps/quickstart.yaml", "stages=[raw_sliding]", "--plan", "--json"]
    figures = json.loads(run(sweep, extended).splitlines()[-1])
    assert figures["stages"] == figures["runs"] == 9 and figures["gpu_hours_eval_naive"] > 0
    names = run(["-c", "from sweeps.store.schema import RUNS\nprint(RUNS.names)"], extended)
    assert "raw_sliding_bpb" in names


def test_law_and_figure_examples(extended: Path, tmp_path: Path) -> None:
    """A report of a sweep of known truth has both; the law finds the exponent that was planted."""
    sweep = write_sweep(tmp_path / "sweep", ratios=(0.2, 0.6))
    run(["-m", "analysis", str(sweep)], extended)
    laws = json.loads((sweep / "report" / "fits.json").read_text())["laws"]
    law = laws["instant + gap"]  # stages are only measured at the end: the law of the raw curve, and a gap
    assert 0 <= law["weight"] <= 1 and law["held_out_error"] < 0.05
    assert law["parameters"]["q"] < 1, "the planted gain comes late"
    csv = (sweep / "report" / "figures" / "size_and_result.csv").read_text().splitlines()
    assert csv[0] == "artifact_bytes,value" and len(csv) == 7
    assert "Result against artifact size" in (sweep / "report" / "report.html").read_text()
