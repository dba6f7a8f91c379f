"""The command `python -m gepa_core.quantize`: from a trained model to its artifact."""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from gepa_core.commands.ending import exit_code
from gepa_core.config import CAP_BYTES, ExecConfig, RunConfig
from gepa_core.data.folder import open_folder
from gepa_core.errors import ConfigError
from gepa_core.sections import QuantConfig
from gepa_core.submission.compress import compress
from gepa_core.training.segment import prepare
from gepa_core.training.trained import open_run, open_trained, validate


def quantize_command(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m gepa_core.quantize", description="write the int6 artifact of a trained model"
    )
    parser.add_argument("path", type=Path, help="output folder of gepa_core.train, or one of its checkpoints")
    parser.add_argument("--method", choices=("reference", "per_row", "gptq", "rd"), help="default: the run's")
    parser.add_argument("--budget-bytes", type=int, help="rd: size of the file to fill")
    parser.add_argument("--integer-bits", type=int, help="rd: range of the integers, 2 to 8")
    parser.add_argument("--clip-sigmas", type=float, help="gptq: standard deviations a row's integers reach")
    parser.add_argument("--data", type=Path, help="gptq, rd: prepared data folder (default: the run's own)")
    parser.add_argument("--raw", action="store_true", help="raw weights, not their average")
    parser.add_argument("--out", type=Path, help="file to write (default: model.int6 beside the checkpoint)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    args = parser.parse_args(argv)
    return exit_code(lambda: _written(args), args.path)


def _written(args: argparse.Namespace) -> int:
    figures = _run(args)
    print(json.dumps(figures) if args.json else _lines(figures))
    return 0


def _run(args: argparse.Namespace) -> dict[str, Any]:
    trained = open_trained(args.path, average=not args.raw)
    run = _with_options(trained.run, args)
    train = None
    if run.quant.calibrates:
        train = open_folder(args.data).paths.train if args.data else open_run(trained.folder).data.train
    prepare(ExecConfig(device="cpu"))
    out = args.out or trained.folder / "model.int6"
    start = time.perf_counter()
    try:
        done = compress(trained.model, run, train, out)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror}); give another --out") from None
    seconds = time.perf_counter() - start
    weights = "raw" if args.raw else "average"
    names = {"path": str(out), "method": run.quant.method, "weights": weights, "step": trained.step}
    return names | done.figures() | {"seconds": seconds, "mse": done.quantized.report.mse}


def _with_options(run: RunConfig, args: argparse.Namespace) -> RunConfig:
    given = {
        "method": args.method,
        "budget_bytes": args.budget_bytes,
        "integer_bits": args.integer_bits,
        "clip_sigmas": args.clip_sigmas,
    }
    quant = run.quant.model_dump() | {key: value for key, value in given.items() if value is not None}
    return run.model_copy(update={"quant": validate(QuantConfig, quant, "quant", "")})


def _lines(figures: dict[str, Any]) -> str:
    size = figures["artifact_bytes"] + figures["code_bytes"]
    verdict = "within" if size <= CAP_BYTES else "OVER"
    mse = figures["mse"]
    mean = sum(mse.values()) / max(len(mse), 1)
    return (
        f"{figures['path']}: {figures['artifact_bytes']:,} bytes by {figures['method']}, "
        f"{figures['bits_per_weight']:.3f} bits a weight, of step {figures['step']} "
        f"({figures['seconds']:.1f} s)\n"
        f"  with {figures['code_bytes']:,} bytes of code: {size:,}, {verdict} the cap of {CAP_BYTES:,}\n"
        f"  {figures['quantized_fraction']:.1%} of the parameters quantized, rows at the floor "
        f"{figures['quant_rows_at_floor']:,} of {figures['quant_rows']:,}, mean squared error {mean:.3e}"
    )
