"""Training: the published losses; runs that stop, resume, branch and spread over ranks as one run would."""

import itertools
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import sentencepiece as spm
import torch
import zstandard

from gepa_core.config import NUMERICS_VERSION, DataPaths, ExecConfig, RunConfig
from gepa_core.data.shards import TokenStream, open_shards, write_shard
from gepa_core.device import rank_and_world
from gepa_core.errors import CheckpointError, ConfigError, DivergedError
from gepa_core.model.passes import whole_loss
from gepa_core.sections import BatchConfig
from gepa_core.training import checkpoint
from gepa_core.training.trained import over_recipe
from gepa_core.training.trainer import Trainer
from gepa_core.training.watch import is_warmdown_point
from tests import tiny
from tests.training import (
    RUN,
    after,
    assert_close,
    assert_same,
    assert_same_gradients,
    on_ranks,
    state,
    structured_tokens,
    train,
)

CPU = torch.device("cpu")


def losses(trainer: Trainer, steps: int) -> list[float]:
    return [trainer.train_loss() for _ in trainer.steps(steps, lambda votes: None)]


def stream_of(tokens: np.ndarray, folder: Path) -> TokenStream:
    write_shard(folder / "stream.bin", tokens.astype(np.uint16))
    return TokenStream(open_shards(folder / "stream.bin"))


# Numbers


def test_thirty_losses_are_the_published(shared: Path, tmp_path: Path) -> None:
    model, _, figures = tiny.parity(shared)
    figures = figures["train"]
    sp = spm.SentencePieceProcessor(model_file=str(shared / "data/tokenizers/fineweb_1024_bpe.model"))
    with zstandard.open(shared / "data/enwiki2015_val.jsonl.zst", "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for _, line in zip(range(100), file, strict=False)]
    tokens = np.array([i for text in sp.encode(texts[60:]) for i in (1, *text)])
    config = RunConfig(
        steps=figures["steps"],
        warmdown_steps=figures["warmdown"],
        model=model.cfg,
        batch=BatchConfig(seq_len=64, seqs_per_span=8, spans=2),
    )
    trainer = Trainer(config, ExecConfig(device="cpu"), stream_of(tokens, tmp_path), CPU)
    trainer.model.load_state_dict(model.state_dict())
    trainer.flat.restart_averages()

    found = losses(trainer, 30)
    assert found[:4] == pytest.approx(figures["train_loss"][:4], rel=1e-4)
    assert found == pytest.approx(figures["train_loss"], rel=2e-3)

    start = figures["val_offset"]
    text = torch.from_numpy(tokens[start : start + figures["val_tokens"] + 1])
    batch = text[:-1].view(-1, 64), text[1:].view(-1, 64)
    with torch.no_grad():
        assert trainer.model.loss(*batch).item() == pytest.approx(figures["raw_val_loss"], rel=1e-2)
        with trainer.borrowed(trainer.flat.averages[0]):
            assert trainer.model.loss(*batch).item() == pytest.approx(figures["ema_val_loss"], rel=1e-3)


# Losses of the first 20 steps of gepa-nano on `structured_tokens`. If a change moves them on purpose, or
# only their last bits, raise NUMERICS_VERSION and pin the new ones: then results of the old numerics are not
# mistaken for new ones.
GOLDEN_VERSION = 3
GOLDEN = [
    6.9350, 5.6892, 4.3128, 3.9276, 3.6046, 3.2620, 2.9668, 2.8530, 2.7988, 2.7173,
    2.6579, 2.6446, 2.6007, 2.5774, 2.5128, 2.5099, 2.4326, 2.4231, 2.3909, 2.4178,
]  # fmt: skip


def test_golden_losses(tmp_path: Path) -> None:
    preset = over_recipe({"recipe": "gepa-nano", "steps": 20, "warmdown_steps": 10}, "test")
    config = RunConfig.model_validate_json(json.dumps(preset))
    stream = stream_of(structured_tokens(20 * config.batch.stride_per_step, 1024), tmp_path)
    trainer = Trainer(config, ExecConfig(device="cpu"), stream, CPU)
    assert NUMERICS_VERSION == config.numerics_version == GOLDEN_VERSION
    assert losses(trainer, 20) == pytest.approx(GOLDEN, rel=2e-3)


# Stop and resume


@pytest.mark.parametrize("stop_at", [1, 5, 6, 7, 11])
def test_resumed_equals_uninterrupted(stop_at: int, paths: DataPaths, whole: Path, tmp_path: Path) -> None:
    first, early = train(paths, tmp_path, should_stop=after(stop_at))
    assert (first.finished, first.step, first.steps_done) == (False, stop_at, stop_at)
    second, late = train(paths, tmp_path)
    assert (second.finished, second.step, second.steps_done) == (True, 12, 12 - stop_at)
    assert_same(second.path, whole)
    assert [report.step for report in early + late] == [3, 4, 6, 8, 9, 12]
    assert second.train_seconds > first.train_seconds


def test_resumes_from_the_checkpoint_before_a_damaged_one(
    paths: DataPaths, whole: Path, tmp_path: Path
) -> None:
    train(paths, tmp_path, checkpoint_every=3, should_stop=after(7))
    newest, before = (tmp_path / "checkpoints" / step for step in ("7", "6"))
    os.truncate(newest / checkpoint.TENSORS, 1000)
    assert before.is_dir()
    segment, _ = train(paths, tmp_path)
    assert segment.steps_done == 6
    assert_same(segment.path, whole)


def test_a_finished_segment_is_left_alone(paths: DataPaths, tmp_path: Path) -> None:
    path = train(paths, tmp_path)[0].path
    stamp = (path / checkpoint.TENSORS).stat().st_mtime_ns
    again, reports = train(paths, tmp_path)
    assert (again.finished, again.steps_done, reports) == (True, 0, [])
    assert (path / checkpoint.TENSORS).stat().st_mtime_ns == stamp


def test_checkpoints_by_steps_and_by_time(paths: DataPaths, whole: Path, tmp_path: Path) -> None:
    seen: dict[str, set[str]] = {"steps": set(), "time": set()}
    for name, execution in (("steps", {"checkpoint_every": 5}), ("time", {"checkpoint_seconds": 1e-9})):
        folder = tmp_path / name / "checkpoints"

        def look(folder: Path = folder, name: str = name) -> bool:
            seen[name] |= {path.name for path in checkpoint.in_order(folder)}
            return False

        segment, _ = train(paths, tmp_path / name, should_stop=look, **execution)
        assert_same(segment.path, whole)
    assert seen == {"steps": {"5", "10"}, "time": {str(step) for step in range(1, 12)}}


def test_what_is_watched_does_not_change_the_run(paths: DataPaths, whole: Path, tmp_path: Path) -> None:
    often = RUN.model_copy(update={"eval": RUN.eval.model_copy(update={"every": 1, "ema_every": 1})})
    segment, reports = train(paths, tmp_path, often)
    assert len(reports) == 12
    assert_same(segment.path, whole)


# Branches


@pytest.mark.parametrize("key", ["steps", "schedule", "final_lr_fraction", "constant"])
def test_a_branch_equals_the_run_alone(key: str, paths: DataPaths, whole: Path, tmp_path: Path) -> None:
    changes = {
        "steps": {"steps": 10, "warmdown_steps": 4},
        "schedule": {"schedule": "cosine"},
        "final_lr_fraction": {"final_lr_fraction": 0.1},
        "constant": {"steps": 9, "warmdown_steps": 0},
    }
    run = RUN.model_copy(update=changes[key])
    trunk, _ = train(paths, tmp_path / "trunk", until=6, final_step=False)
    branch, _ = train(paths, tmp_path / "branch", run, start=trunk.path)
    alone, _ = train(paths, tmp_path / "alone", run)
    assert branch.steps_done == run.steps - 6
    assert_same(branch.path, alone.path)
    if run.steps == RUN.steps:
        assert state(branch.path)["model/skip_gates"].ne(state(whole)["model/skip_gates"]).any()


def test_a_trunk_is_extended_from_any_of_its_states(paths: DataPaths, whole: Path, tmp_path: Path) -> None:
    longer = RUN.model_copy(update={"steps": 16, "warmdown_steps": 8})
    start = None
    for until in (2, 5, 6):  # each segment knows only the state before it
        start = train(paths, tmp_path / str(until), longer, start=start, until=until, final_step=False)[
            0
        ].path
    segment, _ = train(paths, tmp_path / "end", start=start)
    assert_same(segment.path, whole)


def test_states_of_other_runs_are_refused(paths: DataPaths, whole: Path, tmp_path: Path) -> None:
    trunk = train(paths, tmp_path / "trunk", until=6, final_step=False)[0].path
    with pytest.raises(CheckpointError, match=r"no average of the weights with ema_decay 0.5 \(it has 0.9\)"):
        train(paths, tmp_path / "a", RUN.model_copy(update={"ema_decay": 0.5}), start=trunk)
    for other in ({"seed": 1}, {"batch": RUN.batch.model_copy(update={"spans": 2})}):
        with pytest.raises(CheckpointError, match="of another configuration"):
            train(paths, tmp_path / "a", RUN.model_copy(update=other), start=trunk)
    wider = RUN.model.model_copy(update={"mlp_hidden": 64})
    with pytest.raises(CheckpointError, match=r"this model has"):
        train(paths, tmp_path / "b", RUN.model_copy(update={"model": wider}), start=trunk)
    # Within a warmdown the schedule is part of the state; beyond the trunk's end, so is its length.
    half_way = train(paths, tmp_path / "c", should_stop=after(8))[0].path
    with pytest.raises(CheckpointError, match="8 steps of another configuration"):
        train(paths, tmp_path / "d", RUN.model_copy(update={"schedule": "cosine"}), start=half_way)
    with pytest.raises(CheckpointError, match="8 steps of another configuration"):
        train(paths, tmp_path / "d", RUN.model_copy(update={"warmdown_steps": 3}), start=half_way)
    with pytest.raises(CheckpointError, match="past 6"):
        train(paths, tmp_path / "e", start=whole, until=6)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        train(paths, tmp_path / "f", start=tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="until 13 is past the run's 12 steps"):
        train(paths, tmp_path / "g", until=13)


# Reports


def test_reports_come_when_they_are_due(paths: DataPaths, tmp_path: Path) -> None:
    _, reports = train(paths, tmp_path / "run")
    seen = {r.step: (r.val_loss is not None, r.ema_val_bpb is not None) for r in reports}
    assert seen == {
        3: (False, False),
        4: (True, False),
        6: (True, False),
        8: (True, True),
        9: (False, False),
        12: (True, True),
    }
    by_step = {report.step: report for report in reports}
    assert [by_step[s].lr_scale for s in (3, 6, 8, 12)] == pytest.approx([1, 1, 5 / 6, 1 / 6])
    assert all(math.isfinite(report.train_loss) for report in reports)
    assert by_step[12].train_loss < by_step[3].train_loss < math.log(tiny.VOCAB) + 0.5
    assert by_step[12].ema_val_bpb != by_step[12].val_bpb
    assert all(b.elapsed_seconds > a.elapsed_seconds for a, b in itertools.pairwise(reports))


def test_a_warmdown_is_validated_at_equal_parts(paths: DataPaths, tmp_path: Path) -> None:
    """Besides the period's own: a warmdown of 7 of 11 steps in 3 parts, the first whole step past each."""
    seldom = {"every": 100, "ema_every": 100, "log_every": 100}
    evaluation = RUN.eval.model_copy(update=seldom | {"warmdown_points": 3})
    run = RUN.model_copy(update={"steps": 11, "warmdown_steps": 7, "eval": evaluation})
    _, reports = train(paths, tmp_path, run)
    assert [r.step for r in reports if r.val_bpb is not None] == [4, 7, 9, 11]
    assert run.trunk() == run.model_copy(update={"eval": evaluation.model_copy(update=seldom)}).trunk()
    asked = RUN.model_copy(update={"eval": evaluation.model_copy(update={"warmdown_points": 100})})
    assert all(is_warmdown_point(asked, step) == (step >= 6) for step in range(13))


def test_a_trunks_end_is_validated_where_it_is_the_runs_peak(paths: DataPaths, tmp_path: Path) -> None:
    _, at_peak = train(paths, tmp_path / "peak", until=6, final_step=False)
    assert at_peak[-1].step == 6
    assert at_peak[-1].val_bpb is not None
    _, before = train(paths, tmp_path / "before", until=5, final_step=False)
    assert before[-1].step == 5
    assert before[-1].val_bpb is None
    constant = RUN.model_copy(update={"steps": 5, "warmdown_steps": 0})
    _, passing = train(paths, tmp_path / "passing", constant, final_step=False)
    assert passing[-1].ema_val_bpb is None


@pytest.mark.parametrize("log_every", [1, 4, 1000])
def test_divergence_is_told_with_its_step_whenever_it_is_seen(
    log_every: int, paths: DataPaths, tmp_path: Path
) -> None:
    optim = RUN.optim.model_copy(update={"matrix_lr": 1e30, "scalar_lr": 1e30})
    watch = RUN.eval.model_copy(update={"every": 1000, "log_every": log_every})
    run = RUN.model_copy(update={"optim": optim, "eval": watch})
    with pytest.raises(DivergedError) as error:
        train(paths, tmp_path, run, checkpoint_every=2)
    assert error.value.step == 2
    assert checkpoint.in_order(tmp_path / "checkpoints") == []


@pytest.mark.slow  # compiling takes seconds
def test_the_loss_compiles_as_one_graph(paths: DataPaths) -> None:
    trainer = Trainer(RUN, ExecConfig(device="cpu"), TokenStream(open_shards(paths.train)), CPU)
    ((ids, targets), *_) = trainer.batches.read(0)
    eager = whole_loss(trainer.model, ids, targets)
    eager.backward()
    gradients = trainer.flat.gradients.clone()
    trainer.flat.zero_gradients()
    compiled = torch.compile(whole_loss, fullgraph=True, dynamic=False, backend="aot_eager")
    loss = compiled(trainer.model, ids, targets)
    loss.backward()
    torch.testing.assert_close(loss, eager)
    torch.testing.assert_close(trainer.flat.gradients, gradients, rtol=1e-3, atol=1e-5)


def test_warming_up_leaves_the_state_alone(paths: DataPaths) -> None:
    trainer = Trainer(RUN, ExecConfig(device="cpu"), TokenStream(open_shards(paths.train)), CPU)
    before = {name: tensor.clone() for name, tensor in trainer.tensors().items()}
    trainer.warm_up()
    assert trainer.step == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.tensors().items())
    assert not trainer.flat.gradients.any()
    assert trainer.flat.loss == 0


def test_deterministic_execution(paths: DataPaths, whole: Path, tmp_path: Path) -> None:
    try:
        segment, _ = train(paths, tmp_path, deterministic=True)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(segment.path, whole)


# Ranks


def rank_scenario(rank: int, paths: DataPaths, folder: Path) -> None:
    """Whole; stopped by the wish of the last rank and resumed; branched. Only rank 0 is told anything."""
    world = rank_and_world()[1]
    _, reports = train(paths, folder / "whole")
    assert [report.step for report in reports] == ([3, 4, 6, 8, 9, 12] if rank == 0 else [])
    wish = after(5) if rank == world - 1 else lambda: False
    segment, _ = train(paths, folder / "resumed", should_stop=wish)
    assert (segment.step, segment.finished) == (5, False)
    train(paths, folder / "resumed")
    train(paths, folder / "branch", start=folder / "resumed/checkpoints/5" if rank == 0 else None)
    train(paths, folder / "first", until=1, final_step=False)


def check_ranks(world: int, paths: DataPaths, whole: Path, first_step: Path, folder: Path) -> None:
    on_ranks(world, rank_scenario, folder, paths, folder)
    end = {name: folder / name / "checkpoints/12" for name in ("whole", "resumed", "branch")}
    assert_same(end["resumed"], end["whole"])
    assert_same(end["branch"], end["whole"])
    assert_same_gradients(folder / "first/checkpoints/1", first_step)
    assert_close(end["whole"], whole, 3e-2)
    # The state after 5 steps on several ranks goes on, on one.
    segment, _ = train(paths, folder / "one", start=folder / "resumed/checkpoints/5")
    assert segment.steps_done == 7
    assert_close(segment.path, whole, 3e-2)


def test_two_ranks(paths: DataPaths, whole: Path, first_step: Path, tmp_path: Path) -> None:
    check_ranks(2, paths, whole, first_step, tmp_path)


@pytest.mark.slow
def test_four_ranks(paths: DataPaths, whole: Path, first_step: Path, tmp_path: Path) -> None:
    check_ranks(4, paths, whole, first_step, tmp_path)
