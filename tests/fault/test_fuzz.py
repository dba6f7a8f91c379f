"""A few hundred damaged files a reader of every command; `python -m tests.fault.fuzz` is the campaign."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fault.fuzz import Reader, example, make_readers


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> list[Reader]:
    return make_readers(tmp_path_factory.mktemp("fuzz"))


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)
@given(rng=st.randoms(use_true_random=False), which=st.integers(0, 10_000))
@pytest.mark.filterwarnings("ignore")
def test_what_is_damaged_is_told_in_a_line(readers: list[Reader], rng: random.Random, which: int) -> None:
    fault = example(readers[which % len(readers)], rng)
    assert fault is None, f"{fault.reader}: {fault.what}\n{fault.data[:300]!r}"


def test_every_reader_takes_the_files_as_they_are(readers: list[Reader]) -> None:
    assert {reader.name for reader in readers if reader.call() != 0} == set()
