"""Every conditional part of the model, trained, evaluated, quantized and loaded; and what legality asks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gepa_core.commands.evaluate import evaluate_command
from gepa_core.config import NUMERICS_VERSION, DataPaths, RunConfig
from gepa_core.data.shards import load_tokens, open_shards
from gepa_core.data.text import Text, open_text
from gepa_core.errors import CheckpointError
from gepa_core.evaluation import scoring
from gepa_core.evaluation.stages import WAYS, measure
from gepa_core.model.gepa import GEPA, Linear
from gepa_core.quantization import artifact
from gepa_core.quantization.calibrate import calibrate
from gepa_core.quantization.methods import quantize
from gepa_core.sections import ModelConfig, QuantConfig
from gepa_core.sizes import num_params
from gepa_core.training import checkpoint
from gepa_core.training.trained import load_model
from tests import tiny, training

VARIANTS: dict[str, dict[str, Any]] = {
    "value embedding as wide as the values": {"ve_dim": 16},
    "no value embeddings": {"ve_layers": ()},
    "xor bigram": {"bigram": "xor"},
    "no XSA": {"xsa_last_n": 0},
    "one KV head": {"num_kv_heads": 1, "ve_dim": 8},
    "rotary on the whole head": {"rope_dims": 8},
    "documents kept apart": {"document_start": 5},
}
METHODS = ("reference", "gptq")
SLOWER = ("per_row", "rd")
"""Methods that look at a tensor's shape and numbers alone: of one variant."""


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> DataPaths:
    return training.make_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_each_variant_goes_all_the_way(changes: dict[str, Any], paths: DataPaths, tmp_path: Path) -> None:
    model_cfg = training.RUN.model.model_copy(update=changes)
    run = training.RUN.model_copy(
        update={"model": ModelConfig(**model_cfg.model_dump()), "steps": 4, "warmdown_steps": 2}
    )
    whole, _ = training.train(paths, tmp_path / "whole", run)
    half, _ = training.train(paths, tmp_path / "half", run, until=2, final_step=False)
    resumed, _ = training.train(paths, tmp_path / "rest", run, start=half.path)
    training.assert_same(whole.path, resumed.path)

    model, _ = load_model(whole.path, average=True)
    assert sum(p.numel() for p in model.parameters()) == num_params(run.model)
    text = open_text(paths.val, paths.tokenizer, run.model.vocab_size, 64)
    floats = measure("plain", model, text, run.eval, run.ttt, tiny.CPU).bpb
    sensitivities = calibrate(model, load_tokens(open_shards(paths.train), 256), 16)
    for method in (*METHODS, *(SLOWER if run.model.ve_dim == 16 else ())):
        quant = QuantConfig(method=method, keep_float_max_numel=64, budget_bytes=40_000)
        data = artifact.encode(quantize(model.state_dict(), quant, sensitivities))
        decoded, state = GEPA(run.model), artifact.decode(data)
        artifact.check_fits(state, decoded.state_dict())
        decoded.load_state_dict(state)
        for way in WAYS if method == "gptq" else ("plain",):
            bpb = measure(way, decoded, text, run.eval, run.ttt, tiny.CPU).bpb
            assert bpb == pytest.approx(floats, rel=0.1), (method, way)


def test_a_value_embedding_as_wide_as_the_values_is_added_as_it_is() -> None:
    cfg = tiny.MODEL.model_copy(update={"ve_dim": 16})
    model = tiny.tiny_model(cfg)
    assert "ve_shared.proj.weight" not in model.state_dict()
    ids = torch.randint(4, 64, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(ids)
        model.ve_shared.proj = Linear(cfg, 16, 16)
        model.ve_shared.proj.weight.copy_(torch.eye(16))
        torch.testing.assert_close(model(ids), expected)
        model.ve_shared.proj.weight.zero_()
        assert not torch.allclose(model(ids), expected)


def test_a_state_of_earlier_code_says_why_it_does_not_load(paths: DataPaths, tmp_path: Path) -> None:
    model_cfg = training.RUN.model.model_copy(update={"ve_dim": 16})
    run = training.RUN.model_copy(update={"model": model_cfg, "steps": 1, "warmdown_steps": 0})
    segment, _ = training.train(paths, tmp_path, run)
    state = checkpoint.load(segment.path)
    extra = {"model/ve_shared.proj.weight": torch.zeros(16, 16)}
    checkpoint.save(tmp_path / "old", state.tensors | extra, state.meta)
    with pytest.raises(CheckpointError, match="only earlier versions trained such models"):
        load_model(tmp_path / "old", average=False)


@pytest.mark.parametrize("changes", [{"ve_dim": 256}, {"ve_layers": ()}, {"bigram": "xor", "ve_dim": 96}])
def test_published_artifacts_tell_their_conditional_parts(
    changes: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They load without a job file; what is missing then is the data alone."""
    model = GEPA(ModelConfig(**changes))
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    file = tmp_path / "model.int6.ptz"
    artifact.write_artifact(quantize(model.state_dict(), QuantConfig()), file)
    assert evaluate_command([str(file)]) == 2
    assert "no data" in capsys.readouterr().err


# Legality


@pytest.mark.parametrize(("way", "dtype"), [*((way, "fp32") for way in WAYS), ("plain", "bf16")])
def test_each_scored_distribution_sums_to_one(way: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every score given: the probabilities of all tokens in its place, by the same pass over the model."""
    one = scoring.token_nll
    sums: list[Tensor] = []

    def all_tokens(model: Any, ids: Tensor, targets: Tensor, *how: Any) -> Tensor:
        every = [one(model, ids, torch.full_like(targets, token), *how) for token in range(tiny.VOCAB)]
        sums.append(torch.stack(every).double().neg().exp().sum(dim=0).flatten())
        return one(model, ids, targets, *how)

    monkeypatch.setattr(scoring, "token_nll", all_tokens)
    model = tiny.tiny_model(tiny.MODEL.model_copy(update={"compute_dtype": dtype}))
    text = Text(tiny.text(50), tiny.byte_table())
    found = measure(way, model, text, tiny.EVAL, tiny.TTT, tiny.CPU)
    total = torch.cat(sums)
    assert len(total) == found.tokens
    torch.testing.assert_close(total, torch.ones_like(total), atol=2e-5, rtol=0)


@pytest.mark.parametrize("bigram", ["poly", "xor"])
@pytest.mark.parametrize("document_start", [None, 5])
def test_smear_and_bigram_look_across_no_document_start(bigram: str, document_start: int | None) -> None:
    """Without attention they alone tie positions together."""
    changes = {"bigram": bigram, "document_start": document_start, "xsa_last_n": 0}
    model = tiny.tiny_model(tiny.MODEL.model_copy(update=changes))
    with torch.no_grad():
        for block in model.blocks:
            block.attn.proj.weight.zero_()
        ids = torch.tensor([[7, 8, 9, 5, 10, 11]])
        other = torch.tensor([[7, 8, 12, 5, 10, 11]])  # differs before the 5
        changed = (model(ids) != model(other)).any(dim=-1)[0].tolist()
        alone = model(ids[:, 3:])[0]
    across = document_start is None  # by the bigram, and one further by smear
    assert changed == [False, False, True, across, across, False]
    if document_start is not None:  # as if the text began there
        torch.testing.assert_close(model(ids)[0, 3:], alone, atol=1e-5, rtol=1e-5)


def test_a_step_of_training_is_the_same_whoever_else_is_in_the_batch(paths: DataPaths) -> None:
    """Documents are told by the token, not by the position in a window: any cut of the text agrees."""
    model = tiny.tiny_model(tiny.MODEL.model_copy(update={"document_start": 5, "xsa_last_n": 0}))
    with torch.no_grad():
        for block in model.blocks:
            block.attn.proj.weight.zero_()
        tokens = np.array([5, 9, 10, 5, 11, 12, 13, 5], np.int64)
        whole = model(torch.from_numpy(tokens)[None])[0]
        part = model(torch.from_numpy(tokens[3:7])[None])[0]
    torch.testing.assert_close(whole[3:7], part, atol=1e-5, rtol=1e-5)


def test_a_key_that_came_later_enters_an_identity_only_where_it_has_a_say() -> None:
    published = RunConfig(steps=25_000, warmdown_steps=13_000)
    kept = published.identity()
    assert not {"merge", "lr_floor", "schedule_power", "adam_warmdown_steps", "ema_horizon"} & kept.keys()
    assert "clip_sigmas" not in kept["quant"] and "int6_every" not in kept["eval"]
    assert "document_start" not in kept["model"] and "ve_projected" not in kept["model"]
    if NUMERICS_VERSION == 2:  # the digest of commit ea6430a
        assert published.run_id == "25000-13000-linear-s42-3fd28ebaae"
    wide = published.model_copy(update={"model": ModelConfig(ve_dim=256)})
    assert wide.identity()["model"]["ve_projected"] is False
    later = [
        {"schedule_power": 2.0},
        {"lr_floor": 0.1},
        {"adam_warmdown_steps": 5000},
        {"ema_horizon": "lr"},
        {"model": ModelConfig(document_start=1)},
        {"quant": QuantConfig(clip_sigmas=10.0)},
        {"eval": published.eval.model_copy(update={"int6_every": 500})},
        {"merge": published.merge.model_copy(update={"checkpoints": 4})},
    ]
    ids = {published.run_id, wide.run_id, *(published.model_copy(update=c).run_id for c in later)}
    assert len(ids) == len(later) + 2
