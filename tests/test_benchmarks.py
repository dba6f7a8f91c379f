"""The baseline of the benchmarks computes what the published code did, and the benchmarks run."""

import io
import json
import math
from pathlib import Path

import pytest
import sentencepiece as spm
import torch
import zstandard

from benchmarks.baseline import PlainTrainer, PlainTTT
from gepa_core.config import BatchConfig, EvalConfig, RunConfig, TTTConfig
from gepa_core.data.tokenizer import byte_table
from tests import tiny


@pytest.fixture(scope="module")
def stream(shared: Path) -> torch.Tensor:
    """Tokens of documents 60..99, as tests of the figures' training read them."""
    sp = spm.SentencePieceProcessor(model_file=str(shared / "data/tokenizers/fineweb_1024_bpe.model"))
    with (shared / "data/enwiki2015_val.jsonl.zst").open("rb") as file:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8")
        texts = [json.loads(line)["text"] for _, line in zip(range(100), lines, strict=False)]
    return torch.tensor([i for text in texts[60:] for i in (1, *sp.encode(text))])


def test_baseline_reproduces_the_published_losses(shared: Path, stream: torch.Tensor) -> None:
    model, _, figures = tiny.parity(shared)
    config = RunConfig(
        steps=30,
        warmdown_steps=15,
        batch=BatchConfig(seq_len=64, seqs_per_span=8, spans=2),
        model=model.cfg,
        eval=EvalConfig(seq_len=64),
        ttt=TTTConfig(chunk_tokens=64),
    )
    trainer, losses = PlainTrainer(model, config, compiled=False), []
    for step in range(30):
        spans = []
        for j in range(2):
            start = (2 * step + j) * 513
            text = stream[start : start + 513]
            spans.append((text[:-1].view(8, 64), text[1:].view(8, 64)))
        losses.append(float(trainer.step(spans)))
    expected = figures["train"]["train_loss"]
    assert losses[:5] == pytest.approx(expected[:5], rel=1e-3)
    assert losses == pytest.approx(expected, rel=1e-2)


def test_baseline_reproduces_the_published_ttt(shared: Path) -> None:
    model, tokens, figures = tiny.parity(shared)
    expected = figures["eval_ttt_reference"]
    names = ("chunk_tokens", "epochs", "lr", "momentum", "batch_seqs", "grad_clip", "freeze_blocks")
    table = byte_table(shared / "data/tokenizers/fineweb_1024_bpe.model", 1024)
    plain = PlainTTT(model, tokens, table, EvalConfig(seq_len=128, stride=expected["stride"]))
    assert plain.run(TTTConfig(**{name: expected[name] for name in names})) == pytest.approx(
        expected["val_bpb"], rel=1e-5
    )
    norm = math.sqrt(sum(p.double().square().sum().item() for p in model.parameters()))
    assert norm == pytest.approx(figures["ttt_final_param_l2"], rel=1e-7)
