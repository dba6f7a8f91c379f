"""Trains a run, or a segment of one: reports, validates, checkpoints, resumes.

python -m gepa_core.train JOB.yaml [--out DIR]                      one process
torchrun --nproc-per-node 4 -m gepa_core.train JOB.yaml --out DIR   several ranks
"""

import os
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gepa_core.config import Average, DataPaths, ExecConfig, RunConfig
from gepa_core.data.shards import TokenStream, open_shards
from gepa_core.device import resolve_device, warn_where_emulated
from gepa_core.errors import CheckpointError, ConfigError
from gepa_core.training import checkpoint
from gepa_core.training.trained import CHECKPOINTS
from gepa_core.training.trainer import Ballot, Trainer
from gepa_core.training.watch import Observer, Saver, StepReport, Stopwatch


@dataclass(frozen=True)
class Segment:
    """Outcome of `train_segment`. `path` is the checkpoint of `step`; seconds are of training alone."""

    path: Path
    step: int
    finished: bool
    steps_done: int
    """Steps computed by this call; the others were found in a checkpoint."""
    train_loss: float | None
    train_seconds: float
    """Of the whole segment, earlier calls included."""
    tokens_per_second: float
    peak_memory_bytes: int
    micro_batch_seqs: int


def never() -> bool:
    return False


def train_segment(
    config: RunConfig,
    paths: DataPaths,
    exec_cfg: ExecConfig,
    *,
    start: Path | None,
    until: int,
    workdir: Path,
    on_report: Callable[[StepReport], None],
    should_stop: Callable[[], bool] = never,
    final_step: bool = True,
    averages: Sequence[Average] = (),
) -> Segment:
    """Trains from the state `start` (None: initial weights) to `until` steps; leaves that state in `workdir`.

    Continues from the newest whole checkpoint under workdir/checkpoints, where there is one. Validates at
    multiples of eval.every, where the warmdown begins, at eval.warmdown_points parts of it, and, unless
    final_step is False, at config.steps. In a torch.distributed group each rank calls this and trains on its
    spans; rank 0 reports and writes. When should_stop says so on any rank, the state is saved and the result
    has finished=False. The state holds the `averages` (none given: the run's own).

    Raises ConfigError, DataError, CheckpointError; DivergedError when loss or weights are no longer finite;
    torch.OutOfMemoryError passes through.
    """
    if until > config.steps:
        raise ConfigError(f"until {until} is past the run's {config.steps} steps")
    device = prepare(exec_cfg)
    warn_where_emulated(config.model, device)
    trainer = Trainer(config, exec_cfg, TokenStream(open_shards(paths.train)), device, averages)
    folder = workdir / CHECKPOINTS
    clock = Stopwatch(device)
    is_kept = _restore(trainer, start, folder, clock)
    if trainer.step > until:
        raise CheckpointError(f"{folder}: holds a state of {trainer.step} steps, past {until}")

    begun_at, train_loss = trainer.step, None
    observer = Observer(config, paths, exec_cfg, trainer, clock, until, final_step)
    saver = Saver(trainer, folder, exec_cfg, clock, is_kept)
    if trainer.compiles and trainer.step < until:
        trainer.warm_up()
    ballot = Ballot(lambda: (should_stop(), saver.is_time()), trainer.flat.votes)
    stop = False
    clock.start()
    for lr_scale in trainer.steps(until, ballot.cast):
        stop, save = ballot.read()
        report = observer.observe(lr_scale)
        if report is not None:
            train_loss = report.train_loss
            if trainer.rank == 0:
                on_report(report)
        if stop or save or saver.is_due():
            saver.save()
        if stop:
            break
    path = saver.save()
    return Segment(
        path=path,
        step=trainer.step,
        finished=trainer.step == until,
        steps_done=trainer.step - begun_at,
        train_loss=train_loss,
        train_seconds=clock.seconds(),
        tokens_per_second=observer.tokens_per_second(),
        peak_memory_bytes=_peak_memory(device),
        micro_batch_seqs=trainer.micro_batch,
    )


def prepare(exec_cfg: ExecConfig) -> torch.device:
    """Device, threads and determinism of this process, as `exec_cfg` asks."""
    device = resolve_device(exec_cfg)
    if device.type == "cpu":
        # Workers of one thread each beat fewer of several, and two of two on two cores collapse.
        torch.set_num_threads(exec_cfg.threads or 1)
    elif exec_cfg.threads:
        torch.set_num_threads(exec_cfg.threads)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    torch.use_deterministic_algorithms(exec_cfg.deterministic)  # a worker's next job may not ask for it
    if exec_cfg.deterministic:
        os.environ.setdefault("NCCL_NVLS_ENABLE", "0")  # sums in the switch, in an order nobody promises
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return device


def _restore(trainer: Trainer, start: Path | None, folder: Path, clock: Stopwatch) -> bool:
    """Takes the newest whole checkpoint in `folder`, else `start`, else nothing, as rank 0 sees them.

    Returns whether the state lies in `folder`.
    """
    state, path, found = None, None, None
    if trainer.rank == 0:
        found = checkpoint.newest(folder)
        if found is not None:
            path, state = found
            clock.add(state.told(path).segment_seconds)
        elif start is not None:
            path, state = start, checkpoint.load(start)
    trainer.restore(state, path)
    return found is not None


def _peak_memory(device: torch.device) -> int:
    """Bytes: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
