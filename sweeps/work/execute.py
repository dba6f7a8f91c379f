"""One node, executed in a worker process by the module its kind names.

Every rank of a lease calls `execute` with the same job. Rank 0 writes the attempt's folder; another rank only
a log of its own. Whatever happens is told as an Outcome: nothing but a lost process goes without one.
"""

import gc
import importlib
import logging
import os
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gepa_core.errors import ArtifactError, DivergedError, UserError
from sweeps.kinds.table import KINDS
from sweeps.store.patience import StorageError, is_full, is_storage_fault
from sweeps.store.schema import TRAJECTORY, to_parquet
from sweeps.store.store import Outcome, checksums
from sweeps.work.job import Attempt, Job
from sweeps.work.policy import Observed
from sweeps.work.workdir import Workdir, captured_output


def warm_up() -> None:
    """Imports that cost seconds, before the first job needs them."""
    import torch

    torch.optim.AdamW([torch.zeros(1)])  # the first optimizer imports torch's compiler
    to_parquet([], TRAJECTORY)  # the first table imports pandas


def execute(
    job: Job,
    rank: int,
    world: int,
    should_stop: Callable[[], Observed | None],
    scratch: Path,
    meeting: tuple[str, int] | None = None,
) -> Outcome:
    """Runs the job on this rank; the rank's own outcome. `scratch`: a local folder of this worker.

    `meeting`: address and port for the processes of a script that runs on several nodes.
    """
    started = time.time()
    begun = time.perf_counter()
    workdir = Workdir(job.store, job.store.attempt_path(job.id, job.attempt), scratch)
    outcome = Outcome(job.id, job.attempt, job.kind, "finished", identity=job.identity, started_at=started)
    at = Attempt(job, workdir, rank, world, should_stop, outcome, meeting)
    log = "log.txt" if rank == 0 else f"log.{rank}.txt"
    try:
        with workdir.mirrored(), captured_output(workdir.path / log):
            outcome = _attempt(at)
            if rank == 0:
                seconds = time.perf_counter() - begun
                outcome = replace(outcome, seconds=seconds, execution=_execution(at, outcome))
                if outcome.status == "finished":
                    outcome = replace(outcome, files=checksums(workdir.path, KINDS[job.kind].files))
                workdir.write("outcome.json", outcome.to_json())
                if outcome.error:
                    gc.collect()  # an exception's frames may hold the tensors that memory was short for
                    logging.getLogger(__name__).error("%s: %s", outcome.status, outcome.error)
        return outcome
    except (OSError, StorageError) as error:  # the workdir itself could not be written
        status = Observed.DISK_FULL if is_full(error) else Observed.STORAGE
        return replace(outcome, status=status, error=str(error), files={})


def _attempt(at: Attempt) -> Outcome:
    """The work, with whatever goes wrong turned into a status."""
    from gepa_core.training.checkpoint import DamagedError

    try:
        done: Outcome = _module(at.job).run(at)
        return done
    except Exception as error:
        status, text = observed(error), _first_line(error)
        if at.job.start and isinstance(error, DamagedError | ArtifactError):
            status = Observed.DAMAGED  # the driver looks whether it is what it started from
        if status is Observed.DISK_FULL and not text.startswith("disk full"):
            text = f"disk full: cannot write {at.workdir.path}: {text}; free some space, then give the same "
            text += "command again"
        if status is Observed.CRASHED:
            traceback.print_exc()
            text = f"{type(error).__name__}: {text}"
        return replace(at.outcome, status=status, error=str(error) if isinstance(error, UserError) else text)


def _module(job: Job) -> Any:
    return importlib.import_module(KINDS[job.kind].work)


def _execution(at: Attempt, outcome: Outcome) -> dict[str, Any]:
    """How it was executed, for the record."""
    here = {"host": socket.gethostname(), "pid": os.getpid()}
    return {**here, **_module(at.job).execution(at), **at.job.launch, **outcome.execution}


def observed(error: Exception) -> Observed:
    """What an exception in the midst of the work says of its end."""
    if isinstance(error, DivergedError):
        return Observed.DIVERGED
    if is_full(error):
        return Observed.DISK_FULL
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


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]
