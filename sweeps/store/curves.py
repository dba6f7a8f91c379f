"""A run's whole training curve, put together from the segments it is made of."""

from collections.abc import Sequence
from typing import Any

from sweeps.store.schema import TRAJECTORY, from_parquet
from sweeps.store.store import Store

CURVES = (
    "lr_scale",
    "train_tokens",
    "train_loss",
    "val_loss",
    "val_bpb",
    "ema_val_bpb",
    "int6_val_bpb",
    "artifact_bytes",
    "raw_int6_val_bpb",
    "raw_artifact_bytes",
)


def segment_rows(store: Store, sweep: str, segment: str) -> list[dict[str, Any]]:
    """What was reported of a segment, by step; nothing where it is not done."""
    path = f"{sweep}/trajectory/{segment}.parquet"
    data = store.files.read(path)
    if data is None:
        return []
    remedy = "delete it, and the sweep's launch.py command writes it anew"
    rows = from_parquet(data, TRAJECTORY, store.files.describe(path), remedy)
    return sorted(rows, key=lambda row: int(row["step"]))


def joined(segments: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, float]]:
    """The segments' rows in order as points: `step`, `seconds` of training up to there, and what is known of
    CURVES. Ends before the first segment that is not done.
    """
    points: list[dict[str, float]] = []
    before = 0.0
    for rows in segments:
        if not rows:  # not done yet, so nothing after it is either
            break
        for row in rows:
            known = {key: row[key] for key in CURVES if row.get(key) is not None}
            points.append({"step": row["step"], "seconds": before + (row["elapsed_seconds"] or 0.0), **known})
        before = points[-1]["seconds"]
    return points
