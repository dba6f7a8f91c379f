"""A results folder of a sweep with planted truth, as DESIGN's columns have it: what analysis tests read.

val_bpb(step) = FLOOR + A step^-ALPHA on the constant phase; in the warmdown it falls below that continuation
by DROP (warmdown_steps / 1000)^GROWTH (1 - r^Q). Noise: AR(1) along a trunk, shared by its branches.
"""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

FLOOR, A, ALPHA = 1.15, 4.0, 0.5
DROP, GROWTH, Q = 0.06, 0.15, 0.7
EFFECTS = {"ema": -0.0006, "int6": 0.0148, "int6_sliding": -0.0235, "ttt": -0.0055}
"""BPB of each stage less the one before it."""
ON_FLOAT = {"ema_sliding": ("ema", -0.0235), "ema_ttt": ("ema_sliding", -0.0035)}
"""Stages of the EMA weights that were never quantized, each less the one named: TTT mends .002 of int6."""
BLOCKS, BLOCK_BYTES = 40, 80_000
EVERY = 100

_SHAPES = {
    "linear": lambda t: 1 - t,
    "cosine": lambda t: 0.5 * (1 + np.cos(np.pi * t)),
    "1-sqrt": lambda t: 1 - np.sqrt(t),
}


def true_bpb(step: np.ndarray, steps: int, warmdown: int, schedule: str = "linear") -> np.ndarray:
    """Noiseless val_bpb of raw weights after `step` updates of a run."""
    step = np.asarray(step, float)
    t = np.clip((step - (steps - warmdown)) / max(warmdown, 1), 0, 1)
    remaining = _SHAPES[schedule](t)
    return FLOOR + A * step**-ALPHA - DROP * (warmdown / 1000) ** GROWTH * (1 - remaining**Q)


def write_sweep(
    folder: Path,
    steps: tuple[int, ...] = (3000, 4500, 6000),
    ratios: tuple[float, ...] = (0.2, 0.4, 0.6),
    schedules: tuple[str, ...] = ("linear",),
    seeds: tuple[int, ...] = (42,),
    noise: float = 0.0004,
    pending: int = 0,
    floor_rows: int | None = 900,
    on_float: bool = False,
) -> Path:
    """Write runs.parquet, plan.json, sweep.json, trajectory/ and blocks/ under `folder`; returns it.

    `on_float`: also the stages of ON_FLOAT, and int6 with its bytes along the trajectories.
    """
    for name in ("trajectory", "blocks"):
        (folder / name).mkdir(parents=True)
    grid = [(n, r, s, seed) for seed in seeds for n in steps for r in ratios for s in schedules]
    if odd := [(n, r) for n, r, _, _ in grid if (n - round(r * n)) % EVERY or n % EVERY]:
        raise ValueError(f"steps and peaks must be multiples of {EVERY}: {odd}")
    rows: list[dict] = []
    plan: dict = {"runs": {}, "segments": {}}
    for seed in seeds:
        rng = np.random.default_rng(seed)
        peaks = sorted({n - round(r * n) for n, r, _, s in grid if s == seed})
        trunk = _ar1(rng, max(peaks) // EVERY + 1, noise)
        for start, stop in zip([0, *peaks[:-1]], peaks, strict=True):
            at = np.arange(start, stop + 1, EVERY)[1 if start else 0 :]
            value = FLOOR + A * np.maximum(at, 50.0) ** -ALPHA + trunk[at // EVERY]
            _write_segment(folder, plan, f"trunk{seed}-{start}", None, at, np.ones(len(at)), value)
        for n, ratio, schedule, _ in (g for g in grid if g[3] == seed):
            down = round(ratio * n)
            peak = n - down
            run_id = f"{n}-{down}-{schedule}-s{seed}"
            at = np.arange(peak, n + 1, EVERY)[1:]
            drift = trunk[peak // EVERY] * np.linspace(1, 0.3, len(at))
            value = true_bpb(at, n, down, schedule) + drift + _ar1(rng, len(at), noise / 2)
            remaining = _SHAPES[schedule]((at - peak) / down)
            _write_segment(folder, plan, run_id, run_id, at, remaining, value)
            chain = [f"trunk{seed}-{start}" for start, stop in zip([0, *peaks], peaks) if stop <= peak]  # noqa: B905
            plan["runs"][run_id] = {"segments": [*chain, run_id], "stages": []}
            done = len(grid) - len(rows) > pending
            stages = _write_blocks(folder, run_id, float(value[-1]), rng, on_float) if done else {}
            row = _row(run_id, n, down, schedule, seed, done, stages, floor_rows)
            rows.append(row | {f"{name}_bpb": stages.get(f"{name}_bpb") for name in ON_FLOAT if on_float})
    if on_float:
        _add_int6(folder)
    pd.DataFrame(rows).to_parquet(folder / "runs.parquet")
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "sweep.json").write_text(
        json.dumps({"name": folder.name, "argv": ["launch.py", "synthetic.yaml"]})
    )
    return folder


def _ar1(rng: np.random.Generator, n: int, sd: float, rho: float = 0.4) -> np.ndarray:
    noise = rng.normal(0, sd * np.sqrt(1 - rho**2), n)
    noise[0] = rng.normal(0, sd)
    for i in range(1, n):
        noise[i] += rho * noise[i - 1]
    return noise


def _write_segment(
    folder: Path,
    plan: dict,
    segment: str,
    run_id: str | None,
    at: np.ndarray,
    lr: np.ndarray,
    bpb: np.ndarray,
) -> None:
    plan["segments"][segment] = {"start": int(at[0]), "stop": int(at[-1]), "trunk": run_id is None}
    frame = pd.DataFrame({"segment_id": segment, "run_id": run_id, "step": at, "lr_scale": lr})
    frame["train_tokens"] = frame["step"] * 4096
    frame["train_loss"] = frame["val_loss"] = bpb * 1.6
    frame["val_bpb"] = bpb
    frame["ema_val_bpb"] = np.where(at % (5 * EVERY) == 0, bpb - 0.01 * lr, np.nan)
    frame["elapsed_seconds"] = frame["step"] * 0.01
    frame.to_parquet(folder / "trajectory" / f"{segment}.parquet")


def _add_int6(folder: Path) -> None:
    """int6 and its bytes at every fifth evaluation: the tax rises and the size falls as the rate does."""
    for path in (folder / "trajectory").glob("*.parquet"):
        frame = pd.read_parquet(path)
        at = frame["ema_val_bpb"].notna()
        frame["int6_val_bpb"] = frame["ema_val_bpb"] + 0.004 + 0.011 * (1 - frame["lr_scale"])
        frame["raw_int6_val_bpb"] = (frame["val_bpb"] + 0.02).where(at)
        frame["artifact_bytes"] = (300_000 - 20_000 * (1 - frame["lr_scale"])).where(at)
        frame.to_parquet(path)


def _write_blocks(
    folder: Path, run_id: str, raw: float, rng: np.random.Generator, on_float: bool
) -> dict[str, float]:
    """Blocks that differ by far more than stages do, so that only pairing resolves the effects."""
    difficulty = np.random.default_rng(7).normal(0, 0.05, BLOCKS)
    difficulty -= difficulty.mean()
    level, rows, stages = {"float": raw}, [], {}
    order = ("float", *EFFECTS)
    for before, stage in pairwise(order):
        level[stage] = level[before] + EFFECTS[stage]
    for stage, (before, effect) in ON_FLOAT.items() if on_float else ():
        level[stage] = level[before] + effect
    for stage, bpb in level.items():
        own = bpb + difficulty + rng.normal(0, 0.0004, BLOCKS)
        nll = own * np.log(2) * BLOCK_BYTES
        rows += [
            {"stage": stage, "block": i, "tokens": 32_768, "bytes": BLOCK_BYTES, "nll": float(v)}
            for i, v in enumerate(nll)
        ]
        stages[f"{stage}_bpb"] = float(own.mean())
    pd.DataFrame(rows).to_parquet(folder / "blocks" / f"{run_id}.parquet")
    return stages


def _row(
    run_id: str, n: int, down: int, schedule: str, seed: int, done: bool, stages: dict[str, float],
    floor_rows: int | None,
) -> dict:  # fmt: skip
    known = {
        **{
            name: stages.get(name)
            for name in ("float_bpb", "ema_bpb", "int6_bpb", "int6_sliding_bpb", "ttt_bpb")
        },
        "artifact_bytes": 300_000 - 9_000 * np.log(n / 3000),
        "code_bytes": 78_281,
        "quant_rows_at_floor": floor_rows,
        "quantized_fraction": 0.95,
        "train_loss_final": 1.9,
        "train_seconds": n * 0.01,
        "eval_seconds": 20.0,
        "ttt_seconds": 15.0,
        "gpu_seconds_own": down * 0.01 + 35.0,
        "gpu_seconds_shared": (n - down) * 0.01,
    }
    return {
        "run_id": run_id, "sweep": "synthetic", "status": "done" if done else "pending", "error": None,
        "seed": seed, "steps": n, "peak_steps": n - down, "warmdown_steps": down, "warmdown_ratio": down / n,
        "schedule": schedule, "params": 300_000, "train_tokens": n * 4096, "epochs": n * 4096 / 10e6,
        **(known if done else dict.fromkeys(known)),
        "gpus": 0.0, "device": "cpu", "torch_version": "2.13.0", "data_fingerprint": "sha256:0",
        "config_json": json.dumps({"steps": n, "ema_decay": 0.997, "model": {"embedding_dtype": "bf16"}}),
        "commit": "0" * 40, "started_at": None, "finished_at": None,
    }  # fmt: skip
