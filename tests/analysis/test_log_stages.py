"""Each printed figure under its own stage, or under none, with why: forms of the lines that scripts print."""

from pathlib import Path

import pytest

from analysis.logs.importing import read_runs
from analysis.logs.record import Record
from tests.log_lines import FINALS, log

COLUMNS = ("ema_bpb", "int6_bpb", "int6_sliding_bpb", "ttt_bpb")
PLAIN = """Serialized model int6+zstd: 15000000 bytes
final_int6_roundtrip_exact val_loss:1.91 val_bpb:1.13000001"""


def read(tmp_path: Path, text: str) -> Record:
    path = tmp_path / "a.log"
    path.write_text(text, encoding="utf-8")
    (record,) = read_runs(path)
    return record


def finals(record: Record) -> dict[str, object]:
    return {name: record.row[name] for name in COLUMNS if record.row[name] is not None}


FORMS = {
    "the job's own": (
        "\n".join(FINALS),
        {"ema_bpb": 1.124, "int6_bpb": 1.13000001, "int6_sliding_bpb": 1.11000002, "ttt_bpb": 1.09440207},
    ),
    "the compressor in the name": (
        """Serialized model int6+zstd-22: 15000000 bytes
        final_int6_zstd-22_roundtrip_exact val_bpb:1.13000001
        final_int6_lzma9_sliding_window_exact val_bpb:1.11""",
        {"int6_bpb": 1.13000001, "int6_sliding_bpb": 1.11},
    ),
    "quantized, without its width": (
        """diagnostic pre-quantization post-ema val_loss:2.8 val_bpb:1.06109460 eval_time:1ms
        Serialized model quantized+brotli: 15000000 bytes
        diagnostic quantized val_loss:2.9 val_bpb:1.06957920
        quantized_sliding_window val_loss:2.8 val_bpb:1.0521
        ttt_lora:compile warmup done (104.7s)
        ttt_phased: total_docs:50000 prefix_docs:2500
        tttg: c1/289 lr:0.001000 t:0.3s
        quantized_ttt_phased val_loss:2.7 val_bpb:1.0400""",
        {"ema_bpb": 1.0610946, "int6_bpb": 1.0695792, "int6_sliding_bpb": 1.0521, "ttt_bpb": 1.04},
    ),
    "legal test-time training, chunk by chunk": (
        f"""{PLAIN}
        ttt: pre-compiling kernels
        TTT: epochs=3 lr=0.0001 freeze_first=2 chunk=131072 opt=adamw
        ttt:start chunks=474 chunk_tokens=131072 lr=0.0001 epochs=3
        ttt_train [1] epoch=1/3 batches=8
        ttt_chunk [1/474] bpb=1.202959 time=1.2s
        ttt:done val_loss=1.85 val_bpb=1.096969 elapsed=562.1s
        final_int6_ttt val_loss:1.85 val_bpb:1.0970
        final_int6_ttt_exact val_loss:1.85 val_bpb:1.09696945""",
        {"int6_bpb": 1.13000001, "ttt_bpb": 1.09696945},
    ),
    "measured before test-time training": (
        """Serialized model int6+zstd-22: 15000000 bytes
        pre_ttt_quant_eval val_loss:1.9 val_bpb:1.126730
        ttt_sliding:start chunks=1893 chunk_tokens=32768 total_windows=969088 stride=64
        final_int6_zstd-22_roundtrip_exact val_bpb:1.09440207""",
        {"int6_bpb": 1.12673, "ttt_bpb": 1.09440207},
    ),
    "a plain name for test-time training": (
        """Serialized model int6+lzma: 15000000 bytes
        TTT eval enabled: per-document LoRA test-time training
        final_int6_lzma_roundtrip(ttt_lora) val_loss:1.7015 val_bpb:1.0069 eval_time:1ms
        final_int6_lzma_roundtrip_exact val_loss:1.70150648 val_bpb:1.00691559""",
        {"ttt_bpb": 1.00691559},
    ),
    "a plain name for a sliding window": (
        """Serialized model int6+arithcode: 15000000 bytes
        final_eval_mode:sliding_window stride:64
        final_sliding_roundtrip val_loss:1.9436 val_bpb:1.1511
        final_sliding_roundtrip_exact val_loss:1.94362257 val_bpb:1.15112581""",
        {"int6_sliding_bpb": 1.15112581},
    ),
    "announced as the standard one": (
        f"final_eval_mode:standard\n{PLAIN}",
        {"int6_bpb": 1.13000001},
    ),
    "announced by its progress": (
        f"sliding_eval [  0.0%] 32/969088 windows running_bpb=1.327616\n{PLAIN}",
        {"int6_sliding_bpb": 1.13000001},
    ),
    "a roundtrip again, of other weights": (
        f"{PLAIN}\nfinal_int6_roundtrip_exact val_loss:1.88 val_bpb:1.11000001",
        {"int6_bpb": 1.13000001},
    ),
    "a roundtrip again, exact, of test-time training": (
        f"""{PLAIN}
        final_int6_roundtrip_ttt val_loss:1.8500 val_bpb:1.0950 eval_time:1ms
        final_int6_roundtrip_exact val_loss:1.85000011 val_bpb:1.09500044""",
        {"int6_bpb": 1.13000001, "ttt_bpb": 1.09500044},
    ),
    "an old name for the sliding figure": (
        f"""{PLAIN}
        final_int6_sliding_window_exact val_loss:1.88 val_bpb:1.11000002
        final_int8_zlib_roundtrip_exact val_loss:1.88 val_bpb:1.11000002""",
        {"int6_bpb": 1.13000001, "int6_sliding_bpb": 1.11000002},
    ),
    "other strides after the first": (
        f"""{PLAIN}
        final_int6_sliding_window_exact val_bpb:1.11000002
        final_int6_sliding_window_s64_exact val_bpb:1.11200000""",
        {"int6_bpb": 1.13000001, "int6_sliding_bpb": 1.11000002},
    ),
    "test-time training online": (
        f"""{PLAIN}
        online_ttt: 3188 adapt steps during eval
        final_int6_sliding_window_online_ttt val_bpb:1.0990
        final_int6_sliding_window_s64_exact val_bpb:1.11000002""",
        {"int6_bpb": 1.13000001, "int6_sliding_bpb": 1.11000002, "ttt_bpb": 1.099},
    ),
    "an average before quantization": (
        "pre_quant_ema_eval val_bpb:1.1324\npre-quant val_bpb:1.1330",
        {"ema_bpb": 1.1324},
    ),
    "settings between name and figure": (
        """Serialized model int6+zstd: 15000000 bytes
        final_int6+zstd_roundtrip val_loss:2.2 val_bpb:1.3204
        sliding_window eval_stride:128 val_loss:2.1 val_bpb:1.2882
        sgd_ttt lr:0.002 epochs:2 val_loss:2 val_bpb:1.29""",
        {"int6_bpb": 1.3204, "int6_sliding_bpb": 1.2882, "ttt_bpb": 1.29},
    ),
}


@pytest.mark.parametrize(("tail", "expected"), FORMS.values(), ids=FORMS)
def test_every_figure_is_filed_under_its_stage(tmp_path: Path, tail: str, expected: dict[str, float]) -> None:
    record = read(tmp_path, log(tail))
    assert finals(record) == expected
    assert set(record.why_not) == set(COLUMNS) - set(expected)


AFTER = """Serialized model int6+lzma: 15000000 bytes
final_int6_roundtrip_exact val_bpb:1.10
legal_ttt_exact val_bpb:1.09"""
ADAPTED = [
    "dttt:start lr=0.0005 epochs=10 freeze_blocks=0",
    "prequant_ttt:epoch 1/10 loss:1.93 time:19.4s",
    "ttt_epoch:1/21 chunk:50 loss:1.9 avg:1.92 time:3.1s",
    "sdttt:starting self-distillation TTT",
    "[pre-quant TTT] epoch 3/6 lr=0.0004 loss=1.88",
    "Adapting to the validation text, 10 passes",
    "test-time training: epoch 1/3",
    "val_finetune epoch 2/4 loss 1.91",
    "post_train_fit: epoch 1/2 loss:1.9",
    "DIAGNOSTIC post_ttt val_loss:1.8474 val_bpb:1.0941 eval_time:6083ms",
    "post-prequant-ttt val_loss:1.8 val_bpb:1.05 eval_time:1ms",
]  # fmt: skip


@pytest.mark.parametrize("line", ADAPTED)
def test_what_follows_training_on_the_validation_text_is_no_stage(tmp_path: Path, line: str) -> None:
    ema = "DIAGNOSTIC post_ema val_loss:1.9168 val_bpb:1.1352"
    record = read(tmp_path, log(ema, line, AFTER))
    assert finals(record) == {"ema_bpb": 1.1352}
    assert "measured after" in record.why_not["int6_bpb"] and "(line 26: " in str(record.row["notes"])


@pytest.mark.parametrize(
    "line",
    [
        "ttt_enabled: False",
        "ttt:disabled",
        "prequant_ttt: skipped",
        "ttt_lora:warming up compile (random tokens, no val data)",
        "TIMING:pre_quant_ttt=0.0s enabled=False",
    ],
)
def test_training_that_was_not_made_changes_nothing(tmp_path: Path, line: str) -> None:
    assert finals(read(tmp_path, log(line, PLAIN))) == {"int6_bpb": 1.13000001}


@pytest.mark.parametrize(
    ("lines", "column", "why"),
    [
        (("final_int8_zlib_roundtrip_exact val_bpb:1.2",), "int6_bpb", "int8, not int6"),
        (("Serialized model int4+zlib: 9 bytes", "quantized val_bpb:1.2"), "int6_bpb", "int4, not int6"),
        (
            ("Serialized model 4bit+zlib: 9 bytes", "final_roundtrip val_bpb:1.2"),
            "int6_bpb",
            "int4, not int6",
        ),
        (
            ("Serialized model ternary+zstd: 9 bytes", "final_quant_roundtrip mode:ternary val_bpb:1.2"),
            "int6_bpb",
            "ternary weights, not int6",
        ),
        (
            ("Serialized model mixed+zstd: 9 bytes", "quantized val_bpb:1.2"),
            "int6_bpb",
            "mixed widths, not int6",
        ),
        (("mixed_legal_ttt val_bpb:1.2",), "ttt_bpb", "none of the job's"),
        (("final_int8_ttt_lora val_bpb:1.2",), "ttt_bpb", "int8"),
        (("final_int6_sliding_window_ngram9_exact val_bpb:0.32",), "int6_sliding_bpb", "none of the job's"),
        (("ema:SKIPPED (SKIP_EMA=1)", "post_ema val_bpb:1.11"), "ema_bpb", "it was not applied"),
        (("swa:applying SWA weights count=14", "post_ema val_bpb:1.11"), "ema_bpb", "it was not applied"),
        (
            (
                PLAIN.splitlines()[0],
                "ngram_cache: hits=7612859/7754688",
                "final_int6_sliding_window val_bpb:0.85",
            ),
            "int6_sliding_bpb",
            "more than the model",
        ),
        (("DIAGNOSTIC post_swa val_bpb:1.11",), "ema_bpb", "not in the log"),
        (("final_eval_mode:something_new", PLAIN), "int6_bpb", "something_new"),
        (("final_int6_roundtrip_exact val_bpb:nan",), "int6_bpb", "not a finite number"),
        (("final_prequant_exact val_bpb:1.1",), "ema_bpb", "not in the log"),
        (("Serialized model (raw): 99 bytes", "final_ttt val_bpb:1.1"), "ttt_bpb", "not quantized yet"),
    ],
)
def test_a_figure_of_something_else_is_left_out_with_why(
    tmp_path: Path, lines: tuple[str, ...], column: str, why: str
) -> None:
    record = read(tmp_path, log(*lines))
    assert finals(record) == {}
    assert why in record.why_not[column]


def test_what_cannot_be_is_said(tmp_path: Path) -> None:
    """A quantizer does not lower the loss by windows' worth, and a name is not what the weights are."""
    low = read(tmp_path, log("post_ema val_bpb:1.16", "final_int6_roundtrip val_bpb:1.13"))
    assert "0.030 below the unquantized" in str(low.row["notes"])
    bought = read(tmp_path, log(PLAIN, "final_int6_sliding_window val_bpb:1.03"))
    assert bought.row["int6_sliding_bpb"] is None
    assert "1.03 is 0.100 below int6_bpb, more than the stage gives" in str(bought.row["notes"])
    later = read(tmp_path, log(PLAIN, "legal_ttt val_bpb:1.10", "final_int6_sliding_window val_bpb:1.11"))
    assert "printed after test-time training" in str(later.row["notes"])
    narrow = read(tmp_path, log("mixed_precision: 33161216 int5 params, 0 int6 params", PLAIN))
    assert "most weights are int5" in str(narrow.row["notes"])
    twice = read(tmp_path, log(PLAIN, "final_int6_roundtrip_exact val_bpb:1.11"))
    assert "first of two; line 27: 1.11" in str(twice.row["notes"])


def test_sizes_of_artifact_and_code(tmp_path: Path) -> None:
    row = read(tmp_path, log(*FINALS)).row
    assert (row["artifact_bytes"], row["code_bytes"]) == (14418655, 68212)
    packed = log(
        "Code size (uncompressed): 191274 bytes",
        "Code size (compressed): 37155 bytes",
        "Serialized model (raw): 99 bytes",
        "serialized_model_int8_zlib:12339367 bytes (payload:1)",
    )
    row = read(tmp_path, packed).row
    assert (row["artifact_bytes"], row["code_bytes"]) == (12339367, 37155)
    assert "artifact_bytes is of int8_zlib" in str(row["notes"])
    row = read(
        tmp_path, log("Serialized model bf16: 9 bytes", "Serialized model int6 best=brotli11: 7 bytes")
    ).row
    assert row["artifact_bytes"] == 7
    two = log("Serialized model int8+zlib: 7 bytes", "Serialized model int5+zlib: 5 bytes")
    row = read(tmp_path, two).row
    assert row["artifact_bytes"] is None and "of several formats" in str(row["notes"])


@pytest.mark.parametrize(
    "between",
    [
        "memorizing validation shards: pass 1",
        "polish: sgd on val_tokens, 500 updates",
        "continued pretraining on ./data/text_val_000000.bin for 400 updates",
        "refine: 3 passes over the held-out split",
        "fine-tuning on all val tokens, 500 updates",
        "overfitting the validation set",
        "knn memory: blending 62M keys",
        "quick check (eval_tokens=524288 of 62021632):",
    ],
)
def test_what_is_measured_after_learning_the_text_is_no_figure(tmp_path: Path, between: str) -> None:
    names = ["final_int6_sliding_window_exact"] + ["final_ttt_exact"] * (
        "quick" not in between and "knn" not in between
    )
    text = "\n".join([PLAIN, between, *(f"{name} val_loss:2.0 val_bpb:1.05" for name in names)])
    record = read(tmp_path, log(*text.splitlines()))
    assert finals(record) == {"int6_bpb": 1.13000001}


@pytest.mark.parametrize(
    ("between", "bpb"),
    [
        ("dev-set training begins (updates=600)", 1.1),
        ("evaluating the first 10 val files only", 1.1),
        ("loading teacher checkpoint ../big/teacher.pt for comparison", 1.1),
        ("Nachtraining auf den Validierungsdaten: 3 Epochen", 1.05),  # too good for windows, in any language
    ],
)
def test_windows_over_other_weights_or_less_text_are_no_figure(
    tmp_path: Path, between: str, bpb: float
) -> None:
    last = f"final_int6_sliding_window_exact val_loss:2.0 val_bpb:{bpb}"
    record = read(tmp_path, log(*PLAIN.splitlines(), between, last))
    assert finals(record) == {"int6_bpb": 1.13000001}


def test_what_was_trained_on_the_text_has_no_figure(tmp_path: Path) -> None:
    assert not finals(read(tmp_path, "train_on_val:True\n" + log(*FINALS)))


def test_weights_that_were_restored_count_again(tmp_path: Path) -> None:
    lines = [
        *PLAIN.splitlines(),
        "ttt_full: epoch 1/5 over val loss 1.8", "full_ttt_exact val_loss:1.6 val_bpb:1.0",
        "restoring int6 weights", "ttt_sliding:start chunks=1893 score-first",
        "legal_ttt_exact val_loss:2.0 val_bpb:1.1",
    ]  # fmt: skip
    assert finals(read(tmp_path, log(*lines))) == {"int6_bpb": 1.13000001, "ttt_bpb": 1.1}


def test_figures_named_by_their_keys(tmp_path: Path) -> None:
    record = read(tmp_path, log('{"int6_val_bpb": 1.131, "int6_sliding_val_bpb": 1.11, "ttt_val_bpb": 1.09}'))
    assert finals(record) == {"int6_bpb": 1.131, "int6_sliding_bpb": 1.11, "ttt_bpb": 1.09}
