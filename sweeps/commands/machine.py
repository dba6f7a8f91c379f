"""What this machine is, for `doctor`. Only the standard library is needed: what is missing is told, too."""

import contextlib
import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NEEDED = (
    *("torch", "numpy", "ray", "pydantic", "PyYAML", "rich", "pandas", "pyarrow", "scipy", "matplotlib"),
    *("sentencepiece", "zstandard", "brotli", "safetensors", "python-minifier", "huggingface_hub", "psutil"),
)
OPTIONAL = ("tensorboard", "wandb", "shtab")
FEATURES = (
    *("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile"),
    *("asimd", "neon", "bf16", "sve"),
)
"""By their names in /proc/cpuinfo; asimd is ARM's NEON."""


def examine(store: Path, data: Path, address: str | None) -> dict[str, Any]:
    """Everything, as it is printed by --json. `store` and `data` need not exist."""
    return {
        "project": project(),
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "system": {
            "os": f"{platform.system()} {platform.release()}",
            "machine": platform.machine(),
            "platform": platform.platform(),
        },
        "packages": {name: version_of(name) for name in (*NEEDED, *OPTIONAL)},
        "cpu": {"name": cpu_name(), "cores": os.cpu_count(), "usable": _usable(), "features": _features()},
        "torch": _torch(),
        "ray": _ray(address),
        "memory": _memory(),
        "disk": {str(path): _free(path) for path in (store, data, Path(tempfile.gettempdir()))},
        "data": _data(data),
    }


def project() -> dict[str, Any]:
    def git(*words: str) -> str | None:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(
                ["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=5, check=False
            )
            return done.stdout.strip() if done.returncode == 0 else None
        return None

    commit = git("rev-parse", "HEAD")
    changed = bool(git("status", "--porcelain")) if commit else False
    return {"version": version_of("gepa-sweeps"), "commit": commit, "changed": changed, "folder": str(ROOT)}


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


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
    if version_of("torch") is None:
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
        return {"version": version_of("torch"), "error": (str(error) or type(error).__name__).splitlines()[0]}
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
            from sweeps.commands.capacity import check_address

            try:
                check_address(address)
                answers = True
            except UserError:
                answers = False
    return {
        "version": version_of("ray"),
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
