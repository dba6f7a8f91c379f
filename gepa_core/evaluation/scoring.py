"""Scores of a text's windows, and what they add up to in bits per byte.

Source of the byte rule: openai/parameter-golf, pull request 644.
Shape letters: N targets, W windows, B batch, L window length, n scored targets of a window.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gepa_core.data.text import Text
from gepa_core.device import (
    attention,
    rank_and_world,
    resolve_device,
    share,
    sum_over_ranks,
    wants_compile,
)
from gepa_core.errors import DataError, DivergedError
from gepa_core.evaluation.windows import Windows
from gepa_core.model.passes import token_nll

_SLAB = 1 << 22  # scores accounted for at a time, to bound the memory of long texts

# A GPU is filled by this many tokens, with room for the [B,L,V] fp32 logits of plain evaluation. A CPU wants
# its widest activation to stay in the cache (measured with benchmarks/ttt.py).
_GPU_BATCH_TOKENS = 1 << 18
_GPU_BATCH_ELEMENTS = 1 << 29
_CPU_BATCH_ELEMENTS = 1 << 20


def batch_rows(device: torch.device, length: int, widest: float) -> int:
    """Rows of `length` tokens to take at once, where the widest activation has `widest` elements a token."""
    if device.type == "cuda":
        tokens = min(_GPU_BATCH_TOKENS, _GPU_BATCH_ELEMENTS / widest)
    else:
        tokens = _CPU_BATCH_ELEMENTS / widest
    return max(1, int(tokens / length))


@dataclass(frozen=True)
class Blocks:
    """Totals per block of consecutive targets, arrays of one length: the unit of paired stage effects."""

    nll: NDArray[np.float64]
    tokens: NDArray[np.int64]
    bytes: NDArray[np.int64]


@dataclass(frozen=True)
class Adaptation:
    """What test-time training did. tokens_trained counts every epoch; seconds are this rank's."""

    tokens_scored: int
    tokens_trained: int
    updates: int
    score_seconds: float
    train_seconds: float


@dataclass(frozen=True)
class Evaluation:
    """What a model scored on a text: nll in nats, summed over `tokens` scored targets of `bytes` bytes."""

    nll: float
    tokens: int
    bytes: int
    blocks: Blocks
    seconds: float
    scores: NDArray[np.float32]
    """nll of each scored target, in the order of scoring."""
    adaptation: Adaptation | None = None
    """Of test-time training only."""

    @property
    def loss(self) -> float:
        """Mean nll a token, nats."""
        return self.nll / self.tokens

    @property
    def bpb(self) -> float:
        """Bits per byte of text."""
        return self.nll / math.log(2) / self.bytes


def held(ids: Tensor, device: torch.device) -> Tensor:
    """The text's tokens where windows are gathered from: all of it lies on the device."""
    return ids.to(device)


class Scorer:
    """Scores windows of one text with a model's present weights; keeps every score on the device until asked.

    `check_text` has found the text fit to be scored. at_once: how many windows a call of `score` will have at
    most (None: all).
    """

    def __init__(
        self, model: Any, text: Text, windows: Windows, exec_cfg: Any, at_once: int | None = None
    ) -> None:
        self.model, self.windows, self.exec_cfg = model, windows, exec_cfg
        self.device = resolve_device(exec_cfg)
        self.seq_len = int(windows.length[0])
        usual = int(windows.scored[len(windows.scored) // 2])
        widest = max(model.cfg.mlp_hidden, model.cfg.vocab_size * usual / self.seq_len)
        fitting = exec_cfg.eval_batch_seqs or batch_rows(self.device, self.seq_len, widest)
        most = -(-(at_once or len(windows.start)) // rank_and_world()[1])
        self.batch = -(-most // -(-most // fitting))  # equal batches: what is compiled for is seldom padded
        self.compiles = wants_compile(exec_cfg, self.device)
        self.offset = windows.offset
        # NaN marks what is not scored: an omission cannot pass for a score.
        self.scores = torch.full((int(self.offset[-1]),), math.nan, device=self.device)
        self.tokens = held(torch.from_numpy(text.ids), self.device)

    def rows(self, starts: NDArray[np.int64], length: int) -> Tensor:
        """Tokens start..start+length inclusive of each window: int64 [B, length + 1] on the device."""
        index = torch.from_numpy(starts).to(self.tokens.device, non_blocking=True)
        return self.tokens.unfold(0, length + 1, 1)[index].long().to(self.device)

    def _batches(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Splits windows first..last where their shape changes, and those into batches."""
        length, scored = self.windows.length[first:last], self.windows.scored[first:last]
        cuts = first + 1 + np.flatnonzero(np.diff(length) | np.diff(scored))
        for a, b in zip((first, *cuts), (*cuts, last), strict=True):
            for lo in range(a, b, self.batch):
                yield lo, min(lo + self.batch, b)

    @torch.no_grad()
    def score(self, first: int, last: int) -> None:
        """Scores windows first..last with the weights as they are; several ranks each take a part of them."""
        part = share(last - first)
        first, last = first + part.start, first + part.stop
        usual = len(self.windows.start) // 2  # has the shape that nearly all windows have
        for lo, hi in self._batches(first, last) if first < last else ():
            starts = self.windows.start[lo:hi]
            length, scored = int(self.windows.length[lo]), int(self.windows.scored[lo])
            compiles = self.compiles and scored == self.windows.scored[usual] and length == self.seq_len
            if compiles:
                # One static shape is compiled: a short batch is filled up with copies of its last window.
                starts = np.pad(starts, (0, self.batch - len(starts)), mode="edge")
            rows = self.rows(starts, length)
            with attention(self.exec_cfg, self.device):
                nll = token_nll(
                    self.model, rows[:, :-1], rows[:, -scored:], self.exec_cfg, self.device, compiles
                )
            self.scores[self.offset[lo] : self.offset[hi]] = nll[: hi - lo].flatten()

    def gather(self) -> NDArray[np.float32]:
        """All scores, from all ranks, in order. Raises DivergedError if one is missing or not finite."""
        mine = ~self.scores.isnan()
        total = sum_over_ranks(torch.where(mine, self.scores, 0.0))
        covered = sum_over_ranks(mine.float()) == 1
        if not bool((covered & total.isfinite()).all()):
            raise DivergedError(None, "validation loss")
        return total.cpu().numpy()


def account(
    scores: NDArray[np.float32],
    windows: Windows,
    text: Text,
    block_tokens: int,
    seconds: float = 0.0,
    adaptation: Adaptation | None = None,
) -> Evaluation:
    """Sums the windows' scores [S] in float64 and in order, in all and per block of the text.

    Raises DataError if the scored tokens stand for no bytes of text: bits per byte would have no meaning.
    """
    counts, num_bytes = text.block_totals(windows, block_tokens)
    if not num_bytes.sum():
        raise DataError("validation tokens: all are control or unknown tokens, which stand for no text")
    nll = np.zeros(len(counts))
    for lo in range(0, len(scores), _SLAB):
        block = windows.targets(lo, lo + _SLAB) // block_tokens
        nll += np.bincount(block, scores[lo : lo + _SLAB], len(counts))
    blocks = Blocks(nll, counts, num_bytes)
    totals = float(nll.sum()), int(counts.sum()), int(num_bytes.sum())
    return Evaluation(*totals, blocks, seconds, scores, adaptation)


def check_text(model: Any, text: Text, seq_len: int) -> None:
    """Raises DataError if the text is shorter than a window, or not in the model's vocabulary."""
    vocab_size = model.cfg.vocab_size
    if text.table.vocab_size != vocab_size:
        raise DataError(
            f"the tokenizer has {text.table.vocab_size} pieces, the model a vocabulary of {vocab_size}; "
            "evaluate with the tokenizer the model was trained with"
        )
    if text.highest_id >= vocab_size:
        raise DataError(
            f"validation tokens: id {text.highest_id} is past the model's vocabulary of {vocab_size}; "
            "they were made with another tokenizer"
        )
    if len(text.tokens) <= seq_len:
        raise DataError(
            f"validation has {len(text.tokens)} tokens, one window needs {seq_len + 1} (eval.seq_len "
            f"{seq_len} and the token before); lower eval.seq_len or give more validation text"
        )


def evaluate(model: Any, text: Text, windows: Windows, cfg: Any, exec_cfg: Any) -> Evaluation:
    """Scores the windows with the weights as they are. Raises DivergedError, and DataError as `account`."""
    start = time.perf_counter()
    scorer = Scorer(model, text, windows, exec_cfg)
    scorer.score(0, len(windows.start))
    scores = scorer.gather()
    return account(scores, windows, text, cfg.block_tokens, time.perf_counter() - start)
