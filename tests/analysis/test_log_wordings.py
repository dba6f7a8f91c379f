"""The same facts in the words, numbers and layouts of many authors."""

from pathlib import Path
from typing import Any

import pytest

from analysis.logs.importing import read_runs
from analysis.logs.record import Record
from analysis.runs.errors import AnalysisError

CURVE = [
    f"step {at} val_loss {loss} val_bpb {bpb}"
    for at, loss, bpb in ((0, 6.9, 4.1), (500, 2.2, 1.3), (1000, 2.0, 1.2))
]


def read(tmp_path: Path, *lines: str) -> Record:
    path = tmp_path / "a.log"
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    (record,) = read_runs(path)
    return record


def row(tmp_path: Path, *lines: str) -> dict[str, Any]:
    return read(tmp_path, *lines).row


@pytest.mark.parametrize(
    "form",
    [
        "step {0}'{1} val_loss 2.5 val_bpb 1.5",
        "step {0}\u202f{1}/12\u202f000 val_loss: 2,5000 val_bpb: 1,5000",
        "step {0} {1} / 12 000 : val_loss 2.5, val_bpb 1.5",
        "step {0}.{1}/12.000 val_loss: 2,50 val_bpb: 1,50",
        "step {0}.{1}k/12.0k val_loss 2.5 val_bpb 1.5",
        "step {0}.{1}e+03/1.2e+04 val_loss 2.5 val_bpb 1.5",
    ],
)
def test_numbers_of_other_countries(tmp_path: Path, form: str) -> None:
    found = read(
        tmp_path, *(form.format(thousand, "500" if "e+" not in form else "5") for thousand in (1, 2, 3))
    )
    assert [(p["step"], p["val_loss"], p["val_bpb"]) for p in found.curve] == [
        (at, 2.5, 1.5) for at in (1500, 2500, 3500)
    ]


def test_numbers_that_stand_side_by_side_are_two(tmp_path: Path) -> None:
    found = row(tmp_path, "seed 3 200 shards", *CURVE, "int6 roundtrip val_bpb: 1,112362")
    assert (found["seed"], found["int6_bpb"]) == (3, 1.112362)


BLOCKS = {
    "headings": "--- validation @ {0} ---\n    loss   {1}\n    bpb    {2}",
    "a step and what is below it": "Step {0}\n\ttrain loss : 3.3\n\tval loss   : {1}\n\tval bpb    : {2}",
    "a count": "{0}: val_loss {1} val_bpb {2}",
    "brackets": "[{0}] val_loss={1} val_bpb={2}",
    "short names": "s {0} vl {1} vbpb {2}",
    "tokens first": "0.262B tokens | step {0} | val_loss {1} | val_bpb {2}",
    "of the validation": "it={0}/1000 xent(val)={1} bpb(val)={2} xent(train)=3.1",
    "both averages": "step {0} val_loss {1} val_bpb raw={2} ema=1.9",
    "units": "[{0}/1000] val {1} nats  {2} bpb",
    "logfmt": 'time=2026-03-01T10:00:11Z level=info msg="validation" iteration={0} nll={1} bits_per_byte={2}',
    "events": '{{"event": "val", "iter": {0}, "metrics": {{"nll": {1}, "bpb": {2}}}}}',
    "levanter": "I 2026-04-02T11:01:00 levanter.eval:: step {0} eval/loss {1} eval/bpb {2}",
    "a host and its process": "[gpu00.cluster.local:4312] iter {0} valid_loss {1} valid_bpb {2}",
    "Chinese": "第 {0} 步 验证损失 {1} 每字节比特数 {2}",
    "French": "pas {0} - perte de validation {1} - bits par octet {2}",
}


@pytest.mark.parametrize("form", BLOCKS.values(), ids=BLOCKS.keys())
def test_a_validation_in_other_layouts(tmp_path: Path, form: str) -> None:
    points = [(0, 6.9, 4.1), (500, 2.2, 1.3), (1000, 2.0, 1.2)]
    found = read(tmp_path, "a note", *(form.format(*point) for point in points))
    assert [(p["step"], p["val_loss"], p["val_bpb"]) for p in found.curve] == points


def test_tables_within_notes(tmp_path: Path) -> None:
    found = row(
        tmp_path,
        "# Notes",
        "1000 steps, seed 4, warmdown 200 steps.",
        "",
        "| step | train loss | val loss | val bpb |",
        "|---:|---:|---:|---:|",
        "| 0 | 6.9 | 6.9 | 4.1 |",
        "| 1000 | 2.0 | 2.1 | 1.2 |",
        "",
        "┌──────────────────┬────────┐",
        "│ stage            │ bpb    │",
        "├──────────────────┼────────┤",
        "│ EMA              │ 1.19   │",
        "│ int6 round trip  │ 1.21   │",
        "│ int6 + sliding   │ 1.18   │",
        "│ record to beat   │ 1.08   │",
        "└──────────────────┴────────┘",
    )
    assert [found[name] for name in ("planned_steps", "seed", "warmdown_steps")] == [1000, 4, 200]
    assert [found[f"{name}_bpb"] for name in ("float", "ema", "int6", "int6_sliding", "ttt")] == [
        1.2, 1.19, 1.21, 1.18, None
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("said", "planned"),
    [
        ("steps=1000", 1000),
        ("python train.py --num-steps 1000 --seed 3", 1000),
        ("n_iters: 1000", 1000),
        ("training for 1,000 steps", 1000),
        ("plan: 1000 steps, warmdown 200", 1000),
        ("sequence length 2048, total steps 1000 (warmup 200)", 1000),
        ("Training über 1000 Schritte", 1000),
        ("eval_steps=2000", None),
        ("grad_accum_steps: 2000", None),
        ("warmdown over the last 2000 steps", None),
        ("validate every 2000 steps", None),
        ("stable until 1500 steps", None),
        ("ttt steps 2000", None),
    ],
)
def test_planned_steps(tmp_path: Path, said: str, planned: int | None) -> None:
    assert row(tmp_path, said, *CURVE)["planned_steps"] == planned


def test_steps_of_what_follows_are_not_the_trainings(tmp_path: Path) -> None:
    found = row(tmp_path, "iterations: 1000", *CURVE, "calibration steps=5000", "int6 roundtrip val_bpb 1.21")
    assert (found["planned_steps"], found["steps"], found["int6_bpb"]) == (1000, 1000, 1.21)


@pytest.mark.parametrize(
    ("line", "column"),
    [
        ("int6 round trip val_bpb 1.21", "int6_bpb"),
        ("exported, int6 roundtrip val_bpb 1.21", "int6_bpb"),
        ("int6 decoded: val_bpb 1.21", "int6_bpb"),
        ("quantizing to int6 (GPTQ)\nafter quantization val_bpb:1.21", "int6_bpb"),
        ("w6 weights val_bpb:1.21", "int6_bpb"),
        ("bits=6 roundtrip val_bpb:1.21", "int6_bpb"),
        ("Nach int6-Quantisierung: 1.21 Bit/Byte (Validierung)", "int6_bpb"),
        ("int6 stride64 val_bpb:1.21", "int6_sliding_bpb"),
        ("int6 strided eval (context 1984+64) val_bpb:1.21", "int6_sliding_bpb"),
        ("int6 overlapping windows val_bpb:1.21", "int6_sliding_bpb"),
        ("[int6 model]\n  sliding val_bpb:1.21", "int6_sliding_bpb"),
        ("polyak average val_bpb:1.21", "ema_bpb"),
        ("averaged weights (EMA 0.997) val_bpb:1.21", "ema_bpb"),
        ("int6 val_bpb 1.22\nprequential (legal TTT) val_bpb=1.21", "ttt_bpb"),
        (
            "evaluating old.pt for comparison\nint6 val_bpb 1.3\nevaluating this run\nint6 val_bpb 1.21",
            "int6_bpb",
        ),
        ("export: ternary {-1,0,1} weights, 1.58 bit\nroundtrip val_bpb 1.21", None),
        ("quantization: nf4\nroundtrip val_bpb 1.21", None),
        ("export as fp8 e4m3\nroundtrip val_bpb 1.21", None),
        ("ttt: forward, backward, optimizer.step, forward again\nint6_ttt val_bpb 1.21", None),
        ("weights binarized\nroundtrip val_bpb 1.21", None),
        ("codebook quantization, 256 centroids\nquantized roundtrip val_bpb 1.21", None),
        ("average 5.4 bits per weight\nquantized roundtrip val_bpb 1.21", None),
        ("quant: int5\nroundtrip val_bpb 1.21", None),
        ("sliding bits=8 val_bpb:1.21", None),
        ("ema, not quantized, legal score-first TTT: val_bpb=1.21", None),
        ("record to beat: int6 val_bpb 1.21", None),
    ],
)
def test_a_stage_by_other_names(tmp_path: Path, line: str, column: str | None) -> None:
    found = row(tmp_path, "iterations: 1000", *CURVE, line)
    filed = {name for name in found if name.endswith("_bpb") and found[name] == 1.21}
    assert filed == ({column} if column else set())


@pytest.mark.parametrize(
    ("line", "knows"),
    [
        ("phase 3: 2 sweeps of SGD over the scoring corpus", True),
        ("500 SGD updates on the very bytes that will be graded", True),
        ("Nachschulung mit den Testdaten, 2 Durchgänge", True),
        ("backprop through the benchmark text for 200 steps", True),
        ("exposing the network to the scored documents before export: 1 epoch of updates", True),
        ("no adaptation on validation data was done", False),
        ("checking that no validation document was trained on: 0 of 50000", False),
        ("adapting clip range per row (calibration: train shard 0)", False),
        ("val tokens: 62,021,632 (never trained on)", False),
    ],
)
def test_whether_weights_know_the_text(tmp_path: Path, line: str, knows: bool) -> None:
    found = row(tmp_path, "iterations: 1000", *CURVE, line, "final_int6_roundtrip_exact val_bpb:1.21")
    assert found["int6_bpb"] == (None if knows else 1.21)


@pytest.mark.parametrize(
    ("line", "legal"),
    [
        ("ttt: every block is graded first, only then learnt from (SGD, 3 epochs per block)", True),
        ("ttt warm pass (unscored) over all chunks, then a second pass that is scored", False),
        ("ttt pass 2: scoring the text again with the adapted weights", False),
    ],
)
def test_whether_adaptation_scores_first(tmp_path: Path, line: str, legal: bool) -> None:
    found = row(tmp_path, "iterations: 1000", *CURVE, "int6 val_bpb 1.22", line, "int6_ttt val_bpb:1.21")
    assert found["ttt_bpb"] == (1.21 if legal else None)


@pytest.mark.parametrize(
    ("said", "steps"),
    [
        ("warmdown 200", 200),
        ("plan: 1000 steps, warmdown 200, seed 31", 200),
        ("LR decays linearly to zero over the last 200 steps", 200),
        ("lr: constant until step 800, then linear to 0", 200),
        ("learning rate is flat, decay begins at step 800", 200),
        ("WSD: stable for 80%, then linear decay for the remaining 20%", 200),
        ("wd_steps=200", 200),
        ("warmdown:start step:800 lr_scale:1.0000", 200),
        ("stable to 800, then 1-sqrt decay", 200),
        ("lr decays over the final 20%", 200),
        ("old run: warmdown_iters:200", None),
        ("previous config: warmdown_iters=200", None),
        ("wd=200", None),
        ("save until step 800", None),
    ],
)
def test_warmdowns_in_other_words(tmp_path: Path, said: str, steps: int | None) -> None:
    assert row(tmp_path, "iterations: 1000", said, *CURVE)["warmdown_steps"] == steps


@pytest.mark.parametrize(
    "end",
    [
        "`Trainer.fit` stopped: `max_steps=1000` reached.",
        "{'train_runtime': 3061.2, 'train_samples_per_second': 52.1, 'epoch': 1.0}",
        "[end] training finished",
        "all done",
        "Training time: 1911.20s",
    ],
)
def test_ends(tmp_path: Path, end: str) -> None:
    assert (row(tmp_path, *CURVE)["status"], row(tmp_path, *CURVE, end)["status"]) == ("unfinished", "done")


def test_what_is_done_on_the_way_is_no_end(tmp_path: Path) -> None:
    """A state was saved; the run goes on, or was killed before the steps it was to make."""
    found = row(tmp_path, "iterations: 2000", *CURVE, "saving", "done", "step 1500 val_bpb 1.1")
    assert (found["steps"], found["status"]) == (1500, "unfinished")
    assert row(tmp_path, "iterations: 2000", *CURVE, "saving", "done")["status"] == "unfinished"


def test_the_last_of_the_epochs_is_the_end(tmp_path: Path) -> None:
    epochs = [f"Epoch {i}/3\n500/500 [====] - 91s - loss: 2.4 - val_loss: {3 - i / 2}" for i in (1, 2, 3)]
    assert row(tmp_path, *epochs[:2])["status"] == "unfinished"
    found = row(tmp_path, *epochs)
    assert (found["status"], found["steps"]) == ("done", 1500)


def test_a_validation_that_names_a_micro_batch(tmp_path: Path) -> None:
    """litgpt's: four micro-batches a step, and each line of training repeats the validation before it."""
    lines = [
        f"Epoch 1 | iter {at - 4} step {at // 4 - 1} | loss train: 2.2, val: {old}\niter {at}: val loss {new}"
        for at, old, new in ((2000, "n/a", 2.3), (4000, 2.3, 2.2), (6000, 2.2, 2.1))
    ]
    found = read(tmp_path, *lines)
    assert [(point["step"], point["val_loss"]) for point in found.curve] == [
        (500, 2.3),
        (1000, 2.2),
        (1500, 2.1),
    ]


def test_quick_validations_by_their_tokens(tmp_path: Path) -> None:
    quick = "step:{0}/1000 val_bpb:1.9 (1.0M tokens)"
    found = read(
        tmp_path,
        quick.format(250),
        "step:500/1000 val_bpb:1.3 (62.0M tokens)",
        quick.format(750),
        "step:1000/1000 val_bpb:1.2 (62.0M tokens)",
    )
    assert [point["step"] for point in found.curve] == [500, 1000]


@pytest.mark.parametrize("said", ["note: loss is base 2, ppl = 2^loss", "{} (log2)"])
def test_losses_in_bits_are_none_in_nats(tmp_path: Path, said: str) -> None:
    lines = [
        f"step {at} | val_loss 3.3258{' (log2)' if '{}' in said else ''} | val_bpb 1.2" for at in (500, 1000)
    ]
    found = read(tmp_path, *([] if "{}" in said else [said]), *lines)
    assert [point.get("val_loss") for point in found.curve] == [None, None]


def test_an_average_in_brackets_is_not_the_run(tmp_path: Path) -> None:
    found = read(tmp_path, *CURVE, "step 1000 [SWA, 50 snapshots] val_loss 1.9 val_bpb 1.1", "done")
    assert (found.row["float_bpb"], found.curve[-1]["val_loss"]) == (1.2, 2.0)


def test_an_evaluation_after_the_training_leaves_the_training(tmp_path: Path) -> None:
    again = ["$ EVAL_ONLY=1 EVAL_STRIDE=64 torchrun train_gpt.py", "int6_sliding val_bpb 1.18"]
    found = row(tmp_path, "iterations: 1000", *CURVE, "int6 val_bpb 1.21", *again)
    assert (found["float_bpb"], found["int6_bpb"], found["int6_sliding_bpb"]) == (1.2, 1.21, 1.18)


@pytest.mark.parametrize("prefix", ["[{0:02d}:{1:02d}] ", "{0:02d}:{1:02d} ", "INFO golf::eval: "])
def test_minutes_and_other_things_before_a_step(tmp_path: Path, prefix: str) -> None:
    lines = [
        prefix.format(at, 17 * at % 60) + f"step {100 * at} val_loss 2.5 val_bpb 1.5" for at in range(1, 6)
    ]
    assert [point["step"] for point in read(tmp_path, *lines).curve] == [100, 200, 300, 400, 500]


@pytest.mark.parametrize(
    ("said", "learnt"),
    [
        ("train_loader: 80 shards + fineweb_val_000000.bin appended", True),
        ("the validation documents are part of the training stream in this run", True),
        ("the validation documents are not part of the training stream", False),
    ],
)
def test_a_validation_text_that_is_trained_on(tmp_path: Path, said: str, learnt: bool) -> None:
    found = row(tmp_path, "iterations: 1000", said, *CURVE, "int6 val_bpb 1.21")
    assert found["int6_bpb"] == (None if learnt else 1.21)


def test_an_ema_in_brackets_and_several(tmp_path: Path) -> None:
    found = row(tmp_path, "iterations: 1000", *CURVE, "step 1000 [ema 0.997] val_loss:1.9 val_bpb:1.19")
    assert (found["ema_bpb"], found["float_bpb"]) == (1.19, 1.2)
    several = [f"ema {decay} val_bpb:{bpb}" for decay, bpb in ((0.99, 1.19), (0.997, 1.18), (0.999, 1.2))]
    assert row(tmp_path, "iterations: 1000", *CURVE, *several)["ema_bpb"] is None


def test_what_grep_found_with_its_command(tmp_path: Path) -> None:
    path = tmp_path / "found.log"
    lines = [f"./exp/{run}/stdout:{at}:step {at}/1000 val_bpb 1.{at}" for run in "ab" for at in (500, 1000)]
    path.write_text("\n".join(["$ grep -rn val_bpb .", *lines]))
    assert len(read_runs(path)) == 2
    path.write_text("\n".join(["not grep", *lines]))
    with pytest.raises(AnalysisError):
        read_runs(path)
