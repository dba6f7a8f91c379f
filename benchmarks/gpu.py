"""All benchmarks at the reference size on one CUDA GPU in under 8 minutes: correctness first, then time.

    python -m benchmarks.gpu                          torch >= 2.11, no Ray
    python -m benchmarks.gpu --device cpu --small     the same, anywhere

Writes one JSON under benchmarks/results/, named by date and device.
"""

import argparse
import contextlib
import re
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import sdpa_kernel

from benchmarks import harness, quantize, step, ttt
from benchmarks.without import OPTIMISATIONS
from gepa_core.config import ExecConfig, RunConfig
from gepa_core.data.text import Text
from gepa_core.device import ATTENTION_KERNELS
from gepa_core.evaluation import stages
from gepa_core.model.gepa import GEPA, causal_attention

RESULTS = Path(__file__).parent / "results"
QUANTIZE_SECONDS = 150  # zstd-22 alone takes 40 s at the reference size

LOSS_TOLERANCE = 5e-3  # nats, bf16 against fp32
TIMED_TOLERANCE = 2e-2  # of the loss: training steps magnify what rounding differs by
BPB_TOLERANCE = {"bf16": 1e-3, "fp32": 1e-5}


def trained_a_little(config: RunConfig, seed: int = 0) -> GEPA:
    """Initial weights leave block outputs at zero: noise lets every part have a say."""
    model = GEPA(config.model)
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.02 * noise.to(parameter.dtype))
    return model


def bf16_loss(config: RunConfig, device: torch.device) -> dict[str, Any]:
    """Loss in bf16 on the device against fp32 on the CPU, same weights and tokens."""
    tokens = harness.random_text(2 * config.eval.seq_len + 1, config.model.vocab_size)
    losses = {}
    for dtype, where in (("fp32", torch.device("cpu")), ("bf16", device)):
        sizes = config.model.model_copy(update={"compute_dtype": dtype})
        model = trained_a_little(config.model_copy(update={"model": sizes})).to(where)
        exec_cfg = ExecConfig(device="cuda" if where.type == "cuda" else "cpu", compile=False)
        text = Text(tokens, harness.byte_table(config.model.vocab_size))
        losses[dtype] = stages.measure("plain", model, text, config.eval, config.ttt, exec_cfg).loss
    difference = losses["bf16"] - losses["fp32"]
    return losses | {"difference": difference, "passed": abs(difference) < LOSS_TOLERANCE}


_OF_SCORING = ("trimmed last block", "windows gathered on the device")


def fast_ttt(config: RunConfig, exec_cfg: ExecConfig) -> dict[str, Any]:
    """Test-time training as it is run, against all of its optimisations switched off, on a short text."""
    plain = exec_cfg.model_copy(update={"compile": False})
    tokens = harness.random_text(2 * config.ttt.chunk_tokens + 1, config.model.vocab_size)
    text = Text(tokens, harness.byte_table(config.model.vocab_size))
    cfg = config.ttt.model_copy(update={"epochs": 2})
    bpb = {}
    for name, how in (("fast", exec_cfg), ("plain", plain)):
        model = trained_a_little(config).to(harness.resolve_device(how))
        with contextlib.ExitStack() as off:
            for optimisation in _OF_SCORING if name == "plain" else ():
                off.enter_context(OPTIMISATIONS[optimisation]())
            bpb[name] = stages.measure("ttt", model, text, config.eval, cfg, how).bpb
    difference = bpb["fast"] - bpb["plain"]
    tolerance = BPB_TOLERANCE[config.model.compute_dtype]
    return bpb | {"difference": difference, "passed": abs(difference) < tolerance}


def timed(step_result: dict[str, Any], ttt_result: dict[str, Any]) -> dict[str, Any]:
    """Whether what was timed found what the baseline found: losses after as many steps, and BPB."""
    loss = step_result["loss"]["ours"] / step_result["loss"]["baseline"] - 1.0
    bpb = ttt_result["bpb_difference"]
    return {
        "loss": loss,
        "bpb": bpb,
        "passed": abs(loss) < TIMED_TOLERANCE and abs(bpb) < BPB_TOLERANCE["bf16"],
    }


def usable_attention(config: RunConfig, device: torch.device) -> dict[str, dict[str, bool]]:
    """Which kernels take this model's shapes when nothing else is allowed: whole sequences, and the masked
    last positions of a trimmed block. In a run the next kernel steps in, and nothing would tell."""
    sizes, length = config.model, config.eval.seq_len
    dtype = torch.bfloat16 if sizes.compute_dtype == "bf16" else torch.float32

    def heads(positions: int, count: int) -> torch.Tensor:
        return torch.randn(2, positions, count, sizes.head_dim, device=device, dtype=dtype)

    found: dict[str, dict[str, bool]] = {}
    for name, kernel in ATTENTION_KERNELS.items():
        for case, last in (("causal", length), ("last positions", config.eval.stride)):
            q, kv = heads(last, sizes.num_heads), heads(length, sizes.num_kv_heads)
            with warnings.catch_warnings(action="ignore"), sdpa_kernel([kernel]):
                try:
                    causal_attention(q, kv, kv)
                    usable = True
                except RuntimeError:
                    usable = False
            found.setdefault(name, {})[case] = usable
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Correctness, then step, TTT and, if time remains, the int6 stage."""
    start = time.monotonic()
    config, exec_cfg, device = harness.configuration(args)
    result: dict[str, Any] = harness.environment(device)
    result["usable_attention"] = usable_attention(config, device)
    result["correctness"] = {
        "bf16_loss": bf16_loss(config, device),
        "fast_ttt": fast_ttt(config, exec_cfg),
    }
    if all(check["passed"] for check in result["correctness"].values()):
        result["step"] = step.measure(args)
        say(f"step: {result['step']['ratio']:.2f}x the baseline")
        result["ttt"] = ttt.measure(args)
        say(f"TTT: {result['ttt']['ratio']:.2f}x, sliding: {result['ttt']['sliding_ratio']:.2f}x")
        result["correctness"]["timed"] = timed(result["step"], result["ttt"])
        left = args.budget - (time.monotonic() - start)
        if left > QUANTIZE_SECONDS or args.small:
            result["quantize"] = quantize.measure(args)
        else:
            result["quantize"] = f"not run: {left:.0f} s were left of {args.budget:.0f}"
    result["seconds"] = time.monotonic() - start
    return result


def say(line: str) -> None:
    """Progress goes to stderr: stdout holds the one JSON object."""
    print(line, file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Exit code 1 if a result is wrong; where the first checks say so, nothing is timed."""
    parser = harness.parser("gpu", "All benchmarks on one GPU.")
    parser.add_argument("--chunks", type=int, default=4, help="chunks of text for TTT")
    parser.add_argument(
        "--budget", type=float, default=480, help="seconds; the int6 stage is left out where few remain"
    )
    parser.add_argument(
        "--rd", action=argparse.BooleanOptionalAction, default=False, help="also quantize by rd"
    )
    parser.set_defaults(run=None, threads=2, rounds=3)
    args = parser.parse_args(argv)
    result = measure(args)
    slug = re.sub(r"[^A-Za-z0-9]+", "-", result["device"]).strip("-").lower()
    harness.report(result, args.out or RESULTS / f"{result['date'][:10]}-{slug}.json")
    return 0 if all(check["passed"] for check in result["correctness"].values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
