"""The published rule of int6 quantization as its text has it: a search for each row, without a floor."""

import torch
from torch import Tensor

from gepa_core.quantization.quantized import INT_MAX, QuantizedTensor
from gepa_core.quantization.reference import quantize_reference, round_to_int6, row_clips


def quantize_per_row(weight: Tensor) -> QuantizedTensor:
    """Each row of fp32 [rows, columns] by its own best clip, with no floor.

    Integers and error are taken with the fp16 step that is stored. The reference's step is one more
    candidate of every row, so that no tensor can come out worse than by the reference.
    """
    reference = quantize_reference(weight)
    magnitude = weight.abs()
    tiny = torch.finfo(torch.float16).smallest_normal  # a row of zeros still needs a step
    candidates = (row_clips(magnitude) / INT_MAX).clamp_min(tiny).half().float()
    best_integers = reference.integers.float()
    best_scale = reference.row_scale.float()
    best_error = (weight - best_integers * best_scale[:, None]).pow(2).sum(dim=1)
    for scale in candidates:
        integers = round_to_int6(weight, scale)
        error = (weight - integers * scale[:, None]).pow(2).sum(dim=1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
        best_integers = torch.where(better[:, None], integers, best_integers)
    return QuantizedTensor(best_integers.to(torch.int8), best_scale.to(torch.float16))
