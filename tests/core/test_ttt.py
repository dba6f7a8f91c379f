"""Test-time training: parity, its limits, its cost, and independence of ranks and micro-batches."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from gepa_core.config import ExecConfig
from gepa_core.data.tokenizer import byte_table
from gepa_core.errors import DataError, DivergedError
from gepa_core.evaluation import ttt
from gepa_core.evaluation.scoring import Adaptation, Evaluation
from gepa_core.sections import EvalConfig, TTTConfig
from tests import tiny
from tests.tiny import CPU, EVAL, TTT

# Compiling takes minutes on a busy CPU, and torch's compiler imports what torch deprecates.
COMPILES = (pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"))


def run(model: Any, tokens: Any, cfg: TTTConfig = TTT, exec_cfg: ExecConfig = CPU) -> Evaluation:
    return tiny.adapted(model, tokens, tiny.byte_table(), EVAL, cfg, exec_cfg)


def cost(evaluation: Evaluation) -> Adaptation:
    assert evaluation.adaptation is not None
    return evaluation.adaptation


def test_parity_with_published_counting(shared: Path) -> None:
    model, tokens, figures = tiny.parity(shared)
    expected = figures["eval_ttt_reference"]
    table = byte_table(shared / "data/tokenizers/fineweb_1024_bpe.model", 1024)
    cfg = TTTConfig(
        chunk_tokens=expected["chunk_tokens"],
        epochs=expected["epochs"],
        lr=expected["lr"],
        momentum=expected["momentum"],
        batch_seqs=expected["batch_seqs"],
        grad_clip=expected["grad_clip"],
        freeze_blocks=expected["freeze_blocks"],
    )
    eval_cfg = EvalConfig(seq_len=128, stride=expected["stride"], counting="reference")
    result = tiny.adapted(model, tokens, table, eval_cfg, cfg, CPU)
    assert result.bpb == pytest.approx(expected["val_bpb"], rel=1e-5)
    assert result.loss == pytest.approx(expected["val_loss"], rel=1e-5)
    norm = math.sqrt(sum(p.double().square().sum().item() for p in model.parameters()))
    assert norm == pytest.approx(figures["ttt_final_param_l2"], rel=1e-7)
    assert cost(result).updates == 9 * 3 * 2  # nine chunks of ten, epochs, batches of two


@pytest.mark.parametrize("counting", ["once", "reference"])
def test_zero_epochs_is_sliding_evaluation(counting: str) -> None:
    cfg = EVAL.model_copy(update={"counting": counting})
    model, tokens, table = tiny.tiny_model(), tiny.text(118), tiny.byte_table()
    sliding = tiny.sliding(model, tokens, table, cfg, CPU)
    result = tiny.adapted(model, tokens, table, cfg, TTT.model_copy(update={"epochs": 0}), CPU)
    assert np.array_equal(result.scores, sliding.scores)
    assert result.nll == sliding.nll
    assert result.bpb == sliding.bpb
    assert (cost(result).updates, cost(result).tokens_trained) == (0, 0)


def test_zero_learning_rate_is_sliding_evaluation_chunk_by_chunk() -> None:
    model, tokens = tiny.tiny_model(), tiny.text(118)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    result = run(model, tokens, TTT.model_copy(update={"lr": 0.0}))
    sliding = tiny.sliding(model, tokens, tiny.byte_table(), EVAL, CPU)
    assert np.allclose(result.scores, sliding.scores, atol=1e-5)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_frozen_blocks_stay_and_all_else_moves() -> None:
    model = tiny.tiny_model()
    before = {k: v.clone() for k, v in model.named_parameters()}
    run(model, tiny.text(118))
    for name, parameter in model.named_parameters():
        assert torch.equal(before[name], parameter) == name.startswith("blocks.0."), name
        assert parameter.requires_grad and parameter.grad is None


def test_it_learns_what_repeats() -> None:
    tokens = np.tile(tiny.text(32), 8)
    model = tiny.tiny_model()
    sliding = tiny.sliding(model, tokens, tiny.byte_table(), EVAL, CPU)
    assert run(model, tokens).bpb < 0.8 * sliding.bpb


def test_cost_is_recorded() -> None:
    result = run(tiny.tiny_model(), tiny.text(118))  # chunks of 32, 32, 32, 21 targets
    assert cost(result).tokens_scored == result.tokens == 117
    assert cost(result).updates == 3 * TTT.epochs * 2
    assert cost(result).tokens_trained == 3 * TTT.epochs * 32
    assert cost(result).score_seconds > 0 and cost(result).train_seconds > 0
    assert result.seconds == cost(result).score_seconds + cost(result).train_seconds


def test_learning_rate_over_chunks() -> None:
    rates = [ttt.chunk_lr(c, 100, 0.002, 0.05) for c in range(100)]
    assert rates[:5] == pytest.approx([0.002 * k / 5 for k in (1, 2, 3, 4, 5)])
    assert rates[5] == 0.002 and rates[99] == pytest.approx(0.0, abs=1e-18)
    assert rates[52] == pytest.approx(0.001)
    assert all(a >= b for a, b in itertools.pairwise(rates[5:]))
    assert [ttt.chunk_lr(c, 1, 0.1, 0.0) for c in range(1)] == [0.1]


def test_one_chunk_is_only_scored() -> None:
    model, tokens = tiny.tiny_model(), tiny.text(30)
    sliding = tiny.sliding(model, tokens, tiny.byte_table(), EVAL, CPU)
    result = run(model, tokens)
    assert cost(result).updates == 0 and np.array_equal(result.scores, sliding.scores)


@pytest.mark.parametrize(
    "change",
    [
        "trimmed last block",
        "windows gathered on the device",
        {"eval_batch_seqs": 3},
        {"micro_batch_seqs": 1},
        pytest.param({"compile": True}, marks=COMPILES),
    ],
    ids=str,
)
def test_each_optimisation_alone_changes_rounding_only(change: dict | str) -> None:
    tokens, cfg = tiny.text(118), TTT.model_copy(update={"batch_seqs": 2})
    exec_cfg, switch = tiny.ablated(change)
    results = [run(tiny.tiny_model(), tokens, cfg, ExecConfig(device="cpu"))]
    with switch:
        results.append(run(tiny.tiny_model(), tokens, cfg, exec_cfg))
    assert abs(results[0].bpb - results[1].bpb) < 1e-5
    assert cost(results[0]).updates == cost(results[1]).updates


def test_bf16_embedding_is_adapted() -> None:
    model = tiny.tiny_model(tiny.MODEL.model_copy(update={"embedding_dtype": "bf16"}))
    before = model.tok_emb.weight.clone()
    run(model, tiny.text(118), TTT.model_copy(update={"lr": 0.5}))
    assert model.tok_emb.weight.dtype == torch.bfloat16
    assert not torch.equal(before, model.tok_emb.weight)


def test_validation_shorter_than_a_window() -> None:
    with pytest.raises(DataError, match=r"16 tokens.*needs 17"):
        run(tiny.tiny_model(), tiny.text(16))


def test_divergence_is_its_own_error() -> None:
    with pytest.raises(DivergedError, match="not finite"):
        run(tiny.tiny_model(), tiny.text(118), TTT.model_copy(update={"lr": 1e30, "grad_clip": 1e30}))


def one_rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    model = tiny.tiny_model()
    sliding = tiny.sliding(model, tiny.text(150), tiny.byte_table(), EVAL, CPU)
    cfg = TTT.model_copy(update={"batch_seqs": 2})
    result = run(model, tiny.text(150), cfg)
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.save((sliding.scores, result.scores, cost(result).updates, weights), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_ranks_share_the_work_and_change_nothing(world: int, tmp_path: Path) -> None:
    model, tokens, cfg = tiny.tiny_model(), tiny.text(150), TTT.model_copy(update={"batch_seqs": 2})
    sliding = tiny.sliding(model, tokens, tiny.byte_table(), EVAL, CPU)
    alone = run(model, tokens, cfg)
    mp.spawn(one_rank, (world, str(tmp_path)), nprocs=world)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(world)]
    for sliding_scores, scores, updates, weights in ranks:
        assert np.allclose(sliding_scores, sliding.scores, atol=1e-5)
        assert np.allclose(scores, alone.scores, atol=1e-4)
        assert updates == cost(alone).updates
        assert torch.equal(weights, ranks[0][3])  # replicas do not drift apart
