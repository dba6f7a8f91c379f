"""Int6 quantization: every large matrix becomes integers in [-32, 31] times a step per row.

Four methods, an axis of a sweep. `reference` is the published rule with its floor on the step, to the last
bit; `per_row` is that rule as its text has it, a search per row without a floor; `gptq` is what the field has
settled on since; `rd` chooses steps by rate and distortion to fill a byte budget.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from gepa_core.config import CAP_BYTES
from gepa_core.errors import ArtifactError
from gepa_core.quantization.gptq import quantize_gptq
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
from gepa_core.sections import QuantConfig

RowQuantizer = Callable[[Tensor, QuantConfig, Any], QuantizedTensor]
"""(weight fp32 [rows, columns], settings, its sensitivity or None) -> integers and a step per row."""
ROW_QUANTIZERS: dict[str, RowQuantizer] = {
    "reference": lambda weight, config, sensitivity: quantize_reference(weight),
    "per_row": lambda weight, config, sensitivity: quantize_per_row(weight),
    "gptq": lambda weight, config, sensitivity: quantize_gptq(
        weight, sensitivity.columns, config.clip_sigmas
    ),
}


def quantize_rows(
    state: Mapping[str, Tensor], config: QuantConfig, sensitivities: Mapping[str, Any] | None = None
) -> Quantized:
    """One of ROW_QUANTIZERS on every matrix of a state dict."""
    quantizer, method, known = ROW_QUANTIZERS[config.method], config.method, sensitivities or {}
    tensors: dict[str, QuantizedTensor] = {}
    passthrough: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if is_quantized(tensor, config.keep_float_max_numel):
            tensors[name] = quantizer(tensor.detach().float().cpu(), config, known.get(name))
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

    `gptq` and `rd` need the sensitivities of calibrate.py; `rd` leaves `code_bytes` free under the cap if no
    budget is given. Raises ArtifactError for NaN or infinite weights, naming the tensor.
    """
    check_finite(state)
    if config.calibrates:
        if sensitivities is None:
            raise ArtifactError(
                f"quant.method {config.method} needs training text to calibrate on; give the run's data"
            )
        large = [name for name, t in state.items() if is_quantized(t, config.keep_float_max_numel)]
        if missing := [name for name in large if name not in sensitivities]:
            raise ArtifactError(
                f"{missing[0]}: calibration gave no sensitivity for it; was it of another model?"
            )
    if config.method != "rd" or sensitivities is None:
        return quantize_rows(state, config, sensitivities)
    return quantize_rate_distortion(
        state,
        sensitivities,
        budget_bytes=config.budget_bytes or CAP_BYTES - code_bytes,
        keep_float_max_numel=config.keep_float_max_numel,
        integer_bits=config.integer_bits,
    )
