"""The commands that look at a store, over a real one of a tiny sweep; keep, stop and notify."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import launch
from gepa_core import load_model
from gepa_core.commands.evaluate import evaluate_command
from gepa_core.errors import ArtifactError, ConfigError
from sweeps.commands.sweep import trained_again
from sweeps.drive import record
from sweeps.drive.notify import Notifier
from sweeps.store.gc import find_waste
from sweeps.store.requests import ask_to_stop
from sweeps.store.store import Store
from sweeps.work.job import Job
from tests.tiny_sweep import InThisProcess, launch_here, make_data, plan_of, rows, sweep_text

GRID = {"steps": [8, 16], "warmdown_ratio": [0.5]}
STAGES = ["ema", "int6"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="module")
def text(data: Path) -> str:
    return sweep_text(data, GRID, stages=STAGES)


@pytest.fixture(scope="module")
def store(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("looked") / "store"
    result = launch_here(text, output)
    assert result.exit_code == 0
    assert result.dropped["states"] == 2 and result.dropped["steps"] == 12 and result.dropped["bytes"] > 1000
    return output


@pytest.fixture
def run(store: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def command(*arguments: str, code: int = 0) -> str:
        assert launch.main([*arguments]) == code
        captured = capsys.readouterr()
        return captured.err if code else captured.out

    return command


def test_runs_are_listed_best_first(store: Path, run: Callable[..., str]) -> None:
    found = rows(store)
    listed = [line.split()[0] for line in run("ls", str(store)).splitlines()[1:]]
    assert listed == sorted(found, key=lambda id_: found[id_]["int6_bpb"])
    told = json.loads(run("best", str(store), "--json"))["best"][0]
    assert (told["run_id"], told["metric"]) == (listed[0], "int6_bpb")
    words = run("best", str(store / "tiny"))
    assert f"export {listed[0]} --output {store}" in words
    worst = max(found, key=lambda id_: found[id_]["ema_bpb"])
    assert json.loads(run("best", str(store), "--metric", "ema_bpb", "--json"))["best"][0]["run_id"] != worst
    assert "did you mean ema_bpb" in run("best", str(store), "--metric", "ema_bbp", code=2)
    status = run("status", str(store))
    assert "2 done runs" in status and f"best so far {found[listed[0]]['int6_bpb']:.4f} BPB" in status


def test_ids_may_be_shortened(store: Path, run: Callable[..., str]) -> None:
    first, second = rows(store)
    text = run("logs", first[:4], "--output", str(store))
    assert "0 → 4  trunk (seed 42)" in text and "4 → 8" in text and f"int6  {first}" in text
    assert "step 4/" in text or "step 4" in text
    tail = run("logs", first.rpartition("-")[2], "--output", str(store), "--tail", "1")
    assert len(tail) < len(text)
    assert f"no such run in {store}" in run("logs", "9-9", "--output", str(store), code=2)
    assert f"did you mean {second}" in run("logs", second[:-1] + "x", "--output", str(store), code=2)
    both = sorted({first[0], second[0]})
    if len(both) == 1:
        assert "2 runs" in run("logs", both[0], "--output", str(store), code=2)


def test_a_model_by_its_runs_id(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_id = next(iter(rows(store)))
    model = load_model(run_id[:4], store=store)
    assert model.run.run_id == run_id and model.weights == "artifact"
    made = model.generate("text number", tokens=12, seed=1)
    assert made.startswith("text number") and made == model.generate("text number", tokens=12, seed=1)
    assert model.generate("a", tokens=3, temperature=0) == model.generate(
        "a", tokens=3, temperature=0, seed=2
    )
    assert load_model(store / "tiny" / "artifacts" / f"{run_id}.int6").run == model.run
    with pytest.raises(ConfigError, match="temperature -1"):
        model.generate(temperature=-1)
    with pytest.raises(ConfigError, match=r"no run of .* has that id"):
        load_model("nothing", store=store)
    assert evaluate_command([run_id, "--store", str(store), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["val_bpb"] == rows(store)[run_id]["int6_bpb"]
    artifact = store / "tiny" / "artifacts" / f"{run_id}.int6"
    whole = artifact.read_bytes()
    artifact.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        assert evaluate_command([run_id, "--store", str(store)]) == 2
        assert f"not the one that {run_id} made; delete it" in capsys.readouterr().err
    finally:
        artifact.write_bytes(whole)


def test_a_run_without_an_artifact_is_told(data: Path, tmp_path: Path) -> None:
    assert launch_here(sweep_text(data, {"steps": [4]} | {"warmdown_steps": [2]}, stages=["float"]), tmp_path)
    with pytest.raises(ArtifactError, match="was it quantized"):
        load_model(next(iter(rows(tmp_path))), store=tmp_path)


def test_what_is_kept_and_what_its_loss_costs(text: str, store: Path, data: Path, tmp_path: Path) -> None:
    """Another quantizer needs the final states: deleted, they are trained again, and the plan says so."""
    again = ["quant.method=per_row"]
    (note,) = trained_again(plan_of(text, store, again), str(store))
    assert note.startswith("12 of the 12 steps left were trained before: the final states of 2 runs")
    assert not trained_again(plan_of(text, store), str(store))
    kept = sweep_text(data, GRID, stages=STAGES, keep="final")
    result = launch_here(kept, tmp_path)
    assert result.exit_code == 0 and not result.dropped["states"]
    assert plan_of(kept, tmp_path, again).steps_left == 0
    assert not find_waste(Store(tmp_path))
    reasons = {waste.why for waste in find_waste(Store(tmp_path), states=True)}
    assert "state at the end of finished runs" in reasons
    assert rows(tmp_path) == rows(store), "what is kept changes no figure"


def test_a_run_is_stopped_and_taken_up_again(
    text: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., str]
) -> None:
    monkeypatch.setattr(record, "_ASK_SECONDS", 0.0)
    longer = max(rows(store), key=lambda id_: int(id_.partition("-")[0]))

    def ask(job: Job) -> None:
        if job.kind == "segment":
            ask_to_stop(Store(tmp_path), "tiny", longer)

    result = launch_here(text, tmp_path, cluster=InThisProcess(ask))
    assert result.exit_code == 3 and result.runs["done"] == 1 and result.runs["failed"] == 1
    assert result.failures == {longer: "stopped, as asked for by `launch.py stop`"}
    assert launch_here(text, tmp_path, retry_failed=True).exit_code == 0
    assert rows(tmp_path) == rows(store)
    assert f"{longer}: done already" in run("stop", str(tmp_path), longer)


def test_notified_of_the_run_that_fails_and_of_the_end(data: Path, tmp_path: Path) -> None:
    """A model that diverges: its learning rate is absurd."""
    out, said = tmp_path / "told", []
    notify = Notifier(f'echo "$GEPA_EVENT $GEPA_SWEEP $GEPA_ERROR" >> {out}', said.append)
    text = sweep_text(
        data, {"steps": [8], "warmdown_steps": [2]}, stages=["float"], set={"optim.embed_lr": 1e6}
    )
    assert launch_here(text, tmp_path / "store", notify=notify).exit_code == 3
    notify("finished", wait=True, sweep="tiny", exit_code=3)
    lines = out.read_text().splitlines()
    assert sorted(line.split()[:2] for line in lines) == [["finished", "tiny"], ["run_failed", "tiny"]]
    Notifier("exit 7", said.append)("finished", wait=True)
    assert said == ["--notify: the command ended with exit code 7"]
