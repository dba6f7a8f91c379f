"""One run's log in the forms that launchers, loggers and archives give it: the same figures, or none."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from analysis.logs.importing import read_runs
from analysis.logs.record import Record
from analysis.runs.errors import AnalysisError

LOG = """model_params:27030107
train_batch_tokens:786432 iterations:9000 warmdown_iters:4000
seed:1337
step:0/9000 val_loss:6.9357 val_bpb:4.1077 train_time:0ms
step:10/9000 train_loss:5.9 train_time:5000ms
step:4000/9000 val_loss:2.0500 val_bpb:1.2141 train_time:2000000ms
step:9000/9000 val_loss:1.9170 val_bpb:1.1353 train_time:4500000ms
ema:applying EMA weights
DIAGNOSTIC post_ema val_loss:1.9155 val_bpb:1.1344 eval_time:2000ms
Serialized model int6+zstd: 15432359 bytes
Code size: 78281 bytes
final_int6_roundtrip_exact val_loss:1.94120000 val_bpb:1.14970000
final_int6_sliding_window_exact val_loss:1.90120000 val_bpb:1.12600000
legal_ttt_exact val_loss:1.88380000 val_bpb:1.11570000
"""
FINALS = {"ema_bpb": 1.1344, "int6_bpb": 1.1497, "int6_sliding_bpb": 1.126, "ttt_bpb": 1.1157}
WHOLE = FINALS | {
    "status": "done", "steps": 9000, "warmdown_steps": 4000, "float_bpb": 1.1353, "params": 27030107,
    "artifact_bytes": 15432359, "code_bytes": 78281, "seed": 1337,
}  # fmt: skip


def read(tmp_path: Path, text: str, warmdown: int | None = None) -> list[Record]:
    path = tmp_path / "form.log"
    path.write_text(text, encoding="utf-8")
    return read_runs(path, warmdown)


def figures(records: list[Record], names: dict[str, object] = WHOLE) -> dict[str, object]:
    (record,) = records
    return {name: record.row[name] for name in names}


PREFIXES: dict[str, Callable[[int], str]] = {
    "a machine": lambda i: "node1: ",
    "a long machine": lambda i: "gpu-node-07.cluster.local: ",
    "a machine and a task": lambda i: "node-3: 0: ",
    "bare seconds": lambda i: f"{123.456 + i:.3f}: ",
    "seconds since 1970": lambda i: f"{1772000000 + i} ",
    "a pod": lambda i: "[pod/train-0/trainer] ",
    "pod and container": lambda i: "train-job-abc12-xyz9k train ",
    "compose": lambda i: "trainer-1  | ",
    "month and time": lambda i: f"Mar  1 10:00:{i:02d} ",
    "loguru": lambda i: f"2026-03-01 10:00:{i:02d}.123 | INFO     | __main__:main:{40 + i} - ",
    "accelerate": lambda i: f"[2026-03-01 10:00:00,000] [INFO] [train.py:{120 + i}:main] [Rank 0] ",
    "NeMo": lambda i: f"[NeMo I 2026-03-01 10:00:{i:02d} train:{i}] ",
    "vLLM's": lambda i: f"INFO 03-01 10:00:{i:02d} train.py:33] ",
    "a wandb console": lambda i: "wandb: ",
    "a notebook": lambda i: f"Out[{i}]: ",
    "a quotation": lambda i: "> ",
    "two at once": lambda i: f"10:00:{i:02d} worker-0 | ",
}


@pytest.mark.parametrize("prefix", PREFIXES.values(), ids=PREFIXES)
def test_what_stands_before_every_line_is_taken_off(prefix: Callable[[int], str], tmp_path: Path) -> None:
    lines = [prefix(i) + line for i, line in enumerate(LOG.splitlines())]
    assert figures(read(tmp_path, "\n".join(lines))) == WHOLE


@pytest.mark.parametrize("word", ["best", "prev", "EMA", "draft", "teacher", "sliding", "int6"])
def test_values_of_something_else_in_a_steps_line_are_not_its_own(word: str, tmp_path: Path) -> None:
    log = LOG.replace(" val_loss:", f" {word} val_loss:1.0 val_loss:", 4)
    log = log.replace("DIAGNOSTIC", f"step:9000/9000 {word} val_loss:1.0\nDIAGNOSTIC")
    (record,) = read(tmp_path, log)
    assert [point["val_loss"] for point in record.curve] == [6.9357, 2.05, 1.917]


def test_what_stands_before_a_few_lines_is_not(tmp_path: Path) -> None:
    """Training on the validation text prints steps of its own: they are no points of the curve."""
    other = "".join(f"dttt: step:{i}/20 val_loss:1.9 val_bpb:1.1{i}\n" for i in range(1, 6))
    records = read(tmp_path, LOG.replace("Serialized", other + "Serialized"))
    adapted = WHOLE | {"int6_bpb": None, "int6_sliding_bpb": None, "ttt_bpb": None}
    assert figures(records) == adapted and len(records[0].curve) == 3


@pytest.mark.parametrize(
    "packed", ["zstd-22", "zst", "brotli11", "br", "lzma+bcj", "xz", "lz4", "bz2", "deflate", "rans"]
)
def test_a_compressor_in_a_name_is_none_of_the_stage(packed: str, tmp_path: Path) -> None:
    log = LOG.replace("final_int6_roundtrip", f"final_int6_{packed}_roundtrip").replace(
        "int6+zstd", f"int6+{packed}"
    )
    assert figures(read(tmp_path, log)) == WHOLE


@pytest.mark.parametrize(
    "form",
    [
        r"epoch 0 step \1/9000",
        r"[step \1/9000]",
        r"Step \1 of 9000 -",
        r"Validation at step \1/9000:",
        r"iter \1/9000:",
    ],
)
def test_a_step_is_read_in_other_words(form: str, tmp_path: Path) -> None:
    assert figures(read(tmp_path, re.sub(r"step:(\d+)/9000", form, LOG))) == WHOLE


def lines_of(*records: dict[str, object]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def test_records_a_line_are_read_as_words(tmp_path: Path) -> None:
    header = {"params": 27030107, "warmdown_iters": 400, "seed": 7, "total_steps": 1000}
    curve = [{"_step": s, "val/bpb": b, "val/loss": 2 * b} for s, b in ((500, 1.3), (1000, 1.2))]
    ends = [
        {"step": 1000, "stage": "final_int6_roundtrip", "val_bpb": 1.23},
        {"stage": "legal_ttt", "val_bpb": 1.19},
    ]
    expected = {
        "steps": 1000, "params": 27030107, "warmdown_steps": 400, "seed": 7, "float_bpb": 1.2,
        "int6_bpb": 1.23, "ttt_bpb": 1.19,
    }  # fmt: skip
    found = [header, {"step": 100, "train_loss": 3.0}, *curve, *ends]
    assert figures(read(tmp_path, lines_of(*found)), expected) == expected
    assert figures(read(tmp_path, "".join(f"{one}\n" for one in found)), expected) == expected


def test_a_split_names_the_loss_of_a_record(tmp_path: Path) -> None:
    rows = [
        {"step": s, "split": split, "loss": 2.5 + s / 1000} for s in (500, 1000) for split in ("val", "train")
    ]
    (record,) = read(tmp_path, lines_of(*rows))
    assert [point["val_loss"] for point in record.curve] == [3.0, 3.5]


@pytest.mark.parametrize(
    "text", ['{"step": 1, "val_bpb": ' + "9" * 5000 + "}", "{" * 9000 + "}", '{"a": ' * 900 + "1" + "}" * 900]
)
def test_records_without_an_end_are_no_run(text: str, tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match=r"no curve to read|is it a training log"):
        read(tmp_path, text + "\n")


def test_a_run_of_unknown_plan_is_finished_where_who_imports_it_says_so(tmp_path: Path) -> None:
    log = "step 0: train loss 9.9, val loss 9.8\nstep 1000: train loss 3.9, val loss 4.0\n"
    (unsaid,), (said,) = read(tmp_path, log), read(tmp_path, log, warmdown=200)
    assert unsaid.row["status"] == "unfinished" and "--warmdown" in str(unsaid.row["notes"])
    assert (said.row["status"], said.row["peak_steps"]) == ("done", 800)
    (crashed,) = read(tmp_path, log + "Killed\n", warmdown=200)
    assert crashed.row["status"] == "unfinished"


def test_an_early_stop_is_not_the_clock_for_naming_a_time(tmp_path: Path) -> None:
    stop = "stopping_early: patience train_time:4500000ms step:9000/20000\nema:applying"
    log = (
        LOG.replace("ema:applying", stop)
        .replace("/9000", "/20000")
        .replace("iterations:9000", "iterations:20000")
    )
    assert figures(read(tmp_path, log), {"stopped_by": ""}) == {"stopped_by": "early stop"}


def test_steps_of_adaptation_are_no_points_of_the_curve(tmp_path: Path) -> None:
    adapted = "".join(f"step:{i}/300 val_loss:1.8 val_bpb:1.0{i}\n" for i in (100, 200, 300))
    log = LOG.replace(
        "ema:applying", "starting test-time training on validation set\n" + adapted + "ema:applying"
    )
    (record,) = read(tmp_path, log)
    expected = WHOLE | dict.fromkeys(FINALS)
    assert figures([record]) == expected and [point["step"] for point in record.curve] == [0, 4000, 9000]
    assert "no part of its curve" in str(record.row["notes"])


def test_a_warmdown_in_percent_is_a_share(tmp_path: Path) -> None:
    expected = {"warmdown_steps": 3600, "warmdown_fraction": 0.4}
    assert figures(read(tmp_path, LOG.replace("warmdown_iters:4000", "warmdown: 40%")), expected) == expected


def test_a_script_that_counts_from_0_ends_one_step_early(tmp_path: Path) -> None:
    expected = {"steps": 8999, "stopped_by": "steps", "warmdown_steps": 3999, "ttt_bpb": 1.1157}
    assert figures(read(tmp_path, LOG.replace("step:9000/9000", "step:8999/9000")), expected) == expected


def test_what_follows_quantization_is_quantized(tmp_path: Path) -> None:
    log = LOG.replace("final_int6_roundtrip_exact", "post-quantization").replace(
        "DIAGNOSTIC post_ema", "pre-quant post-ema"
    )
    assert figures(read(tmp_path, log)) == WHOLE
