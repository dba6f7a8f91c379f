"""Looking at a store: status, ls, best, logs; and stop. All read what the store says, at any time."""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gepa_core.errors import ConfigError
from gepa_core.invocation import launch, module
from sweeps.kinds.kind import SCRIPT_LOG
from sweeps.kinds.script import is_script
from sweeps.plan.figures import human_hours
from sweeps.spec.keys import near_miss
from sweeps.store.redact import redacted
from sweeps.store.requests import ask_to_stop
from sweeps.store.status import locate, status_lines, sweep_status
from sweeps.store.store import Store

FINALS = ("ttt_bpb", "int6_sliding_bpb", "int6_bpb", "ema_bpb", "float_bpb", "val_loss")
"""Best known first: the last stage of the job."""
_ROW = ("run_id", "status", "steps", "warmdown_steps", "schedule", "seed", "artifact_bytes")


def status_command(args: argparse.Namespace) -> int:
    """`launch.py status [DIR]`."""
    store, names = locate(args.dir)
    found = [named(store, sweep_status(store, name)) for name in names]
    if args.json:
        print(json.dumps({"sweeps": found}, allow_nan=False))
        return 0
    for status in found:
        first, *others = status_lines(status)
        print(first)
        if best := status["best"]:
            of = "nats/token" if best["metric"] == "val_loss" else "BPB"
            print(f"  best so far {best['value']:.4f} {of} ({best['metric']})  {best['run_id']}")
        print("\n".join(line for line in others), end="\n" if others else "")
        if (left := status["left_device_seconds"]) and status["working"]:
            workers = len(status["working"])
            print(f"  about {human_hours(left / workers / 3600)} with the {workers} at work")
    return 0


def named(store: Store, status: dict[str, Any]) -> dict[str, Any]:
    """A sweep's status with each piece of work under the name that `--plan` gives it, with run and seed."""
    folder = store.sweep(status["sweep"])
    plan = folder.read_json("plan.json") or {"segments": {}, "stages": {}, "runs": {}}
    rows = {row["run_id"]: row for row in folder.read_runs() or ()}
    for working in status["working"]:
        id_ = working["id"]
        runs = [run for run, of in plan["runs"].items() if id_ in of["segments"] or id_ in of["stages"]]
        row = rows.get(runs[0], {}) if runs else {}
        working["runs"], working["seed"] = runs, row.get("seed")
        working["what"] = node_name(plan, id_, runs, row)
    best = best_row(list(rows.values()))
    status["best"] = (
        {"run_id": best[0]["run_id"], "metric": best[1], "value": best[0][best[1]]} if best else None
    )
    return status


def node_name(plan: Mapping[str, Any], id_: str, runs: Sequence[str], row: Mapping[str, Any]) -> str:
    """A segment or stage in the words of `--plan`."""
    seed = f"seed {row['seed']}" if row.get("seed") is not None else ""
    if segment := plan["segments"].get(id_):
        steps = f"{segment['start']:,} → {segment['stop']:,}"
        if segment["trunk"]:
            return f"{steps}  trunk ({seed})" if seed else f"{steps}  trunk"
        known = row.get("schedule") and row.get("warmdown_steps") is not None
        shape = f"{row['schedule']} over {row['warmdown_steps']:,}  " if known else ""
        return f"{steps}  {shape}{runs[0] if len(runs) == 1 else f'{len(runs)} runs'}"
    kind = plan["stages"].get(id_, {}).get("kind", id_)
    return f"{kind}  {runs[0]}" if runs else str(kind)


def best_row(
    rows: Iterable[Mapping[str, Any]], metric: str | None = None
) -> tuple[Mapping[str, Any], str] | None:
    """The row with the least `metric`, by default the last stage that any run has; None where none has it."""
    rows = list(rows)
    for name in (metric,) if metric else FINALS:
        known = [row for row in rows if isinstance(row.get(name), int | float)]
        if known:
            return min(known, key=lambda row: row[name]), name
    return None


def ls_command(args: argparse.Namespace) -> int:
    """`launch.py ls [DIR]`."""
    store, names = locate(args.dir)
    found = {name: store.sweep(name).read_runs() or [] for name in names}
    if args.json:
        columns = (*_ROW, *FINALS)
        print(
            json.dumps({n: [{c: row.get(c) for c in columns} for row in rows] for n, rows in found.items()})
        )
        return 0
    for name, rows in found.items():
        best = best_row(rows)
        metric = best[1] if best else FINALS[0]
        print(f"{name}: {len(rows)} runs, by {metric}")
        width = max((len(row["run_id"]) for row in rows), default=0)
        axes = _varying(rows)
        ordered = sorted(rows, key=lambda row: (row.get(metric) is None, row.get(metric) or 0.0))
        for row in ordered:
            value = f"{row[metric]:.4f}" if row.get(metric) is not None else ""
            size = f"{row['artifact_bytes']:,} bytes" if row.get("artifact_bytes") is not None else ""
            setting = ", ".join(f"{axis} {row[axis]}" for axis in axes)
            print(f"  {row['run_id']:{width}}  {row['status']:8}  {value:8}  {size:18}{setting}".rstrip())
    return 0


def _varying(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Columns of a sweep's own axes in which its runs differ."""
    columns = [name for name in (rows[0] if rows else {}) if "." in name and not name.startswith("output.")]
    return [name for name in columns if len({str(row.get(name)) for row in rows}) > 1]


def best_command(args: argparse.Namespace) -> int:
    """`launch.py best [DIR]`."""
    store, names = locate(args.dir)
    found = []
    for name in names:
        rows = store.sweep(name).read_runs() or []
        if args.metric and rows and args.metric not in rows[0]:
            columns = [key for key, value in rows[0].items() if isinstance(value, int | float)]
            raise ConfigError(f"--metric {args.metric}: no such column{near_miss(args.metric, columns)}")
        if best := best_row(rows, args.metric):
            found.append((name, *best))
    if not found:
        raise ConfigError(
            f"{args.dir}: no run has a result yet; `{launch()} status {args.dir}` says how it stands"
        )
    if args.json:
        told = [
            {"sweep": n, "metric": metric, **{c: row.get(c) for c in (*_ROW, *FINALS)}}
            for n, row, metric in found
        ]
        print(json.dumps({"best": told}))
        return 0
    for name, row, metric in found:
        print("\n".join(_best_lines(store, name, row, metric)))
    return 0


def _best_lines(store: Store, name: str, row: Mapping[str, Any], metric: str) -> list[str]:
    run_id, where = row["run_id"], store.files.describe("").rstrip("/")
    output = "" if where.rpartition("/")[2] == "results" else f" --output {where}"
    size = f"; model {row['artifact_bytes']:,} bytes" if row.get("artifact_bytes") is not None else ""
    alone = (store.sweep(name).read_json("sweep.json") or {}).get("runs", {}).get(run_id)
    lines = [
        f"{name}: {run_id}  {metric} {row[metric]:.4f}",
        f"  {row['steps']:,} steps{_warmdown(row)}, seed {row['seed']}{size}",
    ]
    if folder := row.get("output.folder"):
        lines.append(f"  its files: {store.files.describe(folder)}")
    if not is_script(row):
        lines += [
            f"  a submission: {launch()} export {run_id}{output}",
            f"  measured again: {module('gepa_core.evaluate')} {run_id}"
            + output.replace("--output", "--store"),
        ]
    if alone:  # the record is for any machine, the line for this one
        lines.append(f"  trained again, alone: {alone.replace('python launch.py', launch(), 1)}")
    return lines


def find_run(store: Store, names: Sequence[str], text: str) -> tuple[str, dict[str, Any]]:
    """The run that `text` is the id of, or the beginning of the id or of its digest, and its sweep.

    Raises ConfigError where there is none, or several.
    """
    rows = [(name, row) for name in names for row in store.sweep(name).read_runs() or []]
    exact = [(name, row) for name, row in rows if row["run_id"] == text]
    if exact:
        return exact[0]
    ids = list(dict.fromkeys(row["run_id"] for _, row in rows))
    meant = [id_ for id_ in ids if text and (id_.startswith(text) or id_.rpartition("-")[2].startswith(text))]
    if len(meant) == 1:
        return next((name, row) for name, row in rows if row["run_id"] == meant[0])
    where = store.files.describe("")
    if meant:
        some = ", ".join(meant[:4]) + (", ..." if len(meant) > 4 else "")
        raise ConfigError(f"{text}: {len(meant)} runs in {where} begin so ({some}); give more of the id")
    hint = near_miss(text, ids) or f"; `{launch()} ls {where}` lists them"
    raise ConfigError(f"{text}: no such run in {where}{hint}")


def _warmdown(row: Mapping[str, Any]) -> str:
    known = row.get("warmdown_steps") is not None
    return f", {row['warmdown_steps']:,} of them {row['schedule']} warmdown" if known else ""


def logs_command(args: argparse.Namespace) -> int:
    """`launch.py logs RUN_ID`."""
    store, names = locate(args.output)
    name, row = find_run(store, names, args.run_id)
    run_id = row["run_id"]
    plan = store.sweep(name).read_json("plan.json") or {"segments": {}, "stages": {}, "runs": {}}
    of = plan["runs"].get(run_id, {"segments": [], "stages": []})
    printed = False
    for id_ in (*of["segments"], *of["stages"]):
        done = store.done(id_)
        attempts = [done.attempt] if done else store.attempts(id_)
        for attempt in attempts:
            base = store.attempt_path(id_, attempt)
            text = store.files.read(f"{base}/{SCRIPT_LOG}") or store.files.read(f"{base}/log.txt")
            if text is None:
                continue
            state = "" if done else " (not finished)"
            print(f"== {node_name(plan, id_, [run_id], row)}{state}, attempt {attempt}")
            lines = str(redacted(text.decode(errors="replace"))).splitlines()
            print("\n".join(lines[-args.tail :] if args.tail else lines))
            printed = True
    if not printed:
        print(f"{run_id}: no worker has printed anything yet; its status is {row['status']}")
    return 0


def stop_command(args: argparse.Namespace) -> int:
    """`launch.py stop DIR RUN_ID...`."""
    store, names = locate(args.dir)
    found = [find_run(store, names, text) for text in args.run_ids]
    for name, row in found:
        run_id = row["run_id"]
        if row["status"] != "pending":
            print(f"{run_id}: {row['status']} already")
            continue
        if sweep_status(store, name)["driver"] is None:
            raise ConfigError(f"{run_id}: no driver works on {name}, so there is nothing to stop")
        ask_to_stop(store, name, run_id)
        print(f"{run_id}: its driver is asked to end it and what only it needs; --retry-failed takes it up")
    return 0
