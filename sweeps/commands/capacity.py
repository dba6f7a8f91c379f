"""What a launch can use: this machine, or the cluster at an address."""

import argparse
import os
import re
import socket
from pathlib import Path

import psutil

from gepa_core.errors import ConfigError, UserError
from sweeps.plan.estimate import Machine, places, refusal
from sweeps.spec.sweep import Sweep


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
    if not on_cpu or all(run.model.compute_dtype == "fp32" for run in sweep.recipe_runs):
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
    leases = places(sweep, nodes)
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
