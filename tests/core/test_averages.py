"""Averages are observers: several in one training, each as if it were alone, and merges of kept states."""

from pathlib import Path
from typing import Any

import pytest
import torch

from gepa_core.config import Average, DataPaths, RunConfig
from gepa_core.errors import CheckpointError
from gepa_core.quantization.methods import quantize
from gepa_core.schedule import merge_weights
from gepa_core.training import checkpoint
from gepa_core.training.trained import load_model, merged_model
from tests import training

RUN = training.RUN


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> DataPaths:
    return training.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def several(paths: DataPaths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run with three averages."""
    out = tmp_path_factory.mktemp("several")
    averages = (Average(0.5), Average(0.9), Average(0.9, "lr"))
    return training.train(paths, out, averages=averages)[0].path


def weights(path: Path, average: bool | Average) -> dict[str, torch.Tensor]:
    return load_model(path, average=average)[0].state_dict()


@pytest.mark.parametrize("wanted", [{"ema_decay": 0.5}, {"ema_decay": 0.9}, {"ema_horizon": "lr"}], ids=str)
def test_each_average_is_what_it_is_alone(
    wanted: dict[str, Any], several: Path, paths: DataPaths, tmp_path: Path
) -> None:
    run = RUN.model_copy(update=wanted)
    alone = training.train(paths, tmp_path, run)[0].path
    mine, theirs = weights(several, run.average), weights(alone, True)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    raw, same = weights(several, False), weights(alone, False)
    assert all(torch.equal(raw[name], same[name]) for name in raw)  # the training is the same


def test_averages_fork_where_the_learning_rate_falls(paths: DataPaths, several: Path, tmp_path: Path) -> None:
    """In the constant phase a horizon of `lr` is the fixed one; a trunk keeps an average a decay."""
    decays = (Average(0.5), Average(0.9))
    trunk, _ = training.train(paths, tmp_path / "trunk", until=6, final_step=False, averages=decays)
    every = (*decays, Average(0.9, "lr"))
    branch, _ = training.train(paths, tmp_path / "branch", start=trunk.path, averages=every)
    training.assert_same(branch.path, several)
    # With a linear warmdown to zero the horizon shrinks to one step: the average ends as the weights.
    ends, raw = weights(several, Average(0.9, "lr")), weights(several, False)
    assert all(torch.equal(ends[name], raw[name]) for name in raw)


def test_what_a_state_lacks_is_said(several: Path, paths: DataPaths, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no average .* ema_decay 0\.7 \(it has 0\.5, 0\.9, 0\.9 lr\)"):
        load_model(several, average=Average(0.7))
    trunk, _ = training.train(paths, tmp_path / "trunk", until=6, final_step=False)
    wider = (Average(0.9), Average(0.5))
    with pytest.raises(CheckpointError, match=r"ema_decay 0\.5 \(it has 0\.9\)"):
        training.train(paths, tmp_path / "more", start=trunk.path, averages=wider)
    with pytest.raises(CheckpointError, match=r"ema_decay 0\.9 lr \(it has 0\.9\)"):
        load_model(training.train(paths, tmp_path / "end")[0].path, average=Average(0.9, "lr"))


def test_several_averages_are_each_validated(paths: DataPaths, tmp_path: Path) -> None:
    averages = (Average(0.5), Average(0.9))
    _, reports = training.train(paths, tmp_path / "two", averages=averages)
    _, alone = training.train(paths, tmp_path / "one")
    by_average = {r.step: r.ema_val_bpb_by_average for r in reports if r.ema_val_bpb_by_average}
    assert by_average.keys() == {8, 12} and all(r.ema_val_bpb is None for r in reports)
    assert {r.step: r.ema_val_bpb for r in alone if r.ema_val_bpb} == {
        step: found["0.9"] for step, found in by_average.items()
    }


def test_merging_is_the_weighted_mean_of_states(paths: DataPaths, tmp_path: Path) -> None:
    states, start = [], None
    for until in (2, 4, 6):
        segment, _ = training.train(paths, tmp_path / str(until), start=start, until=until, final_step=False)
        start = segment.path
        states.append(segment.path)
    shares = merge_weights("1-sqrt", 3)
    merged = merged_model(RUN.model, states, shares).state_dict()
    loaded = [checkpoint.load(path).tensors for path in states]
    for name, tensor in merged.items():
        mean = sum(
            share * state[f"model/{name}"].double() for share, state in zip(shares, loaded, strict=True)
        )
        torch.testing.assert_close(
            tensor.double(), mean, atol=1e-3 if tensor.dtype == torch.bfloat16 else 1e-7, rtol=1e-2
        )


@pytest.mark.parametrize("schedule", ["linear", "cosine", "1-sqrt", "power", "exponential"])
def test_merge_weights_stand_for_the_warmdown(schedule: str) -> None:
    shares = merge_weights(schedule, 8)
    assert sum(shares) == pytest.approx(1) and min(shares) > 0
    assert (max(shares) - min(shares) < 1e-12) == (schedule in ("linear", "power"))


def test_steps_of_a_merge_end_with_the_constant_phase() -> None:
    run = RunConfig(steps=1000, warmdown_steps=0)
    assert run.merge_steps == (825, 850, 875, 900, 925, 950, 975, 1000)
    assert RunConfig(steps=1000, warmdown_steps=990).merge_steps == ()


@pytest.mark.parametrize("method", ["reference", "gptq"])
def test_looks_at_int6_change_nothing_and_tell_the_tax(method: str, paths: DataPaths, tmp_path: Path) -> None:
    quant = RUN.quant.model_copy(update={"keep_float_max_numel": 64, "calibration_tokens": 256})
    looks = RUN.eval.model_copy(update={"int6_every": 5, "int6_method": method})
    plain, watched = (RUN.model_copy(update={"quant": quant, "eval": e}) for e in (RUN.eval, looks))
    without, _ = training.train(paths, tmp_path / "without", plain)
    with_, reports = training.train(paths, tmp_path / "with", watched)
    training.assert_same(without.path, with_.path)
    seen = [r for r in reports if r.int6_val_bpb is not None]
    assert [r.step for r in seen] == [5, 10, 12]
    for r in seen:  # both sides of each tax, at one step
        assert r.ema_val_bpb and r.val_bpb and r.raw_int6_val_bpb
        assert r.int6_val_bpb == pytest.approx(r.ema_val_bpb, rel=0.05)
        assert r.int6_val_bpb != r.ema_val_bpb
    if method == "reference":
        average = load_model(with_.path, average=True)[0].state_dict()
        from gepa_core.quantization.artifact import encode

        assert seen[-1].artifact_bytes == len(encode(quantize(average, quant)))


def test_a_warmdown_of_its_own_for_what_adam_trains(paths: DataPaths, tmp_path: Path) -> None:
    late, early = ({"adam_warmdown_steps": n} for n in (2, 9))
    alone = {
        "warmdown_steps": 0,
        "adam_warmdown_steps": 4,
        "eval": RUN.eval.model_copy(update={"warmdown_points": 2}),
    }
    _, reports = training.train(paths, tmp_path / "alone", RUN.model_copy(update=alone))
    assert {8, 10, 12} <= {r.step for r in reports if r.val_bpb is not None}
    assert {r.lr_scale for r in reports} == {1.0}  # of the matrices
    run = RUN.model_copy(update=early)
    assert (RUN.peak_steps, run.peak_steps, RUN.model_copy(update=late).peak_steps) == (6, 3, 6)
    both, _ = training.train(paths, tmp_path / "both")
    own, _ = training.train(paths, tmp_path / "own", RUN.model_copy(update=late))
    same = RUN.model_copy(update={"adam_warmdown_steps": 6})
    again, _ = training.train(paths, tmp_path / "same", same)
    a, b, c = (training.state(s.path) for s in (both, own, again))
    assert all(torch.equal(a[name], c[name]) for name in a)
    assert not torch.equal(a["model/tok_emb.weight"], b["model/tok_emb.weight"])
    # Before the two part, at step 6, nothing differs.
    trunk, _ = training.train(paths, tmp_path / "trunk", until=6, final_step=False)
    branch, _ = training.train(paths, tmp_path / "branch", RUN.model_copy(update=late), start=trunk.path)
    training.assert_same(branch.path, own.path)
