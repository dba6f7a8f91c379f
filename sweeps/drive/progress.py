"""What a running sweep shows, in words; plain lines. The live view of a terminal is in `live`."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from sweeps.drive.tally import VAL_LOSS, Tally
from sweeps.plan.tree import Plan
from sweeps.store.journal import reports
from sweeps.store.records import RecordError
from sweeps.store.redact import redacted
from sweeps.store.store import Outcome, Store

_LOG_TAIL_LINES, _LOG_TAIL_BYTES = 15, 1 << 14
_READ_SECONDS = 2.0
HEARTBEAT_SECONDS = 60.0
STAGE_NAMES = {"float": "raw", "ema": "EMA", "int6": "int6", "int6_sliding": "sliding", "ttt": "TTT"}
FIRST_HALF_MINUTE = (
    "Ray takes some 10 s to start, and each worker some 10 s to load torch and the data; then come the steps"
)


class View(Protocol):
    def show(self, what: str, node: str, **facts: Any) -> None:
        """Something happened to a node (or, node "", to the sweep)."""

    def refresh(self) -> None:
        """Called a few times a second."""

    def close(self) -> None:
        """The sweep has ended."""


def label(plan: Plan, node: str, run_id: str = "", short: bool = False) -> str:
    """A node by the name that `--plan` gives it. `run_id`: one that needs it."""
    work = plan.nodes[node]
    if not work.runs:
        return work.kind.replace("_", " ")
    if not work.trains:
        return f"{STAGE_NAMES.get(work.kind, work.kind)}  {run_id or work.runs[0]}"
    words = f"{work.start:,} → {work.stop:,}"
    if work.trunk:
        several = len({other.trunk_id for other in plan.segments.values()}) > 1
        return f"{words}  trunk" + (f", seed {work.config.seed}" if several else "")
    shape = "" if short else f"{work.config.schedule} over {work.config.warmdown_steps:,}  "
    return f"{words}  {shape}{_owner(work.runs)}"


def _owner(runs: tuple[str, ...]) -> str:
    return runs[0] if len(runs) == 1 else f"{len(runs)} runs"


def segment_text(outcome: Outcome) -> str:
    """What a finished stretch of training says of itself."""
    loss = outcome.result.get("train_loss_final")
    speed = outcome.result.get("tokens_per_second")
    words = [f"train_loss {loss:.4f}"] if loss is not None else []
    words += [f"{speed:,.0f} tokens/s"] if speed is not None else []
    return ", ".join([*words, f"{outcome.seconds:.1f} s"])


def trouble(name: str, what: str, facts: Mapping[str, Any]) -> str | None:
    """A line about what is not as it should be, or about the sweep as a whole; None for the rest."""
    error = facts.get("error") or facts.get("observed") or ""
    match what:
        case "retry":
            return f"retry    {name}: {error}"
        case "restart_smaller":
            return f"retry    {name}: out of memory; from its start with a smaller micro-batch: {error}"
        case "diverge":
            return f"diverged {name}: {error}"
        case "fail":
            return f"failed   {name}: {error}"
        case "leave" | "stop":
            return f"stopped  {name}"
        case "draining":
            reasons = {
                "interrupted": "interrupted: saving what runs (again to stop at once)",
                "budget": "the budget of GPU-hours is spent: saving what runs",
                "fail_fast": "stopping at the first failure: saving what runs",
                "damaged": "something to start from is damaged: saving what runs",
                "disk_full": "the disk is full: stopping what runs",
            }
            return reasons.get(facts["why"], facts["why"])
        case "lease_lost":
            return f"workers lost: {error}"
        case "asked_to_stop":
            return f"stopping {facts['run_id']}, as asked, and what only it needs"
        case "say":
            return str(facts["text"])
    return None


def log_tail(store: Store, node: str, attempt: str, log: str = "log.txt") -> list[str]:
    """The last lines an attempt printed."""
    base = store.attempt_path(node, attempt)
    data = store.files.read_end(f"{base}/{log}", _LOG_TAIL_BYTES)
    data = data or store.files.read_end(f"{base}/log.txt", _LOG_TAIL_BYTES)
    return str(redacted(data.decode(errors="replace"))).splitlines()[-_LOG_TAIL_LINES:]


def clock(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, secs = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{secs:02}" if hours else f"{minutes}:{secs:02}"


@dataclass
class Watched:
    """What both views keep: the tally, and the reports of what runs, read every few seconds."""

    plan: Plan
    store: Store
    tally: Tally
    _read: float = 0.0
    _leases: int = 0

    def follow(self, what: str, node: str, facts: Mapping[str, Any]) -> list[str]:
        """Takes an event in; lines that are worth a reader's time, without the clock."""
        tally = self.tally
        if what == "started":
            tally.started(node, facts["attempt"], str(facts.get("lease", "")))
            again = facts.get("attempts")
            return [f"again    {self.name(node)} (attempt {again + 1})"] if again else []
        if what == "finished":
            return self._finished(node, facts["outcome"])
        if what == "asked_to_stop":
            tally.lost.add(facts["run_id"])
        elif what in ("fail", "diverge"):
            tally.gave_up(node)
        elif node:
            tally.ended(node)
        text = trouble(self.name(node) if node else "", what, facts)
        return ([text] if text else []) + [f"    | {line}" for line in facts.get("log", ())]

    def _finished(self, node: str, outcome: Outcome) -> list[str]:
        lines = []
        complete = self.tally.finished(node, outcome)
        breaks = outcome.execution.get("breaks") or []
        note = f"; bit identity ends here ({'; '.join(breaks)})" if breaks else ""
        if self.plan.nodes[node].trains or note:
            lines.append(f"done     {self.name(node)}: {segment_text(outcome)}{note}")
        lines += [f"note     {said}" for said in outcome.result.get("said") or ()]
        return lines + [self.run_text(run_id) for run_id in complete]

    def name(self, node: str, short: bool = False) -> str:
        runs = self.tally.runs_of.get(node) or [""]
        return label(self.plan, node, runs[0], short)

    def run_text(self, run_id: str) -> str:
        finals = self.tally.finals[run_id]
        figures = [f"{name} {finals[kind]:.4f}" for kind, name in STAGE_NAMES.items() if kind in finals]
        counted = f"run {self.tally.runs_done} of {self.tally.runs_all}"
        told = f"{', '.join(figures)} BPB" if figures else ""
        if not figures and VAL_LOSS in finals:
            told = f"val loss {finals[VAL_LOSS]:.4f}"
        return f"{counted:8} {self.plan.named(run_id)}" + (f": {told}" if told else "")

    def read_reports(self) -> None:
        now = self.tally.clock()
        if now - self._read > _READ_SECONDS:
            self._read = now
            for node, at in self.tally.running.items():
                if self.plan.nodes[node].trains:
                    path = f"{self.store.attempt_path(node, at.attempt)}/events.jsonl"
                    with contextlib.suppress(RecordError):  # not ours to judge: only shown
                        at.reports = reports(self.store.files.read(path) or b"")

    def standing(self) -> str:
        """Steps, runs and cost in words."""
        tally, plan = self.tally, self.plan
        words = f"{tally.steps_done:,} of {tally.steps_all:,} steps, "
        words += f"{tally.runs_done} of {tally.runs_all} runs"
        words += f" ({len(tally.lost)} lost)" if tally.lost else ""
        return f"{words}, {cost_text(plan, tally.cost_seconds)}"

    def time_left(self) -> str:
        if not (left := self.tally.seconds_left()):
            return ""
        return f"about {clock(left)} left" + ("" if self.tally.is_measured else " by the plan's estimate")

    def best_text(self) -> str:
        if self.tally.best is None:
            return ""
        value, run_id, stage = self.tally.best
        if stage == VAL_LOSS:
            return f"best so far {value:.4f} nats/token  {run_id}"
        return f"best so far {value:.4f} BPB ({STAGE_NAMES[stage]})  {run_id}"


def cost_text(plan: Plan, seconds: float) -> str:
    """Device-hours, and money where there is a price."""
    resources = plan.sweep.resources
    hours = seconds / 3600
    of = "GPU" if resources.gpus_per_run else "CPU worker"
    words = f"{hours:.2f} {of}-hours" if hours < 100 else f"{hours:,.0f} {of}-hours"
    if hours < 0.5:
        words = f"{hours * 60:.1f} {of}-minutes"
    price = resources.price_per_gpu_hour
    return words if price is None else f"{words}, ${hours * price:,.2f}"


@dataclass
class PlainView:
    """A line for each stretch of training and each finished run, and one a minute on how the sweep stands."""

    watched: Watched
    say: Callable[[str], None] = field(default=lambda line: print(line, flush=True))
    _said: float = 0.0

    def __post_init__(self) -> None:
        self._said = self.watched.tally.begun

    def show(self, what: str, node: str, **facts: Any) -> None:
        for line in self.watched.follow(what, node, facts):
            self._line(line)
        if what == "say" and "Ray" in str(facts.get("text")):
            self._line(FIRST_HALF_MINUTE)

    def _line(self, text: str) -> None:
        tally = self.watched.tally
        self.say(text if text.startswith("    | ") else f"{clock(tally.clock() - tally.begun)} {text}")

    def refresh(self) -> None:
        now = self.watched.tally.clock()
        if now - self._said < HEARTBEAT_SECONDS:
            return
        self._said = now
        self.watched.read_reports()
        parts = [self.watched.standing(), self.watched.best_text(), self.watched.time_left()]
        self._line("; ".join(part.replace("  ", " ") for part in parts if part))

    def close(self) -> None:
        pass
