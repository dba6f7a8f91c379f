"""What the quantizers cost a trained model, and what each coder makes of the same integers.

    python -m benchmarks.rd RUN [--data DIR] [--tokens N] [--integer-bits 6 8] [--equal-bytes]

RUN is an output folder of gepa_core.train, or one of its checkpoints. BPB is measured by plain evaluation
of the averaged weights. Besides each quantizer as configured: `gptq` and `rd` at the bytes of `reference` and
of `per_row`, which have no knob, and the fewest bytes at which `rd` scores no worse than `reference`.
"""

import argparse
from pathlib import Path
from typing import Any

import brotli
import numpy as np
import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.quantize import coders, timed
from gepa_core.config import CAP_BYTES, DataPaths, ExecConfig
from gepa_core.data.folder import open_folder
from gepa_core.data.shards import TokenStream, open_shards
from gepa_core.data.text import open_text
from gepa_core.evaluation.stages import measure
from gepa_core.model.gepa import GEPA
from gepa_core.quantization import artifact, codec, rans
from gepa_core.quantization.calibrate import calibrate
from gepa_core.quantization.methods import quantize
from gepa_core.quantization.quantized import Quantized
from gepa_core.sections import QuantConfig
from gepa_core.submission.bundle import code_bytes
from gepa_core.training.segment import prepare
from gepa_core.training.trained import open_run, open_trained

_TRIALS = 7  # budgets or clips tried on the way to what is to be equal


class Bench:
    """One trained model, its validation text, and what calibration says of it."""

    def __init__(self, args: argparse.Namespace) -> None:
        trained = open_trained(args.run, average=True)
        self.model, self.run = trained.model, trained.run
        self.state = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        paths: DataPaths = open_folder(args.data).paths if args.data else open_run(trained.folder).data
        vocab_size = self.run.model.vocab_size
        self.text = open_text(paths.val, paths.tokenizer, vocab_size, args.tokens or None)
        self.exec_cfg = ExecConfig(device=args.device)
        self.model.to(prepare(self.exec_cfg))
        self.float_bpb = self._bpb(self.state)
        wanted = args.calibration_tokens or self.run.quant.calibration_tokens
        text = TokenStream(open_shards(paths.train)).span(0, wanted)
        self.sensitivities, self.calibration_seconds = timed(
            lambda: calibrate(self.model, text, self.run.batch.seq_len)
        )

    def _bpb(self, state: dict[str, Tensor]) -> float:
        model: GEPA = self.model
        model.load_state_dict(state)
        return measure("plain", model, self.text, self.run.eval, self.run.ttt, self.exec_cfg).bpb

    def measure(self, **options: Any) -> tuple[Quantized, dict[str, Any]]:
        """Quantizes, codes, decodes and scores the model, with these options of QuantConfig."""
        config = QuantConfig(**(self.run.quant.model_dump() | {"budget_bytes": None} | options))
        quantized, seconds = timed(
            lambda: quantize(self.state, config, self.sensitivities, code_bytes=code_bytes(self.run))
        )
        data, coding = timed(lambda: artifact.encode(quantized))
        state, decoding = timed(lambda: artifact.decode(data))
        bpb = self._bpb(state)
        report = quantized.report
        return quantized, {
            "bytes": len(data),
            "bits_per_weight": 8 * len(data) / report.parameters,
            "int6_bpb": bpb,
            "damage_bpb": bpb - self.float_bpb,
            "entropy_bits": report.entropy_bits,
            "rows_at_floor": report.rows_at_floor,
            "seconds": {"quantize": seconds, "encode": coding, "decode": decoding},
        }

    def gptq_of(self, size: int) -> dict[str, Any]:
        """`gptq` at the clip whose file comes nearest to so many bytes without exceeding them."""
        low, high, best = 2.0, 60.0, None  # standard deviations: more make coarser steps and smaller files
        for _ in range(_TRIALS):
            middle = (low * high) ** 0.5
            found = self.measure(method="gptq", clip_sigmas=middle)[1] | {"clip_sigmas": middle}
            if found["bytes"] <= size:
                high, best = middle, found
            else:
                low = middle
        return best or {"bytes": None}

    def no_worse(self, bpb: float, most: int, bits: int) -> dict[str, Any]:
        """The smallest of some files of `rd`, none over `most` bytes, that score `bpb` or better."""
        low, high, best = 0.05 * most, float(most), None
        for _ in range(_TRIALS):
            middle = (low * high) ** 0.5
            found = self.measure(method="rd", budget_bytes=int(middle), integer_bits=bits)[1]
            if found["int6_bpb"] <= bpb:
                high, best = middle, found
            else:
                low = middle
        return best or {"bytes": None}


def all_coders(quantized: Quantized) -> dict[str, dict[str, Any]]:
    """Bytes and seconds of the same integers under each coder, and the bounds they work against."""
    found = coders(quantized)
    arrays = [tensor.integers.numpy() for tensor in quantized.tensors.values()]
    data, seconds = timed(lambda: brotli.compress(b"".join(a.tobytes() for a in arrays), quality=11))
    found["brotli-11"] = {"bytes": len(data), "seconds": seconds}
    symbols = np.concatenate([a.ravel().view(np.uint8) ^ np.uint8(128) for a in arrays])
    classes = np.concatenate([codec.classes_of(*codec.scale_codes(a)) for a in arrays])
    counts = rans.histogram(symbols, classes).astype(float)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    entropy = float(-(counts * np.log2(np.where(share > 0, share, 1))).sum() / 8)
    found["entropy, given classes of rows and columns"] = {"bytes": round(entropy), "seconds": None}
    return found


def compare(args: argparse.Namespace) -> dict[str, Any]:
    bench = Bench(args)
    reference, at_reference = bench.measure(method="reference")
    per_row = bench.measure(method="per_row")[1]
    result: dict[str, Any] = {
        "benchmark": "rd",
        "run": str(args.run),
        "parameters": reference.report.parameters,
        "quantized_fraction": reference.report.quantized_fraction,
        "val_tokens": bench.text.num_targets,
        "calibration": bench.calibration_seconds,
        "cap_bytes_for_the_model": CAP_BYTES - code_bytes(bench.run),
        "float_bpb": bench.float_bpb,
        "reference": at_reference,
        "per_row": per_row,
        "gptq": bench.measure(method="gptq")[1],
        "gptq at the bytes of reference": bench.gptq_of(at_reference["bytes"]),
        "gptq at the bytes of per_row": bench.gptq_of(per_row["bytes"]),
        "coders_of_the_reference_integers": all_coders(reference),
    }
    for bits in args.integer_bits:
        size, bpb = at_reference["bytes"], at_reference["int6_bpb"]
        spent, equal_bytes = bench.measure(method="rd", budget_bytes=size, integer_bits=bits)
        equal_bpb = {"bytes": None} if args.equal_bytes else bench.no_worse(bpb, size, bits)
        result[f"rd, integers of {bits} bits"] = {
            "equal_bytes": equal_bytes,
            "at the bytes of per_row": bench.measure(
                method="rd", budget_bytes=per_row["bytes"], integer_bits=bits
            )[1],
            "bpb_saved_at_equal_bytes": bpb - equal_bytes["int6_bpb"],
            "equal_bpb": equal_bpb,
            "bytes_saved_at_equal_bpb": size - equal_bpb["bytes"] if equal_bpb["bytes"] else None,
            "coders_of_its_integers": all_coders(spent),
        }
    return result | harness.environment(torch.device("cpu"))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rd", description="quantizers on a trained model"
    )
    parser.add_argument("run", type=Path, help="output folder of gepa_core.train, or a checkpoint")
    parser.add_argument("--data", type=Path, help="prepared data folder (default: the run's own)")
    parser.add_argument("--tokens", type=int, help="score at most this many leading target tokens")
    parser.add_argument("--calibration-tokens", type=int, help="default: the run's")
    parser.add_argument("--integer-bits", type=int, nargs="+", default=[6, 8], help="ranges for rd to try")
    parser.add_argument("--equal-bytes", action="store_true", help="leave out the search for equal BPB")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    args = parser.parse_args(argv)
    harness.report(compare(args), args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
