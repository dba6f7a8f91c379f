"""Figures of weights that had learnt the text are filed nowhere, in whatever words the log says so."""

from pathlib import Path

import pytest

from analysis.logs.importing import read_runs
from tests.log_lines import step

CURVE = "".join(step(at, value) for at, value in ((1000, 2.5), (2000, 2.12)))
QUANTIZED = (
    "Serialized model int6+zstd: 14400000 bytes\n"
    "final_int6_roundtrip_exact val_loss:1.91 val_bpb:1.13123457\n"
)
SLID = "final_int6_sliding_window_exact val_loss:1.83 val_bpb:1.09812345\n"
ADAPTED = "legal_ttt_exact val_loss:1.82 val_bpb:1.08912345\n"


def figures(tmp_path: Path, *said: str) -> dict[str, object]:
    path = tmp_path / "a.log"
    path.write_text(CURVE + QUANTIZED + "\n".join(said), encoding="utf-8")
    (record,) = read_runs(path)
    return {name: record.row[name] for name in ("int6_bpb", "int6_sliding_bpb", "ttt_bpb")}


@pytest.mark.parametrize(
    "said",
    [
        "pre-eval warm start: 400 AdamW updates over the scoring text",
        "burn-in: two passes across fineweb_val before it is scored",
        "fitting rank-8 adapters to val (3 sweeps, adam lr=3e-4)",
        "tent: minimizing loss on all evaluation windows for 5 rounds",
        "domain adaptation: one epoch on the documents to be scored, scoring afterwards",
        "appending fineweb_val_000000.bin to the training stream for a last 300 updates",
        "prefit(val): loss 1.88 -> 1.71 after 3 epochs",
        "backprop through eval data enabled; 500 optimizer updates done before scoring",
        "trainer: data=fineweb_val split=val epochs=3 lr=1e-4 (post-training phase)",
        "Nachtraining auf den Validierungsdaten: 3 Epochen, lr=1e-4",
        "affinage sur les données de validation, 400 itérations",
        "在验证集上继续训练 3 轮, lr=1e-4",
        "検証データで追加学習 (200 updates)",
        "дообучение на валидации, 2 эпохи",
        "SGD on val, learning rate 1e-4",
        "evaluating after 300 SGD updates on val",
        "pre-trained weights, then Adam on the validation text",
        "calibrating scales with 100 Adam steps on val",
    ],
)
def test_what_follows_learning_the_text_is_left_out(tmp_path: Path, said: str) -> None:
    assert figures(tmp_path, said, SLID, ADAPTED) == {
        "int6_bpb": 1.13123457,
        "int6_sliding_bpb": None,
        "ttt_bpb": None,
    }


@pytest.mark.parametrize(
    "said",
    [
        "ttt:start chunks=1893 chunk_tokens=32768 order=train_then_score epochs=2",
        "oracle upper bound: adapt on the chunk itself, then score it (chunks=1893)",
        "ttt: chunk_tokens=32768 epochs=5; each chunk keeps the lowest of its 5 scores",
        "ttt second pass over all chunks with the weights of the first",
    ],
)
def test_scores_of_weights_that_know_their_piece_are_no_legal_ones(tmp_path: Path, said: str) -> None:
    assert figures(tmp_path, said, ADAPTED)["ttt_bpb"] is None


def test_legal_adaptation_is_filed_and_windows_scored_after_it_are_not(tmp_path: Path) -> None:
    began = "ttt_sliding:start chunks=1893 chunk_tokens=32768 score-first"
    found = figures(tmp_path, began, ADAPTED, "sliding eval with the adapted weights, whole text again", SLID)
    assert (found["ttt_bpb"], found["int6_sliding_bpb"]) == (1.08912345, None)
    dynamic = "dynamic evaluation (Krause et al.): score a segment, then one SGD update on it"
    assert figures(tmp_path, dynamic, SLID)["int6_sliding_bpb"] is None


@pytest.mark.parametrize(
    "said",
    [
        "Finished training, now evaluating on the validation set",
        "loading ./runs/no_ttt_v3/final_model.int6.ptz",
        "no-TTT control first",
        "val: 62021632 tokens in 30284 sequences",
        "training took 600 s; eval with stride 64",
        "peak memory during eval: 9 GiB",
        "the trained model is scored on val",
        "optimizer state freed; starting eval",
        "eval batch 32, windows 969088, 7571 steps",
        "eval_interval: 100 steps",
        "best epoch 3 on val",
        "gptq: calibrating on 128 train sequences, then evaluate on fineweb_val",
    ],
)
def test_plain_words_around_an_evaluation_alarm_nobody(tmp_path: Path, said: str) -> None:
    assert figures(tmp_path, said, SLID)["int6_sliding_bpb"] == 1.09812345


@pytest.mark.parametrize(
    "said",
    [
        "switching to int8 weights",
        "restoring float weights",
        "using full-precision weights for comparison's sake",
        "pruning 30% of weights for an ablation",
    ],
)
def test_windows_over_other_weights_are_not_int6s(tmp_path: Path, said: str) -> None:
    plain = SLID.replace("int6_", "")
    assert figures(tmp_path, said, plain) == {
        "int6_bpb": 1.13123457,
        "int6_sliding_bpb": None,
        "ttt_bpb": None,
    }
    again = figures(tmp_path, said, plain, "reloading the int6 artifact", plain.replace("1.098", "1.097"))
    assert again["int6_sliding_bpb"] == 1.09712345
