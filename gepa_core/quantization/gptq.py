"""The `gptq` quantizer, the field's own standard: steps by each row's spread, errors moved on by curvature.

A row's integers reach `clip_sigmas` of its standard deviations, so that the size of the file follows that
number and not the scale of the weights. Columns are rounded in the order of their mean squared input, the
largest first, and the error of each is made up for in those still to come (Frantar et al., arXiv:2210.17323;
the clip by standard deviations: openai/parameter-golf, pull request 1394).
"""

import torch
from torch import Tensor

from gepa_core.quantization.quantized import INT_MAX, QuantizedTensor
from gepa_core.quantization.rate_distortion import inverse_factor, round_compensated


def quantize_gptq(weight: Tensor, columns: Tensor, clip_sigmas: float) -> QuantizedTensor:
    """weight fp32 [R, C]; columns [C, C], the second moments of its inputs on training text."""
    tiny = torch.finfo(torch.float16).smallest_normal  # a constant row still needs a step
    scale = (clip_sigmas / INT_MAX * weight.std(dim=1, correction=0)).clamp_min(tiny).half()
    order = columns.diagonal().argsort(descending=True, stable=True)
    factor = inverse_factor(columns[order][:, order])
    ones = torch.ones(weight.shape[1])
    integers = torch.empty(weight.shape, dtype=torch.int8)
    integers[:, order] = round_compensated(weight[:, order], factor, scale.float(), ones, INT_MAX)
    return QuantizedTensor(integers, scale)
