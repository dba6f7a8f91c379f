"""`launch.py doctor`: what this machine is good for, and what stands in the way, with each problem's remedy.

Nothing but the standard library is needed: what is missing is what it is there to say.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sweeps.commands.machine import NEEDED, ROOT, examine, project

PYTHON = (3, 11)
FREE_BYTES = 2e9
"""Less than that of disk or memory is a problem: a quickstart takes 0.1 GB of disk and 0.6 GB a worker."""
SLOW_BF16 = 2.0


def doctor_command(args: argparse.Namespace) -> int:
    """Exit code 2 where something without which nothing runs is missing."""
    begun = time.monotonic()
    found = examine(Path(args.output), Path(args.data), args.address)
    problems = list(problems_of(found))
    found["problems"] = [{"what": what, "remedy": remedy, "fatal": fatal} for what, remedy, fatal in problems]
    found["seconds"] = round(time.monotonic() - begun, 2)
    print(json.dumps(found, allow_nan=False) if args.json else "\n".join(as_text(found)))
    return 2 if any(fatal for _, _, fatal in problems) else 0


def version_command(args: argparse.Namespace) -> int:
    """`launch.py --version`."""
    this = project()
    commit = f", commit {this['commit'][:12]}" if this["commit"] else ""
    changed = " with changes" if this["changed"] else ""
    print(f"gepa-sweeps {this['version'] or 'not installed'}{commit}{changed}")
    return 0


def problems_of(found: dict[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """(what, remedy, whether nothing runs before it is mended)."""
    if sys.version_info < PYTHON:
        yield f"Python {found['python']['version']}", "use Python 3.11 or newer to make .venv", True
    if platform.system() == "Windows":
        yield (
            "Windows: workers and the store are not tested there",
            "use WSL 2 (Ubuntu) and the Linux lines",
            True,
        )
    missing = [name for name in NEEDED if found["packages"][name] is None]
    if missing:
        own = ROOT / ".venv" / "bin" / "python"
        inside = sys.prefix != sys.base_prefix
        pip = f"{_python()} -m pip install -c constraints.txt -e ."
        if not inside:
            pip = "python3 -m venv .venv && .venv/bin/python -m pip install -c constraints.txt -e ."
        remedy = f"in the project's folder: {pip}"
        if own.is_file() and Path(sys.prefix) != own.parents[1]:
            remedy = f"use the project's own Python, {own}, or {remedy}"
        yield f"not installed here: {', '.join(missing)}", remedy, True
    torch = found["torch"]
    if error := torch.get("error"):
        yield (
            f"torch cannot be used ({error})",
            "install it again; see pytorch.org for this machine's build",
            True,
        )
    if torch.get("version") and not torch.get("gpus") and _has_nvidia():
        yield _no_cuda(torch)
    if (slower := torch.get("bf16_slower")) and slower > SLOW_BF16:
        yield (
            f"products in bf16 take {slower:.0f} times as long as in fp32: this CPU emulates them",
            "small recipes (nano, mini) compute in fp32; elsewhere set model.compute_dtype: fp32",
            False,
        )
    ray = found["ray"]
    if ray["address"] and ray["answers"] is False:
        remedy = "see `ray status` on its head node, or unset RAY_ADDRESS to use this machine"
        yield f"no Ray cluster answers at {ray['address']}", remedy, False
    if ray["auth"] == "token" and not ray["token"]:
        yield (
            "RAY_AUTH_MODE is token, and there is none",
            "`ray get-auth-token --generate`, or RAY_AUTH_TOKEN",
            False,
        )
    if (free := found["memory"]["available_bytes"]) is not None and free < FREE_BYTES:
        yield f"{free / 1e9:.1f} GB of memory are free", "--max-parallel 1, or end other programs", False
    for path, free in found["disk"].items():
        if free is not None and free < FREE_BYTES:
            yield f"{free / 1e9:.1f} GB are free at {path}", "make room, or give --output another disk", False
    for name, entry in found["data"].items():
        if entry.get("error"):
            yield f"data in {name}: {entry['error']}", "prepare or fetch it again", False


def _no_cuda(torch: dict[str, Any]) -> tuple[str, str, bool]:
    if torch["cuda"] is None:
        remedy = (
            "install torch with CUDA: pip install torch --index-url https://download.pytorch.org/whl/cu128"
        )
        return "an NVIDIA GPU is here, but this torch was built without CUDA", remedy, False
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return f"CUDA_VISIBLE_DEVICES is {visible!r}: GPUs are hidden", "unset CUDA_VISIBLE_DEVICES", False
    return (
        "an NVIDIA GPU is here, but torch sees none",
        "look at nvidia-smi; the driver may be too old",
        False,
    )


def as_text(found: dict[str, Any]) -> Iterator[str]:
    """For people, a line a subject."""
    this, system, cpu, torch, ray = (found[key] for key in ("project", "system", "cpu", "torch", "ray"))
    commit = f", commit {this['commit'][:12]}" if this["commit"] else ", not a git checkout"
    changed = " with changes" if this["changed"] else ""
    yield f"gepa-sweeps {this['version'] or '(not installed)'}{commit}{changed}, in {this['folder']}"
    yield f"python      {found['python']['version']}, {found['python']['executable']}"
    yield f"system      {system['os']}, {system['machine']}"
    features = ", ".join(cpu["features"]) or "no features told"
    yield f"cpu         {cpu['name'] or 'unknown'}; {cpu['usable']} of {cpu['cores']} cores; {features}"
    if torch.get("fp32_gflops"):
        yield (
            f"products    fp32 {torch['fp32_gflops']:,.0f} GFLOP/s, bf16 {torch['bf16_gflops']:,.0f} GFLOP/s "
            "on one core"
        )
    gpus = [f"{gpu['name']} ({gpu['memory_bytes'] / 1e9:.0f} GB)" for gpu in torch.get("gpus", ())]
    built = f"CUDA {torch['cuda']}" if torch.get("cuda") else "built without CUDA"
    seen = ", ".join(gpus) or "no GPU: runs train on the CPU"
    yield f"torch       {torch.get('version') or 'missing'}" + (
        f", {built}; {seen}" if torch.get("version") else ""
    )
    where = "no cluster named: a launch starts its own, on the loopback and with a token of its own"
    if ray["address"]:
        state = {True: "answers", False: "does not answer", None: "not asked"}[ray["answers"]]
        where = f"cluster {ray['address']} ({state}), auth {ray['auth']}"
    yield f"ray         {ray['version'] or 'missing'}; {where}"
    free, total = found["memory"]["available_bytes"], found["memory"]["total_bytes"]
    if total:
        yield f"memory      {free / 1e9:.1f} GB free of {total / 1e9:.1f}"
    yield "disk        " + ", ".join(
        f"{free / 1e9:.1f} GB free at {at}" for at, free in found["disk"].items() if free
    )
    yield "data        " + (
        "; ".join(_data_words(found["data"])) or "none prepared; the quickstart makes its own"
    )
    others = [f"{name} {number}" for name, number in found["packages"].items() if number]
    yield f"packages    {', '.join(others)}"
    if not found["problems"]:
        yield "nothing stands in the way"
    for problem in found["problems"]:
        yield f"problem: {problem['what']}"
        yield f"  remedy: {problem['remedy']}"


def _data_words(data: dict[str, Any]) -> Iterator[str]:
    for name, entry in data.items():
        if "train_tokens" in entry:
            yield f"{name}: {entry['train_tokens'] / 1e6:,.1f} M tokens, {entry['vocab_size']} pieces"
        else:
            yield f"{name}: {entry['error']}"


def _python() -> str:
    from gepa_core.invocation import python

    return python()


def _has_nvidia() -> bool:
    return Path("/proc/driver/nvidia/gpus").is_dir() or shutil.which("nvidia-smi") is not None
