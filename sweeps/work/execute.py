"""One segment or stage, executed in a worker process; torch is imported here and nowhere above.

Every rank of a lease calls `execute` with the same job. Rank 0 writes the attempt's folder; another rank only
a log of its own. Whatever happens is told as an Outcome: nothing but a lost process goes without one.
"""

import gc
import logging
import os
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from gepa_core.config import DataPaths, ExecConfig, RunConfig
from gepa_core.errors import DivergedError, UserError
from sweeps.store.files import StorageError, is_storage_fault
from sweeps.store.journal import emit, events, reports
from sweeps.store.schema import BLOCKS, TRAJECTORY, to_parquet
from sweeps.store.store import FINAL_STATE, Outcome, Store, checksums
from sweeps.work.policy import Observed
from sweeps.work.workdir import Workdir, captured_output

ARTIFACT = "model.int6"
SEGMENT = "segment"
_BITS_DEPEND_ON = ("device", "ranks", "threads", "micro_batch_seqs", "torch_version")


@dataclass(frozen=True)
class Job:
    """An attempt at a segment or stage. Paths `start` and `resume` are relative to the store."""

    id: str
    kind: str
    """`segment`, or the stage's kind."""
    attempt: str
    store: Store
    config: RunConfig
    data: DataPaths
    exec: ExecConfig
    identity: dict[str, Any]
    start: str | None
    """Folder of the state, or the artifact's file, that it starts from; None = the initial weights."""
    until: int = 0
    final: bool = True
    """Some run ends at `until`."""
    resume: tuple[str, ...] = ()
    """Checkpoints of earlier attempts, the furthest first."""
    launch: dict[str, Any] = field(default_factory=dict)
    """What the record of its execution is to say besides: commit, gpus."""


def warm_up() -> None:
    """Imports that cost seconds, before the first job needs them."""
    import torch

    torch.optim.AdamW([torch.zeros(1)])  # the first optimizer imports torch's compiler
    to_parquet([], TRAJECTORY)  # the first table imports pandas


def execute(
    job: Job, rank: int, world: int, should_stop: Callable[[], Observed | None], scratch: Path
) -> Outcome:
    """Runs the job on this rank; the rank's own outcome. `scratch`: a local folder of this worker."""
    started = time.time()
    begun = time.perf_counter()
    workdir = Workdir(job.store, job.store.attempt_path(job.id, job.attempt), scratch)
    outcome = Outcome(job.id, job.attempt, job.kind, "finished", identity=job.identity, started_at=started)
    log = "log.txt" if rank == 0 else f"log.{rank}.txt"
    try:
        with workdir.mirrored(), captured_output(workdir.path / log):
            outcome = _attempt(job, outcome, workdir, rank, world, should_stop)
            if rank == 0:
                seconds = time.perf_counter() - begun
                outcome = replace(outcome, seconds=seconds, execution=_execution(job, world, outcome))
                if outcome.status == "finished":
                    outcome = replace(
                        outcome, files=checksums(workdir.path, _result_files(job, workdir.path))
                    )
                workdir.write("outcome.json", outcome.to_json())
                if outcome.error:
                    gc.collect()  # an exception's frames may hold the tensors that memory was short for
                    logging.getLogger(__name__).error("%s: %s", outcome.status, outcome.error)
        return outcome
    except (OSError, StorageError) as error:  # the workdir itself could not be written
        return replace(outcome, status=Observed.STORAGE, error=str(error), files={})


def _attempt(
    job: Job,
    outcome: Outcome,
    workdir: Workdir,
    rank: int,
    world: int,
    should_stop: Callable[[], Observed | None],
) -> Outcome:
    """The work, with whatever goes wrong turned into a status."""
    try:
        if job.kind == SEGMENT:
            return _train(job, outcome, workdir, rank, world, should_stop)
        return replace(outcome, result=_stage(job, workdir, rank))
    except Exception as error:
        status, text = observed(error), _first_line(error)
        if status is Observed.CRASHED:
            traceback.print_exc()
            text = f"{type(error).__name__}: {text}"
        return replace(outcome, status=status, error=str(error) if isinstance(error, UserError) else text)


def observed(error: Exception) -> Observed:
    """What an exception in the midst of the work says of its end."""
    if isinstance(error, DivergedError):
        return Observed.DIVERGED
    if isinstance(error, StorageError) or is_storage_fault(error):
        return Observed.STORAGE
    if isinstance(error, UserError):
        return Observed.BAD_INPUT
    return Observed.OUT_OF_MEMORY if is_out_of_memory(error) else Observed.CRASHED


def is_out_of_memory(error: BaseException) -> bool:
    """Also on a CPU, where torch's allocator raises a plain RuntimeError."""
    import torch

    text = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and ("allocate memory" in text or "std::bad_alloc" in text)
    )


def _train(
    job: Job,
    outcome: Outcome,
    workdir: Workdir,
    rank: int,
    world: int,
    should_stop: Callable[[], Observed | None],
) -> Outcome:
    from gepa_core.training.segment import prepare, train_segment

    prepare(job.exec)
    journal = workdir.path / "events.jsonl"
    tokens_per_step = job.config.batch.tokens_per_step
    if rank == 0:
        resumed = workdir.adopt(job.resume)
        how = _execution(job, world, outcome)
        breaks = _breaks_at_resuming(job, resumed, how)
        emit(
            journal,
            "started",
            pid=os.getpid(),
            step=resumed or job.identity["start"],
            until=job.until,
            resumed_at=resumed,
            execution=how,
            breaks=breaks,
        )

    def on_report(report: Any) -> None:
        emit(journal, "report", **asdict(report), train_tokens=report.step * tokens_per_step)
        print(report, flush=True)

    segment = train_segment(
        job.config,
        job.data,
        job.exec,
        start=workdir.fetch(job.start) if job.start and rank == 0 else None,
        until=job.until,
        workdir=workdir.path,
        on_report=on_report,
        should_stop=lambda: should_stop() is not None,
        final_step=job.final,
    )
    if rank != 0:
        return outcome
    result = {
        "step": segment.step,
        "train_loss_final": segment.train_loss,
        "train_seconds": segment.train_seconds,
        "tokens_per_second": segment.tokens_per_second,
        "peak_memory_bytes": segment.peak_memory_bytes,
        "train_shard_tokens": _shard_tokens(job.data.train),
    }
    execution = {"micro_batch_seqs": segment.micro_batch_seqs, "breaks": breaks}
    outcome = replace(outcome, result=result, execution=execution)
    if not segment.finished:
        emit(journal, "stopped", step=segment.step)
        return replace(outcome, status=should_stop() or Observed.STOPPED)
    emit(journal, "finished", step=segment.step)
    (workdir.path / "checkpoints" / str(segment.step)).rename(workdir.path / FINAL_STATE)
    rows = [{key: row.get(key) for key in TRAJECTORY.names} for row in reports(journal.read_bytes())]
    workdir.write("trajectory.parquet", to_parquet(rows, TRAJECTORY))
    return outcome


def differences(before: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    """In what two executions differ that may change the bits."""
    return [
        f"{key}: {before.get(key)} before, then {then.get(key)}"
        for key in _BITS_DEPEND_ON
        if before.get(key) != then.get(key)
    ]


def _breaks_at_resuming(job: Job, resumed: int | None, how: Mapping[str, Any]) -> list[str]:
    """In what the attempt differs from the one it goes on from, and that one from those before it."""
    if resumed is None:
        return []
    saved = next(path for path in job.resume if path.endswith(f"/{resumed}"))
    journal = job.store.files.read(f"{saved.rpartition('/checkpoints/')[0]}/events.jsonl") or b""
    started = next((event for event in events(journal) if event["event"] == "started"), {})
    return [*started.get("breaks", ()), *differences(started.get("execution", how), how)]


def _stage(job: Job, workdir: Workdir, rank: int) -> dict[str, Any]:
    """Result columns of an evaluation or of quantization."""
    from gepa_core.training.segment import prepare

    device = prepare(job.exec)
    source = workdir.fetch(job.start or "")
    if job.kind == "quantize":
        return _quantize(job, source, workdir, rank)
    model = _model(job, source).to(device)
    tokens, table = _validation(job.data, job.config)
    from gepa_core.evaluation.scoring import evaluate_plain, evaluate_sliding
    from gepa_core.evaluation.ttt import test_time_train
    from gepa_core.submission.bundle import code_bytes

    result: dict[str, Any] = {}
    if job.kind == "ttt":
        adapted = test_time_train(model, tokens, table, job.config.eval, job.config.ttt, job.exec)
        evaluation = adapted.evaluation
        # Runs that differ in their TTT alone share a quantize stage, but not the script.
        result |= {"ttt_seconds": evaluation.seconds, "code_bytes": code_bytes(job.config)}
    else:
        evaluate = evaluate_sliding if job.kind == "int6_sliding" else evaluate_plain
        evaluation = evaluate(model, tokens, table, job.config.eval, job.exec)
        result["eval_seconds"] = evaluation.seconds
    blocks = evaluation.blocks
    columns = zip(blocks.tokens.tolist(), blocks.bytes.tolist(), blocks.nll.tolist(), strict=True)
    rows = [
        {"stage": job.kind, "block": i, "tokens": tokens_, "bytes": bytes_, "nll": nll}
        for i, (tokens_, bytes_, nll) in enumerate(columns)
    ]
    if rank == 0:
        workdir.write("blocks.parquet", to_parquet(rows, BLOCKS))
    return result | {
        f"{job.kind}_bpb": evaluation.bpb,
        "tokens": evaluation.tokens,
        "bytes": evaluation.bytes,
    }


def _model(job: Job, source: Path) -> Any:
    """The model a stage measures: raw or EMA weights of a state, or the decoded artifact."""
    from gepa_core.model.gepa import GEPA
    from gepa_core.quantization.artifact import check_fits, read_artifact
    from gepa_core.training.trained import load_model

    if job.kind in ("float", "ema"):
        return load_model(source, average=job.kind == "ema")[0]
    model = GEPA(job.config.model)
    state = read_artifact(source)
    check_fits(state, model.state_dict())
    model.load_state_dict(state)
    return model


def _quantize(job: Job, source: Path, workdir: Workdir, rank: int) -> dict[str, Any]:
    from gepa_core.device import resolve_device
    from gepa_core.submission.compress import compress
    from gepa_core.training.trained import load_model

    if rank != 0:  # not worth sharing out
        return {}
    model, _ = load_model(source, average=True)
    done = compress(model.to(resolve_device(job.exec)), job.config, job.data.train, workdir.path / ARTIFACT)
    return done.figures() | {"quant_mse": done.quantized.report.mse}


@lru_cache(maxsize=1)
def _validation(paths: DataPaths, config: RunConfig) -> Any:
    """(tokens, byte table), kept for the stages that follow on this worker."""
    from gepa_core.data.shards import load_tokens, open_shards
    from gepa_core.data.tokenizer import byte_table

    limit = config.data.val_tokens
    tokens = load_tokens(open_shards(paths.val), None if limit is None else limit + 1)
    return tokens, byte_table(paths.tokenizer, config.model.vocab_size)


@lru_cache(maxsize=8)
def _shard_tokens(pattern: str) -> int:
    from gepa_core.data.shards import open_shards

    return open_shards(pattern).total


def _result_files(job: Job, folder: Path) -> list[str]:
    if job.kind == SEGMENT:
        return ["trajectory.parquet", FINAL_STATE]
    return [ARTIFACT] if job.kind == "quantize" else ["blocks.parquet"]


def _execution(job: Job, world: int, outcome: Outcome) -> dict[str, Any]:
    """How it was executed, for the record and for telling breaks of bit identity."""
    import socket

    import torch

    from gepa_core.device import resolve_device
    from gepa_core.training.batches import micro_batch_seqs

    device = resolve_device(job.exec)
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "ranks": world,
        "threads": torch.get_num_threads(),
        "torch_version": torch.__version__,
        "deterministic": job.exec.deterministic,
        "micro_batch_seqs": micro_batch_seqs(
            job.config.batch, job.config.model.width, job.exec.micro_batch_seqs, device
        ),
        **job.launch,
        **outcome.execution,
    }


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]
