"""The int6 stage: quantizers and coders against the published search and zstd-22, on the same weights.

    python -m benchmarks.quantize [--preset gepa-11l] [--rd] [--run OUT]

Weights are those of a training run's newest state, or synthetic: normal within a row, row scales log-normal,
as spread against a step of 1/31 as the published model's are (4.25 bits a weight).
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from torch import Tensor

from benchmarks import harness
from benchmarks.baseline import plain_int6
from gepa_core.config import CAP_BYTES, RunConfig
from gepa_core.model.gepa import GEPA
from gepa_core.quantization import artifact, codec, rans
from gepa_core.quantization.calibrate import Sensitivity
from gepa_core.quantization.methods import quantize
from gepa_core.quantization.quantized import Quantized, entropy_bits, is_quantized
from gepa_core.sections import QuantConfig
from gepa_core.training.trained import open_trained

PUBLISHED_LEVEL = 22
_STD = 0.149  # of the weights: 4.25 bits each at a step of 1/31
_ROW_SPREAD = 0.25  # of the logarithm of a row's scale
_SAMPLES = 1024  # inputs behind a synthetic Hessian


def synthetic_state(config: RunConfig) -> dict[str, Tensor]:
    """A state dict of the model's shapes, weights as in the module's docstring."""
    model, generator = GEPA(config.model), torch.Generator().manual_seed(0)
    model.init_weights(0)
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    for name, tensor in state.items():
        if is_quantized(tensor, config.quant.keep_float_max_numel):
            rows = (_ROW_SPREAD * torch.randn(len(tensor), 1, generator=generator)).exp()
            weights = _STD * rows * torch.randn(tensor.shape, generator=generator)
            state[name] = weights.to(tensor.dtype)
    return state


def synthetic_sensitivities(state: dict[str, Tensor]) -> dict[str, Sensitivity]:
    """Curvatures as varied as a trained model's: inputs of a power-law spectrum, outputs log-normal."""
    generator, found = torch.Generator().manual_seed(1), {}
    for name, tensor in state.items():
        if tensor.ndim != 2:
            continue
        outputs, inputs = tensor.shape
        spectrum = torch.arange(1, inputs + 1).pow(-0.5)
        mixing = torch.randn(inputs, inputs, generator=generator) / inputs**0.5
        x = (torch.randn(_SAMPLES, inputs, generator=generator) * spectrum) @ mixing
        rows = torch.randn(outputs, generator=generator).exp()
        found[name] = Sensitivity(rows, x.T @ x / _SAMPLES)
    return found


def timed(function: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """A call's result, and its wall and processor seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    result = function()
    seconds = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
    return result, seconds


def coders(quantized: Quantized) -> dict[str, dict[str, Any]]:
    """Bytes of the same integers under each coder, with its seconds, and their entropy."""
    integers = [tensor.integers.numpy() for tensor in quantized.tensors.values()]
    raw = b"".join(array.tobytes() for array in integers)
    symbols = np.concatenate([array.ravel().view(np.uint8) ^ np.uint8(128) for array in integers])
    classes = np.concatenate([codec.classes_of(*codec.scale_codes(array)) for array in integers])
    ways: dict[str, Callable[[], bytes]] = {
        f"zstd-{PUBLISHED_LEVEL}": lambda: zstandard.ZstdCompressor(PUBLISHED_LEVEL).compress(raw),
        "zstd-1": lambda: zstandard.ZstdCompressor(1).compress(raw),
        "zstd as configured here": lambda: artifact.compress(raw),
        "rANS with classes of rows and columns": lambda: rans.encode(symbols, classes),
    }
    found: dict[str, dict[str, Any]] = {}
    for name, encode in ways.items():
        data, seconds = timed(encode)
        found[name] = {"bytes": len(data), "seconds": seconds}
    entropy = sum(entropy_bits(tensor.integers) for tensor in quantized.tensors.values()) / 8
    found["entropy, each tensor by itself"] = {"bytes": round(entropy), "seconds": None}
    return found


def published_stage(state: dict[str, Tensor], limit: int) -> tuple[dict[str, tuple[Tensor, Tensor]], bytes]:
    """The published search on every matrix, then zstd-22 on the published dictionary."""
    found = {name: plain_int6(tensor) for name, tensor in state.items() if is_quantized(tensor, limit)}
    quantized = quantize(state, QuantConfig(keep_float_max_numel=limit))
    return found, zstandard.ZstdCompressor(PUBLISHED_LEVEL).compress(artifact.published_bytes(quantized))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Times quantizers and coders; see the module."""
    config, _, _ = harness.configuration(args)
    torch.set_num_threads(args.threads)
    cpu = torch.device("cpu")
    if args.run:
        trained = open_trained(args.run, average=True)
        config, state = trained.run, dict(trained.model.state_dict())
    else:
        state = synthetic_state(config)
    limit = config.quant.keep_float_max_numel

    (searched, published), published_seconds = timed(lambda: published_stage(state, limit))
    quantized, search_seconds = timed(lambda: quantize(state, QuantConfig(keep_float_max_numel=limit)))
    data, code_seconds = timed(lambda: artifact.encode(quantized))
    same = all(
        torch.equal(integers, quantized.tensors[name].integers)
        and torch.equal(scale, quantized.tensors[name].row_scale.flatten())
        for name, (integers, scale) in searched.items()
    )
    result: dict[str, Any] = {
        "benchmark": "quantize",
        "weights": str(args.run) if args.run else "synthetic",
        "quantized_weights": sum(t.integers.numel() for t in quantized.tensors.values()),
        "reference": {"search": search_seconds, "coding": code_seconds, "bytes": len(data)},
        "baseline": {"seconds": published_seconds, "bytes": len(published)},
        "ratio": published_seconds["processor"] / (search_seconds["processor"] + code_seconds["processor"]),
        "same_integers_and_scales_as_the_plain_search": same,
        "coders": coders(quantized),
    }
    if args.rd:
        budget = min(CAP_BYTES, len(published))
        rate = QuantConfig(method="rd", keep_float_max_numel=limit, budget_bytes=budget)
        sensitivities = synthetic_sensitivities(state)
        spent, seconds = timed(lambda: quantize(state, rate, sensitivities))
        coded, coding = timed(lambda: artifact.encode(spent))
        _, decoding = timed(lambda: artifact.decode(coded))
        result["rd"] = {
            "search": seconds,
            "coding": coding,
            "decoding": decoding,
            "budget_bytes": budget,
            "bytes": len(coded),
            "coders": coders(spent),
        }
    result["peak_memory_bytes"] = harness.peak_memory_bytes(lambda: None, cpu)
    return result | harness.environment(cpu)


def main(argv: list[str] | None = None) -> int:
    parser = harness.parser("quantize", "Time and bytes of the int6 stage against the published one.")
    parser.add_argument("--rd", action=argparse.BooleanOptionalAction, default=True, help="also rd")
    parser.add_argument(
        "--run", type=Path, help="output folder of gepa_core.train: its newest average weights"
    )
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    harness.report(measure(args), args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
