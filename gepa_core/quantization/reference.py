"""The published rule of int6 quantization, to the last bit: 15 clips a tensor, and a floor on the step."""

import torch
from torch import Tensor

from gepa_core.quantization.quantized import INT_MAX, INT_MIN, SCALE_FLOOR, QuantizedTensor

CLIP_QUANTILES = (
    0.990, 0.993, 0.995, 0.997, 0.998, 0.999, 0.9993, 0.9995, 0.9997, 0.9999,
    0.99993, 0.99995, 0.99997, 0.99999, 1.0,
)  # fmt: skip


def row_clips(magnitude: Tensor) -> Tensor:
    """The clip quantiles of each row of |w|: [rows, columns] -> [15, rows], equal to torch.quantile's bits.

    All lie in the top 1 % of a row, so one partial sort serves the 15 candidates.
    """
    columns = magnitude.shape[1]
    # torch.quantile's arithmetic: rank in fp32, then linear interpolation between neighbours.
    rank = torch.tensor(CLIP_QUANTILES, dtype=torch.float32) * (columns - 1)
    lower, upper = rank.floor(), rank.ceil()
    top = magnitude.topk(columns - int(lower.min()), dim=1).values.T  # descending
    below, above = top[columns - 1 - lower.long()], top[columns - 1 - upper.long()]
    return torch.lerp(below, above, (rank - lower)[:, None])


def round_to_int6(weight: Tensor, scale: Tensor) -> Tensor:
    return torch.clamp(torch.round(weight / scale[:, None]), INT_MIN, INT_MAX)


def quantize_reference(weight: Tensor) -> QuantizedTensor:
    """The published rule on fp32 [rows, columns]: of 15 clips the one with least MSE of the *tensor*.

    Integers and error are taken with the fp32 scale, the fp16 one is stored.
    """
    magnitude = weight.abs()
    if float(magnitude.max()) <= 1.0:  # the floor makes the 15 candidates one
        scales = torch.full((1, weight.shape[0]), SCALE_FLOOR)
    else:
        scales = (row_clips(magnitude) / INT_MAX).clamp_min(SCALE_FLOOR)
    best: tuple[float, Tensor, Tensor] | None = None
    for scale in scales:
        integers = round_to_int6(weight, scale)
        error = float((weight - integers * scale[:, None]).pow(2).mean())
        if best is None or error < best[0]:
            best = error, integers, scale
    assert best is not None
    return QuantizedTensor(best[1].to(torch.int8), best[2].to(torch.float16))
