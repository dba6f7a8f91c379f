"""Sliding BPB of one model and text in fp32 and in bf16, by the published loop and by ours.

    python -m benchmarks.rounding [--chunks 2] [--width 384] [--device cpu] [--compile]

The model is trained a little by TTT, the text is random. Prints BPB, and how far it is from the published
loop's in fp32.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import harness
from benchmarks.baseline import PlainTTT
from benchmarks.ttt import Bench
from benchmarks.without import OPTIMISATIONS
from gepa_core.config import ExecConfig
from gepa_core.evaluation import stages
from gepa_core.model.gepa import GEPA


class Rounding:
    """One set of weights, scored in many ways."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.weights = {name: t.detach().clone() for name, t in bench.model.state_dict().items()}

    def _model(self, dtype: str) -> GEPA:
        model = GEPA(self.bench.config.model.model_copy(update={"compute_dtype": dtype}))
        model.to(self.bench.device).load_state_dict(self.weights)
        return model

    def published(self, dtype: str) -> float:
        bench = self.bench
        plain = PlainTTT(
            self._model(dtype), bench.first_chunk.tokens, bench.first_chunk.table, bench.config.eval
        )
        plain.score(plain.windows())
        return plain.bpb

    def ours(self, dtype: str, exec_cfg: ExecConfig, off: Sequence[str] = ()) -> float:
        config = self.bench.config
        with contextlib.ExitStack() as without:
            for name in off:
                without.enter_context(OPTIMISATIONS[name]())
            return stages.measure(
                "sliding", self._model(dtype), self.bench.first_chunk, config.eval, config.ttt, exec_cfg
            ).bpb


def measure(args: Any) -> dict[str, Any]:
    """BPB by way of scoring; the slowest to start, the compiled ones, come last."""
    config, exec_cfg, device = harness.configuration(args)
    bench = Bench(config, device, args.chunks)
    plain = exec_cfg.model_copy(update={"compile": False})
    bench.ours("ours", plain)()
    found = Rounding(bench)
    outside = ("scales in the matrices",)
    ways: dict[str, Callable[[], float]] = {
        "fp32 published": lambda: found.published("fp32"),
        "fp32 ours, uncompiled": lambda: found.ours("fp32", plain),
        "bf16 published": lambda: found.published("bf16"),
        "bf16 ours, uncompiled": lambda: found.ours("bf16", plain),
        "bf16 ours, uncompiled, whole last block": lambda: found.ours("bf16", plain, ("trimmed last block",)),
        "bf16 ours": lambda: found.ours("bf16", exec_cfg),
        "bf16 ours, scales outside": lambda: found.ours("bf16", exec_cfg, outside),
    }
    bpb = {name: way() for name, way in ways.items()}
    return {
        "benchmark": "rounding",
        "model": config.model.model_dump(mode="json"),
        "targets": bench.first_chunk.num_targets,
        "compile": exec_cfg.compile,
        "bpb": bpb,
        "difference": {name: value - bpb["fp32 published"] for name, value in bpb.items()},
        **harness.environment(device),
    }


def main(argv: list[str] | None = None) -> int:
    parser = harness.parser("rounding", "BPB in fp32 and bf16, published and ours.")
    parser.add_argument(
        "--chunks", type=int, default=2, help="chunks of text; all but the last are trained on"
    )
    args = parser.parse_args(argv)
    harness.report(measure(args), args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
