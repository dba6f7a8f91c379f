"""How fast the work of a sweep goes: published, typical and measured FLOP/s. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["train", "evaluate", "ttt"]

PUBLISHED_VAL_TOKENS = 62_021_632
"""FineWeb validation set cut to whole sequences: assumed where the data is not at hand."""


@dataclass(frozen=True)
class Measurement:
    """Work that was timed: `flops` done in `seconds` by `devices` GPUs (or CPU workers) together."""

    kind: Kind
    flops: float
    seconds: float
    devices: float


@dataclass(frozen=True)
class Speeds:
    """FLOP/s of one GPU (or one CPU worker) by kind of work, and where the figures come from."""

    train: float
    evaluate: float
    ttt: float
    source: str

    def measured(self, measurements: Iterable[Measurement]) -> "Speeds":
        """These speeds, replaced by measured ones for each kind of work that was timed."""
        timed = list(measurements)
        rates: dict[str, float] = {}
        for kind in ("train", "evaluate", "ttt"):
            device_seconds = sum(m.seconds * m.devices for m in timed if m.kind == kind)
            if device_seconds > 0:
                rates[kind] = sum(m.flops for m in timed if m.kind == kind) / device_seconds
        if not rates:
            return self
        rest = [kind for kind in ("train", "evaluate", "ttt") if kind not in rates]
        source = f"measured in this store ({', '.join(rates)})"
        return replace(self, **rates, source=source + (f"; {', '.join(rest)}: {self.source}" if rest else ""))


PUBLISHED_A100 = Speeds(
    train=179.9e12 / 0.5004 / 4,  # 786,432 tokens in 500.4 ms on 4 A100s
    evaluate=287e15 / 2074 / 4,
    ttt=287e15 / 2074 / 4,  # 2,074 s on 4 A100s for sliding scores and TTT
    source="the published run's speed on A100s (PR 644), scaled by the model's FLOPs",
)
# Per one-thread worker; small models are bound by call overhead, so this is good to a factor of two.
CPU_WORKER = Speeds(
    train=35e9, evaluate=45e9, ttt=35e9, source="a one-thread CPU worker's typical 35-45 GFLOP/s, fp32"
)
