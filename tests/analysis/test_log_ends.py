"""How a run of a log ended, what follows its end, and whose the values of its lines are."""

from pathlib import Path

import pytest

from analysis.logs.importing import read_runs
from analysis.logs.record import Record
from analysis.runs.errors import AnalysisError
from tests.log_lines import BEGUN, INT6, WHOLE, step


def read(tmp_path: Path, content: str | bytes) -> list[Record]:
    path = tmp_path / "a.log"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_runs(path)


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("new best val_bpb: 1.5, saving checkpoint\nKilled\n", "unfinished"),
        ("checkpoint saved val_loss:2.5 val_bpb:1.5\n", "unfinished"),
        ("Killed\n", "unfinished"),
        ("early_stopping: False\n", "unfinished"),
        ("early_stopping_patience: 5\nearly_stop_counter: 1/5\n", "unfinished"),
        ("Reached wall clock limit of 600 seconds, exiting training loop.\n", "done"),
        ("No improvement for 5 evaluations. Early stopping at step 1000.\n", "done"),
        ("Time limit reached, stopping\n", "done"),
        ("[INFO] Training completed\n", "done"),
        ("slurmstepd: error: *** JOB 1 CANCELLED DUE TO TIME LIMIT ***\n", "unfinished"),
    ],
)
def test_words_of_an_end_and_of_none(tmp_path: Path, end: str, status: str) -> None:
    (record,) = read(tmp_path, BEGUN.replace(":102", ":900" if "Killed" not in end else ":102") + end)
    assert (record.row["status"], record.row["steps"]) == (status, 1000)


def test_a_figure_printed_at_every_checkpoint_is_no_end(tmp_path: Path) -> None:
    again = "int6_roundtrip val_loss:3.1 val_bpb:2.1\n"
    (record,) = read(tmp_path, step(0, 9.0) + again + step(500, 3.0) + again + step(1000, 2.5) + again)
    assert record.row["status"] == "unfinished" and record.row["int6_bpb"] is None


@pytest.mark.parametrize(
    "planned", ["max_iters = 1000", "  train_iters ..................... 1000", "{'total_steps': 1000}"]
)
def test_the_steps_that_were_planned(tmp_path: Path, planned: str) -> None:
    (record,) = read(tmp_path, f"{planned}\nstep 500: val loss 2.5\nstep 1000: val loss 2.4\n")
    assert (record.row["status"], record.row["planned_steps"]) == ("done", 1000)


AFTER = {
    "of a calibration": step(1, 2.2, 64) + step(64, 2.1, 64),
    "of a calibration from 0": step(0, 2.2, 64) + step(64, 2.1, 64),
    "of an evaluation": "".join(f"eval step {s}/9000 val_loss:1.9 val_bpb:1.1\n" for s in (1000, 4000)),
    "without a total": "step 500 val_loss 2.0 val_bpb 1.2\nstep 4000 val_loss 1.9 val_bpb 1.1\n",
    "of adaptation": "fine-tuning on val\nstep 100 val_loss 2.0 val_bpb 1.2\n",
}


@pytest.mark.parametrize("more", AFTER.values(), ids=AFTER)
def test_steps_after_the_last_are_no_training(tmp_path: Path, more: str) -> None:
    (record,) = read(tmp_path, WHOLE + more + INT6)
    assert (record.row["steps"], record.row["float_bpb"], len(record.curve)) == (2000, 1.2, 3)
    assert "steps after the training's last" in str(record.row["notes"])


def test_a_longer_run_after_a_short_one_is_a_run_of_its_own(tmp_path: Path) -> None:
    short = step(100, 3.5, 200) + step(200, 3.4, 200)
    runs = read(tmp_path, short + step(1000, 2.5) + step(2000, 2.2))
    assert [record.row["steps"] for record in runs] == [200, 2000]


def test_a_warm_up_is_no_run_and_its_header_the_next_ones(tmp_path: Path) -> None:
    (record,) = read(tmp_path, "seed:7\n" + step(10, 9.9) + step(20, 9.1) + step(0, 9.0) + step(2000, 2.2))
    assert (record.row["seed"], [point["step"] for point in record.curve]) == (7, [0, 2000])
    assert "lines 1-3: a warm-up, left out" in str(record.row["notes"])


@pytest.mark.parametrize("tag", ["a-{}  | ", "seed={}\t", "[pod/train-{}/main] "])
def test_runs_printed_at_the_same_time_are_told_by_what_is_before_their_lines(
    tmp_path: Path, tag: str
) -> None:
    lines = zip(
        WHOLE.splitlines(), WHOLE.replace("seed:1", "seed:2").replace("2.2", "2.1").splitlines(), strict=True
    )
    text = "".join(f"{tag.format(i)}{line}\n" for both in lines for i, line in enumerate(both, start=1))
    runs = read(tmp_path, text)
    assert [(r.row["seed"], r.curve[-1]["val_loss"]) for r in runs] == [(1, 2.2), (2, 2.1)]


def test_runs_printed_at_the_same_time_without_a_sign_are_refused(tmp_path: Path) -> None:
    text = "".join(step(s, v) + step(s, v + 1) for s, v in ((0, 9.0), (1000, 2.5), (2000, 2.2)))
    with pytest.raises(AnalysisError, match="lines 1 and 2: two values of step 0, as of two runs"):
        read(tmp_path, text)


OWN = {
    "draft after": "draft val_loss:3.9 val_bpb:2.9",
    "teacher first": "|",
    "best so far": "best val_loss:2.0 val_bpb:1.0",
    "the last one's": "(prev val_loss 2.6)",
    "by an underscore": "ema_val_loss:2.0 int6_val_bpb:1.3",
    "of averaged weights": "ema val loss 3.0",
    "the test's": "| test val_loss:2.9 val_bpb:1.9",
}


@pytest.mark.parametrize("other", OWN.values(), ids=OWN)
def test_values_of_others_are_not_the_runs(tmp_path: Path, other: str) -> None:
    lines = [f"step:{s}/2000 val_loss:2.{s // 1000} val_bpb:1.{s // 1000} {other}" for s in (1000, 2000)]
    if other == "|":
        lines = [
            f"step:{i}000/2000 teacher val_loss:1.9 val_bpb:0.9 | student val_loss:2.{i} val_bpb:1.{i}"
            for i in (1, 2)
        ]
    again = [f"step:{s}/2000 {other}" for s in (1000, 2000) if "draft" in other or "ema val loss" in other]
    (record,) = read(tmp_path, "\n".join([*lines, *again]))
    assert [(p["val_loss"], p["val_bpb"]) for p in record.curve] == [(2.1, 1.1), (2.2, 1.2)]


def test_the_last_step_again_with_averaged_weights_is_a_figure(tmp_path: Path) -> None:
    (record,) = read(tmp_path, WHOLE + "ema:applying EMA weights\n" + step(2000, 2.1))
    assert (record.row["float_bpb"], record.row["ema_bpb"]) == (1.2, 1.1)
