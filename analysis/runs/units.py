"""What metrics are called in words, and their units."""

from collections.abc import Iterable

LABELS = {
    "float_bpb": "raw weights",
    "ema_bpb": "EMA",
    "int6_bpb": "int6",
    "int6_sliding_bpb": "int6, sliding",
    "ttt_bpb": "TTT",
    "ema_sliding_bpb": "EMA, sliding",
    "ema_ttt_bpb": "EMA, TTT",
    "merged_bpb": "merged",
    "val_bpb": "validation",
    "ema_val_bpb": "validation, EMA weights",
    "val_loss": "validation loss",
    "final_loss": "final loss",
    "train_loss": "training loss",
    "train_loss_final": "final training loss",
    "artifact_bytes": "artifact",
}
QUANTITIES = {
    "float_bpb": "val BPB of raw weights",
    "ema_bpb": "val BPB of EMA weights",
    "int6_bpb": "val BPB after int6",
    "int6_sliding_bpb": "val BPB after int6, sliding",
    "ttt_bpb": "val BPB after TTT",
    "ema_sliding_bpb": "val BPB of EMA weights, sliding",
    "ema_ttt_bpb": "val BPB of EMA weights after TTT",
    "merged_bpb": "val BPB of merged trunk states",
    "val_bpb": "val BPB",
    "ema_val_bpb": "val BPB of EMA weights",
    "int6_val_bpb": "val BPB after int6",
    "val_loss": "val loss (nats per token)",
    "final_loss": "final loss (nats per token)",
    "train_loss": "training loss (nats per token)",
    "artifact_bytes": "artifact (bytes)",
}
"""What an axis or a sentence calls a metric, with its unit in it, as the field writes it."""

STAGES = ("float_bpb", "ema_bpb", "int6_bpb", "int6_sliding_bpb", "ttt_bpb")
"""The job's stages in order; each column is the whole pipeline up to there."""

BESIDE = ("ema_sliding_bpb", "ema_ttt_bpb", "merged_bpb")
"""Stages beside the job's own: of weights that are not submitted."""


def unit(metric: str) -> str:
    """'BPB', 'nats per token', 'bytes' or the metric's own name."""
    if metric.endswith("bpb"):
        return "BPB"
    if metric.endswith("loss") or metric == "train_loss_final":
        return "nats per token"
    return next((name for name in ("bytes", "seconds") if metric.endswith(name)), metric)


def axis(metric: str) -> str:
    """Axis label, as the field writes it: 'val BPB after TTT'."""
    return QUANTITIES.get(metric) or f"{LABELS.get(metric, metric)} ({unit(metric)})"


def counted(number: int, thing: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number:,} {thing}{'s' * (number != 1)}"


def span(values: Iterable[float], digits: str = ".2f") -> str:
    """'a' or 'a to b'."""
    values = list(values)
    low, high = format(min(values), digits), format(max(values), digits)
    return low if low == high else f"{low} to {high}"
