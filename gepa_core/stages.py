"""What is measured of a run: each stage by name, of which weights, and how they are scored. Pure."""

from dataclasses import dataclass
from typing import Literal

Weights = Literal["raw", "average", "merged", "artifact"]
Way = Literal["plain", "sliding", "ttt"]


@dataclass(frozen=True)
class Stage:
    """`weights` are scored in this `way` (see evaluation.stages.measure)."""

    weights: Weights
    way: Way


STAGES: dict[str, Stage] = {
    "float": Stage("raw", "plain"),
    "ema": Stage("average", "plain"),
    "ema_sliding": Stage("average", "sliding"),
    "ema_ttt": Stage("average", "ttt"),
    "merged": Stage("merged", "plain"),
    "int6": Stage("artifact", "plain"),
    "int6_sliding": Stage("artifact", "sliding"),
    "ttt": Stage("artifact", "ttt"),
}
"""In the order of measurement; a stage's column is its name with `_bpb`."""
