"""The command `python -m gepa_core.train`: a job file in, an output folder of checkpoints and events out."""

import argparse
import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist

from gepa_core import files
from gepa_core.commands.ending import exit_code
from gepa_core.device import rank_and_world
from gepa_core.errors import ConfigError
from gepa_core.training.segment import train_segment
from gepa_core.training.trained import JOB, open_run, read_job
from gepa_core.training.watch import StepReport


def train_command(argv: list[str] | None = None) -> int:
    """Trains a job file to its end. Exit codes: 0 done, 2 bad input, 3 diverged, 130 stopped, resumable."""
    parser = argparse.ArgumentParser(prog="python -m gepa_core.train", description="Train one run.")
    parser.add_argument("job", type=Path, help="YAML or JSON with the keys run, data and exec")
    parser.add_argument(
        "--out", type=Path, help="output folder (default: runs/RUN_ID); continued if it exists"
    )
    args = parser.parse_args(argv)
    return exit_code(lambda: _run_job(args.job, args.out), args.job)


def _run_job(path: Path, out: Path | None) -> int:
    with torchrun_group():
        return _in_group(path, out)


def _in_group(path: Path, out: Path | None) -> int:
    job = read_job(path)
    out = out or Path("runs") / job.run.run_id
    rank, world = rank_and_world()
    if job.exec.ranks not in (1, world):
        raise ConfigError(
            f"{path}: exec.ranks is {job.exec.ranks}, but this is {world} process(es); start it by "
            f"torchrun --nproc-per-node {job.exec.ranks} -m gepa_core.train, or leave exec.ranks out"
        )
    if rank == 0:
        try:
            out.mkdir(parents=True, exist_ok=True)
            if (out / JOB).exists() and open_run(out).run != job.run:
                raise ConfigError(f"{out}: holds another run; give another --out")
            files.write(out / JOB, (job.model_dump_json(indent=1) + "\n").encode())
        except OSError as error:
            raise ConfigError(f"{out}: cannot be written ({error.strerror}); give another --out") from None
        print(f"{job.run.run_id}: {job.run.steps} steps of {job.run.batch.tokens_per_step} tokens -> {out}")
    events = _Events(out / "events.jsonl")
    with stop_on_signals() as should_stop:
        segment = train_segment(
            job.run,
            job.data,
            job.exec,
            start=None,
            until=job.run.steps,
            workdir=out,
            on_report=events.write,
            should_stop=should_stop,
        )
    if rank == 0:
        what = "done" if segment.finished else "stopped, run the same command to continue"
        print(f"{what}: step {segment.step}, {segment.train_seconds:.1f} s, state in {segment.path}")
    return 0 if segment.finished else 130


class _Events:
    """The trajectory as JSON lines; a step reported again after a restart replaces what was said of it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._started = False

    def write(self, report: StepReport) -> None:
        if not self._started and self._path.exists():
            lines = self._path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step(line) < report.step]
            files.write(self._path, "".join(line + "\n" for line in kept).encode())
        self._started = True
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(report)) + "\n")
        print(report, flush=True)


def _step(line: str) -> float:
    """Of a line of events; one that was cut short by a kill counts as after every step."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


@contextmanager
def torchrun_group() -> Iterator[None]:
    """Joins the process group of torchrun's environment, if there is one: nccl on GPUs, gloo on CPUs."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        # A job may still be asked for on the CPU.
        dist.init_process_group("cpu:gloo,cuda:nccl")
    else:
        dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Turns SIGINT and SIGTERM into a wish to stop at the next step."""
    seen: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda n, _: seen.append(n)) for number in signals]
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
