"""Lines that hold the words of a step, a stage or an end, and are of none: they change nothing."""

from pathlib import Path

import pytest

from analysis.logs.importing import read_runs

TRAINING = [
    "model_params:17059912",
    "train_batch_tokens:524288 train_seq_len:1024 iterations:2000 warmup_steps:20",
    "warmdown_iters:400",
    "seed:1337",
    *(
        f"step:{s}/2000 val_loss:{4 - s / 1000:.4f} val_bpb:{2.4 - s / 2000:.4f} train_time:{s * 100}ms"
        for s in (0, 500, 1000, 1500, 2000)
    ),
]
RESULTS = [
    "post_ema val_loss:1.9900 val_bpb:1.3950",
    "Serialized model int6+zstd: 15000000 bytes",
    "final_int6_roundtrip_exact val_loss:2.01000000 val_bpb:1.41000000",
    "final_int6_sliding_window_exact val_loss:1.98000000 val_bpb:1.38500000",
    "final_int6_ttt_exact val_loss:1.97000000 val_bpb:1.38000000",
]
WHOLE = [*TRAINING, *RESULTS]
TOLD = (
    "done", 2000, 2000, 400, 1.4, 1.395, 1.41, 1.385, 1.38, 15000000, 1337, 17059912,
)  # fmt: skip
COLUMNS = (
    "status", "steps", "planned_steps", "warmdown_steps", "float_bpb", "ema_bpb", "int6_bpb",
    "int6_sliding_bpb", "ttt_bpb", "artifact_bytes", "seed", "params",
)  # fmt: skip
PLACES = (0, 7, len(TRAINING), len(TRAINING) + 2, len(WHOLE) - 1, len(WHOLE))
"""Before all, on the way, after the training, before int6, before test-time training, at the end."""


@pytest.mark.parametrize(
    "line",
    [
        "compile done",
        "done",
        "saving checkpoint ... done",
        "GPTQ: calibrating on 64 train batches, 2 passes",
        "quantization took 12.3 s",
        "quantizing 66 tensors to int6, 12 passthrough",
        "benchmark mode off (cudnn.benchmark=True)",
        "gradient norm 0.31 after 3 epochs of warmup data",
        "eval stride=64 seq_len=2048 batch_seqs=32",
        "resuming dataloader at shard 3",
        "wandb: Run data is saved locally",
        "loading best practice config",
        "pruning 0 of 66 tensors",
        "no pruning needed",
        "layer 3: ternary-ish histogram {-1: 12, 0: 40}",
        "attention in 4 bit? no",
        "ttt disabled for float eval",
        "val tokens 62 021 632, steps to score 1893",
        "| layer | rows | bytes |",
        "|---|---|---|",
        "| blocks.0 | 512 | 196608 |",
        "peak memory allocated: 41230 MiB reserved: 42000 MiB",
        "swa: not used",
        "tuning threads: 8 workers for 10 rounds of zstd",
        "zstd level 22: 3 passes, best 15000000",
        "scoring 62M validation tokens in 1893 chunks",
        "learned scales: min 0.01 max 0.3",
        "warming up eval kernels (20 steps)",
        "time budget left 12 s",
        "running eval on 8 ranks, 500 steps each",
        "decoded artifact ok, 27030107 params",
        "export to final_model.int6.ptz done",
        "updates since last log: 50 steps",
        "optimizer: Muon(momentum=0.95, steps=5)",
        "newton-schulz steps=5",
        "git status: 3 files changed, 500 steps.md",
        "+------+",
        "| GPU  | 75C |",
        "+------+",
        "record to beat 1.0810",
        "dataset: val split has 50000 docs",
    ],
)
def test_a_line_that_says_nothing_of_the_run(line: str, tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    for at in PLACES:
        path.write_text("\n".join([*WHOLE[:at], line, *WHOLE[at:], ""]), encoding="utf-8")
        (record,) = read_runs(path)
        assert tuple(record.row[name] for name in COLUMNS) == TOLD, at
