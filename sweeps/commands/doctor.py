"""`launch.py doctor`: what this machine is good for, and what stands in the way, with each problem's remedy.

Nothing but the standard library is needed: what is missing is what it is there to say.
"""

import argparse
import contextlib
import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NEEDED = (
    *("torch", "numpy", "ray", "pydantic", "PyYAML", "rich", "pandas", "pyarrow", "scipy", "matplotlib"),
    *("sentencepiece", "zstandard", "brotli", "safetensors", "python-minifier", "huggingface_hub", "psutil"),
)
OPTIONAL = ("tensorboard", "wandb", "shtab")
PYTHON = (3, 11)
FEATURES = (
    *("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile"),
    *("asimd", "neon", "bf16", "sve"),
)
"""By their names in /proc/cpuinfo; asimd is ARM's NEON."""
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
    project = _project()
    commit = f", commit {project['commit'][:12]}" if project["commit"] else ""
    changed = " with changes" if project["changed"] else ""
    print(f"gepa-sweeps {project['version'] or 'not installed'}{commit}{changed}")
    return 0


def examine(store: Path, data: Path, address: str | None) -> dict[str, Any]:
    """Everything, as it is printed by --json. `store` and `data` need not exist."""
    return {
        "project": _project(),
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "system": {
            "os": f"{platform.system()} {platform.release()}",
            "machine": platform.machine(),
            "platform": platform.platform(),
        },
        "packages": {name: _version(name) for name in (*NEEDED, *OPTIONAL)},
        "cpu": {"name": cpu_name(), "cores": os.cpu_count(), "usable": _usable(), "features": _features()},
        "torch": _torch(),
        "ray": _ray(address),
        "memory": _memory(),
        "disk": {str(path): _free(path) for path in (store, data, Path(tempfile.gettempdir()))},
        "data": _data(data),
    }


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
    project, system, cpu, torch, ray = (found[key] for key in ("project", "system", "cpu", "torch", "ray"))
    commit = f", commit {project['commit'][:12]}" if project["commit"] else ", not a git checkout"
    changed = " with changes" if project["changed"] else ""
    yield f"gepa-sweeps {project['version'] or '(not installed)'}{commit}{changed}, in {project['folder']}"
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


def _project() -> dict[str, Any]:
    def git(*words: str) -> str | None:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(
                ["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=5, check=False
            )
            return done.stdout.strip() if done.returncode == 0 else None
        return None

    commit = git("rev-parse", "HEAD")
    changed = bool(git("status", "--porcelain")) if commit else False
    return {"version": _version("gepa-sweeps"), "commit": commit, "changed": changed, "folder": str(ROOT)}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _python() -> str:
    from gepa_core.invocation import python

    return python()


def cpu_name() -> str | None:
    """As the system calls the processor."""
    for line in _cpuinfo():
        if line.startswith(("model name", "Model\t")):
            return line.partition(":")[2].strip()
    if platform.system() == "Darwin":
        return _sysctl("machdep.cpu.brand_string")
    return platform.processor() or None


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _sysctl(name: str) -> str | None:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False)
        return done.stdout.strip() or None if done.returncode == 0 else None
    return None


def _features() -> list[str]:
    flags: set[str] = set()
    for line in _cpuinfo():
        if line.lower().startswith(("flags", "features")):
            flags = set(line.partition(":")[2].split())
            break
    if platform.system() == "Darwin":
        both = f"{_sysctl('machdep.cpu.features') or ''} {_sysctl('machdep.cpu.leaf7_features') or ''}"
        flags = set(both.lower().split())
        flags |= {"neon"} if platform.machine() == "arm64" else set()
        flags |= {"bf16"} if _sysctl("hw.optional.arm.FEAT_BF16") == "1" else set()
    names = {"asimd": "neon"}
    return list(dict.fromkeys(names.get(flag, flag) for flag in FEATURES if flag in flags))


def _usable() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _torch() -> dict[str, Any]:
    """Version, GPUs and speed of products on one core; an error where torch is there and does not load."""
    if _version("torch") is None:
        return {"version": None}
    try:
        torch = importlib.import_module("torch")
        gpus = [
            {
                "name": torch.cuda.get_device_name(i),
                "memory_bytes": torch.cuda.get_device_properties(i).total_memory,
                "capability": ".".join(map(str, torch.cuda.get_device_capability(i))),
            }
            for i in range(torch.cuda.device_count())
        ]
        torch.set_num_threads(1)  # a CPU worker has one
        speeds = importlib.import_module("gepa_core.device").product_speeds()
    except Exception as error:  # a broken install fails in its own ways
        return {"version": _version("torch"), "error": (str(error) or type(error).__name__).splitlines()[0]}
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "gpus": gpus,
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "fp32_gflops": speeds.fp32 / 1e9,
        "bf16_gflops": speeds.bf16 / 1e9,
        "bf16_slower": speeds.bf16_slowdown,
    }


def _ray(address: str | None) -> dict[str, Any]:
    address = address or os.environ.get("RAY_ADDRESS") or None
    mode = os.environ.get("RAY_AUTH_MODE", "").lower() or "disabled"
    places = [os.environ.get("RAY_AUTH_TOKEN_PATH", ""), str(Path.home() / ".ray" / "auth_token")]
    token = bool(os.environ.get("RAY_AUTH_TOKEN")) or any(place and Path(place).is_file() for place in places)
    answers: bool | None = None
    if address:
        with contextlib.suppress(ImportError):
            from gepa_core.errors import UserError
            from sweeps.commands.sweep import check_address

            try:
                check_address(address)
                answers = True
            except UserError:
                answers = False
    return {
        "version": _version("ray"),
        "address": address,
        "answers": answers,
        "auth": mode,
        "token": token,
    }


def _memory() -> dict[str, int | None]:
    try:
        psutil = importlib.import_module("psutil")
    except ImportError:
        return {"total_bytes": None, "available_bytes": None}
    memory = psutil.virtual_memory()
    return {"total_bytes": memory.total, "available_bytes": memory.available}


def _free(path: Path) -> int | None:
    """Bytes free where `path` is, or would be made; None for a URL."""
    if "://" in str(path) or ":/" in str(path):
        return None
    there = next((p for p in (path.absolute(), *path.absolute().parents) if p.exists()), Path("/"))
    return shutil.disk_usage(there).free


def _has_nvidia() -> bool:
    return Path("/proc/driver/nvidia/gpus").is_dir() or shutil.which("nvidia-smi") is not None


def _data(folder: Path) -> dict[str, Any]:
    """The prepared folders below `folder`, by path: tokens and vocabulary, or what is wrong with one."""
    found: dict[str, Any] = {}
    patterns = ("manifest.json", "*/manifest.json", "*/*/manifest.json")
    for manifest in sorted(path for pattern in patterns for path in folder.glob(pattern)):
        name = str(manifest.parent)
        try:
            told = json.loads(manifest.read_text(encoding="utf-8"))
            if told.get("format") != "gepa-sweeps data":
                continue
            found[name] = {
                "train_tokens": int(told["train"]["tokens"]),
                "val_tokens": int(told["val"]["tokens"]),
                "vocab_size": int(told["tokenizer"]["vocab_size"]),
            }
            names = [file["name"] for split in ("train", "val") for file in told[split]["files"]]
            if lost := [file for file in names if not (manifest.parent / file).is_file()]:
                found[name] = {"error": f"{len(lost)} files are missing, {lost[0]} for one"}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            found[name] = {"error": f"manifest.json is unreadable ({type(error).__name__})"}
    return found
