"""A quantized model before it is coded: integers, steps, and what quantization did to the weights."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gepa_core.errors import ArtifactError
from gepa_core.model.gepa import CONTROL_NAMES
from gepa_core.quantization.codec import dequantize

INT_MIN, INT_MAX = -32, 31
SCALE_FLOOR = 1.0 / INT_MAX
"""Least step of the published rule. Meant for rows of zeros, it binds on every row with max|w| < 1."""


@dataclass(frozen=True)
class QuantizedTensor:
    """Integers int8 [rows, columns] and what they are multiplied with.

    row_scale [rows] (fp16, or fp32 from `rd`), column_scale fp32 [columns] or None.
    """

    integers: Tensor
    row_scale: Tensor
    column_scale: Tensor | None = None

    def dequantize(self) -> Tensor:
        return dequantize(self.integers, self.row_scale, self.column_scale)


@dataclass(frozen=True)
class QuantReport:
    """What quantization did. `mse` is per tensor, of the stored (fp16) steps."""

    parameters: int
    quantized_parameters: int
    rows: int
    rows_at_floor: int
    payload_bytes: int
    entropy_bits: float
    """Order-0 entropy of the integers, bits per quantized weight, each tensor with its own distribution."""
    mse: dict[str, float]

    @property
    def quantized_fraction(self) -> float:
        return self.quantized_parameters / max(self.parameters, 1)


@dataclass(frozen=True)
class Quantized:
    """A quantized model, before it is coded. `dtypes` names the original dtype of every tensor, in order."""

    method: str
    tensors: dict[str, QuantizedTensor]
    passthrough: dict[str, Tensor]
    dtypes: dict[str, torch.dtype]
    report: QuantReport

    def dequantize(self) -> dict[str, Tensor]:
        """The state dict that an artifact of this gives back, bit for bit."""
        return {
            name: (self.tensors[name].dequantize() if name in self.tensors else self.passthrough[name]).to(
                dtype
            )
            for name, dtype in self.dtypes.items()
        }


def is_quantized(tensor: Tensor, keep_float_max_numel: int) -> bool:
    """Matrices over the limit. Vectors pass through whatever their size: a row of one weight has no step."""
    return tensor.is_floating_point() and tensor.ndim == 2 and tensor.numel() > keep_float_max_numel


def stored_float(name: str, tensor: Tensor) -> Tensor:
    """A small tensor as the published artifact holds it: control tensors fp32, other floats fp16."""
    tensor = tensor.detach().cpu().contiguous()
    if not tensor.is_floating_point():
        return tensor
    # A copy: training goes on in the original.
    return tensor.float().clone() if any(part in name for part in CONTROL_NAMES) else tensor.half()


def check_finite(state: Mapping[str, Tensor]) -> None:
    """Raises ArtifactError naming the first tensor that holds NaN or infinity."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise ArtifactError(
                f"{name}: {bad} of {tensor.numel()} weights are NaN or infinite; "
                "quantize a state from before the run diverged"
            )


def entropy_bits(integers: Tensor) -> float:
    """Order-0 entropy of int8 integers in [-128, 127]: bits in all, not per symbol."""
    counts = torch.bincount(integers.flatten().int() + 128, minlength=256).double()
    counts = counts[counts > 0]
    return float((counts * (math.log2(integers.numel()) - counts.log2())).sum())


def nbytes(*tensors: Tensor | None) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def make_report(
    state: Mapping[str, Tensor], tensors: dict[str, QuantizedTensor], passthrough: dict[str, Tensor]
) -> QuantReport:
    floor = torch.tensor(SCALE_FLOOR).half()
    weights = sum(q.integers.numel() for q in tensors.values())
    at_floor = sum(
        int((q.row_scale == floor).sum()) for q in tensors.values() if q.row_scale.dtype == torch.float16
    )
    return QuantReport(
        parameters=sum(t.numel() for t in state.values()),
        quantized_parameters=weights,
        rows=sum(len(q.row_scale) for q in tensors.values()),
        rows_at_floor=at_floor,
        payload_bytes=nbytes(*passthrough.values())
        + sum(nbytes(q.integers, q.row_scale, q.column_scale) for q in tensors.values()),
        entropy_bits=sum(entropy_bits(q.integers) for q in tensors.values()) / max(weights, 1),
        mse={
            name: float((state[name].detach().float().cpu() - q.dequantize()).pow(2).mean())
            for name, q in tensors.items()
        },
    )
