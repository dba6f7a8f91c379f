"""What `launch.py` does with a store beside running sweeps: status, gc, export, import, mirror."""

import argparse
import contextlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

from gepa_core.config import CAP_BYTES, DataPaths
from gepa_core.errors import ConfigError, DataError
from sweeps.commands.ending import say
from sweeps.commands.look import find_run
from sweeps.commands.sweep import open_data
from sweeps.spec.load import load_sweep


def gc_command(args: argparse.Namespace) -> int:
    """`launch.py gc DIR`."""
    from sweeps.store.gc import all_leases, collect, find_waste
    from sweeps.store.status import locate

    store, _ = locate(args.dir)
    with contextlib.nullcontext() if args.dry_run else all_leases(store):
        waste = find_waste(store, states=args.states)
        if not args.dry_run:
            collect(store, waste)
    total = sum(item.bytes for item in waste)
    if args.json:
        items = [vars(item) for item in waste]
        print(json.dumps({"bytes": total, "deleted": not args.dry_run, "items": items}))
        return 0
    for item in waste:
        print(f"{item.path}: {item.why}, {item.bytes:,} bytes")
    print(f"{'would delete' if args.dry_run else 'deleted'} {total:,} bytes")
    return 0


def export_command(args: argparse.Namespace) -> int:
    """`launch.py export RUN_ID`."""
    from gepa_core.submission.folder import check_folder
    from sweeps.exchange.export import SUBMISSIONS, export, find, remeasured
    from sweeps.store.status import locate

    store, names = locate(args.output)
    sweep, row = find_run(store, names, args.run_id)
    args.run_id = row["run_id"]
    found = find(store, [sweep, *names], args.run_id)
    to = Path(args.to or Path(SUBMISSIONS, args.run_id))
    check_folder(to)
    data, reason = _data_to_verify(args, found)
    if args.remeasure and data is None:
        raise ConfigError(f"--remeasure: cannot be done here: {reason}")
    words = {key: getattr(args, key) for key in ("author", "github_id", "name", "blurb")}
    claim = export(found, to, **words)
    if args.remeasure and data:
        say(f"measuring again by {to}/train_gpt.py; the sweep measured {claim['val_bpb']:.8f}")
        found = remeasured(found, to, data)
        shutil.rmtree(to)
        claim = export(found, to, **words)
    if not args.json:
        print("\n".join(_exported(to, claim)), flush=True)
    line = _verified(found, to, data) if data else None
    if args.json:
        print(json.dumps({"folder": str(to), "verified": line, "not_verified": reason, **claim}))
    else:
        print(f"reproduced to the last digit: {line}" if line else f"not verified: {reason}")
    return 0


def _data_to_verify(args: argparse.Namespace, found: Any) -> tuple[DataPaths | None, str | None]:
    """The data to run the folder on, or why it is not run."""
    from sweeps.exchange.export import out_of_reach, validation_data

    if args.no_verify:
        return None, "as asked"
    try:
        data = validation_data(found, args.data)
    except DataError as error:
        if args.data:
            raise
        return None, f"the validation data is not at hand ({error})"
    reason = out_of_reach(found)
    return (None, reason) if reason else (data, None)


def _verified(found: Any, to: Path, data: DataPaths) -> str:
    from sweeps.exchange.export import verify

    seconds = found.measured.seconds if found.measured else None
    took = f"; measuring it took {seconds:,.0f} s" if seconds else ""
    say(f"running {to}/train_gpt.py in a fresh process, from that folder alone{took}")
    return verify(found, to, data)


def _exported(to: Path, claim: dict[str, Any]) -> list[str]:
    sizes = {path.name: path.stat().st_size for path in sorted(to.iterdir())}
    lines = [f"{to}:", *(f"  {name:16}{size:>12,} bytes" for name, size in sizes.items())]
    lines.append(f"{claim['stage']} val_bpb {claim['val_bpb']:.8f}")
    lines.append(f"script and model {claim['bytes_total']:,} bytes of {CAP_BYTES:,}")
    if not (claim["author"] and claim["github_id"]):
        lines.append(
            "submission.json lacks author or github_id: give --author and --github-id, or fill them in"
        )
    return lines


def import_command(args: argparse.Namespace) -> int:
    """`launch.py import CHECKPOINT SWEEP.yaml`."""
    from sweeps.exchange.adopt import adopt
    from sweeps.store.store import Store

    sweep = open_data(load_sweep(args.sweep, args.overrides), say)
    adopted = adopt(Store(args.output), sweep, Path(args.checkpoint))
    runs = f"{len(adopted.runs)} runs of {sweep.name}"
    print(f"adopted as {adopted.id}: {runs} can start at step {adopted.step}")
    return 0


def mirror_command(args: argparse.Namespace) -> int:
    """`launch.py mirror DIR`."""
    from sweeps.exchange.mirrors import TensorBoard, WandB, read_runs
    from sweeps.store.status import locate, sweep_status

    if args.fork and not args.wandb:
        raise ConfigError("--fork is W&B's: it goes with --wandb")
    store, names = locate(args.dir)
    mirror: TensorBoard | WandB
    mirror = (
        TensorBoard(Path(args.tensorboard))
        if args.tensorboard
        else WandB(args.wandb, Path(), forks=args.fork)
    )
    told: set[Path] = set()
    try:
        while True:
            # Asked before the tables are read: what a driver writes as it ends is seen.
            alive = any(sweep_status(store, name)["driver"] for name in names)
            for made in mirror.write([run for name in names for run in read_runs(store, name)]):
                if made not in told:
                    told.add(made)
                    print(made, flush=True)
            if not (args.follow and alive):
                return 0
            time.sleep(args.every)
    finally:
        mirror.close()
