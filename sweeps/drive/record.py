"""What a sweep leaves behind: makes attempts into results, and results into the sweep's tables.

Rule of deletion: checkpoints on the way go when their segment is committed; a run's final state goes when all
stages that start from it are done (its artifact stays); states on a trunk stay, for a sweep to be extended.
"""

import contextlib
import time
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gepa_core.config import DataPaths, canonical_json
from sweeps.drive.progress import View, log_tail
from sweeps.plan.speeds import num_params
from sweeps.plan.tree import Plan, RunPlan, Segment
from sweeps.store.files import StorageError
from sweeps.store.lock import Lease
from sweeps.store.schema import from_parquet
from sweeps.store.store import CommitError, Outcome, Store, new_attempt
from sweeps.work.execute import ARTIFACT, SEGMENT, Job, differences

_WRITE_SECONDS = 5.0
_BPB_STAGES = ("float", "ema", "int6", "int6_sliding", "ttt")


class SweepRecorder:
    """The driver's Recorder over a store. Every write is made under the sweep's lease."""

    def __init__(self, store: Store, plan: Plan, lease: Lease, view: View, facts: dict[str, Any]) -> None:
        """`facts`: what the records of this launch's attempts are to say of it (commit)."""
        self.store, self.plan, self.lease, self.view, self.facts = store, plan, lease, view, facts
        self.folder = store.sweep(plan.sweep.name)
        self.done: dict[str, Outcome] = {}
        self.given_up: dict[str, tuple[str, str]] = {}
        """Run -> status and error."""
        self.attempt_of: dict[str, str] = {}
        self.runs_of = runs_by_node(plan)
        self._dirty = True
        self._written = float("-inf")

    def load(self, retry_failed: bool) -> None:
        """Take over what the store has: results, attempts that ended unseen, an earlier launch's failures."""
        known = self.store.all_done(node for node, _ in self.plan.nodes())
        for id_, outcome in known.items():
            if id_ in self.plan.done or outcome.kind != SEGMENT or self.store.final_state(outcome):
                self.done[id_] = outcome
        for node, after in self.plan.nodes():
            if node not in known and (after is None or after in self.done):
                self._commit_unseen(node)
        for outcome in self.done.values():
            self._publish(outcome, missing_only=True)
            if outcome.kind == SEGMENT:
                self._drop_states(outcome)
        for run_id, run in self.plan.runs.items():
            if self.folder.block_stages(run_id) != {done.kind for done in self._measured(run)}:
                self._write_blocks(run_id)
        if not retry_failed:
            for row in self.folder.read_runs() or []:
                if row["status"] in ("failed", "diverged") and row["run_id"] in self.plan.runs:
                    self.given_up[row["run_id"]] = row["status"], row["error"] or ""

    def _commit_unseen(self, node: str) -> None:
        for outcome in self.store.finished_attempts(node):
            with contextlib.suppress(CommitError):
                self.commit(outcome)
                return

    def job(self, node: str, micro_batch_seqs: int | None) -> Job:
        """A new attempt, which goes on from the furthest checkpoint of those with the same micro-batch."""
        sweep = self.plan.sweep
        segment = self.plan.segments.get(node)
        exec_cfg = sweep.exec
        if micro_batch_seqs is not None:
            limit = {"micro_batch_seqs": micro_batch_seqs, "eval_batch_seqs": micro_batch_seqs}
            exec_cfg = exec_cfg.model_copy(update=limit)
        item = segment or self.plan.stages[node]
        job = Job(
            id=node,
            kind=SEGMENT,
            attempt=new_attempt(),
            store=self.store,
            config=item.config,
            data=_absolute(sweep.paths_of(item.config)),
            exec=exec_cfg,
            identity={},
            start=self._start(node),
            launch={**self.facts, "gpus": sweep.resources.gpus_per_run},
        )
        if segment is None:
            stage = self.plan.stages[node]
            config = stage.config.model_dump(mode="json")
            identity = {"kind": stage.kind, "after": stage.after, "config": config}
            job = replace(job, kind=stage.kind, identity=identity)
        else:
            job = replace(
                job,
                identity=segment_identity(segment),
                until=segment.stop,
                final=segment.final,
                resume=self._resumable(node, exec_cfg.micro_batch_seqs),
            )
        self.attempt_of[node] = job.attempt
        path = f"{self.store.attempt_path(node, job.attempt)}/attempt.json"
        self.store.files.put(path, canonical_json({"micro_batch_seqs": exec_cfg.micro_batch_seqs}).encode())
        return job

    def _start(self, node: str) -> str | None:
        """Path of the state or artifact that a node starts from."""
        segment = self.plan.segments.get(node)
        after = segment.parent if segment else self.plan.stages[node].after
        if after is None:
            return None
        done = self.done[after]
        if after in self.plan.segments:
            if (state := self.store.final_state(done)) is None:
                raise StorageError(
                    f"the final state of {after} is gone; give the same command again to remake it"
                )
            return state
        return f"{self.store.attempt_path(after, done.attempt)}/{ARTIFACT}"

    def _resumable(self, node: str, micro_batch_seqs: int | None) -> tuple[str, ...]:
        wanted = canonical_json({"micro_batch_seqs": micro_batch_seqs}).encode()
        states = self.store.saved_states(node)
        same = {
            attempt
            for attempt in {state.attempt for state in states}
            if self.store.files.read(f"{self.store.attempt_path(node, attempt)}/attempt.json") == wanted
        }
        return tuple(state.path for state in states if state.attempt in same)

    def commit(self, outcome: Outcome) -> None:
        self.lease.check()
        breaks = dict.fromkeys([*outcome.execution.get("breaks", ()), *self._breaks(outcome)])
        outcome = replace(outcome, execution={**outcome.execution, "breaks": list(breaks)})
        winner = self.store.commit(outcome)
        self.done[outcome.id] = winner
        self.store.prune(winner)
        self._publish(winner)
        self._drop_states(winner)
        self._dirty = True
        self.view.show("finished", outcome.id, outcome=winner)

    def _breaks(self, outcome: Outcome) -> list[str]:
        """In what the execution differs from that of the state it started from: there bit identity ends."""
        segment = self.plan.segments.get(outcome.id)
        before = self.done.get(segment.parent or "") if segment else None
        if before is None:
            return []
        if not before.execution:
            return ["it starts from an adopted state, of which is not known how it was executed"]
        return differences(before.execution, outcome.execution)

    def _publish(self, done: Outcome, missing_only: bool = False) -> None:
        """Bring the sweep's folder up to date with a committed segment or stage."""
        runs = self.runs_of[done.id]
        if done.kind == SEGMENT:
            if not (missing_only and self.folder.has(f"trajectory/{done.id}.parquet")):
                owner = runs[0] if len(runs) == 1 and not self.plan.segments[done.id].trunk else None
                rows = from_parquet(self.store.read_file(done, "trajectory.parquet"))
                self.folder.write_trajectory(done.id, owner, rows)
        elif done.kind == "quantize":
            for run_id in runs:
                if not (missing_only and self.folder.has(f"artifacts/{run_id}.int6")):
                    self.folder.write_artifact(run_id, self.store.read_file(done, ARTIFACT))
        elif not missing_only:
            for run_id in runs:
                self._write_blocks(run_id)

    def _measured(self, run: RunPlan) -> list[Outcome]:
        """The stages of a run that are done and have a BPB."""
        done = (self.done[stage] for stage in run.stages if stage in self.done)
        return [outcome for outcome in done if outcome.kind in _BPB_STAGES]

    def _write_blocks(self, run_id: str) -> None:
        measured = self._measured(self.plan.runs[run_id])
        files = (self.store.read_file(done, "blocks.parquet") for done in measured)
        self.folder.write_blocks(run_id, [row for data in files for row in from_parquet(data)])

    def _drop_states(self, done: Outcome) -> None:
        """Delete the final state that `done` needed and nothing else needs any more."""
        stage = self.plan.stages.get(done.id)
        segment = self.plan.segments.get(stage.after if stage else done.id)
        if segment is None or segment.trunk or segment.id not in self.done:
            return
        if all(child in self.done for child in self.plan.children.get(segment.id, [])):
            self.store.drop_state(self.done[segment.id])

    def progress_step(self, node: str) -> int | None:
        if node not in self.plan.segments:
            return None
        states = self.store.saved_states(node)
        return states[0].step if states else None

    def give_up(self, node: str, status: str, error: str) -> None:
        for run_id in self.runs_of[node]:
            self.given_up.setdefault(run_id, (status, error))
        self._dirty = True

    def note(self, what: str, node: str, **facts: Any) -> None:
        if node:
            facts["attempt"] = attempt = self.attempt_of.get(node, "")
            if what in ("retry", "fail", "diverge"):
                facts["log"] = log_tail(self.store, node, attempt)
        self.view.show(what, node, **facts)

    def tick(self) -> None:
        self.lease.check()
        self.view.refresh()
        if self._dirty and time.monotonic() - self._written > _WRITE_SECONDS:
            self.write_runs()

    def write_runs(self) -> None:
        self.lease.check()
        sweep = self.plan.sweep
        values = {run_id: sweep.axis_values(run.config) for run_id, run in self.plan.runs.items()}
        rows = [{**self.row(run_id), **values[run_id]} for run_id in self.plan.runs]
        axes = {axis: [row[axis] for row in values.values()] for axis in sweep.axes}
        self.folder.write_runs(rows, axes)
        self._dirty, self._written = False, time.monotonic()

    def status(self, run_id: str) -> str:
        if run_id in self.given_up:
            return self.given_up[run_id][0]
        run = self.plan.runs[run_id]
        return "done" if all(node in self.done for node in (run.last, *run.stages)) else "pending"

    def row(self, run_id: str) -> dict[str, Any]:
        """A row of runs.parquet; what is not known yet is left out."""
        run = self.plan.runs[run_id]
        config, sweep = run.config, self.plan.sweep
        chain = [self.done[node] for node in self.plan.segments_of(run_id) if node in self.done]
        stages = [self.done[node] for node in run.stages if node in self.done]
        last = self.done.get(run.last)
        row: dict[str, Any] = {
            "run_id": run_id,
            "sweep": sweep.name,
            "status": self.status(run_id),
            "error": self.given_up.get(run_id, (None, None))[1],
            **{key: getattr(config, key) for key in _CONFIG_COLUMNS},
            "params": num_params(config.model),
            "gpus": sweep.resources.gpus_per_run,
            "ranks": sweep.ranks,
            "data_fingerprint": config.data.train,
            "config_json": canonical_json(config.model_dump(mode="json")),
            **self.facts,
        }
        for done in stages:
            row |= {key: done.result[key] for key in _STAGE_COLUMNS if key in done.result}
        row |= _sums(stages)
        if last is not None:
            row["train_loss_final"] = last.result.get("train_loss_final")
            if shard_tokens := last.result.get("train_shard_tokens"):
                row["epochs"] = config.train_tokens / shard_tokens
            if all("train_seconds" in done.result for done in chain):  # not of an adopted checkpoint
                row["train_seconds"] = sum(done.result["train_seconds"] for done in chain)
            row |= {key: last.execution[key] for key in _EXECUTION_COLUMNS if key in last.execution}
        own = [done for done in (*chain, *stages) if len(self.runs_of[done.id]) == 1]
        shared = [done for done in (*chain, *stages) if len(self.runs_of[done.id]) > 1]
        if chain:
            row["gpu_seconds_own"] = self._device_seconds(own)
            row["gpu_seconds_shared"] = self._device_seconds(shared)
            row["started_at"] = _utc(min(done.started_at for done in own or chain))
        if row["status"] == "done":
            row["finished_at"] = _utc(max(done.started_at + done.seconds for done in (*chain, *stages)))
        return row

    def _device_seconds(self, done: Iterable[Outcome]) -> float:
        """Of committed attempts; training before an interruption included."""
        return sum(self._devices(o) * max(o.seconds, o.result.get("train_seconds", 0.0)) for o in done)

    def _devices(self, done: Outcome) -> float:
        """That it occupied; those of this launch where its record, an old one, does not tell."""
        if "gpus" not in done.execution:
            return devices(self.plan)
        return done.execution["gpus"] or float(done.execution["ranks"])


_CONFIG_COLUMNS = (
    "seed",
    "steps",
    "peak_steps",
    "warmdown_steps",
    "warmdown_ratio",
    "schedule",
    "train_tokens",
)
_EXECUTION_COLUMNS = ("gpus", "ranks", "device", "torch_version", "commit")
"""Of the run's last segment; where its record, an old one, does not tell, those of this launch."""
_STAGE_COLUMNS = (
    *(f"{stage}_bpb" for stage in _BPB_STAGES),
    "artifact_bytes",
    "code_bytes",
    "quant_rows_at_floor",
    "quant_rows",
    "quantized_fraction",
)


def devices(plan: Plan) -> float:
    """Devices a lease occupies: GPUs, or CPU workers where there are none."""
    return plan.sweep.resources.gpus_per_run or float(plan.sweep.ranks)


def segment_identity(segment: Segment) -> dict[str, Any]:
    """What a DONE record says of a segment's place in the tree."""
    return {
        "parent": segment.parent,
        "trunk_id": segment.trunk_id,
        "start": segment.start,
        "stop": segment.stop,
        "trunk": segment.trunk,
        "config": segment.config.model_dump(mode="json"),
    }


def runs_by_node(plan: Plan) -> dict[str, list[str]]:
    """The runs that need each segment and stage."""
    runs: dict[str, list[str]] = {node: [] for node, _ in plan.nodes()}
    for run_id, run in plan.runs.items():
        for node in (*plan.segments_of(run_id), *run.stages):
            runs[node].append(run_id)
    return runs


def _sums(stages: list[Outcome]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for key in ("eval_seconds", "ttt_seconds"):
        values = [done.result[key] for done in stages if key in done.result]
        sums |= {key: sum(values)} if values else {}
    return sums


def _absolute(paths: DataPaths) -> DataPaths:
    """Workers have another working directory."""
    return DataPaths(**{key: str(Path(value).absolute()) for key, value in paths.model_dump().items()})


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
