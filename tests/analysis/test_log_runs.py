"""The runs in a log: where one begins and how it ended, and which lines are of no run."""

import gzip
import json
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


def step(at: int, value: float, of: int = 2000) -> str:
    return f"step:{at}/{of} val_loss:{value} val_bpb:{value - 1:.1f} train_time:{at}00ms\n"


BEGUN = "max_wallclock_seconds:102\nseed:1\n" + step(0, 9.0) + step(1000, 2.5)
WHOLE = BEGUN + step(2000, 2.2)
INT6 = "final_int6_roundtrip_exact val_loss:2.3 val_bpb:1.35\n"


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


TRAINERS = {
    "torchtitan": "step: {0}  loss: 2.0  mfu: 30%\nvalidate step: {0}  loss: 2.4  tps: 1,2",
    "MaxText": "completed step: {0}, seconds: 1.2, loss: 2.1\n"
    "eval metrics after step: {0}, loss=2.4, total_weights=9",
    "litgpt": "Epoch 1 | iter 9{0} step {0} | loss train: 2.1, val: 2.4 | iter time: 3 ms (step)",
    "llm.c": "s:{0} trl:2.0\ns:{0} tel:2.4",
    "thousands": "step 1.{0}k: train loss 2.0, val loss 2.4",
    "Megatron": " validation loss at iteration {0} | lm loss value: 2.4E+00 | lm loss PPL: 9\n"
    " validation loss at iteration {0} on test set | lm loss value: 9.4E+00 | lm loss PPL: 9",
    "transformers": "{{'loss': 2.1, 'epoch': 0.5}}\n 10%|#  | {0}/900 [10:00<10:00, 1.2it/s]"
    "{{'eval_loss': 2.4, 'eval_runtime': 12.1, 'epoch': 0.5}}\n100%|###| 63/63 [00:01<00:00]\n",
    "Lightning": "Epoch {1}: 100%|##| 100/100 [01:40<00:00, 9.9it/s, train_loss=2.3, val_loss={1}.4]",
    "OLMo": "[step={0}/300,epoch=0]\n    train/CrossEntropyLoss=2.1\n"
    "[step={0}/300,epoch=0]\n    eval/validation/CrossEntropyLoss=2.4\n    eval/validation/Perplexity=11.0",
    "Composer": "[batch={0}/300]:\n\t Train loss/train/total: 2.1\n"
    "\t Eval metrics/eval/LanguageCrossEntropy: 2.4",
    "gpt-neox": " iteration {0}/ 300 | lm_loss: 2.1E+00 | loss scale: 1.0 |\n"
    " validation results at iteration {0} | lm_loss value: 2.4E+00 | lm_loss_ppl value: 1.5E+01 |",
    "a checkpoint of Lightning": "Epoch 0, global step {0}: 'val_loss' reached 2.4 (best 2.4), saving model",
    "DeepSpeed": "step: {0} loss: 2.1 samples/sec: 9\n"
    "Evaluation at step {0}: eval_loss = 2.4, perplexity = 11.0",
    "Levanter": "2024-06-01T10:00:00 - 0 - levanter.callbacks - INFO - Step {0}: train loss = 2.1\n"
    "2024-06-01T10:00:10 - 0 - levanter.eval - INFO - validation loss: 2.4",
    "build-nanogpt": "{0} val 2.4\n{0} hella 0.29\n{0} train 2.1",
    "Optuna": "[I 2024-06-01 10:00:00,123] Trial 3 step {0}: val_loss 2.4",
    "metric loggers": "[{0}/300] eta: 0:10:00 loss: 2.1 (2.2) val_loss: 2.4 time: 0.3",
    "scientific": "step {1}.0e+02 val_loss 2.4000e+00",
    "decimal commas": "step {0}: val loss 2,4000, train loss 2,1",
    "an arrow": "step {0} val_loss 2.9 -> 2.4",
    "slashes": "[  {0}/300] train/loss=2.1 val/loss=2.4",
    "tokens first": "tokens: 524,288,000 | step {0} | val_loss: 2.4",
    "smoothed before": "step {0} smoothed val_loss 2.9 val_loss 2.4",
    "Keras": "Epoch {1}/3\n100/100 [=====] - 10s 10ms/step - loss: 2.3 - val_loss: {1}.4",
}


@pytest.mark.parametrize("form", TRAINERS.values(), ids=TRAINERS)
def test_trainers_of_others(tmp_path: Path, form: str) -> None:
    path = tmp_path / "a.log"
    path.write_text("\n".join(form.format(100 * i, i) for i in (1, 2, 3)))
    (record,) = read_runs(path, warmdown_steps=0)
    steps = [1100, 1200, 1300] if "1.{0}k" in form else [100, 200, 300]
    losses = [1.4, 2.4, 3.4] if "{1}.4" in form else [2.4] * 3
    assert [(p["step"], p["val_loss"]) for p in record.curve] == list(zip(steps, losses, strict=True))


@pytest.mark.parametrize(
    "line",
    [
        "step {0} | c4 val_loss 2.8 | wiki val_loss 3.1", "step {0} val_loss/c4 2.8 val_loss/wiki 3.1",
        "step {0} | val_loss (bits) 4.1", "step {0} | val ppl 9.1", "Epoch {0}/3 - loss: 2.7 - val_loss: 2.8",
        "[step={0}/3]\n    eval/c4/CrossEntropyLoss=2.8\n    eval/pile/CrossEntropyLoss=2.9",
        "epoch {1} step 100 val_loss 2.8\nepoch {1} step 200 val_loss 2.7",
    ],
)  # fmt: skip
def test_what_is_not_one_loss_a_step_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(AnalysisError):
        read(tmp_path, "\n".join(line.format(i, i) for i in (1, 2, 3)))


def test_a_bar_that_repeats_its_validation_measured_it_once(tmp_path: Path) -> None:
    bars = [
        f"10%|#| {s}/300 [00:10<00:30, 9.9it/s, loss=2.0, val_loss={v}]"
        for s, v in ((100, 2.5), (200, 2.5), (300, 2.4))
    ]
    (record,) = read(tmp_path, "\r".join(bars))
    assert [(p["step"], p["val_loss"]) for p in record.curve] == [(100, 2.5), (300, 2.4)]


@pytest.mark.parametrize(
    "said",
    [
        "model_params: 27,030,107", "Number of parameters: 27,030,107", "| num_parameters | 27030107 |",
        "Model size: 27,030,107 total parameters",
    ],
)  # fmt: skip
def test_parameters_are_counted_in_many_words(tmp_path: Path, said: str) -> None:
    (record,) = read(tmp_path, f"{said}\n{WHOLE}")
    assert record.row["params"] == 27030107


def test_an_evaluation_alone_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match="an evaluation without a training"):
        read(tmp_path, f"eval_only:1\n{step(100, 2.2)}{step(970, 2.1, 970)}")


@pytest.mark.parametrize("encoding", ["utf-32", "utf-32-le"])
def test_wide_encodings_and_lines_that_collectors_wrap(tmp_path: Path, encoding: str) -> None:
    marked = WHOLE if encoding == "utf-32" else "\ufeff" + WHOLE
    assert read(tmp_path, marked.encode(encoding))[0].row["steps"] == 2000
    wrapped = "".join(
        json.dumps({"log": line + "\n", "stream": "stdout"}) + "\n" for line in WHOLE.splitlines()
    )
    assert read(tmp_path, wrapped)[0].row["float_bpb"] == 1.2
    assert read(tmp_path, WHOLE.encode() + b"\0" * 4000)[0].row["float_bpb"] == 1.2


def test_a_record_printed_over_many_lines_is_read(tmp_path: Path) -> None:
    history = [{"loss": 2.1, "step": 100}, {"eval_loss": 2.4, "step": 100}]
    state = json.dumps({"max_steps": 100, "log_history": history}, indent=2)
    (record,) = read(tmp_path, f"starting\n{state}\nbye\n")
    assert [(p["step"], p["val_loss"]) for p in record.curve] == [(100, 2.4)]


@pytest.mark.parametrize(
    "word", ["pack ", "qat step:1 ", "restore ", "epoch 1 | ", "val_loss ", "| 1/2 [", "{"]
)
def test_a_line_without_end_is_read_in_part(tmp_path: Path, word: str) -> None:
    """Patterns must not take its square in time: this test would not end."""
    (record,) = read(tmp_path, WHOLE + word * 200_000 + "\n" + INT6)
    assert record.row["int6_bpb"] == 1.35
