"""The commands that score what a training run, a checkpoint or an artifact holds."""

import io
import json
import math
import shutil
from pathlib import Path

import pytest
import sentencepiece as spm

from gepa_core.commands.evaluate import evaluate_command, ttt_command
from gepa_core.commands.quantize import quantize_command
from gepa_core.commands.train import train_command
from gepa_core.data.prepare import prepare_files
from gepa_core.data.shards import load_tokens, open_shards, write_shard
from gepa_core.data.tokenizer import byte_table
from gepa_core.model.gepa import GEPA
from gepa_core.quantization.artifact import read_artifact, write_artifact
from gepa_core.quantization.methods import quantize
from gepa_core.sections import EvalConfig, ModelConfig, QuantConfig
from gepa_core.training.trained import load_model, open_run
from tests import tiny
from tests.tiny import CPU


def write_tokenizer(path: Path) -> None:
    written = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox jumps over the lazy dog"] * 9),
        model_writer=written,
        vocab_size=tiny.VOCAB,
        model_type="bpe",
        minloglevel=2,
    )
    path.write_bytes(written.getvalue())


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder of three training steps."""
    folder = tmp_path_factory.mktemp("score")
    write_tokenizer(folder / "tokenizer.model")
    write_shard(folder / "train_000000.bin", tiny.text(4000))
    write_shard(folder / "val_000000.bin", tiny.text(200, seed=1))
    job = {
        "run": {
            "steps": 3,
            "warmdown_steps": 1,
            "ema_decay": 0.5,
            "batch": {"seq_len": 16, "seqs_per_span": 2, "spans": 2},
            "model": tiny.MODEL.model_dump(mode="json"),
            "data": {"val_tokens": 160},
            "eval": {"seq_len": 16, "stride": 4, "block_tokens": 50},
            "quant": {"keep_float_max_numel": 256},
            "ttt": {"chunk_tokens": 64, "epochs": 1, "batch_seqs": 2, "freeze_blocks": 1},
        },
        "data": {
            "train": str(folder / "train_*.bin"),
            "val": str(folder / "val_*.bin"),
            "tokenizer": str(folder / "tokenizer.model"),
        },
        "exec": {"device": "cpu"},
    }
    (folder / "job.json").write_text(json.dumps(job))
    assert train_command([str(folder / "job.json"), "--out", str(folder / "out")]) == 0
    return folder / "out"


def answer(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out)


def test_scores_are_those_of_the_functions(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, tokens = open_run(out).run, tiny.text(200, seed=1)[:161]
    table = byte_table(out.parent / "tokenizer.model")
    model, _ = load_model(out / "checkpoints" / "3", average=True)
    capsys.readouterr()
    assert evaluate_command([str(out), "--json"]) == 0
    plain = answer(capsys)
    assert plain["val_bpb"] == tiny.plain(model, tokens, table, run.eval, CPU).bpb
    assert (plain["stage"], plain["weights"], plain["tokens"]) == ("plain", "average", 160)
    assert evaluate_command([str(out / "checkpoints" / "3"), "--sliding", "--json"]) == 0
    assert answer(capsys)["val_bpb"] == tiny.sliding(model, tokens, table, run.eval, CPU).bpb
    assert ttt_command([str(out), "--json"]) == 0
    adapted = answer(capsys)
    assert adapted["val_bpb"] == tiny.adapted(model, tokens, table, run.eval, run.ttt).bpb
    assert (adapted["updates"], adapted["tokens_trained"], adapted["tokens_scored"]) == (4, 128, 160)


def test_raw_weights_fewer_tokens_and_counting(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    options = ["--raw", "--tokens", "40", "--sliding", "--counting", "reference", "--json"]
    assert evaluate_command([str(out), *options]) == 0
    figures = answer(capsys)
    assert figures["weights"] == "raw"
    assert figures["tokens"] == 40 + 3 * 4  # three windows cut short score the last stride again
    assert evaluate_command([str(out)]) == 0
    assert "plain val_bpb" in capsys.readouterr().out


def test_artifact(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, tokens = open_run(out).run, tiny.text(200, seed=1)[:161]
    model, _ = load_model(out / "checkpoints" / "3", average=True)
    write_artifact(quantize(model.state_dict(), QuantConfig(keep_float_max_numel=256)), out / "model.int6")
    model.load_state_dict(read_artifact(out / "model.int6"))
    expected = tiny.plain(model, tokens, byte_table(out.parent / "tokenizer.model"), run.eval, CPU)
    capsys.readouterr()
    assert evaluate_command([str(out / "model.int6"), "--json"]) == 0
    assert answer(capsys)["val_bpb"] == expected.bpb
    elsewhere = out.parent.parent / "elsewhere.int6"
    elsewhere.write_bytes((out / "model.int6").read_bytes())
    assert ttt_command([str(elsewhere)]) == 2
    assert "--job" in capsys.readouterr().err
    assert ttt_command([str(elsewhere), "--job", str(out)]) == 0


def test_the_artifact_of_a_lone_checkpoint_lies_beside_it(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lone = tmp_path / "a" / "b" / "state"
    shutil.copytree(out / "checkpoints" / "3", lone)
    assert quantize_command([str(lone), "--json"]) == 0
    assert answer(capsys)["step"] == 3
    assert (lone.parent / "model.int6").is_file()
    cases = {
        ("--budget-bytes", "0"): "quant: budget_bytes: Input should be greater",
        ("--out", str(out / "job.json" / "x")): "cannot be written",
        ("--method", "rd"): "no job.json here",
    }
    for arguments, message in cases.items():
        assert quantize_command([str(lone), *arguments]) == 2
        assert message in capsys.readouterr().err


def test_a_damaged_checkpoint_is_passed_over(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(out, tmp_path / "out")
    states = tmp_path / "out" / "checkpoints"
    shutil.copytree(states / "3", states / "4")
    (states / "4" / "state.json").write_text("{}")
    capsys.readouterr()
    assert evaluate_command([str(tmp_path / "out"), "--json"]) == 0
    assert answer(capsys)["step"] == 3
    shutil.rmtree(states / "3")
    assert evaluate_command([str(tmp_path / "out")]) == 2
    assert "every checkpoint is damaged" in capsys.readouterr().err


@pytest.mark.slow  # the reference size; test_variants reads small published artifacts
def test_published_artifact_needs_no_job(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """27 M parameters, scored with the rotary tables that the published code trained them with."""
    model = GEPA(ModelConfig(rope_precision="bf16_published"))
    model.init_weights(0)
    path = tmp_path / "final_model.int6.ptz"
    write_artifact(quantize(model.state_dict(), QuantConfig()), path)
    assert evaluate_command([str(path)]) == 2
    assert "give --data, a prepared folder" in capsys.readouterr().err
    text, data = tmp_path / "some.txt", tmp_path / "data"
    text.write_text("\n".join(f"line {i} of some plain words" for i in range(600)))
    tokenizer = shared / "data" / "tokenizers" / "fineweb_1024_bpe.model"
    prepare_files(data, [text], val_inputs=[text], tokenizer=tokenizer, workers=1)
    assert evaluate_command([str(path), "--data", str(data), "--tokens", "2048", "--json"]) == 0
    model.load_state_dict(read_artifact(path))
    tokens = load_tokens(open_shards(str(data / "val_*.bin")), 2049)
    expected = tiny.plain(model, tokens, byte_table(tokenizer), EvalConfig(), CPU)
    assert answer(capsys)["val_bpb"] == expected.bpb


def test_wrong_input_is_one_clear_line(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.int6").write_bytes(b"no artifact")
    cases = {
        (str(tmp_path / "nothing"),): "no such file or folder",
        (str(tmp_path),): "no checkpoint",
        (str(tmp_path / "bad.int6"), "--job", str(out)): "not an int6 artifact",
        (str(out), "--data", str(tmp_path)): "not a prepared data folder",
        (str(out), "--tokens", "7"): "validation has 8 tokens",
        (str(out), "--tokens", "-5"): "must be at least 1",
    }
    for arguments, message in cases.items():
        assert evaluate_command(list(arguments)) == 2
        captured = capsys.readouterr()
        assert len(captured.err.splitlines()) == 1
        assert any(part in captured.err for part in message.split("|")), captured.err


def test_weights_that_are_not_finite(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, _ = load_model(out / "checkpoints" / "3", average=True)
    damaged = quantize(model.state_dict(), QuantConfig(keep_float_max_numel=256))
    damaged.passthrough["blocks.1.mlp.bias"].fill_(math.nan)
    write_artifact(damaged, out / "nan.int6")
    capsys.readouterr()
    assert evaluate_command([str(out / "nan.int6")]) == 3
    assert "validation loss is not finite" in capsys.readouterr().err
