"""What a running sweep shows: a live tree on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.text import Text
from rich.tree import Tree

from sweeps.kinds.stages import MEASURED
from sweeps.kinds.table import KINDS, SHARING_CHECK
from sweeps.plan.tree import Node, Plan
from sweeps.store.journal import reports
from sweeps.store.records import RecordError
from sweeps.store.redact import redacted
from sweeps.store.store import Outcome, Store

_LOG_TAIL_LINES, _LOG_TAIL_BYTES = 15, 1 << 14
_READ_SECONDS = 2.0
_BPB = tuple(kind.name + "_bpb" for kind in MEASURED)
_MAX_RUNNING = 40


class View(Protocol):
    def show(self, what: str, node: str, **facts: Any) -> None:
        """Something happened to a node (or, node "", to the sweep)."""

    def refresh(self) -> None:
        """Called a few times a second."""

    def close(self) -> None:
        """The sweep has ended."""


def label(plan: Plan, node: str) -> str:
    """A node in words."""
    work = plan.nodes[node]
    runs = work.runs[0] if len(work.runs) == 1 else f"{len(work.runs)} runs"
    if not work.runs:
        return work.kind.replace("_", " ")
    if not work.trains:
        return f"{work.kind} of {runs}"
    steps = f"{work.start:,} → {work.stop:,}"
    return f"trunk {steps}" if work.trunk else f"{steps} {work.config.schedule} ({runs})"


def result_text(outcome: Outcome) -> str:
    """What a finished node measured, as far as it says."""
    result, kind = outcome.result, KINDS[outcome.kind]
    if kind.name == SHARING_CHECK:
        return (
            f"exact ({result['compared']} figures alike)"
            if result["exact"]
            else f"not exact: {result['reason']}"
        )
    figures = (
        ("train_loss_final", "train_loss {:.4f}"),
        ("tokens_per_second", "{:,.0f} tokens/s"),
        (kind.column or next((name for name in _BPB if result.get(name) is not None), None), "{:.4f} bpb"),
        ("artifact_bytes", "{:,} bytes"),
    )
    known = [form.format(result[key]) for key, form in figures if key and result.get(key) is not None]
    return ", ".join(known) or "nothing measured"


def event_text(plan: Plan, what: str, node: str, facts: dict[str, Any]) -> str | None:
    """A line about an event; None for those not worth one."""
    name = label(plan, node) if node else ""
    error = facts.get("error") or facts.get("observed") or ""
    match what:
        case "started":
            again = f" (attempt {facts['attempts'] + 1})" if facts.get("attempts") else ""
            return f"start    {name}{again}"
        case "finished":
            outcome = facts["outcome"]
            breaks = outcome.execution.get("breaks") or []
            note = f"; bit identity ends here ({'; '.join(breaks)})" if breaks else ""
            return f"done     {name}: {result_text(outcome)}, {outcome.seconds:.1f} s{note}"
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
        case "say":
            return str(facts["text"])
    return None


def log_tail(store: Store, node: str, attempt: str, log: str = "log.txt") -> list[str]:
    """The last lines an attempt printed."""
    base = store.attempt_path(node, attempt)
    data = store.files.read_end(f"{base}/{log}", _LOG_TAIL_BYTES)
    data = data or store.files.read_end(f"{base}/log.txt", _LOG_TAIL_BYTES)
    return str(redacted(data.decode(errors="replace"))).splitlines()[-_LOG_TAIL_LINES:]


@dataclass
class PlainView:
    """A line an event."""

    plan: Plan
    say: Callable[[str], None] = field(default=lambda line: print(line, flush=True))
    begun: float = field(default_factory=time.monotonic)

    def show(self, what: str, node: str, **facts: Any) -> None:
        if text := event_text(self.plan, what, node, facts):
            self.say(f"{_clock(time.monotonic() - self.begun)} {text}")
        for line in facts.get("log", ()):
            self.say(f"    | {line}")

    def refresh(self) -> None:
        pass

    def close(self) -> None:
        pass


class LiveView:
    """A tree of the trunks with what runs, redrawn in place; finished and failed things scroll by above."""

    def __init__(self, plan: Plan, store: Store, console: Console) -> None:
        self.plan, self.store = plan, store
        self.begun = time.monotonic()
        self.running: dict[str, dict[str, Any]] = {}
        self.done: set[str] = set(plan.done)
        self._read = 0.0
        self.live = Live(console=console, get_renderable=self.render, auto_refresh=False)
        self.live.start()

    def show(self, what: str, node: str, **facts: Any) -> None:
        if what == "started":
            self.running[node] = {"attempt": facts["attempt"], "since": time.monotonic()}
        elif node:
            self.running.pop(node, None)
        if what == "finished":
            self.done.add(node)
        if what != "started" and (text := event_text(self.plan, what, node, facts)):
            self.live.console.print(Text(f"{_clock(time.monotonic() - self.begun)} {text}"))
        for line in facts.get("log", ()):
            self.live.console.print(Text(f"    | {line}", style="dim"))

    def refresh(self) -> None:
        now = time.monotonic()
        if now - self._read > _READ_SECONDS:
            self._read = now
            for node, state in self.running.items():
                if self.plan.nodes[node].trains:
                    path = f"{self.store.attempt_path(node, state['attempt'])}/events.jsonl"
                    with contextlib.suppress(RecordError):  # not ours to judge: only shown
                        state["reports"] = reports(self.store.files.read(path) or b"")
        self.live.refresh()

    def close(self) -> None:
        self.live.refresh()
        self.live.stop()

    def render(self) -> Tree:
        total = len(self.plan.priority)
        elapsed = time.monotonic() - self.begun
        head = f"{self.plan.sweep.name}: {len(self.done)} of {total} done, {_clock(elapsed)}"
        if left := self._eta(elapsed):
            head += f", about {_clock(left)} left"
        tree = Tree(Text(head, style="bold"))
        branches: dict[str, Tree] = {}
        for node, state in list(self.running.items())[:_MAX_RUNNING]:
            segment = self._training_of(node)
            if segment.trunk_id not in branches:
                trunk = [s.id for s in self.plan.segments.values() if s.trunk_id == segment.trunk_id]
                done = sum(s in self.done for s in trunk)
                name = f"trunk {segment.trunk_id[:8]}: {done} of {len(trunk)} segments"
                branches[segment.trunk_id] = tree.add(Text(name))
            branches[segment.trunk_id].add(Text(self._running_text(node, state)))
        return tree

    def _training_of(self, node: str) -> Node:
        """The node itself, or the stretch of training that a stage comes after."""
        at = self.plan.nodes[node]
        while not at.trains and at.after is not None:
            at = self.plan.nodes[at.after]
        return at

    def _running_text(self, node: str, state: dict[str, Any]) -> str:
        words = f"{label(self.plan, node)}  {_clock(time.monotonic() - state['since'])}"
        seen = state.get("reports") or []
        if seen:
            last = seen[-1]
            bpb = next((r["val_bpb"] for r in reversed(seen) if r.get("val_bpb") is not None), None)
            words += f"  step {last['step']:,}"
            words += f"  {bpb:.4f} bpb" if bpb is not None else ""
            speed = last.get("tokens_per_second")
            words += f"  {speed:,.0f} tokens/s" if speed is not None else ""
        return words

    def _eta(self, elapsed: float) -> float | None:
        """Time left if the rest goes as what was done here, by the plan's estimates of cost."""
        here = self.done - self.plan.done
        cost = sum(self.plan.seconds[node] for node in here)
        left = sum(seconds for node, seconds in self.plan.seconds.items() if node not in self.done)
        return elapsed * left / cost if cost else None


def _clock(seconds: float) -> str:
    minutes, secs = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{secs:02}" if hours else f"{minutes}:{secs:02}"


def make_view(plan: Plan, store: Store, *, plain: bool) -> View:
    """The view that fits where standard error goes, which is where progress is shown."""
    console = Console(file=sys.stderr, highlight=False)
    if plain or not console.is_terminal:
        return PlainView(plan, lambda line: print(line, file=sys.stderr, flush=True))
    return LiveView(plan, store, console)
