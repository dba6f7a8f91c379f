"""python -m analysis: exit codes, one clear line for what a user got wrong, JSON that programs can read."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from analysis.__main__ import main
from tests.synthetic_results import write_sweep

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("cli"), steps=(1500, 2000, 3000), ratios=(0.4,), pending=0)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "analysis", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ, check=False)


def test_report_of_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No verdict between runs: said, not invented. What one run predicts has other studies' interval."""
    one = tmp_path / "one"
    one.mkdir()
    write_sweep(one, steps=(2000,), ratios=(0.4,))
    assert main([str(one)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(one / "report" / "report.html")
    page = (one / "report" / "report.html").read_text()
    assert f"python -m analysis {one}" in page
    assert "With one run, the steps cannot be told from the learning rate" in page
    assert (
        "How long to train, and how much of it as warmdown, is undetermined: all runs have 2,000 steps"
        in page
    )


def test_predict_json_has_what_the_contract_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "predict",
        str(folder),
        "--steps",
        "4000",
        "--warmdown",
        "1600",
        "--metric",
        "val_bpb",
        "--json",
    ]
    assert main(arguments) == 0
    answer = json.loads(capsys.readouterr().out)
    for key in ("metric", "steps", "warmdown", "value", "low", "high", "level", "laws", "extrapolation"):
        assert key in answer
    assert answer["low"] < answer["value"] < answer["high"]
    assert answer["metric"] == "val_bpb" and answer["extrapolation"]["beyond_longest"]


def test_predict_in_words_defaults_to_the_last_stage(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(folder), "--steps", "3000", "--warmdown", "1200"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("ttt_bpb of 3,000 steps, 1,200 of them linear warmdown: 1.")
    assert "90 % interval" in out and "weight" in out


def test_backtest_in_words_and_json(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference = shared / "reference"
    runs = pd.read_csv(reference / "gepa_runs.csv")
    runs["half"] = ["train" if steps <= 15000 else "test" for steps in runs["steps"]]
    runs.to_csv(tmp_path / "runs.csv", index=False)
    arguments = ["backtest", tmp_path / "runs.csv", "--trajectories", reference / "gepa_trajectories.csv"]
    arguments += ["--split", "half"]
    assert main([*map(str, arguments), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer["runs"]) == {"gepa-20k", "gepa-25k"}
    assert answer["max_abs_final_error"] < 0.02
    assert main([*map(str, arguments)]) == 0
    out = capsys.readouterr().out
    assert "| gepa-20k |" in out and "mean_abs_final_error" in out


def test_compare_in_words_and_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(folder), str(folder), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {row["metric"] for row in answer["summary"]} >= {"float_bpb", "ttt_bpb", "artifact_bytes"}
    assert all(row["difference"] == 0 for row in answer["summary"])
    assert main(["compare", str(folder), str(folder)]) == 0
    assert "| ttt_bpb | BPB | 3 |" in capsys.readouterr().out


RUNS = "run_id,steps,warmdown_steps,schedule,float_bpb\na,1000,400,linear,1.2\nb,1500,800,linear,1.15\n"
CURVES = "run_id,step,val_bpb\na,500,1.3\na,1000,1.2\nb,1000,1.3\nb,1500,1.15\n"


@pytest.mark.parametrize(
    ("runs", "curves", "said"),
    [
        (RUNS.replace("steps,warmdown_steps", "length,warmdown_steps"), CURVES, "steps"),
        (RUNS + "a,1000,400,linear,1.2\n", CURVES, "more than once"),
        (RUNS, CURVES.replace("val_bpb", "accuracy"), "val_bpb"),
        (RUNS.replace("1.15", "1.94"), CURVES.replace("1.15", "1.94"), "mixed units"),
        (RUNS, CURVES.replace("b,1500,1.15", "b,1500,broken"), "not a number"),
        (RUNS.replace("linear,1.2", "sawtooth,1.2"), CURVES, "sawtooth"),
        (RUNS, CURVES.replace("a,", "x,").replace("b,", "y,"), "run_id"),
        ("", CURVES, "CSV"),
    ],
)
def test_malformed_inputs_are_one_line_and_exit_2(
    runs: str, curves: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs.csv").write_text(runs)
    (tmp_path / "curves.csv").write_text(curves)
    out = tmp_path / "out"
    files = [str(tmp_path / "runs.csv"), "--trajectories", str(tmp_path / "curves.csv")]
    assert main([*files, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error, error
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere: no such file"),
        (["predict", "FOLDER", "--steps", "100", "--warmdown", "200"], "impossible"),
        (["predict", "FOLDER", "--steps", "0", "--warmdown", "0"], "impossible"),
        (["predict", "FOLDER", "--steps", "100", "--warmdown", "50", "--level", "1.5"], "between 0 and 1"),
        (["predict", "FOLDER", "--steps", "100", "--warmdown", "50", "--metric", "nonsense"], "nonsense"),
        (["predict", "FOLDER", "--steps", "100", "--warmdown", "50", "--where", "lr=1"], "no axis 'lr'"),
        (
            ["predict", "FOLDER", "--steps", "9", "--warmdown", "5", "--where", "params=1"],
            "no run has that value",
        ),
        (["backtest", "FOLDER", "--split", "nosuch"], "nosuch"),
        (["backtest", "FOLDER", "--split", "status", "--level", "90", "--json"], "between 0 and 1"),
        (["compare", "FOLDER", "nowhere"], "nowhere"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_2(
    arguments: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(folder) if a == "FOLDER" else a for a in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error, error


def test_a_folder_where_nothing_is_done_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "running"
    folder.mkdir()
    write_sweep(folder, steps=(1000,), ratios=(0.4,), pending=1)
    assert main([str(folder)]) == 2
    assert "no finished run yet" in capsys.readouterr().err


def test_an_unwritable_output(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main([str(folder), "--out", str(tmp_path / "file" / "out")]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_as_a_command_without_torch_or_ray(folder: Path) -> None:
    found = run("predict", folder, "--steps", 3000, "--warmdown", 1200, "--json")
    assert found.returncode == 0, found.stderr
    json.loads(found.stdout)
    missing = run("nowhere.csv")
    assert missing.returncode == 2 and missing.stderr.startswith("error: nowhere.csv")
    assert run("predict", folder, "--steps", "many", "--warmdown", 1).returncode == 2
    assert run("--help").returncode == 0
    check = "import sys, analysis.report.report, analysis.forecast.backtest, analysis.effects.compare;"
    check += "import analysis.logs.importing;"
    check += "sys.exit(any(m.split('.')[0] in ('torch', 'ray', 'gepa_core', 'sweeps') for m in sys.modules))"
    alone = subprocess.run([sys.executable, "-c", check], cwd=ROOT, env=os.environ, check=False)
    assert alone.returncode == 0
