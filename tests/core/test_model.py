"""The model against the published one's figures, its parts against their definitions."""

import math
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gepa_core import sizes
from gepa_core.model import gepa, head, kernels
from gepa_core.model.gepa import GEPA, BigramEmbedding, Linear, exclude_self, rotary_table
from gepa_core.model.head import capped_cross_entropy, capped_nll
from gepa_core.model.kernels import rotate
from gepa_core.sections import ModelConfig
from tests import tiny


def test_logits_loss_and_gradients_are_the_published(shared: Path) -> None:
    model, _, figures = tiny.parity(shared)
    with np.load(shared / "reference" / "gepa_parity.npz") as arrays:
        ids, targets = (torch.from_numpy(arrays[key]).long() for key in ("input_ids", "target_ids"))
        gradients = {k.removeprefix("grad/"): v for k, v in arrays.items() if k.startswith("grad/")}
        torch.testing.assert_close(model(ids), torch.from_numpy(arrays["logits"]), rtol=1e-4, atol=1e-4)
    loss = model.loss(ids, targets)
    loss.backward()
    assert loss.item() == pytest.approx(figures["loss"], rel=1e-6)
    assert gradients.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        wanted = torch.from_numpy(gradients[name])
        assert (parameter.grad - wanted).norm() <= 1e-4 * wanted.norm() + 1e-9, name


def test_reference_size() -> None:
    model = GEPA(ModelConfig())
    assert sum(p.numel() for p in model.parameters()) == 27_030_107
    assert len(model.state_dict()) == 143
    assert sizes.forward_flops_per_token(model.cfg, 2048) == pytest.approx(76.2e6, rel=1e-3)
    assert sizes.training_flops_per_token(model.cfg, 2048) == pytest.approx(228.7e6, rel=1e-3)


def test_flops_count_every_matrix() -> None:
    model = GEPA(tiny.MODEL)
    linears = sum(m.weight.numel() for m in model.modules() if isinstance(m, Linear))
    assert sizes.matmul_weights(tiny.MODEL) == linears + model.tok_emb.weight.numel()


@pytest.mark.parametrize("bigram", ["poly", "xor"])
@pytest.mark.parametrize("last", [1, 5, 12])
def test_trimming_the_last_block_is_exact(last: int, bigram: str) -> None:
    model = tiny.tiny_model(tiny.MODEL.model_copy(update={"bigram": bigram}))
    ids = torch.from_numpy(tiny.text(24).astype(np.int64)).view(2, 12)
    with torch.no_grad():
        whole, trimmed = model.features(ids), model.features(ids, last)
    torch.testing.assert_close(trimmed, whole[:, -last:], rtol=1e-5, atol=1e-5)


def test_no_position_sees_a_later_token() -> None:
    model = tiny.tiny_model()
    ids = torch.from_numpy(tiny.text(16).astype(np.int64))[None]
    changed = ids.clone()
    changed[0, 9:] = (changed[0, 9:] + 1) % tiny.VOCAB
    with torch.no_grad():
        before, after = model(ids), model(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.equal(before[:, 9], after[:, 9])


# Bigram


def _int32(n: int) -> int:
    return (n + 2**31) % 2**32 - 2**31


def test_bigram_hashes() -> None:
    ids = torch.tensor([[5, 1023, 0, 77], [1, 2, 3, 65535]])
    poly = BigramEmbedding(ModelConfig(bigram_buckets=2048)).hash(ids)
    xor = BigramEmbedding(ModelConfig(bigram="xor", bigram_buckets=2048)).hash(ids)
    for row in range(2):
        for t in range(4):
            current, previous = int(ids[row, t]), int(ids[row, t - 1]) if t else 0
            assert poly[row, t] == (1009 * previous + current) % 2048
            mixed = _int32(36313 * current) ^ _int32(27191 * previous)
            assert xor[row, t] == (mixed % 2047 if t else 2047)


def test_xor_variant_starts_as_published() -> None:
    model = GEPA(ModelConfig(bigram="xor", num_layers=2, xsa_last_n=1, ve_layers=()))
    model.init_weights(0)
    assert model.bigram_emb.scale.item() == pytest.approx(0.05)
    assert not model.bigram_emb.embed.weight.any()


# Rotary positions


def test_rotary_table_by_its_formula() -> None:
    cos, sin = rotary_table(300, 16, 10_000.0, 2048)
    for position, j in ((0, 0), (1, 0), (299, 3), (123, 7)):
        angle = position / 10_000 ** (2 * j / 16)
        assert cos[position, j].item() == pytest.approx(math.cos(angle), abs=1e-4)
        assert sin[position, j].item() == pytest.approx(math.sin(angle), abs=1e-4)


def test_base_grows_beyond_the_training_length() -> None:
    cos, _ = rotary_table(4096, 16, 10_000.0, 2048)
    base = 10_000 * 2 ** (16 / 14)
    assert cos[4000, 5].item() == pytest.approx(math.cos(4000 / base ** (10 / 16)), abs=1e-3)
    longer = tiny.tiny_model(tiny.MODEL.model_copy(update={"rope_train_seq_len": 8}))
    same = tiny.tiny_model(tiny.MODEL.model_copy(update={"rope_train_seq_len": 16}))
    ids = torch.from_numpy(tiny.text(16).astype(np.int64))[None]
    assert not torch.allclose(longer(ids), same(ids))
    assert torch.equal(longer(ids[:, :8]), same(ids[:, :8]))


def test_published_positions_collapse_above_256() -> None:
    cos, _ = rotary_table(2048, 16, 10_000.0, 2048)
    rounded, _ = rotary_table(2048, 16, 10_000.0, 2048, "bf16_published")
    assert (cos - rounded).abs().max().item() == pytest.approx(2.0, abs=0.01)
    assert torch.equal(rounded[256], rounded[257]), "bf16 has no 257"
    assert torch.equal(rounded[1026], rounded[1028]), "nor anything between multiples of 8 here"
    assert not torch.equal(rounded[255], rounded[256])


def test_rotation_keeps_lengths_and_turns_by_the_difference() -> None:
    cos, sin = (table[:, None] for table in rotary_table(8, 4, 100.0, 8))
    x = torch.randn(1, 8, 2, 6, generator=torch.Generator().manual_seed(0))
    y = rotate(x, cos, sin)
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(y[..., 4:], x[..., 4:])
    same = rotate(x[:, :1].expand(-1, 8, -1, -1), cos, sin)
    near, far = (same[:, 1] * same[:, 2]).sum(-1), (same[:, 5] * same[:, 6]).sum(-1)
    torch.testing.assert_close(near, far)


def test_exclusive_attention_leaves_nothing_along_the_value() -> None:
    generator = torch.Generator().manual_seed(0)
    y, v = torch.randn(2, 3, 4, 8, generator=generator), torch.randn(2, 3, 2, 8, generator=generator)
    rest = exclude_self(y, v)
    along = (rest * v.repeat_interleave(2, dim=2)).sum(-1)
    torch.testing.assert_close(along, torch.zeros_like(along), atol=1e-5, rtol=0)
    torch.testing.assert_close(exclude_self(rest, v), rest)


# Initial weights


def test_initial_weights_follow_the_recipe() -> None:
    cfg = ModelConfig(
        num_layers=3,
        xsa_last_n=1,
        ve_layers=(2,),
        ve_dim=96,
        width=256,
        num_heads=4,
        num_kv_heads=2,
        mlp_hidden=768,
    )
    model = GEPA(cfg)
    model.init_weights(42)
    linears = {name: m.weight for name, m in model.named_modules() if isinstance(m, Linear)}
    damped = 1 / math.sqrt(2 * cfg.num_layers)
    for name, weight in linears.items():
        if name.endswith(("attn.proj", "down_proj")):
            assert not weight.any(), name
            continue
        gain = damped if name.endswith(".proj") else 1.0
        short = weight if weight.shape[0] <= weight.shape[1] else weight.mT
        gram = short @ short.mT / gain**2
        torch.testing.assert_close(gram, torch.eye(len(short)), atol=1e-2, rtol=0)
    column_norms = linears["bigram_emb.proj"].norm(dim=0)
    torch.testing.assert_close(column_norms, torch.full((128,), damped), rtol=3e-3, atol=0)
    column_norms = linears["ve_shared.proj"].norm(dim=0)
    torch.testing.assert_close(column_norms, torch.full((96,), damped), rtol=3e-3, atol=0)

    assert model.tok_emb.weight.dtype == torch.bfloat16
    assert model.tok_emb.weight.float().std().item() == pytest.approx(0.005, rel=0.02)
    assert model.bigram_emb.embed.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert model.ve_shared.embed.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert model.ve_shared.scale.item() == pytest.approx(0.1)
    assert model.blocks[1].attn.q_gain.tolist() == [1.5] * 4
    assert model.blocks[1].resid_mix.mean(dim=1).tolist() == [1.0, 0.0]
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            assert torch.equal(parameter, parameter.bfloat16().to(parameter.dtype)), name


def test_small_linears_keep_torchs_default_or_zero() -> None:
    model = GEPA(tiny.MODEL)
    model.init_weights(0)
    weight = model.blocks[0].attn.c_q.weight
    bound = 1 / math.sqrt(weight.shape[1])
    assert 0.9 * bound < weight.abs().max() <= bound * 1.01
    assert not model.bigram_emb.proj.weight.any()
    assert not model.ve_shared.proj.weight.any()


def test_initial_weights_are_a_function_of_the_seed() -> None:
    def weights(seed: int) -> Tensor:
        model = GEPA(tiny.MODEL)
        model.init_weights(seed)
        return nn.utils.parameters_to_vector(model.parameters())

    torch.rand(7)  # moves the global generator
    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_untrained_loss_is_that_of_guessing() -> None:
    model = GEPA(ModelConfig(num_layers=2, xsa_last_n=1, ve_layers=(1,)))
    model.init_weights(42)
    ids = torch.from_numpy(tiny.text(129, vocab=1024).astype(np.int64))
    with torch.no_grad():
        assert model.loss(ids[None, :-1], ids[None, 1:]).item() == pytest.approx(math.log(1024), rel=0.01)


def test_bf16_is_close_to_fp32() -> None:
    rough = tiny.tiny_model(tiny.MODEL.model_copy(update={"compute_dtype": "bf16"}))
    exact = tiny.tiny_model()
    ids = torch.from_numpy(tiny.text(65).astype(np.int64))
    batch = ids[None, :-1], ids[None, 1:]
    expected = exact.loss(*batch)
    expected.backward()
    for expressions, activations in (
        (nullcontext, torch.float32),
        (kernels.plain_expressions, torch.bfloat16),
    ):
        rough.zero_grad()
        with expressions():
            loss = rough.loss(*batch)
            loss.backward()
            with torch.no_grad():
                assert rough.loss(*batch).item() == pytest.approx(expected.item(), rel=1e-2)
                assert rough.features(batch[0]).dtype == activations
                assert rough(batch[0]).dtype == torch.float32
        assert loss.item() == pytest.approx(expected.item(), rel=1e-2)
        for (name, p), q in zip(rough.named_parameters(), exact.parameters(), strict=True):
            assert (p.grad - q.grad).norm() < 0.1 * q.grad.norm(), name


# Gradients written by hand


def _gradients(function, *tensors: Tensor) -> list[Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    out = function(*leaves)
    weights = torch.linspace(-1, 1, out.numel()).view(out.shape)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), leaves)]


def _agree(function, *tensors: Tensor) -> None:
    by_hand = _gradients(function, *tensors)
    with kernels.plain_expressions():
        autograds = _gradients(function, *tensors)
    for mine, wanted in zip(by_hand, autograds, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)


def _randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_gradient_of_the_norm(scale: float) -> None:
    _agree(lambda x: kernels.rms_norm(x, scale), _randn(2, 5, 3, 8))
    assert not kernels.rms_norm(torch.zeros(2, 8, requires_grad=True)).any()


@pytest.mark.parametrize("with_gain", [True, False])
def test_gradient_of_the_rotation(with_gain: bool) -> None:
    cos, sin = (table[:, None] for table in rotary_table(5, 4, 100.0, 5))
    x, gain = _randn(2, 5, 3, 8), (_randn(3, 1),) if with_gain else ()
    _agree(lambda x, *gain: kernels.norm_rotate(x, cos, sin, *gain), x, *gain)


def test_gradient_of_products_in_bf16() -> None:
    x, weight = (_randn(*shape).bfloat16().float() for shape in ((2, 5, 8), (6, 8)))  # nothing to round
    y, dx, dweight = _gradients(lambda x, w: kernels.linear(x, w, torch.bfloat16), x, weight)
    exact = _gradients(lambda x, w: kernels.linear(x, w, torch.float32), x, weight)
    assert y.dtype == dx.dtype == dweight.dtype == torch.float32
    for mine, wanted in zip((y, dx, dweight), exact, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-2, atol=2e-2)
    targets = torch.arange(10) % 6
    hidden = x.view(10, 8)
    found, wanted = (
        _gradients(lambda h, w, d=dtype: capped_cross_entropy(h, w, targets, 5.0, d), hidden, weight)
        for dtype in (torch.bfloat16, torch.float32)
    )
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, other, rtol=2e-2, atol=5e-3)


def test_gradient_of_the_activation() -> None:
    _agree(kernels.relu_squared_affine, _randn(2, 5, 12), _randn(12), 1 + _randn(12))


@pytest.mark.parametrize("cap", [1.0, 30.0])
def test_gradient_of_the_capped_loss(cap: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "_SLAB", 200)  # several slabs, the last one short
    targets = torch.arange(33) % 40

    def loss(h: Tensor, weight: Tensor) -> Tensor:
        return capped_cross_entropy(h, weight, targets, cap) * 3.0

    hidden, weight = 2 * _randn(33, 16), 2 * _randn(40, 16)
    _agree(loss, hidden, weight)
    with torch.no_grad():
        by_hand = capped_nll(hidden, weight, targets, cap)
        assert loss(hidden, weight) == pytest.approx(3.0 * by_hand.mean().item())
        with kernels.plain_expressions():
            torch.testing.assert_close(by_hand, capped_nll(hidden, weight, targets, cap))


def test_without_gradients_results_are_those_of_the_plain_expressions() -> None:
    x, scale, bias = _randn(2, 5, 12), _randn(12), _randn(12)
    cases = (
        lambda: kernels.rms_norm(x, 0.5),
        lambda: kernels.relu_squared_affine(x, scale, bias),
    )
    for case in cases:
        kept = x.clone()
        with torch.no_grad():
            fast = case()
            with kernels.plain_expressions():
                plain = case()
        assert torch.allclose(fast, plain, rtol=1e-5, atol=1e-6)
        assert torch.equal(x, kept)


def test_scales_in_the_matrices_are_the_same_mathematics(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a GPU computes; here by plain expressions."""
    ids = torch.from_numpy(tiny.text(2 * 17).astype(np.int64)).view(2, 17)

    def found() -> tuple[Tensor, dict[str, Tensor], Tensor]:
        model = tiny.tiny_model()
        loss = model.loss(ids[:, :-1], ids[:, 1:])
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        with torch.no_grad():
            return loss.detach(), gradients, model.nll(ids[:, :-1], ids[:, -4:], last=4)

    with kernels.plain_expressions():
        plain = found()
        monkeypatch.setattr(gepa, "folds", lambda x: True)
        folded = found()
    torch.testing.assert_close(folded, plain, rtol=1e-4, atol=1e-5)
    assert folded[1].keys() == plain[1].keys()
    assert any(not torch.equal(folded[1][name], plain[1][name]) for name in plain[1])
