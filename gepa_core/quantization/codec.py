"""The file format of `rd`: integers under rANS with a class per row and column, the rest as small as it goes.

File: magic (8 bytes) | CRC-32 of what follows | uint32 length of the header | header | sections.
The header is LZMA-packed JSON: [[name, dtype, stored dtype, shape], ...] with "int" for quantized
tensors, then [first row step, first column step] of each of those, then the lengths of the sections:
  codes     a signed byte for each row's and each column's step, then for the scale of their integers
  integers  one stream for the whole model, so that its tables are sent once
  floats    fp16 tensors: all first bytes of their numbers, then all second bytes
  other     tensors stored in any other dtype
"""

import json
import math
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gepa_core.errors import ArtifactError
from gepa_core.quantization import rans

MAGIC = b"GEPAint6"
STEPS_PER_OCTAVE = 8
"""Steps are powers of 2^(1/8): rounding costs 0.002 bits a weight, and a row's or column's takes a byte
less.
"""
MAX_CODE = 127
"""Steps of a tensor's rows (or columns) lie within 2^(127/8) of each other, either way from the middle."""

_PREFIX = struct.Struct("<8sII")
_MAX_HEADER = 1 << 22
MAX_WEIGHTS = 1 << 26
"""Of a file whose model is not known: more than a cap of 16 MB can hold at 2 bits a weight."""
_MAX_SIDE = 1 << 40
_MAX_DIMENSIONS = 8
_MAX_MIDDLE = 1 << 10  # 2^128: where fp32 ends
_CLASSES_PER_OCTAVE = 4
_NUM_CLASSES = 64
_UNIT_CLASS = 24  # of integers whose mean magnitude is 1
_DTYPES = {str(d).removeprefix("torch."): d for d in (
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
)}  # fmt: skip
_QUANTIZED = "int"


def step_sizes(codes: Tensor) -> Tensor:
    """Integer codes -> 2^(code / 8), fp32, the same bits on every machine."""
    octave = torch.div(codes, STEPS_PER_OCTAVE, rounding_mode="floor")
    fractions = torch.tensor([2.0 ** (i / STEPS_PER_OCTAVE) for i in range(STEPS_PER_OCTAVE)])
    return torch.ldexp(fractions[codes - STEPS_PER_OCTAVE * octave], octave)


def step_codes(log_steps: Tensor) -> Tensor:
    """log2 of steps -> the nearest codes, none further than 127 from the middle one: int32."""
    codes = torch.round(STEPS_PER_OCTAVE * log_steps).int()
    middle = int(codes.median())
    return codes.clamp(middle - MAX_CODE, middle + MAX_CODE)


def scale_codes(integers: NDArray[np.int8]) -> list[NDArray[np.int8]]:
    """Scale of the integers [R, C] per row and, relative to that, per column: log2 of
    mean magnitudes, in quarters.
    """
    magnitude = np.abs(integers.astype(np.float32))
    rows = np.maximum(magnitude.mean(axis=1), 2.0**-6)
    columns = np.maximum((magnitude / rows[:, None]).mean(axis=0), 2.0**-6)
    return [np.rint(_CLASSES_PER_OCTAVE * np.log2(x)).astype(np.int8) for x in (rows, columns)]


def classes_of(rows: NDArray[np.int8], columns: NDArray[np.int8]) -> rans.Bytes:
    """Class of each integer, uint8 [R * C], from the scales of its row [R] and column [C]."""
    scale = rows.astype(np.int16)[:, None] + columns.astype(np.int16) + _UNIT_CLASS
    return scale.clip(0, _NUM_CLASSES - 1).astype(np.uint8).ravel()


def encode(
    tensors: Mapping[str, Any], passthrough: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]
) -> bytes:
    """The file of a model quantized by `rd`.

    tensors: QuantizedTensors with steps of rows and columns; passthrough: what is stored as it is; dtypes: of
    every tensor when it is read back, in its order.
    """
    middles: list[list[int]] = []
    codes: list[NDArray[np.int8]] = []
    symbols, classes = [], []
    for tensor in tensors.values():
        steps = [step_codes(scale.log2()) for scale in (tensor.row_scale, tensor.column_scale)]
        middles.append([int(step.median()) for step in steps])
        integers = tensor.integers.numpy()
        scales = scale_codes(integers)
        codes += [(s - m).to(torch.int8).numpy() for s, m in zip(steps, middles[-1], strict=True)] + scales
        symbols.append(integers.ravel().view(np.uint8) ^ np.uint8(128))
        classes.append(classes_of(*scales))
    half, other = _split(passthrough)
    pairs = _joined(half, np.float16).view(np.uint8).reshape(-1, 2)
    sections = (
        _pack_bytes(_joined(codes, np.int8).view(np.uint8)),
        rans.encode(_joined(symbols, np.uint8), _joined(classes, np.uint8)),
        _pack_bytes(np.ascontiguousarray(pairs.T).ravel()),
        rans.pack(b"".join(array.tobytes() for array in other)),
    )
    entries = []
    for name, dtype in dtypes.items():
        if name in tensors:
            entries.append([name, _text(dtype), _QUANTIZED, list(tensors[name].integers.shape)])
        else:
            tensor = passthrough[name]
            entries.append([name, _text(dtype), _text(tensor.dtype), list(tensor.shape)])
    head = json.dumps([entries, middles, [len(s) for s in sections]], separators=(",", ":"))
    header = rans.pack(head.encode())
    body = header + b"".join(sections)
    return _PREFIX.pack(MAGIC, zlib.crc32(body), len(header)) + body


def _split(tensors: Mapping[str, Tensor]) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
    """fp16 tensors as flat arrays, and the bytes of all others."""
    half = [t.flatten().numpy() for t in tensors.values() if t.dtype == torch.float16]
    other = [t.flatten().view(torch.uint8).numpy() for t in tensors.values() if t.dtype != torch.float16]
    return half, other


def _joined(arrays: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *arrays])


def _text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _pack_bytes(data: rans.Bytes) -> bytes:
    """Bytes that may be near random or constant: whichever of rANS and LZMA is
    smaller, told by the first byte.
    """
    options = (b"\0" + rans.encode(data, np.zeros_like(data)), b"\1" + rans.pack(data.tobytes()))
    return min(options, key=len)


def _unpack_bytes(packed: bytes, length: int) -> rans.Bytes:
    if packed[:1] == b"\0":
        return rans.decode(packed[1:], np.zeros(length, np.uint8))
    return np.frombuffer(rans.unpack(packed[1:], length), np.uint8)


@dataclass(frozen=True)
class _Entry:
    """One tensor as the header describes it."""

    name: str
    dtype: torch.dtype
    stored: torch.dtype | None  # None: quantized
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def decode(data: bytes, max_weights: int = MAX_WEIGHTS) -> dict[str, Tensor]:
    """The state dict of a file of `encode`. Raises ArtifactError for anything else; runs nothing from it.

    `max_weights`: elements of the model it should be of; a file that claims more is not unpacked.
    """
    entries, middles, sections = _open(data, max_weights)
    matrices = [entry for entry in entries if entry.stored is None]
    sizes = [size for m in matrices for size in m.shape * 2]
    flat = _unpack_bytes(sections[0], sum(sizes)).view(np.int8)
    codes = list(_parts(flat, sizes))
    classes = [classes_of(*codes[i + 2 : i + 4]) for i in range(0, len(codes), 4)]
    symbols = rans.decode(sections[1], _joined(classes, np.uint8)) ^ np.uint8(128)
    weights = {}
    for i, integers in enumerate(_parts(symbols.view(np.int8), [m.numel for m in matrices])):
        rows, columns = (
            step_sizes(torch.from_numpy(codes[4 * i + k].astype(np.int32)) + middles[i][k]) for k in range(2)
        )
        q = torch.from_numpy(integers).view(matrices[i].shape)
        weights[matrices[i].name] = dequantize(q, rows, columns)
    stored = weights | _floats(entries, sections[2]) | _others(entries, sections[3])
    return {entry.name: stored[entry.name].to(entry.dtype) for entry in entries}


def dequantize(integers: Tensor, rows: Tensor, columns: Tensor | None) -> Tensor:
    """fp32 [R, C] of integers [R, C] and steps [R], [C]; the order of the products
    is fixed, so the bits are too.
    """
    weight = integers.float() * rows.float()[:, None]
    return weight if columns is None else weight * columns


def _parts(flat: Any, sizes: Sequence[int]) -> Iterator[Any]:
    """Consecutive parts of an array or of bytes."""
    end = 0
    for size in sizes:
        end += size
        yield flat[end - size : end]


def _floats(entries: Sequence[_Entry], packed: bytes) -> dict[str, Tensor]:
    half = [entry for entry in entries if entry.stored == torch.float16]
    planes = _unpack_bytes(packed, 2 * sum(e.numel for e in half)).reshape(2, -1)
    numbers = np.ascontiguousarray(planes.T).view(np.float16).ravel()
    parts = _parts(numbers, [e.numel for e in half])
    return {e.name: torch.from_numpy(part).view(e.shape) for e, part in zip(half, parts, strict=True)}


def _others(entries: Sequence[_Entry], packed: bytes) -> dict[str, Tensor]:
    other = [(e, e.stored) for e in entries if e.stored is not None and e.stored != torch.float16]
    sizes = [e.numel * dtype.itemsize for e, dtype in other]
    flat = np.frombuffer(rans.unpack(packed, sum(sizes)), np.uint8)
    parts = [torch.from_numpy(part.copy()) for part in _parts(flat, sizes)]
    return {e.name: part.view(dtype).view(e.shape) for (e, dtype), part in zip(other, parts, strict=True)}


def _open(data: bytes, max_weights: int) -> tuple[list[_Entry], list[list[int]], list[bytes]]:
    """Header and sections of a file, checked: nothing in it can make `decode`
    allocate more than a model holds.
    """
    if len(data) < _PREFIX.size:
        raise ArtifactError("truncated: it ends within its header")
    magic, checksum, header_length = _PREFIX.unpack_from(data)
    body = data[_PREFIX.size :]
    if magic != MAGIC:
        raise ArtifactError("not an artifact of this format")
    if zlib.crc32(body) != checksum:
        raise ArtifactError("truncated or altered (its checksum differs); fetch or write it again")
    try:
        described, middles, lengths = json.loads(rans.unpack(body[:header_length], _MAX_HEADER, exact=False))
        entries = [_entry(*fields) for fields in described]
        middles = [[_middle(row), _middle(column)] for row, column in middles]
        lengths = [int(n) for n in lengths]
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise ArtifactError(f"its header makes no sense ({type(error).__name__}: {error})") from None
    quantized = len([entry for entry in entries if entry.stored is None])
    whole = header_length + sum(lengths) == len(body) and len(lengths) == 4 and min(lengths) >= 0
    if not whole or quantized != len(middles):
        raise ArtifactError("its header does not fit its contents")
    if (claimed := sum(e.numel for e in entries)) > max_weights:
        raise ArtifactError(f"claims {claimed:,} weights, and the model has {max_weights:,}: not unpacked")
    sections = list(_parts(body[header_length:], lengths))
    return entries, middles, sections


def _middle(code: Any) -> int:
    if abs(code) > _MAX_MIDDLE:
        raise ValueError(f"step code {code}")
    return int(code)


def _entry(name: str, dtype: str, stored: str, shape: list[int]) -> _Entry:
    quantized = stored == _QUANTIZED
    least, most = min(shape, default=1), max(shape, default=0)
    fits = (
        (1 if quantized else 0) <= least
        and most <= _MAX_SIDE
        and len(shape) <= _MAX_DIMENSIONS
        and (not quantized or len(shape) == 2)
    )
    if not isinstance(name, str) or not fits:
        raise ValueError(f"tensor {name!r} of shape {shape}")
    return _Entry(name, _DTYPES[dtype], None if quantized else _DTYPES[stored], tuple(map(int, shape)))
