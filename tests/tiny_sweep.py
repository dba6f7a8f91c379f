"""Sweeps of a real but very small model on a real but very small text, for tests that execute them."""

import faulthandler
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from gepa_core.config import DataPaths
from gepa_core.data.folder import Dataset
from gepa_core.data.shards import ShardSet
from gepa_core.sections import DataConfig
from sweeps.commands.sweep import data_record, open_data, over_store
from sweeps.drive.launch import RunOptions, SweepResult, run_sweep
from sweeps.drive.protocols import Ended, Event, LeaseReady
from sweeps.plan.tree import Plan
from sweeps.spec.load import read_sweep
from sweeps.spec.sweep import Sweep
from sweeps.store.store import Outcome, Store
from sweeps.work.execute import execute
from sweeps.work.job import Job
from sweeps.work.policy import Observed

VOCAB = 300
SETTINGS: dict[str, Any] = {
    "model.vocab_size": VOCAB,
    "model.width": 16,
    "model.num_layers": 2,
    "model.mlp_hidden": 32,
    "model.ve_layers": [1],
    "model.ve_dim": 8,
    "model.rope_dims": 4,
    "model.bigram_dim": 8,
    "model.bigram_buckets": 64,
    "model.xsa_last_n": 1,
    "batch.seqs_per_span": 2,
    "batch.seq_len": 32,
    "batch.spans": 4,
    "eval.seq_len": 32,
    "eval.stride": 16,
    "eval.block_tokens": 256,
    "eval.every": 4,
    "eval.ema_every": 8,
    "eval.log_every": 1,
    "ttt.chunk_tokens": 256,
    "data.val_tokens": 1024,
    "quant.keep_float_max_numel": 64,
    "ema_decay": 0.5,
}
TIME_COLUMNS = {
    "train_seconds",
    "eval_seconds",
    "ttt_seconds",
    "gpu_seconds_own",
    "gpu_seconds_shared",
    "started_at",
    "finished_at",
    "commit",
}
NUMBERS = ("float_bpb", "ema_bpb", "int6_bpb", "int6_sliding_bpb", "ttt_bpb", "artifact_bytes")


def make_data(out: Path) -> Path:
    """A prepared folder of some thousand tokens."""
    from gepa_core.data.prepare import prepare

    text = [f"text number {i} of a few short ones, all of them plain words" for i in range(400)]
    prepare(out, lambda: text[40:], lambda: text[:40], vocab_size=VOCAB, source={}, workers=1)
    return out


def sweep_text(data: Path, grid: dict[str, list[Any]], **top: Any) -> str:
    """A sweep file. `top`: further top-level keys; `set` is laid over SETTINGS."""
    settings = SETTINGS | {"data.dir": str(data)} | top.pop("set", {})
    execution = {"device": "cpu", "threads": 1} | top.pop("exec", {})
    document = {
        "name": "tiny",
        "recipe": "gepa-nano",
        "grid": grid,
        "set": settings,
        "exec": execution,
        **top,
    }
    return yaml.safe_dump(document, sort_keys=False)


def plan_of(text: str, output: str | Path, overrides: Sequence[str] = ()) -> Plan:
    """The plan of a sweep file over a store."""
    return over_store(_opened(text, overrides), str(output))


def _opened(text: str, overrides: Sequence[str]) -> Sweep:
    return open_data(read_sweep(text, list(overrides), "tiny.yaml"), _silent)


def opened(paths: DataPaths, config: DataConfig) -> Dataset:
    """Data that is said to be there, of no tokens."""
    return Dataset(paths, config, ShardSet(()), ShardSet(()), None)


def launch(text: str, output: str | Path, overrides: Sequence[str] = (), **options: Any) -> SweepResult:
    """On Ray: a local one, or the one at `address`."""
    sweep = _opened(text, overrides)
    plan = over_store(sweep, str(output), fresh=options.get("fresh", False))
    record = {"data": data_record(sweep)}
    return run_sweep(plan, str(output), RunOptions(plain=True, **options), record)


class InThisProcess:
    """A driver's Cluster without Ray: one lease, which executes a job when the driver next waits.

    `before` sees each job first: it may return the job's end, or the wish that is to stop it.
    """

    def __init__(self, before: Callable[[Job], Observed | Outcome | None] = lambda job: None) -> None:
        self.before = before
        self.jobs: list[Job] = []
        self.events: list[Event] = []
        self.pending: Job | None = None
        self.is_open = False

    def __call__(self, sweep: Sweep, address: str | None) -> "InThisProcess":
        return self

    def __enter__(self) -> "InThisProcess":
        return self

    def __exit__(self, *exception: object) -> None:
        assert not self.is_open

    def room(self) -> int:
        return int(not self.is_open)

    def open(self) -> str:
        self.is_open = True
        self.events.append(LeaseReady("only"))
        return "only"

    def start(self, lease: str, job: Job) -> None:
        self.jobs.append(job)
        self.pending = job

    def stop(self, lease: str) -> None:
        pass

    def close(self, lease: str) -> None:
        self.is_open = False

    def poll(self, timeout: float) -> list[Event]:
        if job := self.pending:
            self.pending = None
            told = self.before(job)
            if isinstance(told, Outcome):
                return [Ended("only", told)]
            with TemporaryDirectory() as scratch:
                return [Ended("only", execute(job, 0, 1, lambda: told, Path(scratch)))]
        events, self.events = self.events, []
        return events


def launch_here(
    text: str,
    output: str | Path,
    overrides: Sequence[str] = (),
    cluster: InThisProcess | None = None,
    **options: Any,
) -> SweepResult:
    """Without Ray."""
    sweep = _opened(text, overrides)
    plan = over_store(sweep, str(output), fresh=options.get("fresh", False))
    record = {"data": data_record(sweep)}
    return run_sweep(plan, str(output), RunOptions(plain=True, **options), record, cluster or InThisProcess())


def rows(output: str | Path, name: str = "tiny") -> dict[str, dict[str, Any]]:
    """runs.parquet by run, without what depends on when and how fast it was made."""
    found = Store(output).sweep(name).read_runs()
    assert found is not None
    return {
        row["run_id"]: {key: value for key, value in row.items() if key not in TIME_COLUMNS} for row in found
    }


def states(output: str | Path, plan: Plan) -> dict[tuple[str, int], str]:
    """Checksum of the tensors of every run's states, final ones included, by run and step."""
    done = Store(output).all_done()
    return {
        (run_id, plan.segments[node].stop): tensors_sha256(done[node])
        for run_id in plan.runs
        for node in plan.segments_of(run_id)
    }


def tensors_sha256(done: Outcome) -> str:
    """Of all weights, averages and optimizer state at a segment's end; known also where it was deleted."""
    return str(done.files["checkpoint/state.safetensors"]["sha256"])


def _silent(text: str) -> None:
    pass


def main(argv: list[str]) -> int:
    """python -m tests.tiny_sweep FILE OUTPUT [ADDRESS]: a launch in a process of its own, to be killed."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    text, output = Path(argv[0]).read_text(), argv[1]
    address = argv[2] if len(argv) > 2 else None
    return launch(text, output, address=address, max_parallel=2).exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
