"""Sliding evaluation and test-time training against the published loop's, on the same text, in the same run.

    python -m benchmarks.ttt [--width 384] [--device cpu] [--compile] [--ablate] [--profile]

Both score every token once, and must find the same bits per byte. The published code scores the end of the
text again and again, in windows of 31 lengths: nothing in a long text, much of the time of one as short as
this.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import harness
from benchmarks.baseline import PlainTTT
from benchmarks.without import without
from gepa_core.config import ExecConfig, RunConfig
from gepa_core.data.text import Text
from gepa_core.evaluation import stages
from gepa_core.model.gepa import GEPA
from gepa_core.sizes import forward_flops_per_token, training_flops_per_token


class Bench:
    """One model and text; every run starts from the same weights."""

    def __init__(self, config: RunConfig, device: torch.device, chunks: int) -> None:
        self.config, self.device = config, device
        self.model = GEPA(config.model)
        self.model.init_weights(config.seed)
        self.model.to(device)
        self.start = {name: t.clone() for name, t in self.model.state_dict().items()}
        vocab_size = config.model.vocab_size
        tokens = harness.random_text(chunks * config.ttt.chunk_tokens + 1, vocab_size)
        self.text = Text(tokens, harness.byte_table(vocab_size))
        self.first_chunk = Text(tokens[: config.ttt.chunk_tokens + 1], self.text.table)
        self.bpb: dict[str, float] = {}
        self.parts: dict[str, list[tuple[float, float]]] = {}

    def _restart(self) -> None:
        self.model.load_state_dict(self.start)
        for parameter in self.model.parameters():
            parameter.requires_grad_(True)
            parameter.grad = None

    def ours(self, name: str, exec_cfg: ExecConfig) -> Callable[[], None]:
        """Test-time training of this library."""

        def run() -> None:
            self._restart()
            config = self.config
            found = stages.measure("ttt", self.model, self.text, config.eval, config.ttt, exec_cfg)
            assert found.adaptation is not None
            self.bpb[name] = found.bpb
            seconds = found.adaptation.score_seconds, found.adaptation.train_seconds
            self.parts.setdefault(name, []).append(seconds)

        return run

    def published(self) -> None:
        self._restart()
        plain = PlainTTT(self.model, self.text.tokens, self.text.table, self.config.eval)
        self.bpb["baseline"] = plain.run(self.config.ttt)

    def sliding(self, name: str, exec_cfg: ExecConfig) -> Callable[[], None]:
        """Sliding evaluation of this library, on the first chunk's length of text."""

        def run() -> None:
            config = self.config
            self.bpb[name] = stages.measure(
                "sliding", self.model, self.first_chunk, config.eval, config.ttt, exec_cfg
            ).bpb

        return run

    def published_sliding(self) -> None:
        text = self.first_chunk
        plain = PlainTTT(self.model, text.tokens, text.table, self.config.eval)
        plain.score(plain.windows())
        self.bpb["sliding baseline"] = plain.bpb


def ablations(exec_cfg: ExecConfig, device: torch.device) -> dict[str, dict[str, Any] | None]:
    """What can be switched off alone, and by which keys of ExecConfig; None: by `without`."""
    options: dict[str, dict[str, Any] | None] = {
        "trimmed last block": None,
        "windows gathered on the device": None,
        "chosen score batch": {"eval_batch_seqs": PlainTTT.score_batch},
    }
    if device.type == "cuda":
        options["choice of attention"] = {"attention": "flash"}
        options |= {"replayed passes": None, "scales in the matrices": None}
    if device.type == "cuda" or exec_cfg.compile:
        options["compilation"] = {"compile": False}
    return options


def model_flops(config: RunConfig, num_targets: int) -> tuple[float, float]:
    """FLOPs of scoring every window in full, and of training, that the text asks of any implementation.

    What trimming saves is not taken off, so that utilisation compares with published figures. Blocks that are
    frozen still pass gradients on; what they save is not taken off either.
    """
    windows = num_targets // config.eval.stride
    chunks = num_targets // config.ttt.chunk_tokens
    trained = (chunks - 1) * config.ttt.chunk_tokens * config.ttt.epochs
    seq_len = config.eval.seq_len
    score = windows * seq_len * forward_flops_per_token(config.model, seq_len)
    return score, trained * training_flops_per_token(config.model, seq_len)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Times all variants; see the module for what they are."""
    config, exec_cfg, device = harness.configuration(args)
    clock = harness.Clock(device)
    bench = Bench(config, device, args.chunks)
    variants: dict[str, Callable[[], None]] = {
        "baseline": bench.published,
        "ours": bench.ours("ours", exec_cfg),
        "sliding baseline": bench.published_sliding,
        "sliding": bench.sliding("sliding", exec_cfg),
    }
    if args.ablate:
        for name, change in ablations(exec_cfg, device).items():
            ablated = bench.ours(name, exec_cfg.model_copy(update=change or {}))
            variants[f"without {name}"] = without(name, ablated) if change is None else ablated
        if device.type == "cpu":
            variants["without passes by hand"] = harness.plainly(bench.ours("plain", exec_cfg))
    seconds = harness.interleave(variants, args.rounds, clock)
    top = harness.profile(variants["ours"], device) if args.profile else None
    num_targets = bench.text.num_targets
    score_flops, train_flops = model_flops(config, num_targets)
    parts = [statistics.median(part) for part in zip(*bench.parts["ours"][1:], strict=True)]
    median = harness.summary(seconds["ours"])["median_seconds"]
    return {
        "benchmark": "ttt",
        "model": config.model.model_dump(mode="json"),
        "parameters": sum(p.numel() for p in bench.model.parameters()),
        "evaluation": bench.config.eval.model_dump(mode="json"),
        "ttt": config.ttt.model_dump(mode="json"),
        "targets": num_targets,
        "compile": exec_cfg.compile,
        "clock": clock.name,
        "ours": harness.summary(seconds["ours"])
        | {"score_wall_seconds": parts[0], "train_wall_seconds": parts[1]}
        | {"targets_per_second": num_targets / median},
        "baseline": harness.summary(seconds["baseline"]),
        "ratio": harness.ratio(seconds["baseline"], seconds["ours"]),
        "sliding": harness.summary(seconds["sliding"]),
        "sliding_baseline": harness.summary(seconds["sliding baseline"]),
        "sliding_ratio": harness.ratio(seconds["sliding baseline"], seconds["sliding"]),
        "worth": harness.ablation(seconds) if args.ablate else None,
        "bpb": bench.bpb,
        "bpb_difference": bench.bpb["ours"] - bench.bpb["baseline"],
        "peak_memory_bytes": harness.peak_memory_bytes(variants["ours"], device),
        "profile": top,
        **harness.utilisation(score_flops + train_flops, seconds, config, device),
        **harness.environment(device),
    }


def main(argv: list[str] | None = None) -> int:
    parser = harness.parser("ttt", "Time of sliding evaluation and TTT against the published loop.")
    parser.add_argument(
        "--chunks", type=int, default=2, help="chunks of text; all but the last are trained on"
    )
    args = parser.parse_args(argv)
    harness.report(measure(args), args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
