"""Int6 quantization: every large matrix becomes integers in [-32, 31] times a step per row.

Three methods, an axis of a sweep. `reference` is the published rule with its floor on the step, to the
last bit; `per_row` is that rule as its text has it, a search per row without a floor; `rd` chooses steps by
rate and distortion to fill a byte budget.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from gepa_core.config import CAP_BYTES, QuantConfig
from gepa_core.errors import ArtifactError
from gepa_core.quantization.per_row import quantize_per_row
from gepa_core.quantization.quantized import (
    Quantized,
    QuantizedTensor,
    check_finite,
    is_quantized,
    make_report,
    stored_float,
)
from gepa_core.quantization.rate_distortion import quantize_rate_distortion
from gepa_core.quantization.reference import quantize_reference

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
    if sensitivities is None:
        raise ArtifactError("quant.method rd needs training text to calibrate on; give the run's data")
    return quantize_rate_distortion(
        state,
        sensitivities,
        budget_bytes=config.budget_bytes or CAP_BYTES - code_bytes,
        keep_float_max_numel=config.keep_float_max_numel,
        integer_bits=config.integer_bits,
    )
