"""Legal, score-first test-time training: tokens are scored in order, by weights that have never seen them.

The text is cut into chunks; a window belongs to the chunk of its first scored target. Each chunk is
scored with the weights as they are, and only then trained on, for the benefit of those after it;
the last one is only scored.

Source: openai/parameter-golf, pull request 644. Unlike there, batches are global: ranks share each of them,
and do not change the number of updates.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gepa_core.data.text import Text
from gepa_core.device import PhaseClock, attention, rank_and_world, share, sum_over_ranks
from gepa_core.errors import DivergedError
from gepa_core.evaluation.captured import Captured
from gepa_core.evaluation.scoring import Adaptation, Evaluation, Scorer, account, batch_rows
from gepa_core.evaluation.windows import Windows
from gepa_core.model.passes import sequence_loss

_CHECK_EVERY = 64  # chunks: a divergence is noticed within half a minute, and the GPU seldom waits


def chunk_lr(chunk: int, num_chunks: int, peak: float, warmup_fraction: float) -> float:
    """Learning rate on a 0-based chunk: linear over the first `warmup_fraction` of chunks, then cosine to 0.

    A warm-up takes one chunk at least, as the parity figure demands; so the cosine starts one chunk late.
    """
    warmup = max(1, int(num_chunks * warmup_fraction)) if warmup_fraction else 0
    if chunk < warmup:
        return peak * (chunk + 1) / warmup
    t = (chunk - warmup) / max(num_chunks - 1 - warmup, 1)
    return peak * 0.5 * (1.0 + math.cos(math.pi * t))


def chunk_bounds(first_scored: NDArray[np.int64], num_targets: int, chunk_tokens: int) -> NDArray[np.int64]:
    """int64[C + 1]: windows bounds[c]..bounds[c + 1] have their first scored target in chunk c."""
    edges = np.arange(0, num_targets, chunk_tokens)
    return np.append(np.searchsorted(first_scored, edges), len(first_scored))


def captures(scorer: Scorer) -> bool:
    """Whether a CUDA graph replays the passes: on one GPU, compiled. Several ranks share a batch unevenly."""
    return scorer.device.type == "cuda" and scorer.compiles and rank_and_world()[1] == 1


class Adapter:
    """SGD with momentum on chunks of the text, on flat gradients: one reduction over ranks a step.

    Adapts the model in place. The first cfg.freeze_blocks blocks stay as they are.
    """

    def __init__(self, model: nn.Module, cfg: Any, scorer: Scorer, num_chunks: int) -> None:
        self.model, self.cfg, self.scorer, self.num_chunks = model, cfg, scorer, num_chunks
        frozen = tuple(f"blocks.{i}." for i in range(cfg.freeze_blocks))
        self.params: list[Tensor] = [p for name, p in model.named_parameters() if not name.startswith(frozen)]
        self.frozen = [p for name, p in model.named_parameters() if name.startswith(frozen)]
        sizes = [p.numel() for p in self.params]
        self.momentum, self.gradient = torch.zeros(2, sum(sizes), device=scorer.device)
        velocity, self.slots = (
            [part.view_as(p) for part, p in zip(flat.split(sizes), self.params, strict=True)]
            for flat in (self.momentum, self.gradient)
        )
        # Fused kernels want one dtype; a bf16 token embedding goes by itself.
        pairs = list(zip(self.params, velocity, strict=True))
        self.alike = [
            list(part) for part in zip(*(x for x in pairs if x[0].dtype == torch.float32), strict=True)
        ]
        self.others = [x for x in pairs if x[0].dtype != torch.float32]
        self.updates = self.tokens_trained = 0
        self.micro_batch = scorer.exec_cfg.micro_batch_seqs or self._micro_batch()
        self.captured = Captured(self._fill, scorer.device) if captures(scorer) else None

    def _micro_batch(self) -> int:
        if self.scorer.device.type == "cuda":
            return self.cfg.batch_seqs
        return batch_rows(self.scorer.device, self.scorer.seq_len, self.scorer.model.cfg.mlp_hidden)

    def adapt(self, chunk: int) -> None:
        """Trains on the whole sequences of a chunk for cfg.epochs epochs."""
        cfg, seq_len = self.cfg, self.scorer.seq_len
        first = chunk * cfg.chunk_tokens
        end = min(first + cfg.chunk_tokens, len(self.scorer.tokens) - 1)
        starts = np.arange(first, end - seq_len + 1, seq_len, dtype=np.int64)
        lr = chunk_lr(chunk, self.num_chunks, cfg.lr, cfg.warmup_fraction)
        for p in self.frozen:
            p.requires_grad_(False)
        for _ in range(cfg.epochs):
            for i in range(0, len(starts), cfg.batch_seqs):
                self.step(starts[i : i + cfg.batch_seqs], lr)
        for p in self.frozen:
            p.requires_grad_(True)

    def step(self, starts: NDArray[np.int64], lr: float) -> None:
        """One update on the sequences at `starts`, shared by the ranks. No wait for the device."""
        mine = starts[share(len(starts))]
        parts = -(-len(mine) // self.micro_batch)
        if not parts:  # more ranks than sequences
            self.gradient.zero_()
        for i, micro in enumerate(np.array_split(mine, parts) if parts else ()):
            rows = self.scorer.rows(micro, self.scorer.seq_len)
            if self.captured and parts == 1:
                self.captured(rows)
            else:
                self._fill(rows, len(micro) / len(starts), add=i > 0)
        self._update(sum_over_ranks(self.gradient), lr)
        self.updates += 1
        self.tokens_trained += len(starts) * self.scorer.seq_len

    def _fill(self, rows: Tensor, share_of_batch: float = 1.0, add: bool = False) -> None:
        """Puts the gradients of rows [B,T+1] into their slots, or adds them to what is there."""
        exec_cfg, device = self.scorer.exec_cfg, self.scorer.device
        with attention(exec_cfg, device):
            loss = sequence_loss(self.model, rows[:, :-1], rows[:, 1:], exec_cfg, device)
            gradients = torch.autograd.grad(loss * share_of_batch, self.params)
        (torch._foreach_add_ if add else torch._foreach_copy_)(self.slots, gradients)

    def check(self) -> None:
        """Raises DivergedError if an update was not finite. Waits for the device."""
        if not bool(self.momentum.sum().isfinite()):
            raise DivergedError(self.updates, "test-time training's update")

    @torch.no_grad()
    def _update(self, gradient: Tensor, lr: float) -> None:
        clip = (self.cfg.grad_clip / (gradient.norm() + 1e-6)).clamp(max=1.0)
        self.momentum.mul_(self.cfg.momentum).addcmul_(gradient, clip)
        torch._foreach_add_(*self.alike, alpha=-lr)
        for parameter, velocity in self.others:
            parameter.add_(velocity, alpha=-lr)


def test_time_train(
    model: Any, text: Text, windows: Windows, eval_cfg: Any, ttt_cfg: Any, exec_cfg: Any
) -> Evaluation:
    """Scores the sliding windows of the text, adapting the model in place to each chunk scored.

    With zero epochs nothing separates the chunks: this is `evaluate`, to the bit. Raises DivergedError, and
    DataError as `account`.
    """
    chunk_tokens = ttt_cfg.chunk_tokens if ttt_cfg.epochs else text.num_targets
    bounds = chunk_bounds(windows.first_scored, text.num_targets, chunk_tokens)
    num_chunks = len(bounds) - 1
    scorer = Scorer(model, text, windows, exec_cfg, int(np.diff(bounds).max()))
    adapter = Adapter(model, ttt_cfg, scorer, num_chunks)
    clock = PhaseClock(scorer.device)
    try:
        for chunk in range(num_chunks):
            with clock.phase("score"):
                scorer.score(int(bounds[chunk]), int(bounds[chunk + 1]))
            if chunk < num_chunks - 1:
                with clock.phase("train"):
                    adapter.adapt(chunk)
            if chunk % _CHECK_EVERY == 0:
                adapter.check()
        scores = scorer.gather()
    finally:
        adapter.captured = None  # it holds gigabytes, and the adapter: nothing else would free them soon
    score_seconds, train_seconds = clock.seconds("score"), clock.seconds("train")
    adaptation = Adaptation(
        len(scores), adapter.tokens_trained, adapter.updates, score_seconds, train_seconds
    )
    seconds = score_seconds + train_seconds
    return account(scores, windows, text, eval_cfg.block_tokens, seconds, adaptation)
