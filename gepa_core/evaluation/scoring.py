"""Validation in bits per byte: plain (non-overlapping sequences) and sliding windows.

A target is a token of the text but the first: target i is tokens[i + 1]. A window reads `seq_len` tokens and
scores the last few of its targets, so that each is predicted from a long context.

Source of the method: openai/parameter-golf, pull request 644 (sliding windows, the byte rule).
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

from gepa_core.data.tokenizer import ByteTable
from gepa_core.device import (
    attention,
    rank_and_world,
    resolve_device,
    share,
    sum_over_ranks,
    wants_compile,
)
from gepa_core.errors import DataError, DivergedError
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
class Evaluation:
    """What a model scored on a text: nll in nats, summed over `tokens` scored targets of `bytes` bytes."""

    nll: float
    tokens: int
    bytes: int
    blocks: Blocks
    seconds: float
    scores: NDArray[np.float32]
    """nll of each scored target, in the order of scoring."""

    @property
    def loss(self) -> float:
        """Mean nll a token, nats."""
        return self.nll / self.tokens

    @property
    def bpb(self) -> float:
        """Bits per byte of text."""
        return self.nll / math.log(2) / self.bytes


@dataclass(frozen=True)
class Windows:
    """Windows in order, int64[W] each: w reads `length` tokens from `start`, scores its last `scored`."""

    start: NDArray[np.int64]
    length: NDArray[np.int64]
    scored: NDArray[np.int64]

    @property
    def first_scored(self) -> NDArray[np.int64]:
        return self.start + self.length - self.scored

    @property
    def offset(self) -> NDArray[np.int64]:
        """int64[W + 1]: the scores of window w are offset[w]..offset[w + 1] of all."""
        return np.concatenate(([0], np.cumsum(self.scored)))

    def targets(self) -> NDArray[np.int32]:
        """int32[sum of scored]: the target behind each score."""
        shift = self.first_scored - self.offset[:-1]
        return (np.repeat(shift, self.scored) + np.arange(self.scored.sum())).astype(np.int32)


def plain_windows(num_targets: int, seq_len: int) -> Windows:
    """Non-overlapping sequences, all targets scored; those after the last whole sequence are dropped."""
    start = np.arange(0, num_targets - seq_len + 1, seq_len, dtype=np.int64)
    whole = np.full_like(start, seq_len)
    return Windows(start, whole, whole)


def sliding_windows(num_targets: int, seq_len: int, stride: int, counting: str) -> Windows:
    """Windows of seq_len every `stride` targets; the first scores all targets, the others the last `stride`.

    "once" scores each target exactly once: where stride does not divide, a last window ends with the text.
    "reference" repeats the published code: it goes on with windows cut short by the end of the text, each of
    which scores the last `stride` targets again.
    """
    if counting == "reference":
        start = np.arange(0, num_targets - stride + 1, stride, dtype=np.int64)
        length = np.minimum(seq_len, num_targets - start)
        scored = np.full_like(start, stride)
    else:
        end = np.arange(seq_len, num_targets + stride, stride, dtype=np.int64).clip(max=num_targets)
        end = np.unique(end)
        start, length, scored = end - seq_len, np.full_like(end, seq_len), np.diff(end, prepend=0)
    scored[0] = seq_len
    return Windows(start, length, scored)


class Scorer:
    """Scores windows of one text with a model's present weights; keeps every score on the device until asked.

    tokens: uint16[N + 1]. `check_text` has found them fit to be scored. at_once: how many windows a call of
    `score` will have at most (None: all).
    """

    def __init__(
        self, model: Any, tokens: NDArray[Any], windows: Windows, exec_cfg: Any, at_once: int | None = None
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
        host = torch.from_numpy(tokens.astype(np.int32))
        self.tokens = host.to(self.device) if exec_cfg.device_windows else host

    def rows(self, starts: NDArray[np.int64], length: int) -> Tensor:
        """Tokens start..start+length inclusive of each window: int64 [B, length + 1] on the device."""
        if self.exec_cfg.device_windows:
            index = torch.from_numpy(starts).to(self.device, non_blocking=True)
            return self.tokens.unfold(0, length + 1, 1)[index].long()
        rows = torch.empty(len(starts), length + 1, dtype=torch.int64)
        for row, start in zip(rows, starts, strict=True):
            row.copy_(self.tokens[start : start + length + 1])
        return rows.to(self.device)

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
    targets: NDArray[np.int32],
    tokens: NDArray[Any],
    table: ByteTable,
    block_tokens: int,
    seconds: float = 0.0,
) -> Evaluation:
    """Sums scores [S] of the targets [S] of tokens [N + 1], in float64 and in order, in all and per block.

    Raises DataError if the scored tokens stand for no bytes of text: bits per byte would have no meaning.
    """
    num_blocks = -(-(len(tokens) - 1) // block_tokens)
    nll = np.zeros(num_blocks)
    counts, num_bytes = np.zeros((2, num_blocks), dtype=np.int64)
    for lo in range(0, len(scores), _SLAB):
        target = targets[lo : lo + _SLAB]
        block = target // block_tokens
        nll += np.bincount(block, scores[lo : lo + _SLAB], num_blocks)
        counts += np.bincount(block, minlength=num_blocks)
        size = table.count_bytes(tokens[target], tokens[target + 1])
        num_bytes += np.bincount(block, size, num_blocks).astype(np.int64)
    if not num_bytes.sum():
        raise DataError("validation tokens: all are control or unknown tokens, which stand for no text")
    blocks = Blocks(nll, counts, num_bytes)
    return Evaluation(float(nll.sum()), int(counts.sum()), int(num_bytes.sum()), blocks, seconds, scores)


def check_text(model: Any, tokens: NDArray[Any], table: ByteTable, seq_len: int) -> None:
    """Raises DataError if the text is shorter than a window, or not in the model's vocabulary."""
    vocab_size = model.cfg.vocab_size
    if table.vocab_size != vocab_size:
        raise DataError(
            f"the tokenizer has {table.vocab_size} pieces, the model a vocabulary of {vocab_size}; "
            "evaluate with the tokenizer the model was trained with"
        )
    if len(tokens) and int(tokens.max()) >= vocab_size:
        raise DataError(
            f"validation tokens: id {int(tokens.max())} is past the model's vocabulary of {vocab_size}; "
            "they were made with another tokenizer"
        )
    if len(tokens) <= seq_len:
        raise DataError(
            f"validation has {len(tokens)} tokens, one window needs {seq_len + 1} (eval.seq_len {seq_len} "
            "and the token before); lower eval.seq_len or give more validation text"
        )


def _evaluate(
    model: Any, tokens: NDArray[Any], table: ByteTable, windows: Windows, cfg: Any, exec_cfg: Any
) -> Evaluation:
    start = time.perf_counter()
    scorer = Scorer(model, tokens, windows, exec_cfg)
    scorer.score(0, len(windows.start))
    scores = scorer.gather()
    seconds = time.perf_counter() - start
    return account(scores, windows.targets(), tokens, table, cfg.block_tokens, seconds)


def evaluate_plain(model: Any, tokens: NDArray[Any], table: ByteTable, cfg: Any, exec_cfg: Any) -> Evaluation:
    """Scores tokens (uint16[N + 1]) in non-overlapping sequences of cfg.seq_len.

    Raises DataError as `check_text` and `account` do, DivergedError if a score is not finite.
    """
    check_text(model, tokens, table, cfg.seq_len)
    return _evaluate(model, tokens, table, plain_windows(len(tokens) - 1, cfg.seq_len), cfg, exec_cfg)


def evaluate_sliding(
    model: Any, tokens: NDArray[Any], table: ByteTable, cfg: Any, exec_cfg: Any
) -> Evaluation:
    """Scores tokens (uint16[N + 1]) in windows of cfg.seq_len every cfg.stride, as `sliding_windows` has it.

    Raises DataError as `check_text` and `account` do, DivergedError if a score is not finite.
    """
    check_text(model, tokens, table, cfg.seq_len)
    windows = sliding_windows(len(tokens) - 1, cfg.seq_len, cfg.stride, cfg.counting)
    return _evaluate(model, tokens, table, windows, cfg, exec_cfg)
