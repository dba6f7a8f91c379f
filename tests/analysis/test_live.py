"""The live page: what it is told of a sweep at work, who may look, and how a browser shows it."""

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from analysis.live.server import HOST, make_server
from analysis.live.state import Watcher
from analysis.runs.errors import AnalysisError
from tests.synthetic_results import write_sweep

UNDER_WAY = "3000-1200-linear-s42"


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """One of its runs is at work: its last stretch is a journal, not a table."""
    folder = write_sweep(tmp_path / "store" / "live", steps=(2000, 3000), ratios=(0.4,), pending=1)
    (folder / "trajectory" / f"{UNDER_WAY}.parquet").unlink()
    report(folder, 1900, 1.4)
    return folder


def report(folder: Path, step: int, bpb: float | None) -> None:
    journal = folder.parent / "segments" / UNDER_WAY / "attempts" / "abc" / "events.jsonl"
    journal.parent.mkdir(parents=True, exist_ok=True)
    with journal.open("a") as stream:
        stream.write(json.dumps({"event": "report", "step": step, "val_bpb": bpb, "train_loss": 3.0}) + "\n")


@pytest.fixture
def address(sweep: Path) -> Iterator[str]:
    server = make_server(str(sweep))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield f"http://{HOST}:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_run_under_way_is_followed(sweep: Path) -> None:
    watcher = Watcher(sweep)
    state = watcher.state()
    (run,) = (run for run in state["runs"] if run["run_id"] == UNDER_WAY)
    assert run["running"] and run["step"] == 1900 and run["status"] == "pending"
    assert state["segments"][UNDER_WAY]["points"] == [[1900, 1.4, 3.0]]
    with (sweep.parent / "segments" / UNDER_WAY / "attempts" / "abc" / "events.jsonl").open("a") as stream:
        stream.write('{"event": "report", "st')  # cut short
    assert watcher.state() == state
    report(sweep, 2000, None)
    points = watcher.state()["segments"][UNDER_WAY]["points"]
    assert points[-1] == [2000, None, 3.0] or len(points) == 1, (
        "a line after one cut short may be lost with it"
    )
    done = next(run for run in state["runs"] if run["run_id"] != UNDER_WAY)
    assert done["status"] == "done" and done["final"]["ttt_bpb"] > 0 and not done["running"]
    (sweep / "runs.parquet").write_bytes(b"PAR1 half written")
    assert watcher.state()["runs"] == []


def test_only_this_machine_is_answered(address: str) -> None:
    def get(path: str, host: str | None = None) -> int:
        request = urllib.request.Request(address + path, headers={"Host": host} if host else {})
        try:
            with urllib.request.urlopen(request) as answered:
                return int(answered.status)
        except urllib.error.HTTPError as error:
            code = error.code
            error.close()
            return code

    assert get("/") == get("/state.json") == 200
    assert get("/", host="evil.example:80") == get("/state.json", host="evil.example") == 403
    assert get("/../plan.json") == get("/report.html") == 404


def test_what_is_no_sweep_is_refused(sweep: Path, tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match=r"not the folder of one sweep .*live"):
        Watcher(sweep.parent)
    with pytest.raises(AnalysisError, match="needs a folder of this machine"):
        make_server("s3://bucket/sweep")
    with pytest.raises(AnalysisError, match="--port 99999"):
        make_server(str(sweep), 99999)


def test_browser_redraws_as_the_sweep_goes_on(browser: Any, address: str, sweep: Path) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 800})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith(address) else problems.append(r.url))
    page.goto(address)
    row = page.locator("#runs tr", has_text=UNDER_WAY)
    row.wait_for()
    assert "running" in row.inner_text() and "1,900 of 3,000" in row.inner_text()
    before = page.locator("svg polyline").count()
    assert before >= 2
    row.click()
    assert f"launch.py stop {sweep.resolve()} {UNDER_WAY}" in page.locator("#stop").inner_text()
    report(sweep, 2100, 1.39)
    page.locator("#runs tr", has_text="2,100 of 3,000").wait_for()
    assert "1.3900" in row.inner_text()
    page.get_by_role("button", name="training loss").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert problems == []
    page.close()
