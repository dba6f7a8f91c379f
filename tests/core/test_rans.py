"""The entropy coder: exact, near the entropy, and safe on what it did not write."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gepa_core.errors import ArtifactError
from gepa_core.quantization import rans


def sample(length: int, num_classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Symbols whose spread grows with their class, uint8 [length] each."""
    generator = np.random.default_rng(seed)
    classes = generator.integers(0, num_classes, length).astype(np.uint8)
    values = generator.laplace(size=length) * np.exp2(classes / 4) + 128
    return np.rint(values).clip(0, 255).astype(np.uint8), classes


def entropy_bytes(symbols: np.ndarray, classes: np.ndarray) -> float:
    counts = rans.histogram(symbols, classes).astype(float)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return float(-(counts * np.log2(np.where(share > 0, share, 1))).sum() / 8)


@given(length=st.integers(0, 600), num_classes=st.integers(1, 256), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_what_is_encoded_comes_back(length: int, num_classes: int, seed: int) -> None:
    symbols, classes = sample(length, num_classes, seed)
    np.testing.assert_array_equal(rans.decode(rans.encode(symbols, classes), classes), symbols)


@pytest.mark.parametrize("length", [1, 16_383, 16_384, 100_001])
def test_one_symbol_costs_nothing(length: int) -> None:
    symbols, classes = np.full(length, 7, np.uint8), np.zeros(length, np.uint8)
    stream = rans.encode(symbols, classes)
    np.testing.assert_array_equal(rans.decode(stream, classes), symbols)
    assert len(stream) < 100 + 4 * (length >> 13)


def test_length_is_near_the_entropy() -> None:
    symbols, classes = sample(1_000_000, 16)
    entropy = entropy_bytes(symbols, classes)
    length = len(rans.encode(symbols, classes))
    assert entropy < length < 1.002 * entropy + 2000  # 2000: the tables
    assert rans.code_length(symbols, classes) / 8 == pytest.approx(length, rel=0.005)


def test_classes_pay_for_their_tables() -> None:
    symbols, classes = sample(200_000, 16)
    assert len(rans.encode(symbols, classes)) < 0.97 * len(rans.encode(symbols, np.zeros_like(classes)))


@pytest.mark.parametrize("counts", [[1] * 256, [1] * 255 + [10**9], [0] * 255 + [1], [3] * 64 + [0] * 192])
def test_frequencies_sum_to_their_total(counts: list[int]) -> None:
    frequency = rans.frequencies(rans.log_codes(np.array([counts], dtype=np.int64)))
    assert frequency.sum() == 1 << 14
    np.testing.assert_array_equal(frequency[0] > 0, np.array(counts) > 0)


def test_damage_is_an_error_or_other_symbols_never_a_crash() -> None:
    symbols, classes = sample(800, 8)
    stream = rans.encode(symbols, classes)
    generator = np.random.default_rng(1)
    errors = 0
    for _ in range(150):
        damaged = bytearray(stream)
        for position in generator.integers(0, len(stream), 3):
            damaged[position] ^= int(generator.integers(1, 256))
        try:
            assert len(rans.decode(bytes(damaged), classes)) == len(symbols)
        except ArtifactError:
            errors += 1
    assert errors > 120  # the states have to end where they began
    for end in range(0, len(stream), 53):
        with pytest.raises(ArtifactError):
            rans.decode(stream[:end], classes)


def test_packed_side_information_is_bounded() -> None:
    packed = rans.pack(bytes(1 << 20))
    assert len(packed) < 1000
    assert rans.unpack(packed, 1 << 20) == bytes(1 << 20)
    for size in (100, (1 << 20) + 1):
        with pytest.raises(ArtifactError):
            rans.unpack(packed, size)
    with pytest.raises(ArtifactError):
        rans.unpack(b"\xff" * 40, 100)
