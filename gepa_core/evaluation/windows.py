"""How a text is cut to be scored: plain (non-overlapping) sequences, or sliding windows.

A window reads `seq_len` tokens and scores the last few of its targets, so that each is predicted from a long
context. Source: openai/parameter-golf, pull request 644.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Windows:
    """Windows in order, int64[W] each: w reads `length` tokens from `start`, scores its last `scored`.

    `name` tells them from all others: windows of one name are the same.
    """

    name: tuple[int | str, ...]
    start: NDArray[np.int64]
    length: NDArray[np.int64]
    scored: NDArray[np.int64]
    offset: NDArray[np.int64]
    """int64[W + 1]: the scores of window w are offset[w]..offset[w + 1] of all."""

    @property
    def num_scores(self) -> int:
        return int(self.offset[-1])

    @property
    def first_scored(self) -> NDArray[np.int64]:
        return self.start + self.length - self.scored

    def targets(self, lo: int, hi: int) -> NDArray[np.int64]:
        """The targets behind scores lo..hi (or to the last): int64 [hi - lo]."""
        hi = min(hi, self.num_scores)
        first, last = np.searchsorted(self.offset, (lo, hi - 1), side="right") - 1
        part = slice(int(first), int(last) + 1)
        shift = self.first_scored[part] - self.offset[:-1][part]
        shifts = np.repeat(shift, self.scored[part])[lo - int(self.offset[first]) :]
        return shifts[: hi - lo] + np.arange(lo, hi)


def _windows(
    name: tuple[int | str, ...],
    start: NDArray[np.int64],
    length: NDArray[np.int64],
    scored: NDArray[np.int64],
) -> Windows:
    return Windows(name, start, length, scored, np.concatenate(([0], np.cumsum(scored))))


def plain_windows(num_targets: int, seq_len: int) -> Windows:
    """Non-overlapping sequences, all targets scored; those after the last whole sequence are dropped."""
    start = np.arange(0, num_targets - seq_len + 1, seq_len, dtype=np.int64)
    whole = np.full_like(start, seq_len)
    return _windows(("plain", num_targets, seq_len), start, whole, whole)


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
    return _windows(("sliding", num_targets, seq_len, stride, counting), start, length, scored)
