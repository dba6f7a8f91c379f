"""Placeholder while being written: the shape that plan.py needs."""

from dataclasses import dataclass

from gepa_core.config import ExecConfig, RunConfig


@dataclass(frozen=True)
class Resources:
    gpus_per_run: float = 0.0


@dataclass(frozen=True)
class Sweep:
    name: str
    runs: tuple[RunConfig, ...]
    stages: tuple[str, ...] = ("float", "ema", "int6", "int6_sliding", "ttt")
    resources: Resources = Resources()
    exec: ExecConfig = ExecConfig()
    share: bool = True
