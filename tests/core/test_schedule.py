"""Schedules are pure functions: their values, and what holds for every one of them."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gepa_core.schedule import SHAPES, lr_horizon, lr_multiplier

lengths = st.integers(1, 5000).flatmap(lambda steps: st.tuples(st.just(steps), st.integers(0, steps)))


def test_published_warmdown() -> None:
    def multiplier(step: int) -> float:
        return lr_multiplier(step, steps=25_000, warmdown_steps=13_000)

    assert [multiplier(step) for step in (0, 11_999, 12_000)] == [1.0, 1.0, 1.0]
    assert multiplier(12_001) == pytest.approx(12_999 / 13_000)
    assert multiplier(18_500) == pytest.approx(0.5)
    assert multiplier(24_999) == pytest.approx(1 / 13_000)


@pytest.mark.parametrize(
    ("schedule", "final", "middle", "end"),
    [
        ("linear", 0.0, 0.5, 0.0),
        ("linear", 0.2, 0.6, 0.2),
        ("cosine", 0.0, 0.5, 0.0),
        ("cosine", 0.1, 0.55, 0.1),
        ("1-sqrt", 0.0, 1 - math.sqrt(0.5), 0.0),
        ("exponential", 0.04, 0.2, 0.04),
        ("exponential", 0.0, 0.1, 0.01),  # cannot reach 0: ends at 1 %
        ("constant", 0.0, 1.0, 1.0),
        ("power", 0.1, 0.55, 0.1),
    ],
)
def test_shapes(schedule: str, final: float, middle: float, end: float) -> None:
    def multiplier(step: int) -> float:
        return lr_multiplier(step, steps=300, warmdown_steps=200, schedule=schedule, final_lr_fraction=final)

    assert multiplier(100) == 1.0
    assert multiplier(200) == pytest.approx(middle)
    assert multiplier(300) == pytest.approx(end, abs=1e-12)


def test_power_and_floor() -> None:
    def multiplier(step: int, **how: float) -> float:
        return lr_multiplier(step, steps=300, warmdown_steps=200, schedule="power", **how)

    assert multiplier(200, schedule_power=2.0) == pytest.approx(0.25)
    assert multiplier(200, schedule_power=0.5) == pytest.approx(math.sqrt(0.5))
    assert multiplier(200, schedule_power=2.0, final_lr_fraction=0.2) == pytest.approx(0.4)
    assert multiplier(200, lr_floor=0.1) == 0.5 and multiplier(299, lr_floor=0.1) == 0.1
    assert multiplier(100, lr_floor=0.1) == 1.0
    other = lr_multiplier(200, steps=300, warmdown_steps=200, schedule="linear", schedule_power=2.0)
    assert other == 0.5  # its key is power's alone


def test_the_horizon_of_a_falling_rate() -> None:
    """In a linear warmdown to zero, the steps that are left; none where the rate is constant."""
    rates = [lr_multiplier(step, steps=300, warmdown_steps=200) for step in range(301)]
    horizons = [lr_horizon(now, then) for now, then in itertools.pairwise(rates)]
    assert horizons[:100] == [math.inf] * 100
    assert horizons[100:] == pytest.approx([200 - i for i in range(200)])


@given(lengths, st.sampled_from(sorted(SHAPES)), st.floats(0, 1))
def test_constant_then_never_rising_within_bounds(
    length: tuple[int, int], schedule: str, final: float
) -> None:
    steps, warmdown = length
    at = range(0, steps, max(1, steps // 50))
    values = [
        lr_multiplier(s, steps=steps, warmdown_steps=warmdown, schedule=schedule, final_lr_fraction=final)
        for s in at
    ]
    floor = final or (0.01 if schedule == "exponential" else 0.0)
    assert all(floor - 1e-9 <= value <= 1.0 for value in values)
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(values))
    assert all(value == 1.0 for step, value in zip(at, values, strict=True) if step <= steps - warmdown)


@given(lengths, st.integers(1, 1000), st.sampled_from(sorted(SHAPES)))
def test_a_longer_constant_phase_only_shifts_the_warmdown(
    length: tuple[int, int], more: int, schedule: str
) -> None:
    steps, warmdown = length
    for step in (steps - warmdown, steps - 1):
        near = lr_multiplier(step, steps=steps, warmdown_steps=warmdown, schedule=schedule)
        far = lr_multiplier(step + more, steps=steps + more, warmdown_steps=warmdown, schedule=schedule)
        assert near == far
