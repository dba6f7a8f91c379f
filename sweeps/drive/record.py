"""What a sweep leaves behind: makes attempts into results, and results into the sweep's tables.

Rule of deletion: checkpoints on the way go when their segment is committed; a run's final state goes when all
stages that start from it are done (its artifact stays); states on a trunk stay, for a sweep to be extended.
`keep: final` keeps the final states too, `keep: all` the checkpoints as well.
"""

import contextlib
import time
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gepa_core.config import DataPaths, RunConfig, canonical_json
from gepa_core.sizes import num_params
from sweeps.drive.progress import View, log_tail
from sweeps.drive.scripts import OUTPUT_PREFIX, ReadLog, script_how, script_row, with_curve, with_figures
from sweeps.kinds.kind import ARTIFACT, BLOCKS, FINAL_STATE, SCRIPT_LOG, TRAJECTORY
from sweeps.kinds.table import KINDS, STAGE_COLUMNS
from sweeps.plan.tree import Plan, RunPlan
from sweeps.store import requests, schema
from sweeps.store.files import StorageError
from sweeps.store.lock import Lease
from sweeps.store.records import RecordError
from sweeps.store.store import CommitError, Outcome, Store, new_attempt
from sweeps.work.job import Job, differences

_WRITE_SECONDS = 5.0
_ASK_SECONDS = 2.0


class SweepRecorder:
    """The driver's Recorder over a store. Every write is made under the sweep's lease."""

    def __init__(
        self,
        store: Store,
        plan: Plan,
        lease: Lease,
        view: View,
        facts: dict[str, Any],
        read_log: ReadLog | None = None,
    ) -> None:
        """`facts`: what the records of this launch's attempts are to say of it (commit).

        `read_log`: finds the figures in a script's log.
        """
        self.store, self.plan, self.lease, self.view, self.facts = store, plan, lease, view, facts
        self.read_log = read_log
        self.folder = store.sweep(plan.sweep.name)
        self.done: dict[str, Outcome] = {}
        self.given_up: dict[str, tuple[str, str]] = {}
        """Run -> status and error."""
        self.attempt_of: dict[str, str] = {}
        self.runs_of = plan.runs_of
        self.dropped: list[Outcome] = []
        """Trainings whose final states this launch deleted."""
        self._dirty = True
        self._written = self._asked = float("-inf")

    def load(self, retry_failed: bool) -> None:
        """Take over what the store has: results, attempts that ended unseen, an earlier launch's failures."""
        for run_id in requests.asked_to_stop(self.store, self.folder.name):
            requests.answer_stop(self.store, self.folder.name, run_id)  # of a driver that is gone
        known = self.store.all_done(self.plan.nodes)
        for id_, outcome in known.items():
            needs_state = self.plan.kind(id_).gives == FINAL_STATE
            if id_ in self.plan.done or not needs_state or self.store.final_state(outcome):
                self.done[id_] = outcome
        for node in self.plan.nodes.values():
            if node.id not in known and self.plan.can_start(node.id, self.done):
                self._commit_unseen(node.id)
        for outcome in self.done.values():
            self._publish(outcome, missing_only=True)
            if self.plan.nodes[outcome.id].trains:
                self._drop_states(outcome)
        for run_id, run in self.plan.runs.items():
            if self.folder.block_stages(run_id) != {done.kind for done in self._measured(run)}:
                self._write_blocks(run_id)
        if not retry_failed:
            for row in self._rows():
                if row["status"] not in ("failed", "diverged") or row["run_id"] not in self.plan.runs:
                    continue
                if not self.done.keys() >= set(self.plan.nodes_of(row["run_id"])):
                    self.given_up[row["run_id"]] = row["status"], row["error"] or ""

    def _rows(self) -> list[dict[str, Any]]:
        """Of an earlier launch's runs.parquet, which this launch writes anew."""
        try:
            return self.folder.read_runs() or []
        except RecordError as error:
            self.note("say", "", text=f"{error}: now; runs that failed before are tried again")
            return []

    def _commit_unseen(self, node: str) -> None:
        for outcome in self.store.finished_attempts(node):
            if altered := self.store.altered(outcome):
                text = f"{altered} was altered since it was written: that attempt does not count"
                self.note("say", "", text=text)
                continue
            with contextlib.suppress(CommitError):
                self.commit(outcome)
                return

    def job(self, node: str, micro_batch_seqs: int | None) -> Job:
        """A new attempt, which goes on from the furthest checkpoint of those with the same micro-batch."""
        sweep, work = self.plan.sweep, self.plan.nodes[node]
        exec_cfg = sweep.exec
        if micro_batch_seqs is not None:
            limit = {"micro_batch_seqs": micro_batch_seqs, "eval_batch_seqs": micro_batch_seqs}
            exec_cfg = exec_cfg.model_copy(update=limit)
        resumes = self.plan.kind(node).resumes
        job = Job(
            id=node,
            kind=work.kind,
            attempt=new_attempt(),
            store=self.store,
            config=work.config,
            data=_absolute(sweep.paths_of(work.config)) if isinstance(work.config, RunConfig) else None,
            exec=exec_cfg,
            identity=work.identity(),
            start=self._start(work.after) if work.after else None,
            sources=tuple(self._start(source) for source in work.sources),
            averages=work.averages,
            until=work.stop,
            final=work.final,
            resume=self._resumable(node, exec_cfg.micro_batch_seqs) if resumes else (),
            script=script_how(sweep) if sweep.script else None,
            launch={**self.facts, "gpus": sweep.resources.gpus_per_run},
        )
        self.attempt_of[node] = job.attempt
        path = f"{self.store.attempt_path(node, job.attempt)}/attempt.json"
        self.store.files.put(path, canonical_json({"micro_batch_seqs": exec_cfg.micro_batch_seqs}).encode())
        return job

    def _start(self, after: str) -> str:
        """Path of what the node `after` gives: a state, or an artifact."""
        done, gives = self.done[after], self.plan.kind(after).gives
        if gives != FINAL_STATE:
            return f"{self.store.attempt_path(after, done.attempt)}/{gives}"
        if (state := self.store.final_state(done)) is None:
            raise StorageError(
                f"the final state of {after} is gone; give the same command again to remake it"
            )
        return state

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
        if self.read_log and self._has_curve(outcome) and not self.plan.nodes[outcome.id].trunk:
            outcome = with_figures(self.store, self.plan.nodes[outcome.id], outcome, self.read_log)
        winner = self.store.commit(outcome)
        self.done[outcome.id] = winner
        if self.plan.sweep.keep != "all":
            self.store.prune(winner)
        self._publish(winner)
        self._drop_states(winner)
        self._dirty = True
        self.view.show("finished", outcome.id, outcome=winner)

    @staticmethod
    def _has_curve(outcome: Outcome) -> bool:
        """Whether it is a script that trained, and its log can tell more of that."""
        return SCRIPT_LOG in outcome.files and TRAJECTORY in outcome.files

    def _breaks(self, outcome: Outcome) -> list[str]:
        """In what the execution differs from that of the state it started from: there bit identity ends."""
        node = self.plan.nodes[outcome.id]
        before = self.done.get(node.after or "") if node.trains else None
        if before is None:
            return []
        if not before.execution:
            return ["it starts from an adopted state, of which is not known how it was executed"]
        return differences(before.execution, outcome.execution)

    def _publish(self, done: Outcome, missing_only: bool = False) -> None:
        """Bring the sweep's folder up to date with a committed node, by the files it has."""
        runs, files = self.runs_of[done.id], done.files
        if TRAJECTORY in files and not (missing_only and self.folder.has(f"trajectory/{done.id}.parquet")):
            owner = runs[0] if len(runs) == 1 and not self.plan.nodes[done.id].trunk else None
            rows = schema.from_parquet(self.store.read_file(done, TRAJECTORY), schema.TRAJECTORY)
            if self.read_log and self._has_curve(done):
                rows = with_curve(self.store, self.plan.nodes[done.id], done, rows, self.read_log)
            self.folder.write_trajectory(done.id, owner, rows)
        for run_id in runs:
            if ARTIFACT in files and not (missing_only and self.folder.has(f"artifacts/{run_id}.int6")):
                self.folder.write_artifact(run_id, self.store.read_file(done, ARTIFACT))
            if BLOCKS in files and not missing_only:
                self._write_blocks(run_id)

    def _measured(self, run: RunPlan) -> list[Outcome]:
        """The stages of a run that are done and have blocks."""
        done = (self.done[stage] for stage in run.stages if stage in self.done)
        return [outcome for outcome in done if BLOCKS in outcome.files]

    def _write_blocks(self, run_id: str) -> None:
        measured = self._measured(self.plan.runs[run_id])
        files = (self.store.read_file(done, "blocks.parquet") for done in measured)
        rows = [row for data in files for row in schema.from_parquet(data, schema.BLOCKS)]
        self.folder.write_blocks(run_id, rows)

    def _drop_states(self, done: Outcome) -> None:
        """Delete the final state that `done` needed and nothing else needs any more."""
        node = self.plan.nodes[done.id]
        owner = node if node.trains else self.plan.nodes.get(node.after or "")
        if (
            owner is None
            or owner.trunk
            or owner.id not in self.done
            or self.plan.kind(owner.id).gives != FINAL_STATE
        ):
            return
        if self.plan.sweep.keep != "artifacts":
            return
        if all(child in self.done for child in self.plan.children.get(owner.id, [])):
            if self.store.final_state(self.done[owner.id]) is not None:
                self.dropped.append(self.done[owner.id])
            self.store.drop_state(self.done[owner.id])

    def progress_step(self, node: str) -> int | None:
        if not self.plan.kind(node).resumes:
            return None
        states = self.store.saved_states(node)
        return states[0].step if states else None

    def give_up(self, node: str, status: str, error: str) -> None:
        for run_id in self.runs_of[node]:
            self.given_up.setdefault(run_id, (status, error))
        self._dirty = True

    def set_aside(self, node: str, told: str) -> str | None:
        after = self.plan.nodes[node].after
        return self.store.set_aside(self.done[after], told) if after in self.done else None

    def note(self, what: str, node: str, **facts: Any) -> None:
        if node:
            facts["attempt"] = attempt = self.attempt_of.get(node, "")
            if what in ("retry", "fail", "diverge"):
                facts["log"] = log_tail(self.store, node, attempt, self.plan.kind(node).log)
        self.view.show(what, node, **facts)

    def tick(self) -> None:
        self.lease.check()
        self.view.refresh()
        if self._dirty and time.monotonic() - self._written > _WRITE_SECONDS:
            self.write_runs()

    def asked_to_stop(self) -> list[str]:
        """Runs of this sweep that a user asked to end since the last call; given up as they are heard of."""
        if time.monotonic() - self._asked < _ASK_SECONDS:
            return []
        self._asked = time.monotonic()
        heard = []
        for run_id in requests.asked_to_stop(self.store, self.folder.name):
            requests.answer_stop(self.store, self.folder.name, run_id)
            if run_id in self.plan.runs and self.status(run_id) == "pending":
                self.given_up[run_id] = "failed", "stopped, as asked for by `launch.py stop`"
                self.view.show("asked_to_stop", "", run_id=run_id)
                self._dirty = True
                heard.append(run_id)
        return heard

    def write_runs(self) -> None:
        self.lease.check()
        sweep = self.plan.sweep
        values = {run_id: sweep.axis_values(run.config) for run_id, run in self.plan.runs.items()}
        rows = [{**self.row(run_id), **values[run_id]} for run_id in self.plan.runs]
        axes = {axis: [row[axis] for row in values.values()] for axis in sweep.axes}
        for name in dict.fromkeys(key for row in rows for key in row if key.startswith(OUTPUT_PREFIX)):
            axes[name] = [row.get(name) for row in rows]
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
            **{key: getattr(config, key) for key in _CONFIG_COLUMNS if hasattr(config, key)},
            "gpus": sweep.resources.gpus_per_run,
            "ranks": sweep.ranks,
            "config_json": canonical_json(config.model_dump(mode="json")),
            **self.facts,
        }
        if isinstance(config, RunConfig):
            row |= {"params": num_params(config.model), "data_fingerprint": config.data.train}
        else:
            row |= {"data_fingerprint": config.data_fingerprint} | (
                script_row(self.store, last) if last else {}
            )
        for done in stages:
            row |= {key: done.result[key] for key in STAGE_COLUMNS if key in done.result}
        row |= _sums(stages)
        if last is not None:
            row["train_loss_final"] = last.result.get("train_loss_final")
            if (shard_tokens := last.result.get("train_shard_tokens")) and isinstance(config, RunConfig):
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
        """Devices it occupied; those of this launch where its record, an old one, does not say."""
        return self.plan.sweep.devices if done.devices is None else done.devices


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
"""From the record of the node that ended the training; this launch's where an old record does not say."""


def _sums(stages: list[Outcome]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for key in filter(None, {KINDS[done.kind].seconds for done in stages}):
        values = [done.result[key] for done in stages if key in done.result]
        sums |= {key: sum(values)} if values else {}
    return sums


def _absolute(paths: DataPaths) -> DataPaths:
    """Workers have another working directory."""
    return DataPaths(**{key: str(Path(value).absolute()) for key, value in paths.model_dump().items()})


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
