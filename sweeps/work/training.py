"""A stretch of training: from a state, or the initial weights, to the state at the node's last step."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import lru_cache
from typing import Any

from sweeps.kinds.kind import FINAL_STATE, TRAJECTORY
from sweeps.store.journal import emit, events, reports
from sweeps.store.schema import TRAJECTORY as COLUMNS
from sweeps.store.schema import to_parquet
from sweeps.store.store import Outcome
from sweeps.work.job import Attempt, Job, differences
from sweeps.work.policy import Observed
from sweeps.work.torch_process import execution

__all__ = ["execution", "run"]


def run(at: Attempt) -> Outcome:
    """Trains, from the furthest checkpoint of earlier attempts if there is one; `stopped` where asked to."""
    from gepa_core.training.segment import prepare, train_segment

    job, workdir = at.job, at.workdir
    prepare(job.exec)
    journal = workdir.path / "events.jsonl"
    tokens_per_step = job.recipe.batch.tokens_per_step
    if at.rank == 0:
        resumed = workdir.adopt(job.resume)
        how = execution(at)
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
        job.recipe,
        job.paths,
        job.exec,
        start=at.source() if job.start and at.rank == 0 else None,
        until=job.until,
        workdir=workdir.path,
        on_report=on_report,
        should_stop=lambda: at.should_stop() is not None,
        final_step=job.final,
        averages=job.averages,
    )
    if at.rank != 0:
        return at.outcome
    result = {
        "step": segment.step,
        "train_loss_final": segment.train_loss,
        "train_seconds": segment.train_seconds,
        "tokens_per_second": segment.tokens_per_second,
        "peak_memory_bytes": segment.peak_memory_bytes,
        "train_shard_tokens": _shard_tokens(job.paths.train),
    }
    used = {"micro_batch_seqs": segment.micro_batch_seqs, "breaks": breaks}
    outcome = replace(at.outcome, result=result, execution=used)
    if not segment.finished:
        emit(journal, "stopped", step=segment.step)
        return replace(outcome, status=at.should_stop() or Observed.STOPPED)
    emit(journal, "finished", step=segment.step)
    (workdir.path / "checkpoints" / str(segment.step)).rename(workdir.path / FINAL_STATE)
    rows = [{key: row.get(key) for key in COLUMNS.names} for row in reports(journal.read_bytes())]
    for row in rows:
        by_average = row["ema_val_bpb_by_average"]
        row["ema_val_bpb_by_average"] = None if by_average is None else json.dumps(by_average)
    workdir.write(TRAJECTORY, to_parquet(rows, COLUMNS))
    return outcome


def _breaks_at_resuming(job: Job, resumed: int | None, how: Mapping[str, Any]) -> list[str]:
    """In what the attempt differs from the one it goes on from, and that one from those before it."""
    if resumed is None:
        return []
    saved = next(path for path in job.resume if path.endswith(f"/{resumed}"))
    path = f"{saved.rpartition('/checkpoints/')[0]}/events.jsonl"
    told = events(job.store.files.read(path) or b"", job.store.files.describe(path))
    started = next((event for event in told if event["event"] == "started"), {})
    return [*started.get("breaks", ()), *differences(started.get("execution", how), how)]


@lru_cache(maxsize=8)
def _shard_tokens(pattern: str) -> int:
    from gepa_core.data.shards import open_shards

    return open_shards(pattern).total
