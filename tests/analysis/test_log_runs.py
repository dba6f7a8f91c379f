"""The runs in a log: where one begins and how it ended, and which lines are of no run."""

import gzip
from pathlib import Path

import pytest

from analysis.logs.importing import read_runs
from analysis.logs.record import Record
from analysis.runs.errors import AnalysisError
from tests.log_lines import FINALS, SOURCE, bpb, curve, log, stopped


def read(tmp_path: Path, content: str | bytes, name: str = "a.log") -> list[Record]:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_runs(path)


def test_every_figure_of_a_log(tmp_path: Path) -> None:
    (record,) = read(tmp_path, log(*FINALS, last=5300))
    row = record.row
    assert {
        name: row[name] for name in ("status", "steps", "planned_steps", "stopped_by", "cap_seconds")
    } == {
        "status": "done",
        "steps": 5300,
        "planned_steps": 20000,
        "stopped_by": "wallclock",
        "cap_seconds": 600.0,
    }
    assert (row["params"], row["seed"], row["train_tokens"]) == (26993756, 42, 5300 * 786432)
    assert (row["float_bpb"], row["train_seconds"]) == (bpb(5300), 530.0)
    assert [point["step"] for point in record.curve] == [0, 1000, 2000, 3000, 4000, 5000, 5300]
    assert record.curve[1] == pytest.approx(
        {
            "step": 1000,
            "val_bpb": bpb(1000),
            "val_loss": 1.69 * bpb(1000),
            "train_loss": 1.7 * bpb(1000),
            "train_time_ms": 100_000.0,
        },
        abs=1e-4,
    )


def test_a_script_that_prints_itself_says_nothing_of_its_run(tmp_path: Path) -> None:
    (record,) = read(tmp_path, SOURCE + "\n" + log(*FINALS))
    assert record.row["int6_bpb"] == 1.13000001 and record.row["seed"] == 42 and len(record.curve) == 7
    assert "WARMDOWN_ITERS" not in str(record.row) and "warmdown_iters 1200 by default" in str(
        record.row["notes"]
    )
    bare = SOURCE.partition("=====")[0]
    (without_marker,) = read(tmp_path, "logs/1.txt\n" + bare + "\n" + log(*FINALS))
    assert without_marker.row["int6_bpb"] == 1.13000001 and without_marker.row["seed"] == 42


@pytest.mark.parametrize("between", ["", SOURCE + "\n", "=== ABLATION 2 ===\nlogs/abl_2.txt\n"])
def test_several_runs_in_one_file(tmp_path: Path, between: str) -> None:
    seeds = (42, 999, 1337)
    text = between.join(log(*FINALS, seed=seed, last=5400 + i) for i, seed in enumerate(seeds))
    records = read(tmp_path, text)
    assert [(r.row["seed"], r.row["steps"], r.row["int6_bpb"]) for r in records] == [
        (seed, 5400 + i, 1.13000001) for i, seed in enumerate(seeds)
    ]
    assert all(len(record.curve) == 7 for record in records)


def test_runs_without_a_header_begin_where_steps_do(tmp_path: Path) -> None:
    one = "\n".join([*curve(range(0, 3001, 500), 3000), "post_ema val_bpb:1.2"])
    two = "\n".join([*curve(range(500, 3001, 500), 3000, ms=90), "post_ema val_bpb:1.3"])
    records = read(tmp_path, f"{one}\n{two}\n")
    assert [(record.row["steps"], record.row["ema_bpb"]) for record in records] == [(3000, 1.2), (3000, 1.3)]


def test_a_run_that_was_resumed_is_one(tmp_path: Path) -> None:
    first = log().partition("step:4000/")[0]
    later = log(*FINALS).splitlines()
    again = [line for line in later if not line.startswith(("step:0/", "step:1000/", "step:2000/"))]
    (record,) = read(tmp_path, first + "\n".join(again))
    assert (record.row["steps"], record.row["int6_bpb"], len(record.curve)) == (6000, 1.13000001, 7)
    assert "resumed at step 3,000" in str(record.row["notes"])


@pytest.mark.parametrize(
    ("said", "at", "steps"),
    [
        ("resuming from checkpoint step_1000.pt", [0, 500, 1000], [0, 500, 1000, 1500, 2000]),
        ("Resumed training from runs/a.pt (1,000 steps done)", [500, 1000], [0, 500, 1000, 1500, 2000]),
        ("loaded checkpoint at iteration 500, continuing", [250, 500], [0, 500, 750, 1000]),
        ("continuing from step 1000", [1500, 2000], [0, 500, 1000, 1500, 2000]),  # these count themselves
        ("resuming from last.pt", [1000, 1500], [0, 500, 1000, 1500]),
    ],
)
def test_steps_that_begin_again_after_a_resume_are_counted_on(
    tmp_path: Path, said: str, at: list[int], steps: list[int]
) -> None:
    before = [f"step:{step} val_bpb:{2.0 - step / 10_000:.4f}" for step in (0, 500, 1000)]
    first = 1000 if said.endswith("last.pt") else 1001
    after = [f"step:{step} val_bpb:{1.9 - i / 100 - (first - 1000) / 1000:.4f}" for i, step in enumerate(at)]
    (record,) = read(tmp_path, "\n".join([*before, "Traceback (most recent call last):", said, *after]))
    assert [point["step"] for point in record.curve] == steps
    counted = "counted on from" in str(record.row["notes"])
    assert counted == (at[0] < 1000 and at[-1] <= 1000)


def test_a_resume_that_does_not_say_how_many_steps_were_done(tmp_path: Path) -> None:
    """Neither its length nor its curve can be known; a model that begins is another run."""
    before = [f"step:{step} val_bpb:{3.0 - step / 1000:.4f}" for step in (0, 500, 1000)]
    with pytest.raises(
        AnalysisError, match=r"line 5: steps begin again after line 4 \(resuming from last.pt\)"
    ):
        read(
            tmp_path,
            "\n".join([*before, "resuming from last.pt", "step:0 val_bpb:2.0", "step:500 val_bpb:1.9"]),
        )
    again = [f"step:{step} val_bpb:{3.01 - step / 1000:.4f}" for step in (0, 500, 1000)]
    assert len(read(tmp_path, "\n".join([*before, "restarting from the beginning", *again]))) == 2


def test_a_run_printed_twice_is_one(tmp_path: Path) -> None:
    """A console's output with the log file, source and all, behind it."""
    (record,) = read(tmp_path, log(*FINALS) + SOURCE[200:] + "\n" + log(*FINALS))
    assert record.row["int6_bpb"] == 1.13000001 and "printed twice" in str(record.row["notes"])


def test_figures_below_another_runs_header_are_not_taken(tmp_path: Path) -> None:
    (record,) = read(tmp_path, log() + "model_params:26993756\nseed:7\n" + "\n".join(FINALS))
    assert record.row["int6_bpb"] is None and "another seed's header" in str(record.row["notes"])
    (same,) = read(tmp_path, log() + "model_params:26993756\nseed:42\n" + "\n".join(FINALS))
    assert same.row["int6_bpb"] == 1.13000001


UNFINISHED = (
    log(last=20000, cap=0).partition("step:3000/")[0] + "step:3600/20000 train_loss:2.1 train_time:360000ms\n"
)


@pytest.mark.parametrize(
    "end",
    [
        "",
        "torch.OutOfMemoryError: CUDA out of memory.\n",
        "Connection to 64.247.1.1 closed by remote host.\n",
    ],
)
def test_an_unfinished_run_has_a_curve_and_no_schedule(tmp_path: Path, end: str) -> None:
    path = tmp_path / "killed.log"
    path.write_text(UNFINISHED + end)
    (record,) = read_runs(path, warmdown_steps=1000)
    row = record.row
    assert (row["status"], row["steps"], row["planned_steps"]) == ("unfinished", 3600, 20000)
    assert f"unfinished at step 3,600 of 20,000{' (line' if end else ''}" in str(row["notes"])
    assert [point["step"] for point in record.curve] == [0, 1000, 2000]
    for name in ("float_bpb", "int6_bpb", "peak_steps", "warmdown_steps", "schedule"):
        assert row[name] is None


def test_how_a_run_ended(tmp_path: Path) -> None:
    (made,) = read(tmp_path, log(last=20000, cap=0))
    assert (made.row["status"], made.row["stopped_by"], made.row["cap_seconds"]) == ("done", "steps", None)
    (crashed,) = read(tmp_path, log("Traceback (most recent call last):"))
    assert crashed.row["status"] == "done" and "ended badly (line" in str(crashed.row["notes"])
    told = log(*FINALS, cap=600).replace(stopped(6000) + "\n", "")
    (by_figures,) = read(tmp_path, told)
    assert (by_figures.row["status"], by_figures.row["stopped_by"]) == ("done", "wallclock")
    (by_time,) = read(tmp_path, told.replace("\n".join(FINALS), ""))
    assert (by_time.row["status"], by_time.row["stopped_by"]) == ("done", "wallclock")
    (plainly,) = read(tmp_path, told.replace("peak memory", "early_stop step:6000\npeak memory"))
    assert plainly.row["stopped_by"] == "wallclock"
    at_training = told.replace(f"step:6000/20000 val_loss:{1.69 * bpb(6000):.4f}", "gone")
    (unsure,) = read(tmp_path, at_training)
    assert "may have made some more" in str(unsure.row["notes"]) and unsure.row["float_bpb"] is None
    (tail,) = read(tmp_path, "\n".join([*curve([4000, 4486]), stopped(4486), *FINALS]))
    assert (tail.row["steps"], tail.row["seed"], tail.row["int6_bpb"]) == (4486, None, 1.13000001)


def test_a_diverged_run_is_said_to_be_one(tmp_path: Path) -> None:
    (record,) = read(tmp_path, log(*FINALS).replace(f"val_bpb:{bpb(4000):.4f}", "val_bpb:nan"))
    assert record.row["status"] == "diverged" and record.row["int6_bpb"] is None
    assert "not finite at step 4,000" in str(record.row["notes"])


FORMS = {
    "no word": "5{0}/20000 val_loss: 2.9 val_bpb: 1.1{0}",
    "blanks": "step 5{0}/20000 | val_loss 2.9 | val_bpb 1.1{0}",
    "equals": "step=5{0} validation_loss=2.9 validation_bpb=1.1{0} learning_rate_multiplier=1.0",
    "of": "Step 5{0} of 20,000: val loss 2.9, val bpb 1.1{0}",
    "brackets": "[step 5{0}] val_loss=2.9 val_bpb=1.1{0}",
    "word val": "iter 5{0}/20000 | val | loss 2.9 | bpb 1.1{0}",
    "rank and time": "[rank0]: 2026-03-22 05:24:42,123 - INFO - step:5{0}/20000 val_loss:2.9 val_bpb:1.1{0}",
    "a step in brackets": "[step:5{0}] val_loss:2.9 val_bpb:1.1{0}",
    "srun": "0: step:5{0}/20000 val_loss:2.9 val_bpb:1.1{0}",
    "colours": "\x1b[32mstep:5{0}/20000\x1b[0m val_loss:\x1b[1m2.9\x1b[0m val_bpb:1.1{0}",
    "progress bar": "train: 2%|#3  | 12/20000 [0:01<2:10]\r\x1b[Astep:5{0}/20000 val_loss:2.9 val_bpb:1.1{0}",
    "in the bar": "run: 25%|##    | 5{0}/20000 [05:00<15:00, 9.9it/s, val_loss=2.9, val_bpb=1.1{0}]",
    "time first": "step:5{0}/20000 val_loss:2.9 train_time:50000ms step_avg:99.99ms val_bpb:1.1{0}",
    "windows line ends": "step:5{0}/20000 val_loss:2.9 val_bpb:1.1{0}\r",
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_forms_of_a_step(tmp_path: Path, form: str) -> None:
    (record,) = read(tmp_path, "\n".join(form.format(digit * 3) for digit in "123"))
    assert [(p["step"], p["val_bpb"], p["val_loss"]) for p in record.curve] == [
        (5111, 1.1111, 2.9),
        (5222, 1.1222, 2.9),
        (5333, 1.1333, 2.9),
    ]


@pytest.mark.parametrize(
    "prefix",
    [
        "2026-03-22T05:24:42.123456789Z stdout F ",
        "[2026-03-22 05:24:42,123][__main__][INFO] - ",
        "2026/03/22 05:24:42 INFO ",
        "Mar 22 05:24:42 node1 python[123]: ",
        "I0322 05:24:42.000000 123 train.py:12] ",
        "INFO:root:",
        "[12.34s] ",
        "[1,0]<stdout>:",
        "[node1:0] ",
        "[Rank 0] ",
        "worker-0 | ",
        "\x1b[36m(RayTrainWorker pid=99, ip=10.0.0.1)\x1b[0m ",
    ],
)
def test_prefixes_of_lines(tmp_path: Path, prefix: str) -> None:
    (record,) = read(tmp_path, "".join(f"{prefix}{line}\n" for line in log(*FINALS).splitlines()))
    assert len(record.curve) == 7 and (record.row["seed"], record.row["ttt_bpb"]) == (42, 1.09440207)


def test_lines_of_other_ranks_and_of_progress_are_passed_over(tmp_path: Path) -> None:
    ranks = "".join(f"[rank{rank}]:step:100/200 val_loss:{rank}.5 val_bpb:{rank}.1\n" for rank in range(8))
    noise = (
        "32/969088 windows running_bpb=1.3\nval_progress:1/60\nttt_step:7/20 val_bpb:0.9\nwarmup_step:19/20\n"
    )
    (record,) = read(tmp_path, f"{ranks}{noise}[rank0]:step:200/200 val_loss:1.4 val_bpb:1.0\n")
    assert [(p["step"], p["val_bpb"]) for p in record.curve] == [(100, 0.1), (200, 1.0)]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    (record,) = read(tmp_path, ("é ü: a café's log\n" + log(*FINALS)).encode(encoding))
    assert record.row["ttt_bpb"] == 1.09440207


def test_gzip_whole_and_cut_short_and_holes_of_a_crash(tmp_path: Path) -> None:
    packed = gzip.compress(log(*FINALS).encode(), mtime=0)
    assert read(tmp_path, packed, "a.log.gz")[0].row["ttt_bpb"] == 1.09440207
    assert read(tmp_path, packed[:-40])[0].row["status"] in ("done", "unfinished")
    holes = log(*FINALS).replace("warmup_step:1/20", "\0" * 300)
    assert read(tmp_path, holes)[0].row["ttt_bpb"] == 1.09440207


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "no line like"),
        ("# Results\n- val_bpb of seed 42 was val_bpb:1.1\n", "line 2: "),
        ("torch==2.8.0\nnumpy\n", "is it a training log"),
        ("step:0/0 val_loss:2.3 val_bpb:1.14\n", "no validation after step 0"),
        ("step:100/200 train_loss:2.0 train_time:1ms\n", "lines 1 to 1: steps up to 100"),
        ("step:1/20 train_loss:nan\nstep:2/20 train_loss:nan\n", "line 1: the loss is not finite"),
        (bytes(range(256)) * 40, "not a text file"),
        (b"\x1f\x8bnot gzip at all", "damaged gzip"),
        ("\n".join(FINALS), "is no line of a step"),
    ],
)
def test_what_is_no_log_is_refused_in_one_line(tmp_path: Path, content: str | bytes, why: str) -> None:
    with pytest.raises(AnalysisError, match=why) as error:
        read(tmp_path, content)
    assert str(error.value).count("\n") == 0 and str(tmp_path) in str(error.value)


def test_bits_per_token_are_said(tmp_path: Path) -> None:
    lines = [
        f"step:{s}/300 val_loss:{loss} val_bpb:{loss / 0.693147:.4f}" for s, loss in ((100, 3.2), (300, 2.5))
    ]
    (record,) = read(tmp_path, "\n".join(lines))
    assert "bits per token" in str(record.row["notes"])
