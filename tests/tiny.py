"""A model, a text and a byte table small enough for tests, but with every part of the real ones."""

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.without import OPTIMISATIONS
from gepa_core.config import ExecConfig
from gepa_core.data.text import Text
from gepa_core.data.tokenizer import ByteTable
from gepa_core.evaluation.scoring import Evaluation
from gepa_core.evaluation.stages import measure
from gepa_core.model.gepa import GEPA
from gepa_core.sections import EvalConfig, ModelConfig, TTTConfig

VOCAB = 64
CPU = ExecConfig(device="cpu")
EVAL = EvalConfig(seq_len=16, stride=4, block_tokens=50)
TTT = TTTConfig(chunk_tokens=32, epochs=2, lr=0.05, batch_seqs=1, freeze_blocks=1)

MODEL = ModelConfig(
    vocab_size=VOCAB,
    num_layers=3,
    width=32,
    num_heads=4,
    num_kv_heads=2,
    mlp_hidden=48,
    bigram_buckets=32,
    bigram_dim=8,
    rope_dims=4,
    xsa_last_n=1,
    ve_dim=8,
    ve_layers=(2,),
    compute_dtype="fp32",
    embedding_dtype="fp32",
)


def tiny_model(cfg: ModelConfig = MODEL, seed: int = 0) -> GEPA:
    """Weights with which every part of the model has a say, unlike the initial ones."""
    model = GEPA(cfg)
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def text(num_tokens: int, seed: int = 0, vocab: int = VOCAB) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).integers(4, vocab, num_tokens).astype(np.uint16)


def byte_table(vocab: int = VOCAB) -> ByteTable:
    """Ids 0..3 are control tokens; the others stand for 1 to 3 bytes, every third with a space before."""
    ids = np.arange(vocab)
    control = ids < 4
    return ByteTable(np.where(control, 0, 1 + ids % 3).astype(np.int16), (ids % 3 == 0) & ~control, control)


def parity(shared: Path) -> tuple[GEPA, NDArray[np.uint16], dict[str, Any]]:
    """The model of the reference figures with its weights, their validation tokens, and the figures."""
    figures = json.loads((shared / "reference" / "gepa_parity.json").read_text())
    sizes = figures["config"]
    model = GEPA(
        ModelConfig(
            num_layers=sizes["num_layers"],
            width=sizes["model_dim"],
            num_heads=sizes["num_heads"],
            num_kv_heads=sizes["num_kv_heads"],
            mlp_hidden=sizes["mlp_hidden"],
            bigram_buckets=sizes["bigram_buckets"],
            bigram_dim=sizes["bigram_embed_dim"],
            xsa_last_n=sizes["xsa_last_n"],
            ve_dim=sizes["ve_dim"],
            ve_layers=(3, 4),
            compute_dtype="fp32",
            embedding_dtype="fp32",
        )
    )
    with np.load(shared / "reference" / "gepa_parity.npz") as arrays:
        state = {
            k.removeprefix("param/"): torch.from_numpy(v) for k, v in arrays.items() if k[:6] == "param/"
        }
        model.load_state_dict(state)
        return model, arrays["val_tokens"], figures


def plain(model: Any, tokens: Any, table: ByteTable, cfg: Any, exec_cfg: Any = CPU) -> Evaluation:
    return measure("plain", model, Text(tokens, table), cfg, TTT, exec_cfg)


def sliding(model: Any, tokens: Any, table: ByteTable, cfg: Any, exec_cfg: Any = CPU) -> Evaluation:
    return measure("sliding", model, Text(tokens, table), cfg, TTT, exec_cfg)


def adapted(
    model: Any, tokens: Any, table: ByteTable, cfg: Any, ttt_cfg: Any, exec_cfg: Any = CPU
) -> Evaluation:
    return measure("ttt", model, Text(tokens, table), cfg, ttt_cfg, exec_cfg)


def ablated(change: dict | str) -> tuple[ExecConfig, AbstractContextManager[Any]]:
    """How to execute with a change of ExecConfig, or with an optimisation of `benchmarks.without` off."""
    if isinstance(change, str):
        return ExecConfig(device="cpu"), OPTIMISATIONS[change]()
    return ExecConfig(device="cpu", **change), nullcontext()
