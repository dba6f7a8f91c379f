"""Paired effects from per-block negative log-likelihoods: the same text before and after a change.

bpb = sum(nll) / ln 2 / sum(bytes) is a ratio of sums over validation blocks, so its error is that of a ratio
estimator; a difference of two such ratios over the same blocks is linearised block by block, and what the
blocks have in common cancels (Cochran 1977, "Sampling Techniques", ch. 6).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from analysis.runs.errors import AnalysisError
from analysis.runs.parquet import read_parquet

Floats = NDArray[np.float64]

COLUMNS = ("stage", "block", "bytes", "nll")
MIN_BLOCKS = 5  # fewer carry no standard error worth printing


@dataclass(frozen=True)
class Effect:
    """A difference in BPB (after less before, negative = better) and its standard error over blocks.

    `error` is None where blocks are missing or too few.
    """

    value: float
    error: float | None = None


@dataclass(frozen=True)
class StageBlocks:
    """One stage's validation blocks, by block index: text `bytes` [n] and `nll` [n] in nats."""

    block: NDArray[np.int64]
    bytes: Floats
    nll: Floats

    @property
    def bpb(self) -> float:
        return float(self.nll.sum() / np.log(2) / self.bytes.sum())


def read_blocks(folder: Path, run_id: str) -> dict[str, StageBlocks]:
    """Stages of blocks/<run_id>.parquet; empty where there is no such file.

    Raises:
        AnalysisError: the file is unreadable, lacks a column, or holds a block twice or without text.
    """
    path = folder / "blocks" / f"{run_id}.parquet"
    if not path.is_file():
        return {}
    frame = read_parquet(path)
    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing:
        raise AnalysisError(f"{path}: column {', '.join(missing)} is missing")
    stages: dict[str, StageBlocks] = {}
    for stage, rows in frame.groupby("stage", sort=False):
        rows = rows.sort_values("block")
        data = StageBlocks(
            rows["block"].to_numpy(np.int64), rows["bytes"].to_numpy(float), rows["nll"].to_numpy(float)
        )
        if len(np.unique(data.block)) < len(data.block):
            raise AnalysisError(f"{path}: stage '{stage}' holds a block twice")
        if not np.isfinite(data.nll).all() or data.bytes.sum() <= 0:
            raise AnalysisError(f"{path}: stage '{stage}' has a non-finite nll or no text")
        stages[str(stage)] = data
    return stages


def paired_effect(before: StageBlocks, after: StageBlocks) -> Effect | None:
    """BPB after less before, with the standard error of the paired ratio estimator.

    The two may count bytes differently (sliding windows that double count): each keeps its own ratio.
    None where they are not of the same blocks.
    """
    return paired_sum(((-1.0, before), (1.0, after)))


def paired_sum(terms: Sequence[tuple[float, StageBlocks]]) -> Effect | None:
    """A weighted sum of several stages' BPB over the same blocks, with its standard error."""
    block = terms[0][1].block
    if not all(np.array_equal(block, stage.block) for _, stage in terms):
        return None
    value = sum(weight * stage.bpb for weight, stage in terms)
    n = len(block)
    if n < MIN_BLOCKS:
        return Effect(value)
    deviation = np.sum([weight * _influence(stage) for weight, stage in terms], axis=0)
    return Effect(value, float(np.sqrt(n / (n - 1) * (deviation**2).sum())))


def bpb_error(stage: StageBlocks) -> float | None:
    """Standard error of a stage's own BPB over blocks: how far other text of this kind would move it."""
    n = len(stage.block)
    return None if n < MIN_BLOCKS else float(np.sqrt(n / (n - 1) * (_influence(stage) ** 2).sum()))


def _influence(stage: StageBlocks) -> Floats:
    """Each block's contribution to the deviation of the ratio, [n]; sums to 0."""
    return (stage.nll / np.log(2) - stage.bpb * stage.bytes) / stage.bytes.sum()


def same_text(one: Mapping[str, StageBlocks], other: Mapping[str, StageBlocks], stage: str) -> bool:
    """Whether two runs were scored on the same blocks with the same bytes at a stage."""
    if stage not in one or stage not in other:
        return False
    a, b = one[stage], other[stage]
    return np.array_equal(a.block, b.block) and np.array_equal(a.bytes, b.bytes)
