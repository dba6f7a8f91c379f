"""--fresh trains a sweep's runs again, and never at the cost of another sweep of the store."""

from pathlib import Path
from typing import Any

import pytest

from gepa_core.errors import ConfigError
from sweeps.plan.planner import make_plan
from sweeps.store.store import Store
from tests.tiny_sweep import InThisProcess, launch_here, make_data, plan_of, rows, sweep_text

GRID: dict[str, list[Any]] = {"steps": [8], "warmdown_ratio": [0.5]}
LONGER = {**GRID, "steps": [8, 16]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "tiny")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_everything_of_the_sweep_is_trained_again(data: Path, tmp_path: Path) -> None:
    text = sweep_text(data, GRID, stages=["ema"])
    assert launch_here(text, tmp_path).exit_code == 0
    before = rows(tmp_path)
    cluster = InThisProcess()
    assert launch_here(text, tmp_path, cluster=cluster, fresh=True).exit_code == 0
    assert {job.kind for job in cluster.jobs} == {"segment", "ema"}
    assert rows(tmp_path) == before


def test_segments_of_an_earlier_plan_are_forgotten_too(data: Path, tmp_path: Path) -> None:
    """Extended, a sweep's trunk is made of other pieces than planned afresh: none of the old may be used."""
    short, longer = (sweep_text(data, grid, stages=["ema"]) for grid in (GRID, LONGER))
    only_16 = sweep_text(data, {**GRID, "steps": [16]}, stages=["ema"])
    assert launch_here(short, tmp_path).exit_code == launch_here(longer, tmp_path).exit_code == 0
    assert launch_here(only_16, tmp_path, fresh=True).exit_code == 0
    fresh = make_plan(plan_of(only_16, tmp_path / "none").sweep)
    assert set(Store(tmp_path).ids()) == set(fresh.nodes)
    cluster = InThisProcess()
    assert launch_here(only_16, tmp_path, cluster=cluster).exit_code == 0 and not cluster.jobs


def test_what_another_sweep_is_made_of_is_not_deleted(data: Path, tmp_path: Path) -> None:
    mine = sweep_text(data, GRID, stages=["ema"])
    theirs = sweep_text(data, LONGER, stages=["ema"], name="other")
    assert launch_here(mine, tmp_path).exit_code == launch_here(theirs, tmp_path).exit_code == 0
    before = files(tmp_path)
    with pytest.raises(ConfigError, match=r"made of: other \(3 of them\); train again into another store"):
        launch_here(mine, tmp_path, fresh=True)
    assert files(tmp_path) == before
    assert launch_here(mine, tmp_path / "again", fresh=True).exit_code == 0
    assert rows(tmp_path / "again") == rows(tmp_path)


def test_other_sweeps_of_the_store_are_left_alone(data: Path, tmp_path: Path) -> None:
    mine = sweep_text(data, GRID, stages=["ema"])
    theirs = sweep_text(data, {**GRID, "seed": [7]}, stages=["ema"], name="other")
    assert launch_here(mine, tmp_path).exit_code == launch_here(theirs, tmp_path).exit_code == 0
    named = set(plan_of(theirs, tmp_path).nodes)

    def of_others() -> dict[str, bytes]:
        there = files(tmp_path)
        return {k: v for k, v in there.items() if k.split("/")[0] == "other" or k.split("/")[1] in named}

    before = of_others()
    assert launch_here(mine, tmp_path, fresh=True).exit_code == 0
    assert of_others() == before


def test_runs_that_are_not_asked_for_are_not_forgotten(data: Path, tmp_path: Path) -> None:
    text = sweep_text(data, LONGER, stages=["ema"])
    assert launch_here(text, tmp_path).exit_code == 0
    before = files(tmp_path)
    with pytest.raises(ConfigError, match="--fresh forgets the whole sweep"):
        launch_here(text, tmp_path, fresh=True, only="8-*")
    assert files(tmp_path) == before


def test_fresh_plans_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sweeps.commands import sweep as command

    text = sweep_text(data, GRID, stages=[])
    planned = []

    def counted(*args: Any, **options: Any) -> Any:
        planned.append(1)
        return make_plan(*args, **options)

    monkeypatch.setattr(command, "make_plan", counted)
    monkeypatch.setattr("sweeps.plan.planner.make_plan", counted)
    assert launch_here(text, tmp_path, fresh=True).exit_code == 0
    assert len(planned) == 1
