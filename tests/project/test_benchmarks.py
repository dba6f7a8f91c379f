"""The baseline of the benchmarks computes what the published code did, and the benchmarks run."""

import io
import json
import math
from pathlib import Path

import pytest
import sentencepiece as spm
import torch
import zstandard

from benchmarks import gpu, quantize, rounding, sharing, step, ttt
from benchmarks.baseline import PlainTrainer, PlainTTT, plain_int6
from gepa_core.config import RunConfig
from gepa_core.data.tokenizer import byte_table
from gepa_core.quantization.reference import quantize_reference
from gepa_core.sections import BatchConfig, EvalConfig, TTTConfig
from tests import tiny
from tests.tiny_sweep import make_data, sweep_text


@pytest.fixture(scope="module")
def stream(shared: Path) -> torch.Tensor:
    """Tokens of documents 60..99, as tests of the figures' training read them."""
    sp = spm.SentencePieceProcessor(model_file=str(shared / "data/tokenizers/fineweb_1024_bpe.model"))
    with (shared / "data/enwiki2015_val.jsonl.zst").open("rb") as file:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8")
        texts = [json.loads(line)["text"] for _, line in zip(range(100), lines, strict=False)]
    return torch.tensor([i for text in texts[60:] for i in (1, *sp.encode(text))])


def test_baseline_reproduces_the_published_losses(shared: Path, stream: torch.Tensor) -> None:
    model, _, figures = tiny.parity(shared)
    config = RunConfig(
        steps=30,
        warmdown_steps=15,
        batch=BatchConfig(seq_len=64, seqs_per_span=8, spans=2),
        model=model.cfg,
        eval=EvalConfig(seq_len=64),
        ttt=TTTConfig(chunk_tokens=64),
    )
    trainer, losses = PlainTrainer(model, config, compiled=False), []
    for number in range(30):
        spans = []
        for j in range(2):
            start = (2 * number + j) * 513
            text = stream[start : start + 513]
            spans.append((text[:-1].view(8, 64), text[1:].view(8, 64)))
        losses.append(float(trainer.step(spans)))
    expected = figures["train"]["train_loss"]
    assert losses[:5] == pytest.approx(expected[:5], rel=1e-3)
    assert losses == pytest.approx(expected, rel=1e-2)


def test_baseline_reproduces_the_published_ttt(shared: Path) -> None:
    model, tokens, figures = tiny.parity(shared)
    expected = figures["eval_ttt_reference"]
    names = ("chunk_tokens", "epochs", "lr", "momentum", "batch_seqs", "grad_clip", "freeze_blocks")
    table = byte_table(shared / "data/tokenizers/fineweb_1024_bpe.model", 1024)
    plain = PlainTTT(
        model, tokens, table, EvalConfig(seq_len=128, stride=expected["stride"], counting="reference")
    )
    assert plain.run(TTTConfig(**{name: expected[name] for name in names})) == pytest.approx(
        expected["val_bpb"], rel=1e-5
    )
    norm = math.sqrt(sum(p.double().square().sum().item() for p in model.parameters()))
    assert norm == pytest.approx(figures["ttt_final_param_l2"], rel=1e-7)


@pytest.mark.parametrize("scale", [0.1, 0.7])  # with the floor on every step, and without
def test_baseline_search_is_the_published_quantizer(scale: float) -> None:
    weight = scale * torch.randn(60, 70, generator=torch.Generator().manual_seed(0))
    integers, steps = plain_int6(weight)
    expected = quantize_reference(weight)
    assert torch.equal(integers, expected.integers)
    assert torch.equal(steps, expected.row_scale.flatten())


SMALL = ["--device", "cpu", "--small", "--rounds", "1"]


def answer(capsys: pytest.CaptureFixture[str]) -> dict:
    """The one JSON object on stdout."""
    return json.loads(capsys.readouterr().out)


def test_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert step.main([*SMALL, "--ablate", "--profile"]) == 0
    result = answer(capsys)
    assert result["ours"]["median_seconds"] > 0 and result["ratio"] > 0
    assert set(result["worth"]) == {
        "batched Newton-Schulz",
        "flat average",
        "micro-batches that fit the cache",
        "gradients by hand",
    }
    assert result["loss"]["ours"] == pytest.approx(result["loss"]["baseline"], rel=1e-3)
    assert 0 < sum(entry["share"] for entry in result["profile"]) <= 1


def test_ttt(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert ttt.main([*SMALL, "--out", str(tmp_path / "results" / "ttt.json")]) == 0
    result = answer(capsys)
    assert abs(result["bpb_difference"]) < 1e-5
    assert result["bpb"]["sliding"] == pytest.approx(result["bpb"]["sliding baseline"], abs=1e-5)
    assert json.loads((tmp_path / "results" / "ttt.json").read_text()) == result


def test_rounding(capsys: pytest.CaptureFixture[str]) -> None:
    assert rounding.main(SMALL) == 0
    far = answer(capsys)["difference"]
    assert abs(far["fp32 ours, uncompiled"]) < 1e-6 < abs(far["bf16 published"]) < 1e-3


def test_quantize(capsys: pytest.CaptureFixture[str]) -> None:
    assert quantize.main([*SMALL, "--no-rd"]) == 0
    result = answer(capsys)
    assert result["same_integers_and_scales_as_the_plain_search"]
    sizes = {name: entry["bytes"] for name, entry in result["coders"].items()}
    assert sizes["rANS with classes of rows and columns"] < sizes["zstd-22"]


@pytest.mark.slow
def test_gpu_script_on_a_cpu(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert gpu.main([*SMALL, "--out", str(tmp_path / "all.json")]) == 0
    result = answer(capsys)
    assert all(check["passed"] for check in result["correctness"].values())
    assert {"step", "ttt", "quantize"} <= result.keys()


def test_gpu_script_times_nothing_that_is_wrong(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "LOSS_TOLERANCE", 0.0)
    assert gpu.main([*SMALL, "--out", str(tmp_path / "all.json")]) == 1
    result = answer(capsys)
    assert not result["correctness"]["bf16_loss"]["passed"]
    assert "step" not in result


@pytest.mark.slow
def test_sharing_is_timed_against_the_same_runs_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    grid = {"steps": [24, 32], "warmdown_ratio": [0.5]}
    file = tmp_path / "tiny.yaml"
    file.write_text(sweep_text(make_data(tmp_path / "data"), grid))
    assert sharing.main(["--sweep", str(file), "seed=7"]) == 0
    result = answer(capsys)
    assert result["equal_to_the_last_bit"] and result["figures_compared"] == 2 * 5
    # 12 steps of trunk to each branch point, then branches of 12 and 16.
    assert result["steps_trained"] == {"shared": 16 + 12 + 16, "alone": 56, "tune_grid": 56}
    assert all(len(times) == 1 and times[0] > 0 for times in result["seconds"].values())


def test_sharing_refuses_what_the_plain_grid_cannot_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(sweep_text(make_data(tmp_path / "data"), {"steps": [24], "warmdown_ratio": [0.5]}))
    assert sharing.main(["--sweep", str(file), "exec.ranks=2"]) == 2
    assert "one CPU process a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("loss", "bpb", "passed"), [(4.01, 1e-4, True), (4.2, 0.0, False), (4.0, -0.01, False)]
)
def test_what_was_timed_must_agree_with_the_baseline(loss: float, bpb: float, passed: bool) -> None:
    checked = gpu.timed({"loss": {"ours": loss, "baseline": 4.0}}, {"bpb_difference": bpb})
    assert checked["passed"] is passed
