"""What `launch.py` does with a store beside running sweeps: status, gc, export, import, mirror."""

import argparse
import json
from pathlib import Path

from sweeps.command import open_data, say
from sweeps.spec import load_sweep


def status_command(args: argparse.Namespace) -> int:
    """`launch.py status DIR`."""
    from sweeps.status import locate, status_lines, sweep_status

    store, names = locate(args.dir)
    found = [sweep_status(store, name) for name in names]
    if args.json:
        print(json.dumps({"sweeps": found}, allow_nan=False))
    else:
        print("\n".join(line for status in found for line in status_lines(status)))
    return 0


def gc_command(args: argparse.Namespace) -> int:
    """`launch.py gc DIR`."""
    from sweeps.gc import collect, find_waste
    from sweeps.status import locate

    store, _ = locate(args.dir)
    waste = find_waste(store, states=args.states)
    total = sum(item.bytes for item in waste)
    if not args.dry_run:
        collect(store, waste)
    if args.json:
        items = [vars(item) for item in waste]
        print(json.dumps({"bytes": total, "deleted": not args.dry_run, "items": items}))
        return 0
    for item in waste:
        print(f"{item.path}: {item.why}, {item.bytes:,} bytes")
    print(f"{'would delete' if args.dry_run else 'deleted'} {total:,} bytes")
    return 0


def export_command(args: argparse.Namespace) -> int:
    """`launch.py export RUN_ID --to DIR`."""
    from sweeps.export import export
    from sweeps.status import locate

    store, _ = locate(args.output)
    print(f"{args.to}: {', '.join(export(store, args.run_id, Path(args.to)))}")
    return 0


def import_command(args: argparse.Namespace) -> int:
    """`launch.py import CHECKPOINT SWEEP.yaml`."""
    from sweeps.adopt import adopt
    from sweeps.store import Store

    prepared = open_data(load_sweep(args.sweep, args.overrides), say)
    tokens = {data.config.train: data.train_tokens for data in prepared.data.values()}
    adopted = adopt(Store(args.output), prepared.sweep, Path(args.checkpoint), tokens)
    name = prepared.sweep.name
    print(f"adopted as {adopted.id}: {len(adopted.runs)} runs of {name} can start at step {adopted.step}")
    return 0


def mirror_command(args: argparse.Namespace) -> int:
    """`launch.py mirror DIR`."""
    from sweeps.mirrors import read_runs, to_tensorboard, to_wandb
    from sweeps.status import locate

    store, names = locate(args.dir)
    for name in names:
        runs = read_runs(store, name)
        made = (
            to_tensorboard(runs, Path(args.tensorboard))
            if args.tensorboard
            else to_wandb(runs, args.wandb, Path())
        )
        print("\n".join(map(str, made)))
    return 0
