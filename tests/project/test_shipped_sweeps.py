"""Every sweep file that is shipped plans, asks for something sensible, and says what it cannot check."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gepa_core.config import RunConfig
from gepa_core.evaluation.windows import sliding_windows
from gepa_core.model.gepa import GEPA
from gepa_core.schedule import lr_multiplier
from gepa_core.sizes import num_params, parameter_numels, quantized_fraction, step_flops
from sweeps.plan.advice import MIN_EVALUATIONS, advise
from sweeps.plan.planner import make_plan
from sweeps.plan.speeds import Speeds
from sweeps.spec.load import load_sweep

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "sweeps").glob("*.yaml"))
RECIPES = [path for path in SHIPPED if path.stem != "script"]
EXPECTED = {"quickstart", "warmdown", "published", "schedules", "quantizer", "wikipedia", "script"}
PUBLISHED_TRAIN_TOKENS = 8_000_000_000


def test_the_promised_sweeps_are_shipped() -> None:
    assert {path.stem for path in SHIPPED} >= EXPECTED


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_sweep_plans(path: Path) -> None:
    sweep = load_sweep(path)
    assert sweep.name == path.stem
    assert not sweep.notices, "runs given twice"
    plan = make_plan(sweep)
    assert plan.steps_shared < plan.steps_naive
    for run in sweep.recipe_runs:
        assert quantized_fraction(run) >= 0.9
        assert run.batch.spans % sweep.exec.ranks == 0
    longest = max(run.warmdown_ratio for run in sweep.runs)
    assert longest >= 0.5, "a sweep that cannot tell whether a longer warmdown is better"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_sweep_needs_no_advice(path: Path) -> None:
    accepted = {
        "published": ["no replicate seeds"],  # as it was published
        "quickstart": ["no replicate seeds"],  # minutes are what it promises
    }
    for line in advise(load_sweep(path)):
        assert any(line.startswith(known) for known in accepted.get(path.stem, [])), line


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_plan_works_without_data_or_cluster(path: Path, tmp_path: Path) -> None:
    """In an empty folder, from the command line; nothing is created."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    command = [sys.executable, str(ROOT / "launch.py"), str(path), "--plan"]
    shown = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    unsure = "run ids are provisional" if path in RECIPES else "whether sharing trunks is exact is checked"
    assert unsure in shown.stdout and "trunk" in shown.stdout
    result = subprocess.run(
        [*command, "--json"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    figures = json.loads(result.stdout.splitlines()[-1])
    for kind in ("train", "eval", "ttt"):
        assert figures[f"gpu_hours_{kind}_naive"] >= figures[f"gpu_hours_{kind}_shared"] >= 0
    assert figures["steps_naive"] > figures["steps_shared"] >= figures["critical_path_steps"]
    assert figures["runs"] >= 5 and figures["segments"] >= 5 and unsure in " ".join(figures["notes"])
    assert not list(tmp_path.iterdir())


def test_quickstart_is_the_study_it_promises() -> None:
    sweep = load_sweep(ROOT / "sweeps" / "quickstart.yaml")
    plan = make_plan(sweep)
    assert len({run.steps for run in sweep.runs}) >= 3
    assert len({round(run.warmdown_ratio, 6) for run in sweep.runs}) >= 3
    assert len({segment.trunk_id for segment in plan.segments.values()}) == 1
    model = sweep.recipe_runs[0].model
    assert 100_000 <= num_params(model) <= 400_000
    assert model.num_kv_heads < model.num_heads and model.rope_dims < model.head_dim
    assert model.xsa_last_n and model.ve_layers and model.bigram_buckets
    assert all(run.eval.warmdown_points >= MIN_EVALUATIONS for run in sweep.runs)
    assert "bf16" not in sweep.runs[0].model_dump_json(), "which most CPUs emulate"
    # Four minutes on two workers of 6,000 training tokens a second, one of them for all but the work itself.
    (tokens_per_step,) = {run.batch.tokens_per_step for run in sweep.runs}
    rate = 6000 * step_flops(sweep.runs[0]) / tokens_per_step
    timed = make_plan(sweep, speeds=Speeds(train=rate, evaluate=rate, ttt=rate, source="a slow machine"))
    assert sum(timed.seconds.values()) / 2 < 180


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_arithmetic_of_parameters_is_the_models(path: Path) -> None:
    import torch

    config = load_sweep(path).recipe_runs[0]
    with torch.device("meta"):
        model = GEPA(config.model)
    assert num_params(config.model) == sum(p.numel() for p in model.parameters())
    limit = config.quant.keep_float_max_numel
    large = sum(p.numel() for p in model.parameters() if p.numel() > limit)
    assert quantized_fraction(config) == pytest.approx(large / sum(parameter_numels(config.model).values()))


def test_published_sweep_is_the_published_study(shared: Path) -> None:
    sweep = load_sweep(ROOT / "sweeps" / "published.yaml")
    with (shared / "reference" / "gepa_runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    runs = {run.steps: run for run in sweep.recipe_runs}
    assert len(runs) == len(rows) == 5
    for row in rows:
        run = runs[int(row["steps"])]
        assert (run.peak_steps, run.warmdown_steps) == (int(row["peak_steps"]), int(row["warmdown_steps"]))
        assert run.train_tokens == int(row["train_tokens"])
        assert (run.schedule, run.seed) == (row["schedule"], int(row["seed"]))
        assert num_params(run.model) == int(row["params"])
    assert runs[25_000].train_tokens / PUBLISHED_TRAIN_TOKENS == pytest.approx(2.46, abs=0.005)
    assert all(run.model.rope_precision == "bf16_published" for run in sweep.recipe_runs)
    assert all(
        run.eval.counting == "reference" and run.quant.method == "reference" for run in sweep.recipe_runs
    )
    (targets,) = {run.data.val_tokens for run in sweep.recipe_runs}
    assert targets is not None
    windows = sliding_windows(targets, 2048, 64, "reference")
    assert len(windows.start) == 969_088
    assert windows.scored.sum() - targets == 1_984  # counted again at the end of the text
    plan = make_plan(sweep)
    assert plan.steps_shared == 12_000 + 4000 + 5000 + 6000 + 8000 + 13_000


def test_published_learning_rates_at_the_logged_steps(shared: Path) -> None:
    """1 until the warmdown begins, then (steps - step) / warmdown, at every step that was logged."""
    runs = {
        f"gepa-{run.steps // 1000}k": run
        for run in load_sweep(ROOT / "sweeps" / "published.yaml").recipe_runs
    }
    with (shared / "reference" / "gepa_trajectories.csv").open() as file:
        logged = [(row["run_id"], int(row["step"])) for row in csv.DictReader(file)]
    assert len(logged) > 100
    for run_id, step in logged:
        run = runs[run_id]
        expected = min(1.0, (run.steps - step) / run.warmdown_steps)
        assert multiplier(run, step) == pytest.approx(expected, abs=1e-12)
        if step <= run.peak_steps:
            assert multiplier(run, step) == 1.0


def multiplier(run: RunConfig, step: int) -> float:
    return lr_multiplier(
        step,
        steps=run.steps,
        warmdown_steps=run.warmdown_steps,
        schedule=run.schedule,
        final_lr_fraction=run.final_lr_fraction,
    )
