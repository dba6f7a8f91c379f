"""Logs of the trainers that are in use, and files of any shape."""

import json
from pathlib import Path

import pytest

from analysis.logs.importing import read_runs
from analysis.logs.record import Record
from analysis.runs.errors import AnalysisError
from tests.log_lines import INT6, WHOLE, step


def read(tmp_path: Path, content: str | bytes) -> list[Record]:
    path = tmp_path / "a.log"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_runs(path)


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
