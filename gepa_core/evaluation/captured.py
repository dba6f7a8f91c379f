"""A CUDA graph of a function that is called many times: one launch in place of hundreds."""

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor


class Captured:
    """A function of one tensor on a GPU, as a CUDA graph once it has run a few times in each shape.

    A batch of test-time training is small: launching its kernels one by one takes longer than they run.
    """

    _WARM = 2  # calls before a shape is captured: they compile, and settle what libraries choose

    def __init__(self, function: Callable[[Tensor], None], device: torch.device) -> None:
        self._function = function
        self._stream = torch.cuda.Stream(device)
        self._calls: Counter[torch.Size] = Counter()
        self._graphs: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def __call__(self, x: Tensor) -> None:
        self._calls[x.shape] += 1
        if self._calls[x.shape] <= self._WARM:
            self._on_side(x)
            return
        if x.shape not in self._graphs:
            graph, held = torch.cuda.CUDAGraph(), x.clone()
            with torch.cuda.graph(graph, stream=self._stream):
                self._function(held)
            self._graphs[x.shape] = graph, held
        self.replay(x)

    def replay(self, x: Tensor) -> None:
        graph, held = self._graphs[x.shape]
        held.copy_(x)
        graph.replay()

    def _on_side(self, x: Tensor) -> None:
        """What is to be captured must have run on the stream of the capture."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            self._function(x)
        current.wait_stream(self._stream)
