"""What a script's run is said to have given: figures, sizes and lengths, by its log and its own files."""

import re
from pathlib import Path

import pytest

from analysis.runs.errors import AnalysisError
from analysis.runs.load import load
from launch import main
from tests.script_sweep import launch, log, result, rows, sweep_text, write_script
from tests.tiny_sweep import InThisProcess


def test_figures_from_a_file_and_from_lines(tmp_path: Path) -> None:
    source = """
    curve()
    print("final_int8_zlib_roundtrip_exact val_loss:1.5 val_bpb:0.75")
    open("figures.json", "w").write('{"ttt_bpb": 0.25, "code_bytes": 12, "mood": "good", "float_bpb": "x"}')
    """
    folder = write_script(tmp_path / "work", source)
    figures = {"file": "figures.json", "lines": {"int6_bpb": "final_int8_zlib_roundtrip_exact"}}
    assert launch(sweep_text(folder, {"figures": figures}), tmp_path / "out").exit_code == 0
    (row,) = rows(tmp_path / "out")
    assert [row[f"{name}_bpb"] for name in ("float", "int6", "ttt", "ema")] == [0.5, 0.75, 0.25, None]
    assert row["code_bytes"] == 12
    assert (
        "figures.json: mood is no column, float_bpb is no number" in result(tmp_path / "out").result["notes"]
    )


@pytest.mark.parametrize("figure", ["-1.5", "1e9"])  # one that is not finite ends the run
@pytest.mark.parametrize("told_by", ["importer", "lines", "file"])
def test_a_figure_that_cannot_be_is_left_out_and_said(
    told_by: str, figure: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = {"lines": {"lines": {"int6_bpb": "my_final"}}, "file": {"file": "f.json"}}.get(told_by)
    name = "my_final" if told_by == "lines" else "final_int6_roundtrip"
    if told_by == "file":
        tell = f"""open("f.json", "w").write('{{"int6_bpb": {figure}}}')"""
    else:
        tell = f'print("{name} val_loss:1.5 val_bpb:{figure}")'
    folder = write_script(tmp_path / "work", f"curve(); {tell}")
    text = sweep_text(folder, {"figures": figures} if figures else None)
    assert launch(text, tmp_path / "out").exit_code == 0
    (row,) = rows(tmp_path / "out")
    assert (row["int6_bpb"], row["float_bpb"]) == (None, 0.5)
    (run,) = load(tmp_path / "out" / "tiny" / "runs.parquet").runs  # as good as its folder
    assert run.final("int6_bpb") is None
    assert "left out" in capsys.readouterr().err


def test_a_script_without_bits_per_byte_is_judged_by_its_loss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = """
    for step in range(2, steps + 1, 2):
        print(f"step {step}: train loss {5 / step:.4f}, val loss {4 / step + down / 100:.4f}")
    """
    folder = write_script(tmp_path / "work", source)
    text = sweep_text(folder, grid={"steps": [4], "warmdown_steps": [1, 2]})
    assert launch(text, tmp_path / "out").exit_code == 0
    assert [row["val_loss"] for row in rows(tmp_path / "out")] == [1.01, 1.02]
    assert re.search(r"run 1 of 2 \S+: val loss 1.0", capsys.readouterr().err)
    assert main(["best", str(tmp_path / "out")]) == 0
    assert "val_loss 1.0100" in capsys.readouterr().out
    assert main(["status", str(tmp_path / "out")]) == 0
    assert "best so far 1.0100 nats/token (val_loss)" in capsys.readouterr().out


def test_validation_figures_of_a_file_and_their_absence_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = 'open("f.json", "w").write(\'{"val_loss": 1.5, "val_bpb": 0.7, "artefact_bytes": 3}\')'
    folder = write_script(tmp_path / "work", f"print('done'); {own}")
    assert launch(sweep_text(folder, {"figures": {"file": "f.json"}}), tmp_path / "out").exit_code == 0
    (row,) = rows(tmp_path / "out")
    assert (row["val_loss"], row["float_bpb"]) == (1.5, 0.7)
    told = "note     f.json: artefact_bytes is no column; did you mean artifact_bytes?"
    assert told in capsys.readouterr().err
    odd = write_script(tmp_path / "odd", 'curve(last=4); print("step:5/5 train_loss:1.0")')
    assert (
        launch(sweep_text(odd, grid={"steps": [5], "warmdown_ratio": [0.2]}), tmp_path / "two").exit_code == 0
    )
    assert "no validation at step 5, its last, but at 4" in capsys.readouterr().err


def test_numbers_reach_a_script_as_the_sweep_file_writes_them(tmp_path: Path) -> None:
    folder = write_script(tmp_path / "work", "curve(); print(sys.argv)")
    script = {"command": ["python", "train.py", "--lr={lr}"]}
    grid = {"steps": [4], "warmdown_steps": [2], "lr": [1.0, 2]}
    assert launch(sweep_text(folder, script, grid=grid), tmp_path / "out").exit_code == 0
    assert "--lr=1.0'" in log(tmp_path / "out") and "--lr=2'" in log(tmp_path / "out")


def test_a_run_that_the_clock_ended_has_no_warmdown_but_what_its_log_tells(tmp_path: Path) -> None:
    source = 'curve(last=2); print("stopping_early: wallclock_cap train_time:20ms step:2/4")'
    folder = write_script(tmp_path / "work", source)
    assert launch(sweep_text(folder), tmp_path / "out").exit_code == 0
    (row,) = rows(tmp_path / "out")
    names = ("steps", "peak_steps", "warmdown_steps", "warmdown_ratio", "schedule")
    assert [row[name] for name in names] == [2, None, None, None, None]
    assert main(["logs", row["run_id"], "--output", str(tmp_path / "out")]) == 0
    with pytest.raises(AnalysisError, match=r"no finished run|warmdown"):
        load(tmp_path / "out" / "tiny")


def test_more_steps_than_planned_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_script(tmp_path / "work", "steps *= 2; curve()")
    assert launch(sweep_text(folder), tmp_path / "out").exit_code == 0
    (row,) = rows(tmp_path / "out")
    assert (row["steps"], row["float_bpb"], row["warmdown_steps"]) == (8, 0.25, None)
    assert "it made 8 steps, where 4 were planned: does it use {steps}?" in capsys.readouterr().err


def test_an_artifact_that_came_with_the_script_is_not_the_runs(tmp_path: Path) -> None:
    folder = write_script(tmp_path / "work", "curve()")
    (folder / "model.bin").write_bytes(b"old")
    script = {"outputs": ["model.bin", "train.py"], "artifact": "model.bin"}
    assert launch(sweep_text(folder, script), tmp_path / "out").exit_code == 3
    assert "did not leave a new model.bin" in rows(tmp_path / "out")[0]["error"]
    anew = write_script(tmp_path / "anew", "curve(); open('model.bin', 'wb').write(b'new')")
    (anew / "model.bin").write_bytes(b"old")
    assert launch(sweep_text(anew, script), tmp_path / "two").exit_code == 0
    assert rows(tmp_path / "two")[0]["artifact_bytes"] == 3


def test_an_output_that_is_missing_is_said_at_once(tmp_path: Path) -> None:
    cluster = InThisProcess()
    folder = write_script(tmp_path / "work", "curve()")
    assert launch(sweep_text(folder, {"outputs": ["model.bin"]}), tmp_path / "out", cluster).exit_code == 3
    assert len(cluster.jobs) == 1 and "did not leave model.bin" in rows(tmp_path / "out")[0]["error"]


def test_a_run_that_ends_before_its_last_step_says_so(tmp_path: Path) -> None:
    """By wall clock, say: it is of the steps it made, and its schedule is not the one that was planned."""
    source = 'curve(last=2); print("stopping_early: wallclock_cap train_time:20ms step:2/4")'
    folder = write_script(tmp_path / "work", source)
    assert launch(sweep_text(folder), tmp_path / "out").exit_code == 0
    (row,) = rows(tmp_path / "out")
    assert (row["steps"], row["float_bpb"], row["warmdown_steps"]) == (2, 1.0, None)


def test_the_log_may_be_a_file(tmp_path: Path) -> None:
    source = """
    os.mkdir("logs")
    sys.stdout = open("logs/run.txt", "w", buffering=1)
    curve()
    """
    folder = write_script(tmp_path / "work", source)
    assert launch(sweep_text(folder, {"log": "logs/*.txt"}), tmp_path / "out").exit_code == 0
    assert rows(tmp_path / "out")[0]["float_bpb"] == 0.5


def test_an_attempt_that_was_altered_before_it_was_committed_is_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a driver leaves it that died first, on a disk that did not keep what was written."""
    text = sweep_text(write_script(tmp_path / "work", "curve()"))
    assert launch(text, tmp_path / "out").exit_code == 0
    before = rows(tmp_path / "out")[0]["float_bpb"]
    (done,) = (tmp_path / "out").glob("segments/*/DONE.json")
    (printed,) = done.parent.glob("attempts/*/script.log")
    done.unlink()
    printed.write_bytes(printed.read_bytes().replace(b"val_bpb", b"val_bpx"))
    assert launch(text, tmp_path / "out").exit_code == 0
    assert f"{printed} was altered since it was written" in capsys.readouterr().err
    assert rows(tmp_path / "out")[0]["float_bpb"] == before
