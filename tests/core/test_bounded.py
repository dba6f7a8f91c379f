"""Files from outside are read in bounds: bytes, nodes, levels, weights; and never a pipe or a device."""

import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
import zstandard

from gepa_core.bounded import parse_json, read_bytes
from gepa_core.config import RunConfig
from gepa_core.data.folder import Manifest
from gepa_core.errors import ArtifactError, CheckpointError, ConfigError, DataError
from gepa_core.quantization import codec, rans
from gepa_core.quantization.artifact import read_artifact
from gepa_core.sections import ModelConfig
from gepa_core.training import checkpoint
from gepa_core.training.trained import read_job
from gepa_core.yamlfile import MAX_DEPTH, MAX_NODES, LimitError, compose, parse


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def test_regular_files_of_a_size(tmp_path: Path, pipe: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    assert len(read_bytes(tmp_path / "file", 100)) == 100
    for path, limit, told in (
        (tmp_path / "file", 99, "over 99 bytes"),
        (pipe, 99, "not a regular file"),
        (Path("/dev/zero"), 99, "not a regular file"),
    ):
        with pytest.raises(ConfigError, match=told):
            read_bytes(path, limit)
    with pytest.raises(IsADirectoryError):
        read_bytes(tmp_path, 99)


def bomb(levels: int) -> str:
    lines = ["k0: &k0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"k{i}: &k{i} [{', '.join([f'*k{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 10_000 + "]" * 10_000, f"nested deeper than {MAX_DEPTH} levels"),
        ("{a: " * 10_000, f"nested deeper than {MAX_DEPTH} levels"),
        ("\n".join("- " * (i + 1) + "x" for i in range(60)), f"nested deeper than {MAX_DEPTH} levels"),
        (bomb(8), f"over {MAX_NODES:,} values"),
        ("a0: &a0 [x]\n" + "\n".join(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 99)), "nested deeper"),
        ("a: [" + "x," * MAX_NODES + "]", f"over {MAX_NODES:,} values"),
    ],
    ids=["lists", "mappings", "blocks", "aliases", "aliases of aliases", "long"],
)
def test_yaml_has_levels_and_values_in_bounds(text: str, told: str) -> None:
    with pytest.raises(LimitError, match=told):
        compose(text)


def test_yaml_in_bounds_is_read_as_ever() -> None:
    text = "a: &x {b: [1, 2.5, null]}\nc: *x\n" + bomb(3)
    assert parse(text).value == yaml.safe_load(text) and not parse(text).problems
    assert compose("a: &a [*a]") is not None and compose("") is None


JOB = "run: {{recipe: gepa-nano, steps: 60, warmdown_steps: 0{run}}}\ndata: d\nexec: {{device: cpu}}\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (JOB.format(run="") + "data: e\n", "job.yaml, line 4, data: given twice (first on line 2)"),
        (JOB.format(run=", seed: " + "9" * 5000), "job.yaml, line 1, run.seed: a number of 5,000 digits"),
        (
            JOB.format(run=", seed: !!python/object:os.system x"),
            "tag !!python/object:os.system is not allowed",
        ),
        ("run: [" * 9000, "job.yaml, line 1, column 151: nested deeper than 50 levels"),
        ("run: {a: b", "job.yaml, line 1, column 11: not YAML"),
    ],
    ids=["a key twice", "a long number", "a tag", "levels", "cut short"],
)
def test_a_job_file_is_yaml_as_a_sweep_file_is(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        read_job(tmp_path / "job.yaml")
    assert told in str(error.value)


@pytest.mark.parametrize("data", [b"[" * 10**5, b"\xff\xfe1\0", b"{", b"[" + b"9" * 5000 + b"]", b""])
def test_json_that_is_none_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"nested|decode|Expecting|limit"):
        parse_json(data)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", 10**18), ("steps", 10**9), ("seed", 2**63), ("ema_decay", float("inf")),
        ("model.num_layers", 10**6), ("model.width", 10**9), ("model.vocab_size", 10**18),
        ("batch.spans", 10**12), ("eval.every", 10**18), ("ttt.epochs", 10**12), ("optim.matrix_lr", 1e300),
        ("quant.budget_bytes", 10**30),
    ],
)  # fmt: skip
def test_no_key_is_without_a_bound(key: str, value: float) -> None:
    section, _, name = key.rpartition(".")
    changes: dict[str, Any] = {"steps": 10, "warmdown_steps": 5}
    changes |= {section: {name: value}} if section else {name: value}
    with pytest.raises(ValueError, match=r"less than or equal|finite"):
        RunConfig.model_validate(changes)


def test_every_number_of_a_run_has_both_bounds() -> None:
    from annotated_types import Ge, Gt, Le, Lt

    from sweeps.spec.keys import fields

    for name, key in fields(RunConfig).items():
        if key.info.annotation in (int, float, int | None, float | None):
            kinds = {type(bound) for bound in key.info.metadata}
            assert kinds & {Ge, Gt} and kinds & {Le, Lt}, name


def test_models_beyond_any_are_refused_as_a_whole() -> None:
    with pytest.raises(ValueError, match=r"over 4,000,000,000 parameters"):
        ModelConfig(num_layers=1024, width=65536, num_heads=1024, num_kv_heads=1, rope_dims=16)


def claims(shape: list[int]) -> bytes:
    """A few hundred bytes of `rd` that say they hold a matrix of that shape."""
    header = rans.pack(json.dumps([[["w", "float32", "int", shape]], [[0, 0]], [0, 0, 0, 0]]).encode())
    return codec.MAGIC + struct.pack("<II", zlib.crc32(header), len(header)) + header


@pytest.mark.parametrize(
    "data",
    [
        claims([1 << 14, 1 << 14]),
        claims([1 << 28, 1]),
        claims([1, 1 << 39]),
        zstandard.compress(bytes(1 << 24)),
    ],
    ids=["2^28 weights", "a tall one", "2^39 weights", "zeros"],
)
def test_an_artifact_that_claims_more_than_the_model_is_not_unpacked(tmp_path: Path, data: bytes) -> None:
    assert len(data) < 3000
    (tmp_path / "bomb.int6").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"not unpacked|refused"):
        read_artifact(tmp_path / "bomb.int6", 10_000)


@pytest.mark.parametrize(
    "meta", [{"step": -5}, {"step": 0}, {"step": "7"}, {"step": 10**18}, {}, {"config": []}]
)
def test_a_state_that_says_nothing_sensible_is_no_state(tmp_path: Path, meta: dict[str, Any]) -> None:
    whole = {"step": 7, "identity": "0" * 64, "config": {}}
    checkpoint.save(tmp_path / "7", {"a": torch.zeros(1)}, whole | meta if meta else {})
    with pytest.raises(CheckpointError, match="not a training state of this version"):
        checkpoint.load(tmp_path / "7").told(tmp_path / "7")


def test_a_state_of_great_depth_or_without_tensors_is_damaged(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "7", {"a": torch.zeros(1)}, {})
    (tmp_path / "7" / "state.json").write_text('{"meta": ' + "[" * 10**5)
    with pytest.raises(checkpoint.DamagedError, match="nested too deeply"):
        checkpoint.load(tmp_path / "7")
    checkpoint.save(tmp_path / "8", {"a": torch.zeros(1)}, {})
    (tmp_path / "8" / "state.safetensors").unlink()
    with pytest.raises(checkpoint.DamagedError):
        checkpoint.load(tmp_path / "8")
    assert checkpoint.newest(tmp_path) is None


def test_job_files_in_bounds(tmp_path: Path, pipe: Path) -> None:
    (tmp_path / "deep.json").write_text("[" * 10**5)
    (tmp_path / "bomb.yaml").write_text(bomb(9))
    for path in (tmp_path / "deep.json", tmp_path / "bomb.yaml", pipe):
        with pytest.raises(ConfigError):
            read_job(path)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("train", "pattern"), ["a"]), (("train", "pattern"), "../*.bin"), (("val", "text_bytes"), 0),
        (("tokenizer", "vocab_size"), "300"), (("train", "files", 0, "sha256"), "z" * 64),
        (("train", "files", 0, "tokens"), -1), (("train", "tokens"), 10**30), (("train", "files"), []),
        (("source",), None), (("version",), 2), (("tokenizer", "file"), ".."),
    ],
)  # fmt: skip
def test_types_in_a_manifest(where: tuple[Any, ...], value: object) -> None:
    from gepa_core.data.folder import FORMAT, combine

    files = [{"name": "a.bin", "tokens": 5, "sha256": "0" * 64}]
    split = {"pattern": "*.bin", "fingerprint": combine(["0" * 64]), "tokens": 5, "files": files}
    tokenizer = {"file": "t.model", "sha256": "0" * 64, "vocab_size": 300, "bos_id": 1}
    manifest: Any = {"format": FORMAT, "version": 1, "source": {}, "tokenizer": tokenizer}
    manifest = json.loads(json.dumps(manifest | {"train": split, "val": split}))
    assert Manifest.model_validate_json(json.dumps(manifest))
    at = manifest
    for part in where[:-1]:
        at = at[part]
    at[where[-1]] = value
    with pytest.raises(ValueError, match="validation error"):
        Manifest.model_validate_json(json.dumps(manifest))


def test_shards_are_regular_files(pipe: Path) -> None:
    from gepa_core.data.shards import file_sha256, open_shard

    for use in (open_shard, file_sha256):
        with pytest.raises(DataError, match="not a regular file"):
            use(pipe)
