"""How fast work goes, assumed until it is measured: from FLOPs (or steps) to seconds. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from sweeps.kinds.kind import RATES, Rate

PUBLISHED_VAL_TOKENS = 62_021_632
"""FineWeb validation set cut to whole sequences: assumed where the data is not at hand."""


@dataclass(frozen=True)
class Measurement:
    """Work that was timed: `amount` FLOPs (or steps) done in `seconds` by `devices` devices together."""

    kind: Rate
    amount: float
    seconds: float
    devices: float
    of: str = ""
    """Digest of the script whose steps they are."""


@dataclass(frozen=True)
class Speeds:
    """FLOP/s (or steps/s) of one GPU or CPU worker by rate, and where the figures come from."""

    train: float
    evaluate: float
    ttt: float
    source: str
    steps: float = 1.0
    """Steps/s of a training script, which nothing but its own runs can tell."""
    quantize: float = 17e6
    """Weights/s of `reference` and the coder on one core: 27 million in 1.5 s (an EPYC with AVX-512)."""

    def seconds(self, cost: Mapping[Rate, float], devices: float) -> dict[Rate, float]:
        """Device-seconds of a cost on so many devices, by rate: all wait while one core quantizes."""
        found = {rate: amount / float(getattr(self, rate)) for rate, amount in cost.items()}
        return found | {rate: devices * seconds for rate, seconds in found.items() if rate == "quantize"}

    def measured(self, measurements: Iterable[Measurement]) -> "Speeds":
        """These speeds, replaced by measured ones for each kind of work that was timed."""
        timed = list(measurements)
        rates: dict[str, float] = {}
        for kind in RATES:
            device_seconds = sum(m.seconds * m.devices for m in timed if m.kind == kind)
            if device_seconds > 0:
                rates[kind] = sum(m.amount for m in timed if m.kind == kind) / device_seconds
        if not rates:
            return self
        if "steps" in rates:
            return replace(self, **rates, source="measured in this store, of this script")
        rest = [kind for kind in ("train", "evaluate", "ttt") if kind not in rates]
        source = f"measured in this store ({', '.join(rates)})"
        return replace(self, **rates, source=source + (f"; {', '.join(rest)}: {self.source}" if rest else ""))


PUBLISHED_A100 = Speeds(
    train=179.9e12 / 0.5004 / 4,  # 786,432 tokens in 500.4 ms on 4 A100s
    evaluate=287e15 / 2074 / 4,
    ttt=287e15 / 2074 / 4,  # 2,074 s on 4 A100s for sliding scores and TTT
    source="the published run's speed on A100s (PR 644), scaled by the model's FLOPs",
)
H200 = Speeds(
    train=179.8e12 / 0.569,  # 786,432 tokens in 569 ms on one
    evaluate=75.1e12 / 0.228,  # 481 sliding windows in 228 ms
    ttt=544.5e12 / 1.727,  # 131,072 tokens, scored and trained on, in 1.727 s
    source="this project's speed on an H200 (benchmarks/results), scaled by the model's FLOPs",
)
# Per one-thread worker; small models are bound by call overhead, so this is good to a factor of two.
CPU_WORKER = Speeds(
    train=35e9, evaluate=45e9, ttt=35e9, source="a one-thread CPU worker's typical 35-45 GFLOP/s, fp32"
)
SCRIPT = Speeds(
    train=1.0, evaluate=1.0, ttt=1.0, source="one step a second, assumed until a run of this script is done"
)
