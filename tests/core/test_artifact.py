"""Artifacts: what is written comes back bit for bit, and nothing else does any harm."""

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard

from gepa_core.errors import ArtifactError
from gepa_core.model.gepa import GEPA
from gepa_core.quantization import artifact, codec, rans
from gepa_core.quantization.artifact import check_fits, read_artifact, write_artifact
from gepa_core.quantization.calibrate import Sensitivity
from gepa_core.quantization.methods import quantize
from gepa_core.quantization.quantized import Quantized
from gepa_core.sections import ModelConfig, QuantConfig

METHODS = ("reference", "per_row", "rd")


def small_state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    return {
        "tok_emb.weight": normal(96, 32).bfloat16(),
        "skip_weights": normal(2, 32),
        "blocks.0.attn.c_q.weight": normal(40, 32),
        "blocks.0.mlp.bias": normal(48),
        "ve_shared.scale": torch.tensor(0.1),
        "steps": torch.tensor([3, 5]),
    }


def quantized(method: str, **options: Any) -> Quantized:
    state = small_state()
    sensitivities = {
        name: Sensitivity(torch.rand(len(t)) + 0.1, torch.eye(t.shape[1]))
        for name, t in state.items()
        if t.ndim == 2
    }
    config = QuantConfig(method=method, keep_float_max_numel=500, **options)
    return quantize(state, config, sensitivities)


@pytest.mark.parametrize("method", METHODS)
def test_the_file_alone_gives_the_evaluated_model_back(tmp_path: Path, method: str) -> None:
    model = quantized(method)
    path = tmp_path / "folder" / "model.int6"
    size = write_artifact(model, path)
    assert size == path.stat().st_size
    state, expected = read_artifact(path), model.dequantize()
    assert state.keys() == small_state().keys()
    for name, tensor in small_state().items():
        assert state[name].dtype == tensor.dtype
        torch.testing.assert_close(state[name], expected[name], rtol=0, atol=0)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("method", METHODS)
def test_the_same_model_gives_the_same_bytes(method: str) -> None:
    torch.manual_seed(1)
    first = artifact.encode(quantized(method))
    torch.manual_seed(1)
    assert artifact.encode(quantized(method)) == first


def test_payload_at_reference_size() -> None:
    model = GEPA(ModelConfig())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.05)
    state = model.state_dict()
    assert (len(state), sum(t.numel() for t in state.values())) == (143, 27_030_107)
    result = quantize(state, QuantConfig())
    assert len(result.tensors) == 69
    assert result.report.payload_bytes == 27_530_604
    assert result.report.rows_at_floor == result.report.rows
    assert result.report.quantized_fraction > 0.99


def test_published_dictionary_is_read_and_written(tmp_path: Path) -> None:
    """As the published code has it: plain containers, steps in fp16, original dtypes by name."""
    content = torch.load(
        io.BytesIO(zstandard.ZstdDecompressor().decompress(artifact.encode(quantized("reference")))),
        weights_only=True,
    )
    parts = {"quantized", "scales", "dtypes", "passthrough", "qmeta", "passthrough_orig_dtypes"}
    assert set(content) == parts | {"__quant_format__"}
    assert content["quantized"]["tok_emb.weight"].dtype == torch.int8
    assert content["scales"]["tok_emb.weight"].dtype == torch.float16
    assert content["dtypes"]["tok_emb.weight"] == "bfloat16"
    assert content["passthrough"]["skip_weights"].dtype == torch.float32
    assert content["passthrough"]["blocks.0.mlp.bias"].dtype == torch.float16
    assert content["passthrough_orig_dtypes"] == {"blocks.0.mlp.bias": "float32"}

    del content["qmeta"], content["passthrough_orig_dtypes"]  # optional
    content["__quant_format__"] = "of_somebody_else"
    path = tmp_path / "theirs.ptz"
    path.write_bytes(zstandard.ZstdCompressor(level=22).compress(saved(content)))
    state = read_artifact(path)
    expected = quantized("reference").dequantize()
    torch.testing.assert_close(state["tok_emb.weight"], expected["tok_emb.weight"], rtol=0, atol=0)
    assert state["blocks.0.mlp.bias"].dtype == torch.float16


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def published(**changed: Any) -> bytes:
    content = torch.load(io.BytesIO(artifact.published_bytes(quantized("reference"))), weights_only=True)
    for part, values in changed.items():
        content[part] = {**content[part], **values} if isinstance(values, dict) else values
    return zstandard.ZstdCompressor().compress(saved(content))


class Bomb:
    """Runs a command when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.target}",)


def test_a_pickle_bomb_is_not_run(tmp_path: Path) -> None:
    target = tmp_path / "owned"
    for content in (Bomb(target), {"quantized": Bomb(target)}):
        path = tmp_path / "bomb"
        path.write_bytes(zstandard.ZstdCompressor().compress(saved(content)))
        with pytest.raises(ArtifactError, match="not a plain dictionary of tensors"):
            read_artifact(path)
    assert not target.exists()


def deflated() -> bytes:
    """A torch.save archive whose members are compressed: a few bytes could hold gigabytes."""
    source, buffer = (
        zipfile.ZipFile(io.BytesIO(artifact.published_bytes(quantized("reference")))),
        io.BytesIO(),
    )
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in source.namelist():
            archive.writestr(name, source.read(name))
    return zstandard.ZstdCompressor().compress(buffer.getvalue())


def zstd_bomb(*, honest: bool) -> bytes:
    """2 GiB of zeros, with or without their size in the frame's header."""
    size = 2 << 30
    compressor = zstandard.ZstdCompressor(write_content_size=honest).compressobj(size if honest else -1)
    zeros = bytes(1 << 24)
    return b"".join(compressor.compress(zeros) for _ in range(size >> 24)) + compressor.flush()


MALICIOUS: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "begins like no format"),
    "foreign": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(100), "begins like no format"),
    "not torch": (lambda: zstandard.ZstdCompressor().compress(b"hello" * 100), "not a plain dictionary"),
    "no dictionary": (lambda: zstandard.compress(saved([1, 2])), "foreign: not a dictionary"),
    "number for a dictionary": (lambda: published(passthrough_orig_dtypes=3), "no dictionary 'pass"),
    "list for a dictionary": (lambda: published(passthrough_orig_dtypes=["a"]), "no dictionary 'pass"),
    "number for a name": (lambda: published(passthrough={3: torch.zeros(1)}), "no dictionary 'passthrough'"),
    "list for a dtype": (lambda: published(dtypes={"tok_emb.weight": []}), "unknown dtype"),
    "one number for a matrix": (
        lambda: published(quantized={"tok_emb.weight": torch.tensor(1).char()}),
        "tok_emb.weight: 96 steps for integers of shape",
    ),
    "no steps": (lambda: published(scales=None), "no dictionary 'scales'"),
    "step missing": (lambda: published(scales={"tok_emb.weight": None}), "scale of tok_emb.weight: not"),
    "too few steps": (
        lambda: published(scales={"tok_emb.weight": torch.zeros(5)}),
        r"tok_emb.weight: 5 steps for integers of shape \[96, 32\]",
    ),
    "floats for integers": (
        lambda: published(quantized={"tok_emb.weight": torch.zeros(96, 32)}),
        "tok_emb.weight: not a plain torch.int8 tensor",
    ),
    "stride of zero": (
        lambda: published(quantized={"tok_emb.weight": torch.zeros(1).char().expand(10**5, 10**7)}),
        "tok_emb.weight: not a plain",
    ),
    "sparse": (
        lambda: published(passthrough={"skip_weights": torch.eye(3).to_sparse()}),
        "skip_weights: not a plain dense tensor",
    ),
    "unknown dtype": (lambda: published(dtypes={"tok_emb.weight": "object"}), "unknown dtype 'object'"),
    "deflated members": (deflated, "inner archive is compressed"),
    "zstd bomb": (lambda: zstd_bomb(honest=False), "holds more than"),
    "declared zstd bomb": (lambda: zstd_bomb(honest=True), "claims to hold 2,147,483,648 bytes"),
    "truncated": (lambda: published()[:-50], "truncated|damaged"),
}  # fmt: skip


@pytest.mark.parametrize("kind", MALICIOUS)
@pytest.mark.filterwarnings("ignore:.*sparse.*")
def test_what_is_no_artifact_is_refused(tmp_path: Path, kind: str) -> None:
    make, message = MALICIOUS[kind]
    path = tmp_path / "bad.int6"
    path.write_bytes(make())
    with pytest.raises(ArtifactError, match=message) as caught:
        read_artifact(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"nowhere.int6: cannot read the artifact"):
        read_artifact(tmp_path / "nowhere.int6")


@pytest.mark.parametrize("method", ["reference", "rd"])
def test_damage_anywhere_is_noticed(method: str) -> None:
    data = artifact.encode(quantized(method))
    for end in range(0, len(data), max(1, len(data) // 20)):
        with pytest.raises(ArtifactError):
            artifact.decode(data[:end])
    if method == "rd":  # it has a checksum; the published format has none of its own
        for position in range(8, len(data), max(1, len(data) // 30)):
            damaged = bytearray(data)
            damaged[position] ^= 0x41
            with pytest.raises(ArtifactError, match="checksum"):
                artifact.decode(bytes(damaged))


def with_checksum(body: bytes, header_length: int) -> bytes:
    return struct.pack("<8sII", codec.MAGIC, zlib.crc32(body), header_length) + body


def test_forged_rd_files_are_errors_never_crashes() -> None:
    """An attacker can compute a checksum too: what follows it has to be checked as well."""
    data = artifact.encode(quantized("rd"))
    header_length = struct.unpack_from("<I", data, 12)[0]
    body, generator = data[16:], np.random.default_rng(0)
    refused = 0
    for _ in range(50):
        forged = bytearray(body)
        for position in generator.integers(0, len(body), 2):
            forged[position] ^= int(generator.integers(1, 256))
        try:
            artifact.decode(with_checksum(bytes(forged), header_length))
        except ArtifactError:
            refused += 1
    assert refused > 25


@pytest.mark.parametrize(
    "header",
    [
        "[]",
        "{}",
        "[" * 100_000,
        '[[["w","float32","int",[1000000,1000000]]],[[0,0]],[0,0,0,0]]',
        '[[["w","float32","float16",[-1,4]]],[],[0,0,0,0]]',
        '[[["w","float32","int",[4]]],[[0,0]],[0,0,0,0]]',
        '[[["w","object","float16",[4]]],[],[0,0,0,0]]',
        '[[["w","float32","int",[0,10000000000000000]]],[[0,0]],[0,0,0,0]]',
        '[[["w","float32","float16",[0,1000000000000000000000000000000]]],[],[0,0,0,0]]',
        '[[["w","float32","float16",[4]]],[],[0,0,-1,0]]',
        '[[["w","float32","float16",[4]]],[],[0,0,0]]',
        '[[["w","float32","int",[4,4]]],[[0,1e999]],[0,0,0,0]]',
    ],
)
def test_nonsense_headers_are_refused(header: str) -> None:
    packed = rans.pack(header.encode())
    with pytest.raises(ArtifactError):
        artifact.decode(with_checksum(packed, len(packed)))


def test_a_model_of_another_shape_is_told() -> None:
    state = small_state()
    check_fits(state, small_state())
    with pytest.raises(ArtifactError, match=r"tok_emb.weight: shape \(96, 32\) in the artifact, \(96, 64\)"):
        check_fits(state, {**state, "tok_emb.weight": torch.zeros(96, 64)})
    with pytest.raises(ArtifactError, match="lacks more"):
        check_fits(state, {**state, "more": torch.zeros(1)})
    with pytest.raises(ArtifactError, match="holds steps"):
        check_fits(state, {k: v for k, v in state.items() if k != "steps"})
