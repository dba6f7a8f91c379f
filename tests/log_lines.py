"""Training logs of invented runs, in the forms that scripts of the challenge print."""

from collections.abc import Iterable

HEADER = """val_bpb:enabled tokenizer_kind=sentencepiece
train_loader:dataset:text train_shards:80
val_loader:shards pattern=./data/val_*.bin tokens:62021632
model_params:{params}
world_size:8 grad_accum_steps:1
train_batch_tokens:786432 train_seq_len:2048 iterations:{of} warmup_steps:20 max_wallclock_seconds:{cap}.000
seed:{seed}
warmup_step:1/20
warmup_step:20/20"""
SOURCE = '''"""A script that prints itself, and boasts:
final_int6_roundtrip_exact val_loss:9.0 val_bpb:9.90000001
"""

import os
import sys
from pathlib import Path

class Settings:
    seed = int(os.environ.get("SEED", 9999))
    warmdown_iters = int(os.environ.get("WARMDOWN_ITERS", 1200))

def report(step, loss):
    # step:1000/20000 val_loss:9.0 val_bpb:9.9000
    log0(f"step:{step}/20000 val_loss:{loss:.4f} val_bpb:{loss / 1.69:.4f}")
    log0("final_int6_roundtrip_exact val_loss:9.0 val_bpb:9.90000002")
    return loss

===================================================================================================
Running Python 3.12.3 (main, Nov  6 2025, 13:44:16) [GCC 13.3.0]
Running PyTorch 2.9.1+cu128
+---------------------------------------------------------------------------------------+
| NVIDIA-SMI 565.57.01              Driver Version: 565.57.01      CUDA Version: 12.7   |
|   0  NVIDIA H100 80GB HBM3          On  |   00000000:18:00.0 Off |                  0 |
==================================================================================================='''


def bpb(step: int) -> float:
    """Of a run that falls as runs do."""
    return round(1.0 + 3.1 / (1 + step) ** 0.35, 4)


def curve(steps: Iterable[int], of: int = 20000, ms: float = 100.0, word: str = "step:") -> list[str]:
    """A training and a validation line for each step; the last one has a validation only."""
    lines = []
    for step in steps:
        time = f"train_time:{ms * step:.0f}ms step_avg:{ms:.2f}ms"
        if step:
            lines.append(f"{word}{step}/{of} train_loss:{1.7 * bpb(step):.4f} {time}")
        lines.append(f"{word}{step}/{of} val_loss:{1.69 * bpb(step):.4f} val_bpb:{bpb(step):.4f} {time}")
    return lines


def stopped(step: int, of: int = 20000, ms: float = 100.0) -> str:
    return f"stopping_early: wallclock_cap train_time:{ms * step:.0f}ms step:{step}/{of}"


def log(
    *tail: str, last: int = 6000, of: int = 20000, seed: int = 42, params: int = 26993756, cap: int = 600
) -> str:
    """A run that a clock stopped at `last` of `of` steps (or that made all), and what it printed then."""
    lines = [
        HEADER.format(of=of, seed=seed, params=params, cap=cap),
        *curve([*range(0, last, 1000), last], of),
    ]
    if last < of:
        lines.append(stopped(last, of))
    return "\n".join([*lines, "peak memory allocated: 19710 MiB reserved: 19930 MiB", *tail]) + "\n"


FINALS = (
    "DIAGNOSTIC post_ema val_loss:1.9000 val_bpb:1.1240 eval_time:2227ms",
    "Serialized model: 105783807 bytes",
    "Code size: 68212 bytes",
    "Serialized model int6+zstd: 14418655 bytes",
    "final_int6_roundtrip val_loss:1.9100 val_bpb:1.1300 eval_time:1812ms",
    "final_int6_roundtrip_exact val_loss:1.91000001 val_bpb:1.13000001",
    "final_int6_sliding_window val_loss:1.8800 val_bpb:1.1100 stride:64 eval_time:69216ms",
    "final_int6_sliding_window_exact val_loss:1.88000002 val_bpb:1.11000002",
    "legal_ttt_exact val_loss:1.84785000 val_bpb:1.09440207",
)


def step(at: int, value: float, of: int = 2000) -> str:
    return f"step:{at}/{of} val_loss:{value} val_bpb:{value - 1:.1f} train_time:{at}00ms\n"


BEGUN = "max_wallclock_seconds:102\nseed:1\n" + step(0, 9.0) + step(1000, 2.5)
WHOLE = BEGUN + step(2000, 2.2)
INT6 = "final_int6_roundtrip_exact val_loss:2.3 val_bpb:1.35\n"
