"""What `launch.py` does: sweep file, data, store, plan, cluster, report. Heavy imports are local."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gepa_core.errors import ConfigError, DataError, UserError
from sweeps.commands.capacity import address_of, capacity, check_address, emulated, unused_gpus
from sweeps.commands.ending import answer, deleted, describe, say
from sweeps.plan.advice import advise, uneven_ranks
from sweeps.plan.estimate import summary
from sweeps.plan.planner import assumed_speeds, make_plan
from sweeps.plan.sharing import answer as sharing_answer
from sweeps.plan.sharing import check_node, with_check
from sweeps.plan.tree import Plan
from sweeps.spec.load import load_sweep
from sweeps.spec.source import DataSource, open_source
from sweeps.spec.sweep import Sweep

if TYPE_CHECKING:
    from gepa_core.data.folder import Dataset
    from sweeps.drive.launch import RunOptions
    from sweeps.store.store import Outcome, Store


def plan_or_run(args: argparse.Namespace) -> int:
    sweep = load_sweep(args.sweep, args.overrides)
    return print_plan(sweep, args) if args.plan else run(sweep, args)


def run(sweep: Sweep, args: argparse.Namespace) -> int:
    """Train, measure and report what is not done yet; exit code."""
    check_address(address_of(args))
    if impossible := list(uneven_ranks(sweep)):
        raise ConfigError(f"{sweep.file}: {impossible[0]}")
    sweep = open_data(sweep, say)
    sweep = check_sharing(sweep, args.output, run_options(args, sweep))
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
    from sweeps.drive.launch import run_sweep
    from sweeps.drive.notify import Notifier

    notify = Notifier(args.notify, say) if args.notify else None
    options = replace(run_options(args, sweep), notify=notify)
    ended: dict[str, Any] = {"sweep": sweep.name, "exit_code": 1}
    try:
        record = {"data": data_record(sweep)}
        result = run_sweep(plan, args.output, options, record)
        while result.ending == "damaged":  # what was damaged does not count any more, now or later
            say(f"{result.fault}: set aside; going on from what is whole")
            plan = over_store(sweep, args.output)
            result = run_sweep(plan, args.output, replace(options, fresh=False), record)
        say(describe(result))
        for run_id, error in result.failures.items():
            say(f"  {plan.named(run_id) if run_id in plan.runs else run_id}: {error}")
        if result.dropped["states"] and result.exit_code == 0:
            say(deleted(result.dropped))
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


def run_options(args: argparse.Namespace, sweep: Sweep) -> "RunOptions":
    """What the command line asks of the driver."""
    from sweeps.drive.launch import RunOptions

    return RunOptions(
        plain=args.plain,
        workers=capacity(sweep, args)[0] if not address_of(args) else args.max_parallel or 1,
        address=address_of(args),
        only=args.only,
        retry_failed=args.retry_failed,
        fail_fast=args.fail_fast,
        fresh=args.fresh,
        max_gpu_hours=args.max_gpu_hours,
        max_parallel=args.max_parallel,
        read_log=getattr(args, "read_log", None),
    )


def check_sharing(sweep: Sweep, output: str, options: "RunOptions", **cluster: Any) -> Sweep:
    """The sweep with its trunks shared only where its script was found to go on exactly from a saved state.

    Where that was never asked, two short runs are made for it. `cluster`: as `run_sweep` takes it.
    """
    node = check_node(sweep)
    if node is None:
        return sweep
    exact, line = sharing_answer(_answered(output, node.id))
    if exact is None:
        from sweeps.drive.launch import StoppedError, run_sweep

        say("checking whether runs may share trunks: a short run alone, and the same from a saved state")
        plan = with_check(over_store(replace(sweep, share=False), output), node)
        options = replace(options, nodes=frozenset([node.id]), only=None, fresh=False)
        result = run_sweep(plan, output, options, **cluster)
        exact, line = sharing_answer(_answered(output, node.id))
        if exact is None:
            why = f"whether runs may share trunks is not known yet ({result.ending})"
            error = StoppedError(f"{why}: the same command asks again, share=false does without")
            error.exit_code = result.exit_code or 3
            raise error
    say(line)
    return sweep if exact else replace(sweep, share=False)


def _answered(output: str, node: str) -> "Outcome | None":
    store = existing_store(output)
    return store.done(node) if store else None


def sharing_notes(sweep: Sweep, output: str) -> tuple[Sweep, list[str]]:
    """For `--plan`: the sweep as it would be shared by what the store knows, and a line about that."""
    if (node := check_node(sweep)) is None:
        return sweep, []
    exact, line = sharing_answer(_answered(output, node.id))
    return (replace(sweep, share=False) if exact is False else sweep), [line]


def data_record(sweep: Sweep) -> list[dict[str, Any]]:
    """For sweep.json: where the data lies, and what compressors make of the text that is validated on."""
    from sweeps.commands.baseline import compressed_sizes

    record = []
    for source, data in sweep.data.items():
        runs = [run for run in sweep.recipe_runs if run.data.train == data.config.train]
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
        using = [run for run in sweep.recipe_runs if run.data.train == source.placeholder(None).train]
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
    speeds = assumed_speeds(sweep)
    if (store := existing_store(output)) is None:
        return make_plan(sweep, speeds=speeds)
    from sweeps.plan.history import History, read_history

    history = read_history(store)
    for fault in history.faults:
        say(f"{fault}: what needs it starts from the next earlier state")
    speeds = speeds.measured(history.on(gpu=on_gpu, script=sweep.files.digest if sweep.files else ""))
    known = History() if fresh else history
    plan = make_plan(sweep, known.segments, known.stages, speeds=speeds)
    node = check_node(sweep)
    return with_check(plan, node) if node else plan


def changed(plan: Plan, output: str) -> list[str]:
    """What the sweep file says otherwise than at its last launch into this store."""
    if "://" not in output and not Path(output, plan.sweep.name, "sweep.json").is_file():
        return []
    from sweeps.plan.history import changes
    from sweeps.store.records import RecordError
    from sweeps.store.store import Store

    try:
        store = Store(output)
        old = store.sweep(plan.sweep.name).read_json("sweep.json")
    except RecordError as error:
        return [f"unknown: {error}"]
    if not old:
        return []
    files = []
    if plan.sweep.files is not None and isinstance(path := old.get("script_files"), str):
        from sweeps.drive.scripts import changed_files

        files = changed_files(store, plan.sweep.files, path)
    return [*files, *changes(old, plan.sweep.document or {}, plan.runs)]


def print_plan(sweep: Sweep, args: argparse.Namespace) -> int:
    sweep = look_at_data(sweep)
    sweep, sharing = sharing_notes(sweep, args.output)
    if args.only:
        sweep = only(sweep, args.only)
    plan = over_store(sweep, args.output, fresh=args.fresh)
    leases, basis, cannot = capacity(sweep, args)
    figures = summary(plan, leases=leases, leases_basis=basis)
    notes = [*sweep.notices, *unused_gpus(sweep, args), *emulated(sweep, args)]
    notes += [*sweep.unchecked, *sharing, *data_use(plan), *cannot, *trained_again(plan, args.output)]
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


def data_use(plan: Plan) -> list[str]:
    """How often the longest run reads its data, if more than once, and how much of validation is scored, if
    less than all."""
    tokens = {data.config.train: data.train_tokens for data in plan.sweep.data.values()}
    passes = max(
        (
            (run.train_tokens / tokens[run.data.train], run.run_id)
            for run in plan.sweep.recipe_runs
            if run.data.train in tokens
        ),
        default=(0.0, ""),
    )
    said = [f"{passes[1]} reads its data {passes[0]:.2f} times"] if passes[0] > 1 else []
    for data in plan.sweep.data.values():
        scored = {run.data.val_tokens for run in plan.sweep.recipe_runs if run.data.val == data.config.val}
        least = min((n for n in scored if n is not None), default=data.val_tokens)
        if least < data.val_tokens:
            said.append(
                f"{least:,} of {data.val_tokens:,} validation tokens are scored "
                "(data.val_tokens; null scores all)"
            )
    return list(dict.fromkeys(said))
