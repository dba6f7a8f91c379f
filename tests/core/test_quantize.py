"""The published quantizer to the last bit, and what the better ones must hold."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gepa_core.errors import ArtifactError
from gepa_core.quantization.methods import quantize
from gepa_core.quantization.per_row import quantize_per_row
from gepa_core.quantization.quantized import INT_MAX, INT_MIN, SCALE_FLOOR, is_quantized, stored_float
from gepa_core.quantization.reference import CLIP_QUANTILES, quantize_reference, row_clips
from gepa_core.sections import QuantConfig


def heavy_tailed(rows: int, columns: int, std: float, seed: int = 0) -> torch.Tensor:
    """Weights as trained ones are: heavy tails, a scale per row."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(rows, columns, generator=generator)
    tail = torch.randn(rows, columns, generator=generator).exp()
    return normal * tail.sqrt() * torch.rand(rows, 1, generator=generator).add(0.5) * std


@pytest.fixture(scope="module")
def parity(shared: Path) -> tuple[dict[str, np.ndarray], dict]:
    folder = shared / "reference"
    with np.load(folder / "gepa_parity.npz") as arrays:
        return dict(arrays), json.loads((folder / "gepa_parity.json").read_text())


@pytest.mark.parametrize(("kind", "factor"), [("quant", 1.0), ("quant_x4", 4.0)])
def test_reference_equals_the_published_quantizer(parity, kind: str, factor: float) -> None:
    arrays, scalars = parity
    state = {k[6:]: torch.tensor(v) * factor for k, v in arrays.items() if k.startswith("param/")}
    limit = scalars["quant_keep_float_max_numel"]
    quantized = quantize(state, QuantConfig(method="reference", keep_float_max_numel=limit))
    assert quantized.tensors.keys() == scalars[f"{kind}_mse"].keys()
    compared = 0
    for name, tensor in quantized.tensors.items():
        assert quantized.report.mse[name] == pytest.approx(scalars[f"{kind}_mse"][name], rel=1e-6)
        if f"{kind}_q/{name}" in arrays:
            np.testing.assert_array_equal(tensor.integers.numpy(), arrays[f"{kind}_q/{name}"])
            np.testing.assert_array_equal(tensor.row_scale.numpy(), arrays[f"{kind}_s/{name}"])
            compared += 1
    assert compared == 4


def test_clips_have_the_bits_of_torch_quantile() -> None:
    for columns in (1, 2, 64, 512, 1536):
        magnitude = heavy_tailed(40, columns, 1.0, seed=columns).abs()
        clips = row_clips(magnitude)
        for quantile, clip in zip(CLIP_QUANTILES, clips, strict=True):
            torch.testing.assert_close(clip, torch.quantile(magnitude, quantile, dim=1), rtol=0, atol=0)


def test_skipping_the_search_under_the_floor_changes_nothing() -> None:
    weight = heavy_tailed(64, 256, 0.05).clamp(-1, 1)
    weight[0, 0] = 1.0  # the edge: its clip gives exactly the floor
    skipped = quantize_reference(weight)
    searched = (row_clips(weight.abs()) / INT_MAX).clamp_min(SCALE_FLOOR)
    assert bool((searched == SCALE_FLOOR).all())
    torch.testing.assert_close(skipped.row_scale, searched[0].half(), rtol=0, atol=0)


@pytest.mark.parametrize("std", [0.0, 1e-6, 0.02, 0.05, 0.5, 3.0, 100.0])
def test_per_row_is_never_worse_than_the_reference(std: float) -> None:
    weight = heavy_tailed(128, 512, std, seed=3)
    errors = [
        float((weight - quantizer(weight).dequantize()).pow(2).mean())
        for quantizer in (quantize_per_row, quantize_reference)
    ]
    assert errors[0] <= errors[1]
    assert int(quantize_per_row(weight).integers.min()) >= INT_MIN
    assert int(quantize_per_row(weight).integers.max()) <= INT_MAX


def test_per_row_ignores_the_floor() -> None:
    weight = heavy_tailed(128, 512, 0.03)
    state = {"blocks.0.mlp.up_proj.weight": weight}
    floored = quantize(state, QuantConfig(keep_float_max_numel=100))
    free = quantize(state, QuantConfig(method="per_row", keep_float_max_numel=100))
    assert floored.report.rows_at_floor == floored.report.rows == 128
    assert free.report.rows_at_floor == 0
    assert (
        free.report.mse["blocks.0.mlp.up_proj.weight"]
        < 0.05 * floored.report.mse["blocks.0.mlp.up_proj.weight"]
    )
    assert free.report.entropy_bits > floored.report.entropy_bits + 2


def test_training_on_does_not_reach_what_was_quantized() -> None:
    state = {"blocks.0.attn_scale": torch.ones(4)}
    found = quantize(state, QuantConfig())
    state["blocks.0.attn_scale"].fill_(7.0)
    assert found.passthrough["blocks.0.attn_scale"].tolist() == [1.0] * 4


def test_what_is_quantized_and_how_the_rest_is_stored() -> None:
    assert is_quantized(torch.zeros(300, 300), 65_536)
    assert not is_quantized(torch.zeros(256, 256), 65_536)
    assert not is_quantized(torch.zeros(100_000), 65_536)
    assert not is_quantized(torch.zeros(300, 300, dtype=torch.int64), 65_536)
    assert stored_float("blocks.0.attn_scale", torch.zeros(4, dtype=torch.bfloat16)).dtype == torch.float32
    assert stored_float("blocks.0.mlp.bias", torch.zeros(4)).dtype == torch.float16


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["blocks.1.mlp.up_proj.weight", "blocks.1.mlp.bias"])
def test_non_finite_weights_are_named(bad: float, name: str) -> None:
    state = {"blocks.1.mlp.up_proj.weight": torch.zeros(64, 64), "blocks.1.mlp.bias": torch.zeros(64)}
    state[name].view(-1)[3] = bad
    with pytest.raises(ArtifactError, match=f"{name}: 1 of"):
        quantize(state, QuantConfig(keep_float_max_numel=100))
