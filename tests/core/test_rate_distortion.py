"""`rd`: budgets are filled, error goes where it costs least, and the cost model is true."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gepa_core.errors import ArtifactError, DataError
from gepa_core.model.gepa import GEPA
from gepa_core.quantization import artifact
from gepa_core.quantization.calibrate import Sensitivity, calibrate
from gepa_core.quantization.methods import quantize
from gepa_core.quantization.quantized import Quantized, entropy_bits
from gepa_core.quantization.rate_distortion import prepare, quantize_matrix
from gepa_core.sections import ModelConfig, QuantConfig

SEQ_LEN, VOCAB, LIMIT = 32, 96, 500


@pytest.fixture(scope="module")
def model() -> GEPA:
    """A model whose every part matters: heavy-tailed weights, row and column scales of their own."""
    cfg = ModelConfig(
        vocab_size=VOCAB, num_layers=2, width=32, num_heads=2, num_kv_heads=1, mlp_hidden=96,
        bigram_buckets=64, bigram_dim=32, rope_dims=8, rope_train_seq_len=SEQ_LEN, xsa_last_n=1,
        ve_dim=32, ve_layers=(1,),
        compute_dtype="fp32", embedding_dtype="fp32",
    )  # fmt: skip
    model, generator = GEPA(cfg), torch.Generator().manual_seed(0)
    model.init_weights(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and weight.numel() > LIMIT:
                rows, columns = (torch.randn(n, generator=generator).mul(0.5).exp() for n in weight.shape)
                tails = torch.randn(weight.shape, generator=generator).mul(0.5).exp()
                normal = torch.randn(weight.shape, generator=generator)
                scale = 1.0 if "emb" in name else weight.shape[1] ** -0.5
                weight.copy_(normal * tails * rows[:, None] * columns * scale)
    return model


@pytest.fixture(scope="module")
def text() -> np.ndarray:
    return np.random.default_rng(0).zipf(1.3, 20_000).clip(max=VOCAB - 1).astype(np.uint16)


@pytest.fixture(scope="module")
def sensitivities(model: GEPA, text: np.ndarray) -> dict[str, Sensitivity]:
    return calibrate(model, text[:16_384], SEQ_LEN)


def divergence(model: GEPA, state: dict[str, torch.Tensor], text: np.ndarray) -> float:
    """KL(model || model with `state`), nats a token, on text that calibration has not seen."""
    ids = torch.from_numpy(text[16_384 : 16_384 + 64 * SEQ_LEN].astype(np.int64)).view(-1, SEQ_LEN)
    other = GEPA(model.cfg)
    other.load_state_dict(state)
    with torch.no_grad():
        p, q = (F.log_softmax(m(ids), dim=-1) for m in (model, other))
        return float((p.exp() * (p - q)).sum(dim=-1).mean())


def rd(model: GEPA, sensitivities: dict[str, Sensitivity], **options: int) -> tuple[Quantized, int]:
    config = QuantConfig(method="rd", keep_float_max_numel=LIMIT, **options)
    quantized = quantize(model.state_dict(), config, sensitivities)
    return quantized, len(artifact.encode(quantized))


def test_sensitivities_foretell_what_an_error_costs(
    model: GEPA, sensitivities: dict[str, Sensitivity], text: np.ndarray
) -> None:
    """Noise in one matrix at a time: predicted against measured, over all kinds of matrices."""
    ratios = []
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.state_dict().items():
        if name not in sensitivities or weight.numel() <= LIMIT:
            continue
        noise = 0.02 * weight.std() * torch.randn(weight.shape, generator=generator)
        cost = sensitivities[name]
        predicted = 0.5 * float((cost.rows * ((noise @ cost.columns) * noise).sum(dim=1)).sum())
        ratios.append(divergence(model, {**model.state_dict(), name: weight + noise}, text) / predicted)
    assert len(ratios) == 17
    assert 0.3 < float(np.median(ratios)) < 3
    assert float(np.std(np.log(ratios))) < 0.8


def test_calibration_leaves_the_model_as_it_was(model: GEPA, text: np.ndarray) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = calibrate(model, text[:1024], SEQ_LEN)
    second = calibrate(model, text[:1024], SEQ_LEN)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    for name in first:
        torch.testing.assert_close(first[name].rows, second[name].rows, rtol=0, atol=0)
    with pytest.raises(DataError, match="calibration needs 32 training tokens"):
        calibrate(model, text[:31], SEQ_LEN)


@pytest.mark.parametrize("budget", [12_000, 17_000])
def test_the_budget_is_filled_and_kept(
    model: GEPA, sensitivities: dict[str, Sensitivity], budget: int
) -> None:
    quantized, size = rd(model, sensitivities, budget_bytes=budget)
    assert 0.995 * budget < size <= budget
    assert all(
        int(t.integers.min()) >= -32 and int(t.integers.max()) <= 31 for t in quantized.tensors.values()
    )
    assert quantized.report.rows_at_floor == 0


def test_better_than_the_reference_at_fewer_bytes(
    model: GEPA, sensitivities: dict[str, Sensitivity], text: np.ndarray
) -> None:
    config = QuantConfig(keep_float_max_numel=LIMIT)
    reference = quantize(model.state_dict(), config)
    size = len(artifact.encode(reference))
    ours, smaller = rd(model, sensitivities, budget_bytes=int(0.8 * size))
    assert smaller < 0.8 * size
    assert divergence(model, ours.dequantize(), text) < 0.7 * divergence(model, reference.dequantize(), text)


def test_no_budget_can_be_too_large_but_one_too_small(
    model: GEPA, sensitivities: dict[str, Sensitivity]
) -> None:
    _, size = rd(model, sensitivities)  # 16 MB: the range of the integers ends it
    assert size < 30_000
    with pytest.raises(ArtifactError, match=r"quant.budget_bytes 1000: this model takes"):
        rd(model, sensitivities, budget_bytes=1000)


def test_calibration_is_required(model: GEPA, sensitivities: dict[str, Sensitivity]) -> None:
    config = QuantConfig(method="rd", keep_float_max_numel=LIMIT)
    with pytest.raises(ArtifactError, match="needs training text"):
        quantize(model.state_dict(), config)
    some = {name: s for name, s in sensitivities.items() if name != "tok_emb.weight"}
    with pytest.raises(ArtifactError, match=r"tok_emb.weight: calibration gave no sensitivity"):
        quantize(model.state_dict(), config, some)


def correlated(columns: int, tokens: int = 4000) -> Iterator[torch.Tensor]:
    """A weight, and second moments of inputs that move together: error in one column can hide in others."""
    generator = torch.Generator().manual_seed(2)
    mixing = torch.randn(columns, columns, generator=generator)
    x = torch.randn(tokens, columns, generator=generator).mul(torch.arange(1, columns + 1) ** -0.7) @ mixing
    yield torch.randn(48, columns, generator=generator)
    yield x.T @ x / tokens


def test_compensation_and_column_steps_lower_cost_at_equal_rate() -> None:
    weight, columns = correlated(64)
    true = Sensitivity(torch.ones(48), columns)

    def cost_at_rate(sensitivity: Sensitivity, bits: float) -> float:
        """Cost of the quantized matrix at this entropy, between the two levels around it."""
        matrix, points = prepare(weight, sensitivity), []
        for level in np.arange(-12.0, 12.0, 0.25):
            quantized = quantize_matrix(matrix, float(level), 127)
            error = weight - quantized.dequantize()
            rate = entropy_bits(quantized.integers) / weight.numel()
            points.append((rate, float(((error @ columns) * error).sum())))
        points.sort()
        return float(np.exp(np.interp(bits, [p[0] for p in points], np.log([p[1] for p in points]))))

    blind = Sensitivity(torch.ones(48), columns.diagonal().mean() * torch.eye(64))
    assert cost_at_rate(true, 3.0) < 0.25 * cost_at_rate(blind, 3.0)


def test_rows_that_matter_more_get_finer_steps() -> None:
    weight, columns = correlated(64)
    rows = torch.ones(48)
    rows[7] = 100.0
    steps = quantize_matrix(prepare(weight, Sensitivity(rows, columns)), -2.0, 127).row_scale
    assert float(steps[7] / steps[8]) == pytest.approx(0.1, rel=0.1)
