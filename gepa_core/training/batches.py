"""The training tokens of a step: a function of the step alone, read ahead on a GPU."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gepa_core.data.shards import TokenStream
from gepa_core.errors import ConfigError, DataError
from gepa_core.sections import BatchConfig

# CPU: activations [tokens, width] that stay in the cache beat longer matrix products. Of 256 to
# 4,096 tokens, 2,048 were fastest at width 64 and 512 at 384 (AMD EPYC, 1 MB of L2 a core).
_CPU_ACTIVATIONS = 3 << 16


def micro_batch_seqs(batch: BatchConfig, width: int, wanted: int | None, device: torch.device) -> int:
    """Sequences a forward pass takes: the largest divisor of a span's that is at most `wanted`.

    By default as many as fit the cache of a CPU; a GPU takes a span at once.
    """
    if wanted is None and device.type == "cpu":
        wanted = max(1, _CPU_ACTIVATIONS // (width * batch.seq_len))
    limit = min(wanted or batch.seqs_per_span, batch.seqs_per_span)
    return next(size for size in range(limit, 0, -1) if batch.seqs_per_span % size == 0)


@dataclass(frozen=True)
class StepBatches:
    """Batches of a step for one rank of several.

    Span j of step s is tokens [(s*spans + j) * (span_tokens + 1), ...): inputs and, shifted by one, targets.
    A rank takes spans/ranks consecutive spans, each in micro-batches. Raises ConfigError if the ranks do not
    divide the spans, DataError for a token outside the vocabulary.
    """

    stream: TokenStream
    batch: BatchConfig
    vocab_size: int
    micro_batch: int
    device: torch.device
    rank: int
    world: int

    def __post_init__(self) -> None:
        if self.batch.spans % self.world:
            raise ConfigError(
                f"batch.spans {self.batch.spans} is not divisible by {self.world} ranks; choose a number of "
                "ranks that divides it, or change batch.spans"
            )

    @property
    def micro_batches(self) -> int:
        """Forward passes a step, on this rank."""
        return self.batch.spans // self.world * (self.batch.seqs_per_span // self.micro_batch)

    def read(self, step: int) -> list[tuple[Tensor, Tensor]]:
        """(ids, targets), int64 [micro_batch, seq_len] each, on the device."""
        length = self.batch.span_tokens + 1
        spans = self.batch.spans // self.world
        first = step * self.batch.spans + self.rank * spans
        tokens = np.stack([self.stream.span((first + j) * length, length) for j in range(spans)])
        if int(tokens.max()) >= self.vocab_size:
            raise DataError(
                f"training token id {int(tokens.max())} near token {first * length} of the stream is outside "
                f"the vocabulary of {self.vocab_size}; the shards were made with another tokenizer"
            )
        ids = self._to_device(tokens)
        shape = (-1, self.micro_batch, self.batch.seq_len)
        return list(zip(ids[:, :-1].reshape(shape), ids[:, 1:].reshape(shape), strict=True))

    def _to_device(self, tokens: np.ndarray) -> Tensor:
        if self.device.type != "cuda":
            return torch.from_numpy(tokens.astype(np.int64))
        narrow = torch.from_numpy(tokens.view(np.int16)).pin_memory()
        return widened(narrow.to(self.device, non_blocking=True))


def widened(narrow: Tensor) -> Tensor:
    """int64 of uint16 tokens that crossed the bus as int16, which every kernel knows."""
    return narrow.long() & 0xFFFF


class Prefetcher:
    """Reads the batches of the next step in a thread while this one is computed."""

    def __init__(self, batches: StepBatches) -> None:
        self._batches = batches
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._ahead: tuple[int, Future[list[tuple[Tensor, Tensor]]]] | None = None

    def read(self, step: int) -> list[tuple[Tensor, Tensor]]:
        ahead, self._ahead = self._ahead, (step + 1, self._pool.submit(self._read, step + 1))
        if ahead is not None and ahead[0] == step:
            return ahead[1].result()
        return self._batches.read(step)

    def _read(self, step: int) -> list[tuple[Tensor, Tensor]]:
        with torch.cuda.device(self._batches.device):
            return self._batches.read(step)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
