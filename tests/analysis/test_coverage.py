"""How often intervals hold the truth, on sweeps whose truth is known (benchmarks.laws --coverage)."""

import pytest

from benchmarks.laws import coverage


def test_intervals_hold_the_truth_on_a_few_sweeps() -> None:
    found = coverage(4)
    for kind in ("planted", "outside"):
        assert found[kind]["predictions"] == 2 * 7
        assert found[kind]["coverage"] >= 0.75
        assert found[kind]["mean_width"] < 0.03


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    found = coverage(200)
    assert found["planted"]["coverage"] >= 0.85
    assert found["outside"]["coverage"] >= 0.85
    # Calibrated, not merely wide: the typical error is a good part of the half width.
    for kind in ("planted", "outside"):
        assert found[kind]["mean_abs_error"] > 0.2 * found[kind]["mean_width"] / 2
