"""Training step: this library's against the published loop's, on the same data, in the same run.

python -m benchmarks.step [--width 384] [--device cpu] [--ablate] [--profile]
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.baseline import PlainTrainer
from benchmarks.without import without
from gepa_core.config import ExecConfig, RunConfig
from gepa_core.data.shards import TokenStream, open_shards, write_shard
from gepa_core.model.gepa import GEPA
from gepa_core.sizes import training_flops_per_token
from gepa_core.training.trainer import Trainer

STREAM_STEPS = 4  # steps of text in the shard; the stream wraps round


class Ours:
    """A trainer of this library, a step at a time."""

    def __init__(
        self, config: RunConfig, exec_cfg: ExecConfig, stream: TokenStream, device: torch.device
    ) -> None:
        self.trainer = Trainer(config, exec_cfg, stream, device)
        self._steps: Iterator[float] = self.trainer.steps(config.steps, lambda votes: None)

    def __call__(self) -> None:
        next(self._steps)

    def loss(self) -> float:
        return self.trainer.train_loss()


class Published:
    """The baseline, fed from the same stream, a span and a copy to the device at a time."""

    def __init__(self, config: RunConfig, stream: TokenStream, device: torch.device) -> None:
        model = GEPA(config.model)
        model.init_weights(config.seed)
        self.config, self.stream, self.device = config, stream, device
        self.trainer = PlainTrainer(model.to(device), config, compiled=device.type == "cuda")
        self._loss = torch.zeros(())

    def __call__(self) -> None:
        self._loss = self.trainer.step(self._spans())

    def loss(self) -> float:
        return float(self._loss)

    def _spans(self) -> Iterator[tuple[Tensor, Tensor]]:
        batch = self.config.batch
        first = self.trainer.step_count * batch.stride_per_step
        for j in range(batch.spans):
            text = self.stream.span(first + j * (batch.span_tokens + 1), batch.span_tokens + 1)
            tokens = torch.from_numpy(text.astype("int64")).to(self.device, non_blocking=True)
            yield tokens[:-1].view(-1, batch.seq_len), tokens[1:].view(-1, batch.seq_len)


def ablations(config: RunConfig, device: torch.device) -> dict[str, dict[str, Any] | None]:
    """What can be switched off alone, and by which keys of ExecConfig; None: by `without`."""
    options: dict[str, dict[str, Any] | None] = {"batched Newton-Schulz": None, "flat average": None}
    if device.type == "cuda":
        options |= {
            "compilation": {"compile": False, "micro_batch_seqs": 12},  # a span would not fit 40 GB
            "choice of attention": {"attention": "flash"},
            "prefetch": None,
            "scales in the matrices": None,
        }
    else:
        options["micro-batches that fit the cache"] = {"micro_batch_seqs": config.batch.seqs_per_span}
    return options


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Times all variants; see the module for what they are."""
    config, exec_cfg, device = harness.configuration(args)
    clock = harness.Clock(device)
    with tempfile.TemporaryDirectory() as folder:
        text = harness.random_text(STREAM_STEPS * config.batch.stride_per_step, config.model.vocab_size)
        write_shard(Path(folder) / "train_000000.bin", text)
        stream = TokenStream(open_shards(Path(folder) / "train_*.bin"))
        published, ours = Published(config, stream, device), Ours(config, exec_cfg, stream, device)
        variants: dict[str, Callable[[], Any]] = {"baseline": published, "ours": ours}
        if args.ablate:
            for name, change in ablations(config, device).items():
                ablated = Ours(config, exec_cfg.model_copy(update=change or {}), stream, device)
                variants[f"without {name}"] = without(name, ablated) if change is None else ablated
            if device.type == "cpu":
                variants["without gradients by hand"] = harness.plainly(
                    Ours(config, exec_cfg, stream, device)
                )
        seconds = harness.interleave(variants, args.rounds, clock, warmup=2)
        loss = {"ours": ours.loss(), "baseline": published.loss()}  # after as many steps each
        top = harness.profile(ours, device) if args.profile else None
    tokens = config.batch.tokens_per_step
    median = harness.summary(seconds["ours"])["median_seconds"]
    flops = tokens * training_flops_per_token(config.model, config.batch.seq_len)
    return {
        "benchmark": "step",
        "model": config.model.model_dump(mode="json"),
        "parameters": sum(p.numel() for p in ours.trainer.model.parameters()),
        "tokens_per_step": tokens,
        "clock": clock.name,
        "ours": harness.summary(seconds["ours"]) | {"tokens_per_second": tokens / median},
        "baseline": harness.summary(seconds["baseline"]),
        "ratio": harness.ratio(seconds["baseline"], seconds["ours"]),
        "worth": harness.ablation(seconds) if args.ablate else None,
        "loss": loss,
        "micro_batch_seqs": ours.trainer.micro_batch,
        "peak_memory_bytes": harness.peak_memory_bytes(ours, device),
        "profile": top,
        **harness.utilisation(flops, seconds, config, device),
        **harness.environment(device),
    }


def main(argv: list[str] | None = None) -> int:
    args = harness.parser("step", "Time of a training step against the published loop.").parse_args(argv)
    harness.report(measure(args), args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
