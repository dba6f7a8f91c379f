"""`gptq`: errors are made up for in the order of activation, and its clip alone decides the file's size."""

import pytest
import torch

from gepa_core.errors import ArtifactError
from gepa_core.quantization import artifact
from gepa_core.quantization.calibrate import Sensitivity
from gepa_core.quantization.gptq import quantize_gptq
from gepa_core.quantization.methods import quantize
from gepa_core.quantization.quantized import INT_MAX, QuantizedTensor
from gepa_core.quantization.reference import round_to_int6
from gepa_core.sections import QuantConfig


def weights(rows: int = 48, columns: int = 64, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(rows, 1, generator=generator).add(0.5)
    return torch.randn(rows, columns, generator=generator) * scale


def moments(columns: int = 64, seed: int = 1) -> torch.Tensor:
    """Of inputs that go together, some much larger than others."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    spectrum = torch.arange(1, columns + 1).pow(-0.7)
    x = torch.randn(2048, columns, generator=generator) * spectrum @ mixing
    return x.T @ x / 2048


def cost(weight: torch.Tensor, quantized: QuantizedTensor, columns: torch.Tensor) -> float:
    """Mean squared error of the outputs."""
    error = weight - quantized.dequantize()
    return float(((error @ columns) * error).sum() / weight.numel())


def test_it_costs_less_than_rounding_with_the_same_steps() -> None:
    weight, columns = weights(), moments()
    found = quantize_gptq(weight, columns, 8.0)
    plain = QuantizedTensor(round_to_int6(weight, found.row_scale.float()).to(torch.int8), found.row_scale)
    assert cost(weight, found, columns) < 0.6 * cost(weight, plain, columns)


def test_independent_inputs_leave_nothing_to_make_up_for() -> None:
    weight = weights()
    found = quantize_gptq(weight, torch.eye(64), 8.0)
    assert torch.equal(found.integers.float(), round_to_int6(weight, found.row_scale.float()))
    expected = weight.std(dim=1, correction=0) * 8.0 / INT_MAX
    torch.testing.assert_close(found.row_scale.float(), expected, rtol=1e-3, atol=0)


def test_the_order_of_the_columns_does_not_matter() -> None:
    weight, columns = weights(), moments()
    order = torch.randperm(64, generator=torch.Generator().manual_seed(2))
    found = quantize_gptq(weight, columns, 8.0)
    shuffled = quantize_gptq(weight[:, order], columns[order][:, order], 8.0)
    same = (shuffled.integers == found.integers[:, order]).float().mean()
    assert same > 0.999  # but for a tie in rounding


def test_a_clip_of_few_deviations_clips() -> None:
    found = quantize_gptq(weights(), moments(), 1.0)
    assert found.integers.amax() == INT_MAX and found.integers.amin() == -INT_MAX - 1


@pytest.mark.parametrize("columns", [torch.zeros(64, 64), torch.diag((torch.arange(64) < 5).float())])
def test_inputs_that_calibration_never_saw_are_rounded(columns: torch.Tensor) -> None:
    weight = weights()
    weight[3] = 0.25  # a constant row has no spread
    found = quantize_gptq(weight, columns, 12.85)
    assert torch.isfinite(found.dequantize()).all()


def test_the_size_follows_the_clip_and_not_the_weights() -> None:
    def size(factor: float, clip: float) -> int:
        state = {"a.weight": factor * weights(256, 256)}
        quant = QuantConfig(method="gptq", keep_float_max_numel=64, clip_sigmas=clip)
        sensitivity = {"a.weight": Sensitivity(torch.ones(256), moments(256))}
        return len(artifact.encode(quantize(state, quant, sensitivity)))

    sizes = [size(1.0, clip) for clip in (4.0, 8.0, 16.0)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 1.3 * sizes[2]
    assert size(0.1, 8.0) == pytest.approx(sizes[1], rel=0.01)


def test_an_artifact_gives_back_what_was_quantized() -> None:
    state = {"a.weight": weights(), "a.bias": torch.ones(5)}
    quant = QuantConfig(method="gptq", keep_float_max_numel=64)
    quantized = quantize(state, quant, {"a.weight": Sensitivity(torch.ones(48), moments())})
    decoded = artifact.decode(artifact.encode(quantized))
    assert torch.equal(decoded["a.weight"], quantized.tensors["a.weight"].dequantize())
    with pytest.raises(ArtifactError, match="needs training text"):
        quantize(state, quant)
    with pytest.raises(ArtifactError, match=r"a\.weight: calibration gave no sensitivity"):
        quantize(state, quant, {})
