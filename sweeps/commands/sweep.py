"""What `launch.py` does: sweep file, data, store, plan, cluster, report. Heavy imports are local."""

import argparse
import json
import os
import re
import shlex
import socket
import sys
import traceback
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from gepa_core.errors import ConfigError, DataError, UserError
from gepa_core.invocation import launch, module
from sweeps.plan.advice import advise, uneven_ranks
from sweeps.plan.estimate import Machine, places, refusal, summary
from sweeps.plan.figures import human_bytes
from sweeps.plan.planner import make_plan
from sweeps.plan.speeds import CPU_WORKER, PUBLISHED_A100
from sweeps.plan.tree import Plan
from sweeps.spec.load import load_sweep
from sweeps.spec.source import DataSource, open_source
from sweeps.spec.sweep import Sweep
from sweeps.store.redact import redacted

if TYPE_CHECKING:
    from gepa_core.data.folder import Dataset
    from sweeps.drive.launch import SweepResult
    from sweeps.store.store import Store


def plan_or_run(args: argparse.Namespace) -> int:
    sweep = load_sweep(args.sweep, args.overrides)
    return print_plan(sweep, args) if args.plan else run(sweep, args)


def run(sweep: Sweep, args: argparse.Namespace) -> int:
    """Train, measure and report what is not done yet; exit code."""
    check_address(address_of(args))
    if impossible := list(uneven_ranks(sweep)):
        raise ConfigError(f"{sweep.file}: {impossible[0]}")
    sweep = open_data(sweep, say)
    plan = over_store(sweep, args.output, fresh=args.fresh)
    for line in changed(plan, args.output):
        say(f"changed since the last launch: {line}")
    for notice in (
        *sweep.notices,
        *unused_gpus(sweep, args),
        *emulated(sweep, args),
        *(f"advice: {line}" for line in advise(plan.sweep)),
    ):
        say(notice)
    from sweeps.drive.launch import RunOptions, run_sweep
    from sweeps.drive.notify import Notifier

    notify = Notifier(args.notify, say) if args.notify else None
    options = RunOptions(
        notify=notify,
        plain=args.plain,
        workers=capacity(sweep, args)[0] if not address_of(args) else args.max_parallel or 1,
        address=address_of(args),
        only=args.only,
        retry_failed=args.retry_failed,
        fail_fast=args.fail_fast,
        fresh=args.fresh,
        max_gpu_hours=args.max_gpu_hours,
        max_parallel=args.max_parallel,
    )
    ended: dict[str, Any] = {"sweep": sweep.name, "exit_code": 1}
    try:
        record = {"data": data_record(sweep)}
        result = run_sweep(plan, args.output, options, record)
        while result.ending == "damaged":  # what was damaged does not count any more, now or later
            say(f"{result.fault}: set aside; going on from what is whole")
            plan = over_store(sweep, args.output)
            result = run_sweep(plan, args.output, replace(options, fresh=False), record)
        say(_ended(result))
        for run_id, error in result.failures.items():
            say(f"  {run_id}: {error}")
        if result.dropped["states"] and result.exit_code == 0:
            say(_deleted(result.dropped))
        written = answer(args, result)
        ended |= {"exit_code": result.exit_code, "report": written, "folder": result.folder}
        ended |= {f"runs_{status}": number for status, number in result.runs.items()}
        if args.json:
            print(json.dumps(result.to_dict() | {"report": written}, allow_nan=False))
        return result.exit_code
    except UserError as error:
        ended["exit_code"], ended["error"] = getattr(error, "exit_code", 2), error
        raise
    finally:
        if notify is not None:
            notify("finished", wait=True, **ended)


def _ended(result: "SweepResult") -> str:
    counts = ", ".join(f"{number} {status}" for status, number in result.runs.items() if number)
    plural = "s" * (sum(result.runs.values()) != 1)
    nothing = "nothing was left to do; " if not result.executed and result.exit_code == 0 else ""
    return f"{nothing}{result.sweep}: {counts} run{plural}; results in {result.folder}"


def _deleted(dropped: Mapping[str, int]) -> str:
    """What `keep: artifacts` took away, and what having it again would cost."""
    return (
        f"deleted the final states of {dropped['states']} runs ({human_bytes(dropped['bytes'])}); another "
        f"quantizer or further stages would train {dropped['steps']:,} steps again: `keep: final` keeps them"
    )


def answer(args: argparse.Namespace, result: "SweepResult") -> str | None:
    """Best run, verdict and report, or how to go on; the report's path. What fails here fails no sweep."""
    if result.exit_code in (130, 4):  # a report would keep the user waiting for what is not finished
        say(f"go on with: {launch()} {redacted(shlex.join(sys.argv[1:]))}")
        if result.runs["done"]:
            say(f"a report of what is done: {module('analysis')} {shlex.quote(result.folder)}")
        return None
    if result.runs["failed"] or result.runs["diverged"]:
        say("try them again: the same command with --retry-failed")
    from sweeps.commands.look import best_row

    store = existing_store(args.output)
    rows = (store.sweep(result.sweep).read_runs() or []) if store else []
    if best := best_row(rows):
        row, metric = best
        size = f", {row['artifact_bytes']:,} bytes" if row.get("artifact_bytes") is not None else ""
        say(f"best: {row['run_id']}, {metric} {row[metric]:.4f}{size}")
    if args.no_report or not result.runs["done"]:
        return None
    return report(args, result)


def say(line: str) -> None:
    """Progress goes to standard error: standard output is for results."""
    print(line, file=sys.stderr, flush=True)


def unused_gpus(sweep: Sweep, args: argparse.Namespace) -> list[str]:
    """What is said where this machine has GPUs, and the sweep asks for none."""
    if sweep.resources.gpus_per_run or address_of(args) or not (gpus := int(local_node().resources["GPU"])):
        return []
    return [
        f"the sweep runs on the CPU: resources.gpus_per_run is 0, though this machine has {gpus} "
        f"GPU{'s' * (gpus > 1)}; resources.gpus_per_run=1 trains a run on each"
    ]


def emulated(sweep: Sweep, args: argparse.Namespace) -> list[str]:
    """What is said where this machine is to multiply in bf16, and its CPU can only emulate that."""
    on_cpu = not sweep.resources.gpus_per_run and not address_of(args)
    if not on_cpu or all(run.model.compute_dtype == "fp32" for run in sweep.runs):
        return []
    from gepa_core.device import emulation_warning, product_speeds  # torch: seconds, and rarely needed

    speeds = product_speeds()
    return [emulation_warning(speeds)] if speeds.emulates_bf16 else []


def address_of(args: argparse.Namespace) -> str | None:
    return args.address or os.environ.get("RAY_ADDRESS") or None


def check_address(address: str | None) -> None:
    """Raises ConfigError where nothing listens; Ray itself would try for minutes. "auto" is left to Ray."""
    found = re.fullmatch(r"(?:ray://)?\[?([^/\]]+)\]?:(\d+)", address or "")
    if not found:
        return
    try:
        socket.create_connection((found[1], int(found[2])), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"no Ray cluster answers at {address} ({error}); see `ray status` on its head node, or leave "
            "--address (and RAY_ADDRESS) out to use this machine"
        ) from None


def data_record(sweep: Sweep) -> list[dict[str, Any]]:
    """For sweep.json: where the data lies, and what compressors make of the text that is validated on."""
    from sweeps.commands.baseline import compressed_sizes

    record = []
    for source, data in sweep.data.items():
        runs = [run for run in sweep.runs if run.data.train == data.config.train]
        limits = {min(run.data.val_tokens or data.val_tokens, data.val_tokens) for run in runs}
        text = dict(data.val_text) if data.val_text else None
        if limits != {data.val_tokens}:  # one part of it, or several
            paths = data.paths
            text = compressed_sizes(paths.val, paths.tokenizer, *limits) if len(limits) == 1 else None
        record.append(
            {
                "source": str(source),
                "paths": {key: str(Path(path).absolute()) for key, path in data.paths.model_dump().items()},
                "fingerprint": data.config.train,
                "train_tokens": data.train_tokens,
                "val_tokens": data.val_tokens,
                "val_text": text,
            }
        )
    return record


def report(args: argparse.Namespace, result: "SweepResult") -> str | None:
    """The report's path or URL; made again where work was done. One that fails does not fail the sweep."""
    store, mark, options = args.output.partition("?") if "://" in args.output else (args.output, "", "")
    where = f"{store.rstrip('/')}/{result.sweep}{mark}{options}"
    page = f"{store.rstrip('/')}/{result.sweep}/report/report.html"
    if result.executed or "://" in where or not Path(page).is_file():
        say("writing the report")
        try:
            page, verdict = args.write_report(where)
            say(f"verdict: {verdict}")
        except Exception as error:
            if not type(error).__module__.startswith("analysis."):  # not one that says what is wrong
                traceback.print_exc()
            say(f"no report: {error or type(error).__name__}")
            say(f"the results are complete; try again with: {module('analysis')} {shlex.quote(where)}")
            return None
    say(f"report: {page}")
    return page


def look_at_data(sweep: Sweep) -> Sweep:
    """For `--plan`: the sweep with its data as far as that is at hand."""
    found: dict[DataSource, Dataset] = {}
    unchecked = []
    for source in sweep.sources:
        if not source.named:
            unchecked.append("the sweep names no data (set data.dir): run ids are provisional")
            continue
        try:
            found[source] = open_source(source, prepare=False)
        except DataError as error:
            how = f"{source}: prepared on the first run" if source.corpus else f"not checked: {error}"
            unchecked.append(f"data {how}; run ids are provisional, finished work is not recognised")
    return sweep.with_data(found, unchecked)


def open_data(sweep: Sweep, say: Any) -> Sweep:
    """For a run: the sweep with all its data, prepared where a corpus is missing, and checked.

    Raises DataError.
    """
    from gepa_core.data.folder import check_launch
    from gepa_core.data.overlap import launch_warning

    found: dict[DataSource, Dataset] = {}
    for source in sweep.sources:
        using = [run for run in sweep.runs if run.data.train == source.placeholder(None).train]
        sizes = {(run.model.vocab_size, max(run.eval.seq_len, run.batch.seq_len)) for run in using}
        found[source] = open_source(source, vocab_size=min(sizes)[0], prepare=True, say=say)
        for vocab_size, seq_len in sorted(sizes):
            check_launch(found[source], vocab_size=vocab_size, seq_len=seq_len)
        if warning := launch_warning(found[source]):
            say(f"warning: {source}: {warning}")
    return sweep.with_data(found)


def existing_store(output: str) -> "Store | None":
    """The store at `output`; None where a local one is not there."""
    if "://" not in output and not Path(output, "segments").is_dir():
        return None
    from sweeps.store.store import Store

    return Store(output)


def over_store(sweep: Sweep, output: str, *, fresh: bool = False) -> Plan:
    """The plan over what the store at `output` has, if there is one; it is not created.

    `fresh`: only the store's speeds count, not what is done.
    """
    on_gpu = sweep.resources.gpus_per_run > 0
    speeds = PUBLISHED_A100 if on_gpu else CPU_WORKER
    if (store := existing_store(output)) is None:
        return make_plan(sweep, speeds=speeds)
    from sweeps.plan.history import History, read_history

    history = read_history(store)
    for fault in history.faults:
        say(f"{fault}: what needs it starts from the next earlier state")
    speeds = speeds.measured(history.on(gpu=on_gpu))
    known = History() if fresh else history
    return make_plan(sweep, known.segments, known.stages, speeds=speeds)


def changed(plan: Plan, output: str) -> list[str]:
    """What the sweep file says otherwise than at its last launch into this store."""
    if "://" not in output and not Path(output, plan.sweep.name, "sweep.json").is_file():
        return []
    from sweeps.plan.history import changes
    from sweeps.store.records import RecordError
    from sweeps.store.store import Store

    try:
        old = Store(output).sweep(plan.sweep.name).read_json("sweep.json")
    except RecordError as error:
        return [f"unknown: {error}"]
    return changes(old, plan.sweep.document or {}, plan.runs) if old else []


def print_plan(sweep: Sweep, args: argparse.Namespace) -> int:
    sweep = look_at_data(sweep)
    if args.only:
        sweep = only(sweep, args.only)
    plan = over_store(sweep, args.output, fresh=args.fresh)
    leases, basis, cannot = capacity(sweep, args)
    figures = summary(plan, leases=leases, leases_basis=basis)
    notes = [*sweep.notices, *unused_gpus(sweep, args), *emulated(sweep, args)]
    notes += [*sweep.unchecked, *epochs(plan), *cannot, *trained_again(plan, args.output)]
    if args.fresh and (store := existing_store(args.output)):
        from sweeps.drive.fresh import refusal as refused

        notes += filter(None, [refused(store, plan)])
    left = figures["gpu_hours_left"]
    if args.max_gpu_hours and left > args.max_gpu_hours:
        notes.append(f"stops, resumable, at --max-gpu-hours {args.max_gpu_hours:g} of {left:.1f} estimated")
    notes += [f"changed since the last launch: {line}" for line in changed(plan, args.output)]
    advice = advise(plan.sweep)
    if args.json:
        extra = {"unchecked": sweep.unchecked, "cannot_place": cannot, "notes": notes, "advice": advice}
        print(json.dumps(figures | extra, allow_nan=False))
        return 0
    from rich.console import Console

    from sweeps.plan.show import show_plan

    show_plan(Console(highlight=False, soft_wrap=True), plan, figures, notes=notes, advice=advice)
    return 0


def trained_again(plan: Plan, output: str) -> list[str]:
    """Why steps are to be trained that the store had: their states went when their runs were done."""
    branches = [node for node in plan.segments.values() if node.id not in plan.done and not node.trunk]
    if not branches or (store := existing_store(output)) is None:
        return []
    prefixes = tuple({f"{node.start}-{node.stop}-" for node in branches})
    known = {
        (done.identity.get("trunk_id"), *_shape(done.identity.get("config") or {}))
        for done in store.all_done(id_ for id_ in store.ids() if id_.startswith(prefixes)).values()
    }
    again = [n for n in branches if (n.trunk_id, *_shape(n.config.model_dump(mode="json"))) in known]
    if not again:
        return []
    steps = sum(node.steps for node in again)
    return [
        f"{steps:,} of the {plan.steps_left:,} steps left were trained before: the final states of "
        f"{len(again)} runs were deleted when the runs were done (keep: artifacts), and what is new starts "
        "from them; keep: final would have kept them"
    ]


def _shape(config: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a branch depends on besides its trunk."""
    return tuple(config.get(key) for key in ("steps", "warmdown_steps", "schedule", "final_lr_fraction"))


def only(sweep: Sweep, glob: str) -> Sweep:
    """The sweep's runs whose id matches. Raises ConfigError where there are none."""
    runs = tuple(run for run in sweep.runs if fnmatchcase(run.run_id, glob))
    if not runs:
        some = ", ".join(run.run_id for run in sweep.runs[:5])
        raise ConfigError(f"--only {glob}: no run of {sweep.name} matches; there are {some}, ...")
    return replace(sweep, runs=runs)


def epochs(plan: Plan) -> list[str]:
    """How often the longest run reads its data, where that is more than once."""
    tokens = {data.config.train: data.train_tokens for data in plan.sweep.data.values()}
    passes = max(
        (
            (run.config.train_tokens / tokens[run.config.data.train], run_id)
            for run_id, run in plan.runs.items()
            if run.config.data.train in tokens
        ),
        default=(0.0, ""),
    )
    return [f"{passes[1]} reads its data {passes[0]:.2f} times"] if passes[0] > 1 else []


def capacity(sweep: Sweep, args: argparse.Namespace) -> tuple[int, str, list[str]]:
    """Leases at a time, on what, and what can never be placed there."""
    resources = sweep.resources
    address, unreachable = address_of(args), []
    nodes, where = [local_node()], "this machine"
    if address:
        try:
            check_address(address)
            from sweeps.drive.ray_cluster import cluster_nodes

            nodes, where = cluster_nodes(address), f"the cluster at {address}"
        except UserError as error:
            unreachable, address = [str(error)], None
    leases = places(sweep.bundles(), resources, nodes)
    why = refusal(sweep, nodes)
    cannot = [*unreachable, f"not on {where}: {why}"] if why else unreachable
    if not address and resources.cluster_gpus and resources.gpus_per_run:
        leases, where = int(resources.cluster_gpus / resources.gpus_per_run), f"{resources.cluster_gpus} GPUs"
        cannot = unreachable
        if not leases:
            cannot = [
                f"a run asks for {resources.gpus_per_run:g} GPUs, the cluster has {resources.cluster_gpus}"
            ]
    elif not leases:
        where = f"{resources.gpus_per_run:g} GPUs" if resources.gpus_per_run else "a large enough machine"
    leases = max(1, min(leases, args.max_parallel or leases))
    return leases, f"{where}, {leases} run{'s' * (leases > 1)} at a time", cannot


def local_node() -> Machine:
    """This machine, without asking Ray or torch."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = Path("/proc/driver/nvidia/gpus")
    gpus = len(list(devices.iterdir())) if devices.is_dir() else 0
    if visible is not None:
        gpus = min(gpus, len([name for name in visible.split(",") if name.strip() not in ("", "-1")]))
    memory = psutil.virtual_memory().total
    return Machine({"CPU": cpus, "GPU": gpus, "memory": memory})
