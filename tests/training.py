"""A run of a dozen tiny steps, on one rank or several, for the tests of training."""

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece as spm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from numpy.typing import NDArray
from torch import Tensor

from gepa_core.config import Average, DataPaths, ExecConfig, RunConfig
from gepa_core.data.shards import write_shard
from gepa_core.sections import BatchConfig, EvalConfig, TTTConfig
from gepa_core.training import checkpoint
from gepa_core.training.segment import Segment, StepReport, train_segment
from tests import tiny

RUN = RunConfig(
    steps=12,
    warmdown_steps=6,
    ema_decay=0.9,
    batch=BatchConfig(seq_len=16, seqs_per_span=2, spans=4),
    model=tiny.MODEL.model_copy(update={"embedding_dtype": "bf16"}),
    eval=EvalConfig(every=4, ema_every=8, log_every=3, seq_len=16, stride=8, block_tokens=64),
    ttt=TTTConfig(chunk_tokens=32),
)


def structured_tokens(count: int, vocab: int) -> NDArray[np.uint16]:
    """Text of sorts, by integer arithmetic alone and so the same everywhere, with something to learn."""
    i = np.arange(count, dtype=np.int64)
    noise = (i * i * 31 + (i >> 3) * 13) % 997 % 5
    return (4 + (7 * (i % 11) + 3 * ((i >> 4) % 5) + noise) % (vocab - 4)).astype(np.uint16)


def make_data(folder: Path, vocab: int = tiny.VOCAB) -> DataPaths:
    """Two training shards, one of validation, and a tokenizer of `vocab` pieces."""
    folder.mkdir(parents=True, exist_ok=True)
    written = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox jumps over the lazy dog"] * 9),
        model_writer=written,
        vocab_size=vocab,
        model_type="bpe",
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    tokens = structured_tokens(5000, vocab)
    write_shard(folder / "train_000000.bin", tokens[:700])
    write_shard(folder / "train_000001.bin", tokens[700:2200])  # 12 steps read 1,584 tokens
    write_shard(folder / "val_000000.bin", tokens[2200:2600])
    return DataPaths(
        train=str(folder / "train_*.bin"),
        val=str(folder / "val_*.bin"),
        tokenizer=str(folder / "tokenizer.model"),
    )


def train(
    paths: DataPaths,
    workdir: Path,
    config: RunConfig = RUN,
    *,
    start: Path | None = None,
    until: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    final_step: bool = True,
    averages: Sequence[Average] = (),
    **execution: Any,
) -> tuple[Segment, list[StepReport]]:
    reports: list[StepReport] = []
    segment = train_segment(
        config,
        paths,
        ExecConfig(**({"device": "cpu"} | execution)),
        start=start,
        until=config.steps if until is None else until,
        workdir=workdir,
        on_report=reports.append,
        should_stop=should_stop,
        final_step=final_step,
        averages=averages,
    )
    return segment, reports


def after(count: int) -> Callable[[], bool]:
    """A wish to stop that comes in the `count`-th step."""
    asked = iter(range(1, 10**9))
    return lambda: next(asked) >= count


def state(path: Path) -> dict[str, Tensor]:
    return checkpoint.load(path).tensors


def assert_same(a: Path, b: Path) -> None:
    """Equal to the last bit: weights, average, moments, random state."""
    first, second = state(a), state(b)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


def assert_close(a: Path, b: Path, tolerance: float, kinds: tuple[str, ...] = ("model/", "average/")) -> None:
    """Equal up to rounding: tensors of each kind, all in all."""
    first, second = state(a), state(b)
    for kind in kinds:
        names = [name for name in first if name.startswith(kind)]
        ours = torch.cat([first[name].float().flatten() for name in names])
        theirs = torch.cat([second[name].float().flatten() for name in names])
        gap = float((ours - theirs).norm() / theirs.norm())
        assert 0 < gap < tolerance, (kind, gap)  # not 0: the sums had another order


def assert_same_gradients(a: Path, b: Path) -> None:
    """Of the states after one step, where the moments are the clipped gradients but for a factor.

    The embedding's are bf16, which the clip lets everybody feel.
    """
    assert_close(a, b, 1e-3, ("momentum/",))
    assert_close(a, b, 1e-2, ("exp_avg/",))


def on_ranks(world: int, function: Callable[..., None], folder: Path, *args: Any) -> None:
    """Calls function(rank, *args) in `world` processes joined by gloo."""
    folder.mkdir(parents=True, exist_ok=True)
    mp.spawn(_on_rank, (world, folder / "rendezvous", function, args), nprocs=world)


def _on_rank(rank: int, world: int, rendezvous: Path, function: Callable[..., None], args: Any) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    try:
        function(rank, *args)
    finally:
        dist.destroy_process_group()
