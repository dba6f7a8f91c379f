"""The standalone script and the folder around it reproduce the run's figures alone, to the last digit."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from analysis.logs.importing import read_log
from gepa_core.config import DataPaths, ExecConfig, RunConfig
from gepa_core.data.shards import load_tokens, open_shards, write_shard
from gepa_core.data.text import open_text
from gepa_core.errors import ArtifactError
from gepa_core.evaluation.stages import WAYS, measure
from gepa_core.model.gepa import GEPA
from gepa_core.quantization import artifact
from gepa_core.quantization.calibrate import calibrate
from gepa_core.quantization.methods import quantize
from gepa_core.sections import EvalConfig, ModelConfig, QuantConfig, TTTConfig
from gepa_core.submission.bundle import code_bytes, standalone_source
from gepa_core.submission.folder import NotReproducedError, export, verify

MODEL = ModelConfig(
    num_layers=2, width=32, num_heads=2, num_kv_heads=1, mlp_hidden=64, bigram_buckets=64, bigram_dim=16,
    rope_dims=8, rope_train_seq_len=32, xsa_last_n=1, ve_dim=16, ve_layers=(1,), compute_dtype="fp32",
)  # fmt: skip


def run_config(method: str) -> RunConfig:
    return RunConfig(
        steps=20,
        warmdown_steps=10,
        model=MODEL,
        eval=EvalConfig(seq_len=32, stride=16, block_tokens=256),
        quant=QuantConfig(method=method, keep_float_max_numel=500, budget_bytes=30_000),
        ttt=TTTConfig(chunk_tokens=128, epochs=1, batch_seqs=2, freeze_blocks=1, lr=0.01),
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> DataPaths:
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for split, count in (("train", 3000), ("val", 500)):
        write_shard(folder / f"{split}_000000.bin", generator.integers(3, 1024, count).astype(np.uint16))
    tokenizer = shutil.copy(shared / "data" / "tokenizers" / "fineweb_1024_bpe.model", folder)
    return DataPaths(
        train=str(folder / "train_*.bin"), val=str(folder / "val_*.bin"), tokenizer=str(tokenizer)
    )


@pytest.fixture(scope="module", params=["reference", "rd"])
def trained(request: pytest.FixtureRequest, data: DataPaths) -> tuple[RunConfig, bytes, dict[str, Any]]:
    """A run's configuration, artifact, and figures as measured here, in this process, from that artifact."""
    run, model = run_config(request.param), GEPA(MODEL)
    model.init_weights(0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    sensitivities = calibrate(model, load_tokens(open_shards(data.train)), 32)
    blob = artifact.encode(quantize(model.state_dict(), run.quant, sensitivities))
    text = open_text(data.val, data.tokenizer, MODEL.vocab_size)
    figures: dict[str, Any] = {"params": sum(p.numel() for p in model.parameters()), "float_bpb": None}
    for stage, column in zip(WAYS, ("int6_bpb", "int6_sliding_bpb", "ttt_bpb"), strict=True):
        model.load_state_dict(artifact.decode(blob))
        evaluation = measure(stage, model, text, run.eval, run.ttt, ExecConfig())
        figures |= {column: evaluation.bpb, column.replace("bpb", "loss"): evaluation.loss}
    assert len({round(figures[c], 8) for c in ("int6_bpb", "int6_sliding_bpb", "ttt_bpb")}) == 3
    return run, blob, figures


TRAJECTORY = [
    {"step": 10, "val_loss": 4.0, "val_bpb": 2.5, "train_loss": 4.1, "elapsed_seconds": 1.5},
    {"step": 20, "val_loss": 3.5, "val_bpb": 2.25, "train_loss": None, "elapsed_seconds": 3.0},
]


def test_the_folder_alone_reproduces_the_run(trained, data: DataPaths, tmp_path: Path) -> None:
    run, blob, figures = trained
    claim = export(run, blob, figures, TRAJECTORY, tmp_path / "out", author="A. Uthor", name="small")
    files = {"train_gpt.py", "model.int6", "submission.json", "README.md", "train.log"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == files
    folder = tmp_path / "elsewhere"
    shutil.move(tmp_path / "out", folder)
    line = verify(folder, data)
    assert line == f"ttt val_loss:{figures['ttt_loss']:.8f} val_bpb:{figures['ttt_bpb']:.8f}"
    assert json.loads((folder / "submission.json").read_text()) == claim
    assert (claim["author"], claim["github_id"], claim["name"]) == ("A. Uthor", "", "small")
    assert claim["val_loss"] == round(figures["ttt_loss"], 8)
    assert claim["bytes_total"] == sum((folder / n).stat().st_size for n in ("train_gpt.py", "model.int6"))
    assert abs(claim["bytes_code"] - code_bytes(run)) < 50  # other names and stages, the same code


@pytest.mark.parametrize("trained", ["reference"], indirect=True)
def test_a_false_claim_is_found_out(trained, data: DataPaths, tmp_path: Path) -> None:
    run, blob, figures = trained
    plain = figures | {"ttt_bpb": None, "int6_sliding_bpb": None}
    export(run, blob, plain, TRAJECTORY, tmp_path)
    claim = json.loads((tmp_path / "submission.json").read_text())
    (tmp_path / "submission.json").write_text(json.dumps(claim | {"val_bpb": claim["val_bpb"] + 1e-8}))
    with pytest.raises(NotReproducedError, match=f"prints 'plain .*val_bpb:{figures['int6_bpb']:.8f}'"):
        verify(tmp_path, data)
    (tmp_path / "submission.json").write_text(json.dumps(claim | {"val_loss": claim["val_loss"] - 1e-8}))
    with pytest.raises(NotReproducedError, match=r"claims 'plain val_loss:"):
        verify(tmp_path, data)
    (tmp_path / "model.int6").write_bytes(blob[:-20])
    with pytest.raises(NotReproducedError, match=r"train_gpt.py: ended with 2: "):
        verify(tmp_path, data)
    (tmp_path / "train_gpt.py").write_text("import gepa_core")
    with pytest.raises(NotReproducedError, match=r"ended with 1: .*gepa_core"):
        verify(tmp_path, data)


def test_the_log_is_one_the_analysis_reads(trained, tmp_path: Path) -> None:
    run, blob, figures = trained
    export(run, blob, figures, TRAJECTORY, tmp_path)
    log = read_log(tmp_path / "train.log", warmdown_steps=run.warmdown_steps)
    assert (log.run["steps"], log.run["params"], log.run["seed"]) == (20, figures["params"], 42)
    assert log.run["artifact_bytes"] == len(blob)
    assert log.run["ttt_bpb"] == pytest.approx(figures["ttt_bpb"], abs=1e-8)
    assert log.trajectory["val_bpb"].tolist() == [2.5, 2.25]


def test_the_script_imports_nothing_else() -> None:
    """Not this package, nor what only a developer has."""
    script = standalone_source(run_config("rd"))
    imports = "import json,sys\n" + script.decode().replace("exec(s,m.__dict__)", "print(json.dumps(s))")
    listed = subprocess.run([sys.executable, "-I", "-c", imports], capture_output=True, text=True, check=True)
    sources = [json.loads(line) for line in listed.stdout.splitlines()]
    own = {f"g{i}" for i in range(len(sources))}
    roots = set()
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                roots |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                roots.add((node.module or "").split(".")[0])
    needed = roots - own - sys.stdlib_module_names
    assert needed <= {"torch", "numpy", "sentencepiece", "zstandard"}
    assert {"torch", "numpy", "sentencepiece"} <= needed


def test_code_is_small_and_its_size_a_function_of_the_run() -> None:
    published = RunConfig(steps=25_000, warmdown_steps=13_000)
    assert code_bytes(published) == code_bytes(published) < 20_000  # the published script: 78,281
    assert standalone_source(published) == standalone_source(published)


def test_what_cannot_be_submitted_is_refused(trained, tmp_path: Path) -> None:
    run, blob, figures = trained
    with pytest.raises(ArtifactError, match="over the cap of 16,000,000"):
        export(run, bytes(16_000_000), figures, [], tmp_path / "a")
    with pytest.raises(ArtifactError, match="no int6 stage"):
        export(run, blob, {"float_bpb": 2.0}, [], tmp_path / "b")
    assert not (tmp_path / "a").exists()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "mine").write_text("kept")
    with pytest.raises(ArtifactError, match="not empty"):
        export(run, blob, figures, [], tmp_path / "c")
    with pytest.raises(ArtifactError, match="a file; give a folder"):
        export(run, blob, figures, [], tmp_path / "c" / "mine")
    with pytest.raises(ArtifactError, match="cannot be written"):
        export(run, blob, figures, [], tmp_path / "c" / "mine" / "d")
