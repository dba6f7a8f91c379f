"""How sweeps stand, from what the store says: at any time, from anywhere, without asking their drivers."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from gepa_core.errors import ConfigError
from sweeps.store.journal import reports
from sweeps.store.lock import is_stale, read_lease
from sweeps.store.schema import STATUSES
from sweeps.store.store import Outcome, Store

_SILENT_SECONDS = 120.0
"""An attempt that has reported nothing for so long is not called running."""


def locate(where: str) -> tuple[Store, list[str]]:
    """A store and the sweeps meant: all of them, or the one whose folder is named. Raises ConfigError."""
    store = Store(where)
    if store.files.exists("sweep.json"):
        if folder := store.files.local:
            folder = folder.resolve()
            return Store(folder.parent), [folder.name]
        url = urlsplit(where)
        parent, _, name = url.path.rstrip("/").rpartition("/")
        return Store(urlunsplit(url._replace(path=parent))), [name]
    if names := store.sweeps():
        return store, names
    raise ConfigError(f"{where}: neither a store of sweeps nor a sweep's folder (no sweep.json there)")


@dataclass(frozen=True)
class Working:
    """A segment or stage with an attempt that is not committed."""

    id: str
    what: str
    step: int | None
    stop: int | None
    val_bpb: float | None
    tokens_per_second: float | None
    silent_seconds: float


def sweep_status(store: Store, name: str) -> dict[str, Any]:
    """Figures of one sweep; keys as they are printed by `status --json`."""
    folder = store.sweep(name)
    plan = folder.read_json("plan.json") or {"segments": {}, "stages": {}, "runs": {}}
    folder.read_json("sweep.json")  # is not shown, and damage is
    rows = folder.read_runs() or []
    nodes: dict[str, dict[str, Any]] = {**plan["segments"], **plan["stages"]}
    done = store.all_done(nodes)
    lease = read_lease(store.files, folder.lease_path)
    alive = lease is not None and not is_stale(lease)
    working = [found for id_ in nodes if id_ not in done and (found := _working(store, id_, nodes[id_]))]
    counts = dict.fromkeys(STATUSES, 0)
    for row in rows:  # the table is written now and then: what it calls pending may be done
        finished = row["status"] == "pending" and _is_done(plan["runs"].get(row["run_id"], {}), done)
        counts["done" if finished else row["status"]] += 1
    lengths = {id_: node["stop"] - node["start"] for id_, node in plan["segments"].items()}
    return {
        "sweep": name,
        "folder": store.files.describe(name),
        "runs": counts,
        "nodes": len(nodes),
        "nodes_done": len(done),
        "steps": sum(lengths.values()),
        "steps_done": sum(steps for id_, steps in lengths.items() if id_ in done)
        + sum(max(0, w.step - plan["segments"][w.id]["start"]) for w in working if w.step is not None),
        "driver": {key: lease[key] for key in ("host", "pid")} if lease and alive else None,
        "working": [vars(w) for w in working if alive and w.silent_seconds < _SILENT_SECONDS],
        "left_device_seconds": _left_seconds(nodes, done),
        "failures": {row["run_id"]: row["error"] for row in rows if row["status"] in ("failed", "diverged")},
    }


def _is_done(run: Mapping[str, Any], done: Mapping[str, Outcome]) -> bool:
    """Whether all of a run of a plan is committed."""
    nodes = [*run.get("segments", ()), *run.get("stages", ())]
    return bool(nodes) and all(id_ in done for id_ in nodes)


def _working(store: Store, id_: str, node: Mapping[str, Any]) -> Working | None:
    attempts = store.attempts(id_)
    if not attempts:
        return None
    seen: list[tuple[float, dict[str, Any] | None]] = []
    for attempt in attempts:
        base = store.attempt_path(id_, attempt)
        path = f"{base}/events.jsonl"
        journal = reports(store.files.read(path) or b"", store.files.describe(path))
        entries = [entry.modified or 0.0 for entry in store.files.list(base)]
        seen.append((max(entries, default=0.0), journal[-1] if journal else None))
    latest, report = max(seen, key=lambda pair: pair[0])
    report = report or {}
    segment = "stop" in node
    return Working(
        id=id_,
        what=f"{node['start']:,} → {node['stop']:,}" if segment else f"{node['kind']} after {node['after']}",
        step=report.get("step", node["start"]) if segment else None,
        stop=node["stop"] if segment else None,
        val_bpb=_finite(report.get("val_bpb")),
        tokens_per_second=report.get("tokens_per_second"),
        silent_seconds=max(0.0, time.time() - latest),
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _left_seconds(nodes: Mapping[str, Mapping[str, Any]], done: Mapping[str, Outcome]) -> float | None:
    """Estimate for what is not done, corrected by how long what is done took against its estimate."""
    estimates = {id_: node.get("estimated_device_seconds") for id_, node in nodes.items()}
    if any(estimate is None for estimate in estimates.values()):
        return None
    left = sum(estimate for id_, estimate in estimates.items() if id_ not in done and estimate)
    expected = sum(estimates[id_] or 0.0 for id_ in done)
    taken = sum(outcome.seconds * (outcome.devices or 1.0) for outcome in done.values())
    return left * (taken / expected) if expected and taken else left


def status_lines(status: Mapping[str, Any]) -> list[str]:
    """For people."""
    counts = ", ".join(f"{number} {name}" for name, number in status["runs"].items() if number)
    plural = "s" * (sum(status["runs"].values()) != 1)
    lines = [
        f"{status['sweep']}: {counts or 'no'} run{plural}; {status['nodes_done']} of {status['nodes']} "
        f"segments and stages, {status['steps_done']:,} of {status['steps']:,} steps"
    ]
    if driver := status["driver"]:
        lines.append(f"  driver: process {driver['pid']} on {driver['host']}")
    elif status["nodes_done"] < status["nodes"]:
        failed = status["runs"]["failed"] + status["runs"]["diverged"]
        only_failed = failed and not status["runs"]["pending"]
        what = "with --retry-failed tries the failed runs again" if only_failed else "continues it"
        lines.append(f"  no driver is at work: the same launch.py command {what}")
    for working in status["working"]:
        words = f"  {working['what']}"
        if working["step"] is not None:
            words += f", step {working['step']:,}"
        if working["val_bpb"] is not None:
            words += f", {working['val_bpb']:.4f} bpb"
        if working["tokens_per_second"] is not None:
            words += f", {working['tokens_per_second']:,.0f} tokens/s"
        lines.append(words)
    if status["left_device_seconds"] and status["nodes_done"] < status["nodes"]:
        lines.append(f"  about {status['left_device_seconds'] / 3600:.2f} device-hours left")
    lines += [f"  {run_id}: {error}" for run_id, error in status["failures"].items()]
    return lines
