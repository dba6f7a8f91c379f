"""The text that models are scored on: opened once, with what about it never changes."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gepa_core.data.shards import load_tokens, open_shards
from gepa_core.data.tokenizer import ByteTable, byte_table

_SLAB = 1 << 22  # targets looked at together, to bound the memory of long texts


class Text:
    """tokens uint16[N + 1], of which all but the first are targets, and the byte table of their tokenizer.

    Target i is tokens[i + 1]. What every evaluation needs again is computed at the first and kept.
    """

    def __init__(self, tokens: NDArray[Any], table: ByteTable) -> None:
        self.tokens, self.table = tokens, table
        self._totals: dict[tuple[Any, ...], tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    @property
    def num_targets(self) -> int:
        return len(self.tokens) - 1

    @functools.cached_property
    def highest_id(self) -> int:
        return int(self.tokens.max()) if len(self.tokens) else -1

    @functools.cached_property
    def ids(self) -> NDArray[np.int32]:
        """The tokens in a width that every device computes with: int32[N + 1]."""
        return self.tokens.astype(np.int32)

    def block_totals(self, windows: Any, block_tokens: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Scored targets and their bytes in each block of `block_tokens` targets: int64[blocks] each.

        windows: in what order targets are scored, see evaluation.windows.
        """
        key = (windows.name, block_tokens)
        if key not in self._totals:
            num_blocks = -(-self.num_targets // block_tokens)
            counts, num_bytes = np.zeros((2, num_blocks), dtype=np.int64)
            for lo in range(0, windows.num_scores, _SLAB):
                target = windows.targets(lo, lo + _SLAB)
                block = target // block_tokens
                size = self.table.count_bytes(self.tokens[target], self.tokens[target + 1])
                counts += np.bincount(block, minlength=num_blocks)
                num_bytes += np.bincount(block, size, num_blocks).astype(np.int64)
            counts.setflags(write=False)
            num_bytes.setflags(write=False)
            self._totals[key] = counts, num_bytes
        return self._totals[key]


def open_text(val: str, tokenizer: str, vocab_size: int, num_targets: int | None = None) -> Text:
    """The first `num_targets` targets (None: all) of the shards that the glob pattern `val` finds.

    A process that opens the same text again gets the same object. Raises DataError.
    """
    files = [*open_shards(val).paths, Path(tokenizer)]
    seen = [(file.stat().st_size, file.stat().st_mtime_ns) if file.exists() else None for file in files]
    return _opened(val, tokenizer, vocab_size, num_targets, tuple(seen))


@functools.lru_cache(maxsize=1)
def _opened(val: str, tokenizer: str, vocab_size: int, num_targets: int | None, seen: Any) -> Text:
    tokens = load_tokens(open_shards(val), None if num_targets is None else num_targets + 1)
    return Text(tokens, byte_table(tokenizer, vocab_size))
