"""Int6 quantization: every large matrix becomes integers in [-32, 31] times a step per row.

Three methods, an axis of a sweep. `reference` is the published rule with its floor on the step, to the
last bit; `per_row` is that rule as its text has it, a search per row without a floor; `rd` chooses steps by
rate and distortion to fill a byte budget (rate_distortion.py).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gepa_core.codec import dequantize
from gepa_core.config import CAP_BYTES, QuantConfig
from gepa_core.errors import ArtifactError
from gepa_core.model import CONTROL_NAMES

INT_MIN, INT_MAX = -32, 31
SCALE_FLOOR = 1.0 / INT_MAX
"""Least step of the published rule. Meant for rows of zeros, it binds on every row with max|w| < 1."""

CLIP_QUANTILES = (
    0.990, 0.993, 0.995, 0.997, 0.998, 0.999, 0.9993, 0.9995, 0.9997, 0.9999,
    0.99993, 0.99995, 0.99997, 0.99999, 1.0,
)  # fmt: skip


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


RowQuantizer = Callable[[Tensor], QuantizedTensor]
ROW_QUANTIZERS: dict[str, RowQuantizer] = {"reference": quantize_reference, "per_row": quantize_per_row}


def quantize_rows(state: Mapping[str, Tensor], method: str, keep_float_max_numel: int) -> Quantized:
    """`reference` or `per_row` on every matrix of a state dict."""
    quantizer = ROW_QUANTIZERS[method]
    tensors: dict[str, QuantizedTensor] = {}
    passthrough: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if is_quantized(tensor, keep_float_max_numel):
            tensors[name] = quantizer(tensor.detach().float().cpu())
        else:
            passthrough[name] = stored_float(name, tensor)
    dtypes = {name: tensor.dtype for name, tensor in state.items()}
    return Quantized(method, tensors, passthrough, dtypes, make_report(state, tensors, passthrough))


def quantize(
    state: Mapping[str, Tensor],
    config: QuantConfig,
    sensitivities: Mapping[str, Any] | None = None,
    *,
    code_bytes: int = 0,
) -> Quantized:
    """Quantizes a model's state dict as `config` says.

    `rd` needs the sensitivities of calibrate.py, and leaves `code_bytes` free under the cap if no budget
    is given. Raises ArtifactError for NaN or infinite weights, naming the tensor.
    """
    check_finite(state)
    if config.method != "rd":
        return quantize_rows(state, config.method, config.keep_float_max_numel)
    from gepa_core.rate_distortion import quantize_rate_distortion

    if sensitivities is None:
        raise ArtifactError("quant.method rd needs training text to calibrate on; give the run's data")
    return quantize_rate_distortion(
        state,
        sensitivities,
        budget_bytes=config.budget_bytes or CAP_BYTES - code_bytes,
        keep_float_max_numel=config.keep_float_max_numel,
        integer_bits=config.integer_bits,
    )


def main() -> int:
    from gepa_core.compress import main

    return main()


if __name__ == "__main__":
    raise SystemExit(main())
