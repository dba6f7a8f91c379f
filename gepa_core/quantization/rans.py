"""Entropy coding near the entropy: interleaved static rANS over symbols of known class, in plain numpy.

Each symbol belongs to a class, and each class has its own distribution, sent along. Lanes are independent
coders that share one stream of words, so that a step handles them all as one vector. Source of the method:
J. Duda, "Asymmetric numeral systems" (arXiv:1311.2540); F. Giesen, "Interleaved entropy coders"
(arXiv:1402.3392).

Stream: uint32 number of words | uint8 log2(lanes) | uint16 length of the tables | tables | states, uint32
[lanes] | words, uint16. Little-endian. Number of symbols and their classes are the caller's to know.
"""

import lzma
import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from gepa_core.errors import ArtifactError

Bytes = NDArray[np.uint8]

_PRECISION = 14  # bits of a probability
_TOTAL = 1 << _PRECISION
_LOW = 1 << 16  # a state lies in [2^16, 2^32) between steps, and words are 16 bits
_SYMBOLS_PER_LANE = 1 << 14  # a lane costs 4 bytes: 0.03 % of what it carries at 5 bits a symbol
_MAX_LOG_LANES = 11
_HEADER = struct.Struct("<IBH")
_LZMA = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 0, "pb": 0}]


def pack(raw: bytes) -> bytes:
    """Small side information: LZMA without container or checksum."""
    return lzma.compress(raw, lzma.FORMAT_RAW, filters=_LZMA)


def unpack(packed: bytes, size: int, *, exact: bool = True) -> bytes:
    """Undoes `pack`; ArtifactError if it is damaged or does not hold `size` bytes
    (not exact: at most `size`).
    """
    decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_LZMA)
    try:
        raw = decoder.decompress(packed, size + 1)
    except (lzma.LZMAError, EOFError):
        raise ArtifactError("side information is damaged") from None
    if len(raw) > size or (exact and len(raw) < size):
        raise ArtifactError(f"side information should be {size} bytes long, but is not")
    return raw


def histogram(symbols: Bytes, classes: Bytes) -> NDArray[np.int64]:
    """Counts [classes, 256] of each symbol in each class."""
    counts = np.zeros(1 << 16, dtype=np.int64)
    for part in _slabs(len(symbols), 1):
        index = classes[part].astype(np.uint16) << 8 | symbols[part]
        counts += np.bincount(index, minlength=1 << 16)
    return counts.reshape(256, 256)[: int(classes.max(initial=0)) + 1]


def log_codes(counts: NDArray[np.int64]) -> Bytes:
    """Counts [classes, 256] -> 0 for what never occurs, else 1 + 8 log2 of the probability in units of 2^-14.

    Rounding to an eighth of an octave costs 0.0005 bits a symbol and leaves a table of a few bits an entry.
    """
    share = counts * (_TOTAL / np.maximum(counts.sum(axis=1, keepdims=True), 1))
    codes = 1 + np.rint(8 * np.log2(np.maximum(share, 1)))
    return np.where(counts > 0, codes, 0).astype(np.uint8)


def frequencies(codes: Bytes) -> NDArray[np.uint32]:
    """Inverse of `log_codes` up to rounding: integers >= 1 for what occurs, of sum 2^14."""
    weights = np.rint(16 * np.exp2((codes - 1.0) / 8)).astype(np.int64) * (codes > 0)
    total = np.maximum(weights.sum(axis=1, keepdims=True), 1)
    result = np.maximum(weights * _TOTAL // total, codes > 0)
    rows = np.arange(len(codes))
    result[rows, result.argmax(axis=1)] += _TOTAL - result.sum(axis=1)
    if (result < 0).any():
        raise ArtifactError("tables of the coder are damaged")
    return result.astype(np.uint32)


def code_length(symbols: Bytes, classes: Bytes) -> float:
    """Bits that `encode` will spend on the symbols themselves."""
    counts = histogram(symbols, classes)
    used = counts > 0
    cost = _PRECISION - np.log2(np.maximum(frequencies(log_codes(counts)), 1))
    return float((counts * cost)[used].sum())


def encode(symbols: Bytes, classes: Bytes) -> bytes:
    """symbols, classes: uint8 [N]. See the module's docstring for the stream."""
    codes = log_codes(histogram(symbols, classes))
    frequency = frequencies(codes)
    start = np.cumsum(frequency, axis=1, dtype=np.uint32) - frequency
    log_lanes = lane_bits(len(symbols))
    lanes = 1 << log_lanes
    state = np.full(lanes, _LOW, dtype=np.uint64)
    emitted: list[NDArray[np.uint16]] = []
    shift, bits16, precision = np.uint64(32 - _PRECISION), np.uint64(16), np.uint64(_PRECISION)
    for part in reversed(list(_slabs(len(symbols), lanes))):
        index = classes[part].astype(np.uint16) << 8 | symbols[part]
        f_all, s_all = (table.ravel()[index].astype(np.uint64) for table in (frequency, start))
        for lo in reversed(range(0, len(index), lanes)):
            f, s = f_all[lo : lo + lanes], s_all[lo : lo + lanes]
            x = state[: len(f)]  # a view: the last step may fill only some lanes
            full = x >= f << shift
            emitted.append(x[full].astype(np.uint16))
            x[full] >>= bits16
            quotient = x // f
            x += s + (quotient << precision) - quotient * f
    words = np.concatenate(emitted[::-1]) if emitted else np.zeros(0, np.uint16)
    tables = pack(codes.tobytes())
    header = _HEADER.pack(len(words), log_lanes, len(tables))
    return header + tables + state.astype("<u4").tobytes() + words.astype("<u2").tobytes()


def decode(stream: bytes, classes: Bytes) -> Bytes:
    """Inverse of `encode`: uint8 [N], given the classes [N]. Raises ArtifactError for a damaged stream."""
    if len(stream) < _HEADER.size:
        raise ArtifactError("a coded stream is cut short")
    num_words, log_lanes, table_bytes = _HEADER.unpack_from(stream)
    lanes = 1 << min(log_lanes, _MAX_LOG_LANES)
    at = _HEADER.size + table_bytes
    if len(stream) != at + 4 * lanes + 2 * num_words:
        raise ArtifactError("a coded stream has the wrong length")
    num_classes = int(classes.max(initial=0)) + 1
    table = np.frombuffer(unpack(stream[_HEADER.size : at], 256 * num_classes), dtype=np.uint8)
    frequency = frequencies(table.reshape(num_classes, 256))
    start = np.cumsum(frequency, axis=1, dtype=np.uint32) - frequency
    symbol_of_slot = np.repeat(np.tile(np.arange(256, dtype=np.uint8), num_classes), frequency.ravel())
    state = np.frombuffer(stream, "<u4", lanes, at).astype(np.uint32)
    words = np.frombuffer(stream, "<u2", num_words, at + 4 * lanes).astype(np.uint32)
    symbols = np.empty(len(classes), dtype=np.uint8)
    flat_frequency, flat_start = frequency.ravel(), start.ravel()
    position = 0
    for part in _slabs(len(classes), lanes):
        out, wide = symbols[part], classes[part].astype(np.int32)
        slots, contexts = wide << _PRECISION, wide << 8
        for lo in range(0, len(out), lanes):
            hi = min(lo + lanes, len(out))
            x = state[: hi - lo]
            slot = x & (_TOTAL - 1)
            symbol = symbol_of_slot.take(slots[lo:hi] + slot)
            out[lo:hi] = symbol
            context = contexts[lo:hi] | symbol
            x >>= _PRECISION
            x *= flat_frequency.take(context)
            x += slot - flat_start.take(context)
            empty = np.flatnonzero(x < _LOW)
            fresh = words[position : position + len(empty)]
            if len(fresh) < len(empty):
                raise ArtifactError("a coded stream is damaged: it ends too early")
            x[empty] = x[empty] << 16 | fresh
            position += len(empty)
    if position != num_words or (state != _LOW).any():
        raise ArtifactError("a coded stream is damaged: it does not end where it should")
    return symbols


def lane_bits(num_symbols: int) -> int:
    return min(_MAX_LOG_LANES, max(0, (num_symbols // _SYMBOLS_PER_LANE).bit_length()))


def _slabs(length: int, lanes: int) -> Iterator[slice]:
    """Parts of about 4 M symbols, each of whole steps, so that temporaries stay small."""
    size = max(1, (1 << 22) // lanes) * lanes
    return (slice(lo, min(lo + size, length)) for lo in range(0, length, size))
