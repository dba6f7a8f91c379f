"""Muon, AdamW and the average over flat buffers, against the plain forms of each."""

import json
import math
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from benchmarks.without import OPTIMISATIONS
from gepa_core.config import RunConfig
from gepa_core.model.gepa import GEPA
from gepa_core.sections import OptimConfig
from gepa_core.training import optim
from gepa_core.training.optim import FlatParameters, Optimizer, is_muon_matrix, is_untrained, orthogonalize
from gepa_core.training.trained import over_recipe
from tests import tiny

CFG = OptimConfig()


def build(**model: object) -> tuple[GEPA, FlatParameters, Optimizer]:
    gepa = tiny.tiny_model(tiny.MODEL.model_copy(update=model))
    flat = FlatParameters(gepa, CFG.decoder_lr_multiplier)
    return gepa, flat, Optimizer(gepa, flat, CFG)


def fill_gradients(flat: FlatParameters, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for view in flat.named(flat.gradients).values():
        view.copy_(torch.randn(view.shape, generator=generator))
    return {name: view.clone() for name, view in flat.named(flat.gradients).items()}


def weights(model: GEPA) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


# Newton-Schulz


@pytest.mark.parametrize("shape", [(64, 64), (32, 96), (96, 32), (5, 48, 32)])
def test_singular_values_come_near_one(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrices, 5).float())
    # The quintic's coefficients trade exactness for speed: Jordan et al. report about 0.7 to 1.2.
    # The least of a square random matrix may be too small for five steps.
    assert values.max() < 1.3
    assert ((values > 0.6) & (values < 1.25)).float().mean() > 0.9


def in_bf16(matrix: Tensor) -> Tensor:
    """The published arithmetic: every operand and result a bf16 tensor."""
    X = matrix.bfloat16()
    X = X / (X.norm() + 1e-7)
    for _ in range(5):
        A = X @ X.mT
        X = torch.addmm(X, torch.addmm(A, A, A, beta=-4.7750, alpha=2.0315), X, beta=3.4445)
    return X.float()


def test_a_cpu_multiplies_in_fp32_what_bf16_can_hold() -> None:
    matrix = torch.randn(48, 64, generator=torch.Generator().manual_seed(5))
    found = orthogonalize(matrix, 5)
    assert found.dtype == torch.float32 and torch.equal(found, found.bfloat16().float())
    torch.testing.assert_close(found, in_bf16(matrix), rtol=0, atol=0.015)
    finer = orthogonalize(matrix, 5, torch.float32)
    assert not torch.equal(finer, finer.bfloat16().float())
    torch.testing.assert_close(found, finer, rtol=0, atol=0.03)


@pytest.mark.parametrize("recipe", ["gepa-nano", "gepa-mini"])
def test_the_small_recipes_hold_nothing_in_bf16(recipe: str) -> None:
    config = RunConfig.model_validate_json(
        json.dumps(over_recipe({"recipe": recipe, "steps": 1, "warmdown_steps": 0}, "test"))
    )
    assert "bf16" not in config.model_dump_json()
    assert RunConfig(steps=1, warmdown_steps=0).optim.muon_ns_dtype == "bf16"  # as published


def test_directions_are_kept() -> None:
    matrix = torch.randn(24, 40, generator=torch.Generator().manual_seed(1))
    U, _, Vh = torch.linalg.svd(matrix, full_matrices=False)
    inner = U.mT @ orthogonalize(matrix, 5).float() @ Vh.mT
    off_diagonal = inner - torch.diag(inner.diagonal())
    assert off_diagonal.abs().max() < 0.1


def test_a_stack_is_orthogonalised_matrix_by_matrix() -> None:
    stack = torch.randn(4, 48, 32, generator=torch.Generator().manual_seed(2))
    alone = torch.stack([orthogonalize(matrix, 5) for matrix in stack])
    torch.testing.assert_close(orthogonalize(stack, 5).float(), alone.float(), rtol=0, atol=0.02)


def test_scale_does_not_matter() -> None:
    matrix = torch.randn(32, 32, generator=torch.Generator().manual_seed(3))
    assert torch.equal(orthogonalize(matrix, 5), orthogonalize(matrix * 2.0**-20, 5))


# Which optimizer holds what


def test_every_parameter_has_its_optimizer() -> None:
    model, _, optimizer = build(bigram="xor")
    held = optimizer.state().keys()
    for name in weights(model):
        muon, adam = f"momentum/{name}" in held, f"exp_avg/{name}" in held
        in_block_matrix = ".attn.c_" in name or name.endswith("proj.weight")
        assert muon == (in_block_matrix and name != "ve_shared.proj.weight"), name
        assert adam == (not muon and name != "bigram_emb.scale"), name


def test_control_tensors_of_two_dimensions_are_no_muon_matrices() -> None:
    model = GEPA(tiny.MODEL)
    not_muon = {n for n, p in model.named_parameters() if p.ndim == 2 and not is_muon_matrix(n, p)}
    assert not_muon == {
        "tok_emb.weight",
        "bigram_emb.embed.weight",
        "ve_shared.embed.weight",
        "ve_shared.proj.weight",
        "skip_weights",
        "skip_gates",
        *(f"blocks.{i}.resid_mix" for i in range(3)),
    }


# One step against the plain forms


def plain_muon(weight: Tensor, gradient: Tensor, momentum: Tensor, beta: float, lr: float) -> Tensor:
    """As published: one matrix, no fused operations. Updates `momentum`, returns the new weight."""
    momentum.mul_(beta).add_(gradient)
    update = (gradient + beta * momentum).bfloat16()
    transposed = update.shape[0] > update.shape[1]
    X = update.T if transposed else update
    X = X / (X.norm() + 1e-7)
    for _ in range(5):
        A = X @ X.T
        B = -4.7750 * A + 2.0315 * A @ A
        X = 3.4445 * X + B @ X
    X = X.T if transposed else X
    scale = math.sqrt(max(1.0, weight.shape[0] / weight.shape[1]))
    return weight * (1 - lr * CFG.muon_weight_decay) - lr * scale * X.float()


@pytest.mark.parametrize(("batched", "largest"), [(True, 1 << 17), (True, 0), (False, 1 << 17)])
def test_steps_are_the_plain_ones(batched: bool, largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optim, "_CPU_BATCH_NUMEL", largest)
    monkeypatch.setattr(Optimizer, "batched", batched)
    model, flat, _ = build()
    optimizer = Optimizer(model, flat, CFG)
    plain = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    momenta = {name: torch.zeros_like(p) for name, p in plain.items()}
    groups = []
    for name, weight in plain.items():
        in_decoder = name.startswith("blocks.") and int(name.split(".")[1]) >= 1  # 3 blocks: 1 encodes
        base = CFG.embed_lr if name == "tok_emb.weight" else CFG.scalar_lr
        groups.append({"params": [weight], "name": name, "factor": 2.0 if in_decoder else 1.0, "base": base})
    adam = torch.optim.AdamW(
        [g | {"lr": 0.0} for g in groups if not is_muon_matrix(g["name"], g["params"][0])],
        betas=(0.9, 0.95),
        eps=1e-8,
        weight_decay=0.04,
    )
    for step, lr_scale in enumerate((1.0, 0.5, 0.25)):
        gradients = fill_gradients(flat, seed=step)
        optimizer.step(step, lr_scale)
        beta = 0.92 + 0.07 * step / 1500
        for group in groups:
            name, (weight,) = group["name"], group["params"]
            if is_muon_matrix(name, weight):
                lr = CFG.matrix_lr * group["factor"] * lr_scale
                weight.data = plain_muon(weight.data, gradients[name], momenta[name], beta, lr)
            else:
                weight.grad = gradients[name]
        for group in adam.param_groups:
            group["lr"] = group["base"] * group["factor"] * lr_scale
        adam.step()
    for name, parameter in model.named_parameters():
        tolerance = 5e-3 if is_muon_matrix(name, parameter) else 1e-6  # Newton-Schulz is in bf16
        torch.testing.assert_close(parameter.data, plain[name].data, rtol=0, atol=tolerance, msg=name)


def test_momentum_warms_up() -> None:
    optimizer = build()[2]
    assert [optimizer.muon_momentum(s) for s in (0, 750, 1500, 9000)] == pytest.approx(
        [0.92, 0.955, 0.99, 0.99]
    )


def test_xor_scale_stays() -> None:
    model, flat, optimizer = build(bigram="xor")
    before = weights(model)
    fill_gradients(flat)
    optimizer.step(0, 1.0)
    after = weights(model)
    assert [n for n in before if torch.equal(before[n], after[n])] == ["bigram_emb.scale"]
    assert is_untrained("bigram_emb.scale")


# Flat buffers


def test_gradients_land_in_the_flat_buffer() -> None:
    model, flat, _ = build(embedding_dtype="bf16")
    plain = tiny.tiny_model(tiny.MODEL.model_copy(update={"embedding_dtype": "bf16"}))
    ids = torch.arange(32).view(2, 16) % tiny.VOCAB
    for gepa in (model, plain):
        gepa.loss(ids, ids.roll(1)).backward()
    for name, parameter in plain.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(flat.view(flat.gradients, name), parameter.grad.float()), name
    model.loss(ids, ids.roll(1)).backward()
    embedding = flat.view(flat.gradients, "tok_emb.weight")
    assert embedding.dtype == torch.float32, "micro-batches of a bf16 parameter are summed in fp32"
    assert torch.equal(embedding, 2 * plain.tok_emb.weight.grad.float())
    flat.zero_gradients()
    assert not flat.gradients.any()


def test_clip_is_over_all_parameters() -> None:
    _, flat, _ = build(bigram="xor")
    gradients = fill_gradients(flat)
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
    assert flat.clip(0.3).item() == pytest.approx(norm, rel=1e-5)
    for name, view in flat.named(flat.gradients).items():
        torch.testing.assert_close(view, gradients[name] * 0.3 / norm, rtol=1e-4, atol=1e-7)
    before = flat.gradients.clone()
    flat.clip(0.4)
    assert torch.equal(flat.gradients, before), "short gradients are left alone"


def test_parameters_do_not_overlap_and_are_aligned() -> None:
    model, flat, _ = build()
    taken = torch.zeros(flat.size, dtype=torch.int32)
    for name, parameter in model.named_parameters():
        flat.view(taken, name).add_(1)
        assert flat.offsets[name] % 64 == 0
        assert parameter.data_ptr() == flat.view(flat.values, name).data_ptr()
    assert taken.max() == 1
    assert taken.sum() == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("embedding_dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("flat_update", [True, False])
def test_average_starts_at_the_weights_and_follows(embedding_dtype: str, flat_update: bool) -> None:
    model, flat, optimizer = build(embedding_dtype=embedding_dtype)
    averages = {name: weight.double() for name, weight in weights(model).items()}
    for step in range(4):
        fill_gradients(flat, step)
        optimizer.step(step, 1.0)
        with nullcontext() if flat_update else OPTIMISATIONS["flat average"]():
            flat.update_averages([0.9])
        for name, weight in weights(model).items():
            averages[name] = 0.9 * averages[name] + 0.1 * weight.double()
    for name, average in flat.named(flat.averages[0]).items():
        torch.testing.assert_close(average.double(), averages[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("embedding_dtype", ["fp32", "bf16"])
def test_weights_can_be_exchanged_and_put_back(embedding_dtype: str) -> None:
    model, flat, optimizer = build(embedding_dtype=embedding_dtype)
    fill_gradients(flat)
    optimizer.step(0, 1.0)
    flat.update_averages([0.9])
    before, kept = weights(model), flat.values.clone()
    flat.set_weights(flat.averages[0])
    for name, weight in weights(model).items():
        assert torch.equal(weight, flat.view(flat.averages[0], name).to(weight.dtype)), name
    flat.set_weights(kept)
    after = weights(model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_embedding_is_updated_in_its_own_precision() -> None:
    model, flat, optimizer = build(embedding_dtype="bf16")
    moments = optimizer.state()
    assert moments["exp_avg/tok_emb.weight"].dtype == torch.bfloat16
    assert moments["exp_avg/smear_gate.gate"].dtype == torch.float32
    before = model.tok_emb.weight.detach().clone()
    fill_gradients(flat)
    optimizer.step(0, 1.0)
    moved = (model.tok_emb.weight - before).float().abs().mean()
    assert moved.item() == pytest.approx(CFG.embed_lr, rel=0.1)  # Adam's first step is the learning rate
