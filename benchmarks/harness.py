"""What the benchmarks share: sizes, interleaved timing, what the machine is and could do at best."""

import argparse
import copy
import json
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gepa_core.config import ExecConfig, RunConfig
from gepa_core.data.tokenizer import ByteTable
from gepa_core.device import resolve_device
from gepa_core.model.kernels import plain_expressions
from gepa_core.recipes import PRESETS

# Dense bf16 peaks, FLOP/s, from the makers' data sheets, by what torch calls the device.
PEAK_FLOPS = {
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
}


def parser(name: str, what: str) -> argparse.ArgumentParser:
    """The options all benchmarks have."""
    result = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=what)
    result.add_argument("--preset", choices=tuple(PRESETS), help="default: gepa-11l on CUDA, else gepa-nano")
    result.add_argument("--small", action="store_true", help="gepa-nano, whatever the device")
    result.add_argument("--width", type=int, help="scale the preset to this width (heads of 64, MLP of 3x)")
    result.add_argument("--dtype", choices=("fp32", "bf16"), help="precision of matrix products")
    result.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    result.add_argument("--rounds", type=int, default=5, help="measurements of each variant, interleaved")
    result.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: on CUDA")
    result.add_argument("--ablate", action="store_true", help="also with each optimisation off, alone")
    result.add_argument("--profile", action="store_true", help="also where the time goes, by operation")
    result.add_argument("--out", type=Path, help="also write the JSON to this file")
    return result


def configuration(args: argparse.Namespace) -> tuple[RunConfig, ExecConfig, torch.device]:
    """The sizes to measure, and how to run them."""
    exec_cfg = ExecConfig(device=args.device, compile=args.compile)
    device = resolve_device(exec_cfg)
    name = args.preset or ("gepa-11l" if device.type == "cuda" and not args.small else "gepa-nano")
    raw = copy.deepcopy(PRESETS[name])
    model = raw.setdefault("model", {})
    if args.width:
        heads = max(4, args.width // 64)
        sizes = {"width": args.width, "mlp_hidden": 3 * args.width}
        model.update(sizes | {"num_heads": heads, "num_kv_heads": heads // 2})
    if args.dtype:
        model["compute_dtype"] = args.dtype
    if device.type == "cpu":
        torch.set_num_threads(exec_cfg.threads or 1)
    return RunConfig(steps=1000, warmdown_steps=400, **raw), exec_cfg, device


def random_text(num_tokens: int, vocab_size: int, seed: int = 0) -> np.ndarray:
    """Tokens of a skewed distribution, with something to learn: speed does not depend on the text."""
    rng = np.random.default_rng(seed)
    weights = 1.0 / np.arange(1, vocab_size - 3)
    return (4 + rng.choice(vocab_size - 4, num_tokens, p=weights / weights.sum())).astype(np.uint16)


def byte_table(vocab_size: int) -> ByteTable:
    """Two bytes a token, a space before every third; the first four are control tokens."""
    ids = np.arange(vocab_size)
    return ByteTable(np.where(ids < 4, 0, 2).astype(np.int16), ids % 3 == 0, ids < 4)


class Clock:
    """Seconds: wall time, synchronised, on a GPU; on a CPU processor time, which others disturb least."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.name = "wall" if device.type == "cuda" else "processor"

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        return time.process_time()

    def time(self, function: Callable[[], Any]) -> float:
        start = self.now()
        function()
        return self.now() - start


def interleave(
    variants: Mapping[str, Callable[[], Any]], rounds: int, clock: Clock, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of each variant: all once, then all again, so that a drift of the machine meets all alike."""
    for function in variants.values():
        for _ in range(warmup):
            function()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, function in variants.items():
            seconds[name].append(clock.time(function))
    return seconds


def plainly(function: Callable[[], Any]) -> Callable[[], None]:
    """The same without anything written by hand for a CPU."""

    def run() -> None:
        with plain_expressions():
            function()

    return run


def summary(seconds: list[float]) -> dict[str, float]:
    """Median, and the interquartile range as a share of it."""
    median = statistics.median(seconds)
    low, _, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else (median,) * 3
    return {"median_seconds": median, "spread": (high - low) / median, "rounds": len(seconds)}


def ratio(slow: list[float], fast: list[float]) -> float:
    """How many times as fast: the ratio of medians."""
    return statistics.median(slow) / statistics.median(fast)


def ablation(seconds: Mapping[str, list[float]], prefix: str = "without ") -> dict[str, float]:
    """What each optimisation is worth: time without it over time with all of them."""
    return {
        name.removeprefix(prefix): ratio(times, seconds["ours"])
        for name, times in seconds.items()
        if name.startswith(prefix)
    }


def peak_flops(device: torch.device) -> float | None:
    """The data sheet's figure, where one is known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAK_FLOPS.items() if key in name), None)


def matmul_flops(device: torch.device, dtype: str, clock: Clock) -> float:
    """FLOP/s of one large matrix product here and now: the floor that arithmetic alone would reach."""
    size = 8192 if device.type == "cuda" else 768
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
    times = interleave({"product": lambda: a @ b}, 5, clock)["product"]
    return 2 * size**3 / min(times)


def utilisation(
    flops: float, seconds: Mapping[str, list[float]], config: RunConfig, device: torch.device
) -> dict[str, Any]:
    """FLOP/s achieved, against the data sheet (MFU) and against a plain matrix product.

    ratio_at_floor: what the ratio to the baseline would be if the model's FLOPs alone took time.
    """
    achieved, peak = flops / statistics.median(seconds["ours"]), peak_flops(device)
    product = matmul_flops(device, config.model.compute_dtype, Clock(device))
    floor = flops / (peak or product)
    return {
        "model_flops": flops,
        "mfu": achieved / peak if peak else None,
        "share_of_matrix_product": achieved / product,
        "matrix_product_flops_per_second": product,
        "floor_seconds": floor,
        "ratio_at_floor": statistics.median(seconds["baseline"]) / floor,
    }


def profile(function: Callable[[], Any], device: torch.device, top: int = 12) -> list[dict[str, Any]]:
    """The operations that take most time, each with its share of the total."""
    from torch.profiler import ProfilerActivity

    cuda = device.type == "cuda"
    function()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with torch.profiler.profile(activities=activities) as trace:
        function()
        if cuda:
            torch.cuda.synchronize(device)
    events = trace.key_averages()
    own = {e.key: e.self_device_time_total if cuda else e.self_cpu_time_total for e in events}
    calls = {e.key: e.count for e in events}
    total = sum(own.values()) or 1.0
    ranked = sorted(own, key=lambda key: -own[key])[:top]
    return [{"operation": key, "share": own[key] / total, "calls": calls[key]} for key in ranked]


def peak_memory_bytes(function: Callable[[], Any], device: torch.device) -> int:
    """On a GPU what is allocated while it runs, the states of all variants included;
    on a CPU all that is resident.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        function()
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def environment(device: torch.device) -> dict[str, Any]:
    """Machine, versions, time, commit."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "commit": commit(),
        "command": " ".join(["python -m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
    }


def commit() -> str | None:
    """The checkout's commit, where git and a repository are at hand."""
    if not (git := shutil.which("git")):
        return None
    command = [git, "rev-parse", "--short", "HEAD"]
    told = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return told.stdout.strip() or None


def processor() -> str:
    """The CPU's name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def report(result: dict[str, Any], out: Path | None) -> None:
    """Prints the one JSON object, and writes it where asked."""
    text = json.dumps(result, indent=1)
    print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n", encoding="utf-8")
