"""The compressed model as a file: written once, read by anyone, never trusted.

`reference` and `per_row` are serialised as the published run's code does it, a torch.save dictionary under
zstd, but with a faster search than its level 22 (see `compress`). `rd` has a format of its own (codec.py).
"""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import zstandard
from torch import Tensor

from gepa_core import files
from gepa_core.bounded import read_bytes
from gepa_core.errors import ArtifactError
from gepa_core.quantization import codec
from gepa_core.quantization.codec import MAX_WEIGHTS

if TYPE_CHECKING:
    from gepa_core.quantization.quantized import Quantized

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_BYTES_PER_WEIGHT = 4
"""At most, in the published form: what passes through is fp32 or smaller."""
_OVERHEAD_BYTES = 4 << 20
"""Of the dictionary around the tensors, amply."""

PUBLISHED_FORMAT = "int6_per_row_v1"
_FLOATS = {
    str(d).removeprefix("torch."): d for d in (torch.float32, torch.float16, torch.bfloat16, torch.float64)
}


def write_artifact(quantized: "Quantized", path: Path) -> int:
    """Writes the file atomically and returns its size in bytes. The same model gives the same bytes."""
    data = encode(quantized)
    files.write(path, data)
    return len(data)


def encode(quantized: "Quantized") -> bytes:
    if quantized.method == "rd":
        return codec.encode(quantized.tensors, quantized.passthrough, quantized.dtypes)
    return compress(published_bytes(quantized))


def compress(raw: bytes) -> bytes:
    """zstd without the search of the published level 22, and no larger.

    Quantized weights repeat nothing worth finding: what compresses is the distribution of the integers, and
    level 22 pays 41-66 s at the reference size for matches that cost more than they save. Measured there on
    heavy-tailed synthetic weights: level 22 14,794,936 bytes, this 13,808,759 in 1.7 s.
    """
    parameters = zstandard.ZstdCompressionParameters.from_level(
        22,
        strategy=zstandard.STRATEGY_BTOPT,
        search_log=1,
        min_match=6,
        window_log=20,
        hash_log=17,
        chain_log=17,
    )
    return zstandard.ZstdCompressor(compression_params=parameters).compress(raw)


def published_bytes(quantized: "Quantized") -> bytes:
    """The published dictionary under torch.save, uncompressed."""
    restored = {
        name: str(quantized.dtypes[name]).removeprefix("torch.")
        for name, tensor in quantized.passthrough.items()
        if tensor.dtype != quantized.dtypes[name]
    }
    content = {
        "__quant_format__": PUBLISHED_FORMAT,
        "quantized": {name: q.integers for name, q in quantized.tensors.items()},
        "scales": {name: q.row_scale for name, q in quantized.tensors.items()},
        "dtypes": {name: str(quantized.dtypes[name]).removeprefix("torch.") for name in quantized.tensors},
        "passthrough": quantized.passthrough,
        "qmeta": {name: {"scheme": "per_row", "axis": 0} for name in quantized.tensors},
        "passthrough_orig_dtypes": restored,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def read_artifact(path: Path, max_weights: int = MAX_WEIGHTS) -> dict[str, Tensor]:
    """The state dict of an artifact, each tensor in its original dtype.

    `max_weights`: elements of the model it should be of; a file that claims more is not unpacked. Never
    executes anything from the file. Raises ArtifactError if it is missing, truncated, corrupt or foreign.
    """
    try:
        data = read_bytes(path, _unpacked_bytes(max_weights), ArtifactError)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot read the artifact ({error.strerror})") from None
    try:
        return decode(data, max_weights)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from None


def decode(data: bytes, max_weights: int = MAX_WEIGHTS) -> dict[str, Tensor]:
    if data.startswith(codec.MAGIC):
        return codec.decode(data, max_weights)
    if data[:4] == ZSTD_MAGIC:
        return decode_published(data, max_weights)
    raise ArtifactError("not an int6 artifact: it begins like no format known here")


def decode_published(data: bytes, max_weights: int = MAX_WEIGHTS) -> dict[str, Tensor]:
    """The state dict of a zstd-compressed torch.save dictionary, as the published run wrote it."""
    return _published_state(_load_plain(_decompress(data, _unpacked_bytes(max_weights))))


def num_weights(state: Mapping[str, Tensor]) -> int:
    """Elements of a model's tensors: what `max_weights` is for an artifact of it."""
    return sum(tensor.numel() for tensor in state.values())


def _unpacked_bytes(max_weights: int) -> int:
    return _BYTES_PER_WEIGHT * max_weights + _OVERHEAD_BYTES


def _decompress(data: bytes, limit: int) -> bytes:
    try:
        size = zstandard.get_frame_parameters(data).content_size
        if size > limit and size != zstandard.CONTENTSIZE_UNKNOWN:
            raise ArtifactError(f"claims to hold {size:,} bytes, the model at most {limit:,}: not unpacked")
        reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(data)
        raw = reader.read(limit + 1)
    except zstandard.ZstdError as error:
        raise ArtifactError(f"the compressed data is damaged ({error}); fetch or write it again") from None
    if len(raw) > limit:
        raise ArtifactError(f"holds more than the {limit:,} bytes of the model: refused")
    if size not in (zstandard.CONTENTSIZE_UNKNOWN, len(raw)):
        raise ArtifactError(f"truncated: {len(raw)} of {size} bytes; fetch or write it again")
    return raw


def _load_plain(raw: bytes) -> Any:
    """torch.load that can neither run code nor be made to allocate more than the file holds."""
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ArtifactError("its inner archive is compressed, which torch.save never does: refused")
        return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except ArtifactError:
        raise
    except Exception as error:  # whatever torch's reader meets in a foreign file is the file's fault
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ArtifactError(f"not a plain dictionary of tensors ({reason[:160]})") from None


def _published_state(content: Any) -> dict[str, Tensor]:
    parts = {}
    if not isinstance(content, dict):
        raise ArtifactError("foreign: not a dictionary")
    content.setdefault("passthrough_orig_dtypes", {})
    for key in ("quantized", "scales", "dtypes", "passthrough", "passthrough_orig_dtypes"):
        part = content.get(key)
        if not isinstance(part, dict) or not all(isinstance(name, str) for name in part):
            raise ArtifactError(f"foreign: no dictionary {key!r} of named entries in it")
        parts[key] = part
    originals = parts["passthrough_orig_dtypes"]
    state = {
        name: _dequantize(name, integers, parts["scales"].get(name), parts["dtypes"].get(name))
        for name, integers in parts["quantized"].items()
    }
    for name, tensor in parts["passthrough"].items():
        _check_tensor(name, tensor)
        state[name] = tensor.to(_dtype(name, originals[name])) if name in originals else tensor
    return state


def _dequantize(name: str, integers: Any, scale: Any, dtype: Any) -> Tensor:
    _check_tensor(name, integers, torch.int8)
    _check_tensor(f"scale of {name}", scale)
    if integers.ndim == 0 or scale.numel() not in (1, len(integers)):
        raise ArtifactError(f"{name}: {scale.numel()} steps for integers of shape {list(integers.shape)}")
    weight = integers.float() * scale.float().view(-1, *[1] * (integers.ndim - 1))
    return weight.to(_dtype(name, dtype))


def _check_tensor(name: str, tensor: Any, dtype: torch.dtype | None = None) -> None:
    # A stride-0 view of one stored element can claim any shape: only contiguous tensors pass.
    plain = type(tensor) is Tensor and tensor.layout == torch.strided and tensor.is_contiguous()
    if not plain or (dtype is not None and tensor.dtype != dtype):
        raise ArtifactError(f"{name}: not a plain {dtype or 'dense'} tensor")


def _dtype(name: str, text: Any) -> torch.dtype:
    if not isinstance(text, str) or text not in _FLOATS:
        raise ArtifactError(f"{name}: unknown dtype {text!r}")
    return _FLOATS[text]


def check_fits(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raises ArtifactError unless names and shapes are those of `expected` (a model's state dict)."""
    missing, extra = expected.keys() - state.keys(), state.keys() - expected.keys()
    if missing or extra:
        what = f"lacks {min(missing)}" if missing else f"holds {min(extra)}, which the model does not"
        raise ArtifactError(f"the artifact {what}: it was made with another model configuration")
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise ArtifactError(
                f"{name}: shape {tuple(tensor.shape)} in the artifact, {tuple(expected[name].shape)} in the "
                "model; give the configuration it was trained with"
            )
