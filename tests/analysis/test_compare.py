"""Comparison of two sweeps: what counts as evidence, and what an interval is of."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from analysis.effects.compare import TEXT, TRAININGS, compare
from analysis.runs.load import load
from analysis.runs.parquet import read_parquet
from analysis.runs.table import Run, Table
from tests.synthetic_results import write_sweep


def branched(rng: np.random.Generator, trunks: int) -> Table:
    """5 lengths x 3 ratios off each of some trunks, whose noise is four times the branches'."""
    runs = []
    for seed in range(trunks):
        shared = rng.normal(0, 0.0012)
        for steps, ratio in product((10, 20, 30, 40, 50), (0.2, 0.4, 0.6)):
            down = round(steps * ratio)
            runs.append(
                Run(
                    run_id=f"{seed}-{steps}-{down}",
                    steps=steps,
                    peak_steps=steps - down,
                    warmdown_steps=down,
                    seed=seed,
                    trunk=f"trunk{seed}",
                    metrics={"float_bpb": 1.1 + shared + rng.normal(0, 0.0003)},
                )
            )
    return Table(tuple(runs))


def test_branches_of_a_trunk_are_one_training() -> None:
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(150):
        (found,) = compare(branched(rng, 4), branched(rng, 4)).summary
        assert (found.pairs, found.trainings, found.interval_of) == (60, 4, TRAININGS)
        assert found.mean.low is not None and found.mean.high is not None
        covered.append(found.mean.low < 0 < found.mean.high)
    assert 0.84 < np.mean(covered) < 0.96


def test_one_training_has_no_interval_of_the_mean() -> None:
    rng = np.random.default_rng(0)
    (found,) = compare(branched(rng, 1), branched(rng, 1)).summary
    assert found.trainings == 1 and found.mean.low is None and found.interval_of == ""


def test_one_training_with_blocks_has_the_error_of_its_text(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_sweep(tmp_path / name, steps=(2000,), ratios=(0.2, 0.4))
    runs = read_parquet(tmp_path / "b" / "runs.parquet")
    runs["ttt_bpb"] -= 0.002
    runs.to_parquet(tmp_path / "b" / "runs.parquet")
    found = compare(load(tmp_path / "a"), load(tmp_path / "b"))
    ttt = next(d for d in found.summary if d.metric == "ttt_bpb")
    assert (ttt.trainings, ttt.interval_of, ttt.mean.value) == (1, TEXT, pytest.approx(-0.002))
    assert "of these two trainings" in found.table().markdown()


def test_a_trunk_that_one_side_shares_links_its_pairs() -> None:
    """Against trainings made anew, branches of one trunk still share its noise."""
    rng = np.random.default_rng(0)
    before, alone = branched(rng, 1), branched(rng, 1)
    anew = Table(tuple(Run(**{**vars(run), "trunk": run.run_id}) for run in alone.runs))
    assert compare(before, anew).summary[0].trainings == 1


def test_other_validation_texts_are_said(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_sweep(tmp_path / name, steps=(2000,), ratios=(0.2, 0.4))
    assert compare(load(tmp_path / "a"), load(tmp_path / "b")).notes == ()
    for path in (tmp_path / "b" / "blocks").rglob("*.parquet"):
        blocks = read_parquet(path)
        blocks["bytes"] += 1
        blocks.to_parquet(path)
    (note,) = compare(load(tmp_path / "a"), load(tmp_path / "b")).notes
    assert note.startswith("2 of 2 pairs were scored on different validation texts")
