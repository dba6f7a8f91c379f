"""The commands `python -m gepa_core.evaluate` and `python -m gepa_core.ttt`: what a trained model scores.

MODEL is an output folder of `gepa_core.train`, one of its checkpoints, an artifact, ours or published, or the
id of a run in a store. An artifact does not say its model: where neither a job file nor its sweep is at hand
it is taken for one of the published recipe.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gepa_core.commands.ending import exit_code
from gepa_core.commands.load import data_paths, open_model
from gepa_core.commands.train import torchrun_group
from gepa_core.config import ExecConfig, RunConfig
from gepa_core.data.text import Text, open_text
from gepa_core.device import rank_and_world
from gepa_core.errors import ConfigError
from gepa_core.evaluation.stages import measure
from gepa_core.model.gepa import GEPA
from gepa_core.training.segment import prepare


@dataclass(frozen=True)
class Subject:
    """A model to score, on the device, and the text to score it on."""

    model: GEPA
    weights: str
    step: int | None
    """Of training; an artifact does not say."""
    run: RunConfig
    exec_cfg: ExecConfig
    text: Text


def _parser(command: str, what: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m gepa_core.{command}", description=what)
    parser.add_argument(
        "path", metavar="MODEL", help="output folder of gepa_core.train, checkpoint, artifact, or a run's id"
    )
    parser.add_argument("--store", default="results", help="where run ids are looked for (default: results)")
    parser.add_argument("--data", type=Path, help="prepared data folder (default: the run's own)")
    parser.add_argument("--job", type=Path, help="job file or output folder that describes an artifact")
    parser.add_argument("--raw", action="store_true", help="raw weights of a checkpoint, not their average")
    parser.add_argument("--tokens", type=int, help="score at most this many leading target tokens")
    parser.add_argument("--counting", choices=("once", "reference"), help="default: the run's")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), help="default: the run's")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a line")
    return parser


def open_subject(args: argparse.Namespace) -> Subject:
    """Finds model, configuration and validation text. Raises UserError where one of them is missing."""
    if args.tokens is not None and args.tokens < 1:
        raise ConfigError(f"--tokens {args.tokens}: must be at least 1")
    opened = open_model(args.path, job=args.job, average=not args.raw, store=args.store)
    run, exec_cfg = opened.run, opened.exec
    if args.counting:
        run = run.model_copy(update={"eval": run.eval.model_copy(update={"counting": args.counting})})
    if args.device:
        exec_cfg = exec_cfg.model_copy(update={"device": args.device})
    paths = data_paths(args.data, opened)
    limit = run.data.val_tokens if args.tokens is None else args.tokens
    text = open_text(paths.val, paths.tokenizer, run.model.vocab_size, limit)
    opened.model.to(prepare(exec_cfg))
    return Subject(opened.model, opened.weights, opened.step, run, exec_cfg, text)


def _figures(way: str, subject: Subject) -> dict[str, Any]:
    run = subject.run
    found = measure(way, subject.model, subject.text, run.eval, run.ttt, subject.exec_cfg)
    return {
        "stage": way,
        "val_bpb": found.bpb,
        "val_loss": found.loss,
        "tokens": found.tokens,
        "bytes": found.bytes,
        "seconds": found.seconds,
        **(asdict(found.adaptation) if found.adaptation else {}),
    }


def _command(
    parser: argparse.ArgumentParser, way: Callable[[argparse.Namespace], str], argv: list[str] | None
) -> int:
    """Exit codes: 0 done, 2 bad input, 3 the model's scores are not finite."""
    args = parser.parse_args(argv)
    return exit_code(lambda: _scored(args, way(args)), args.path)


def _scored(args: argparse.Namespace, way: str) -> int:
    with torchrun_group():
        subject = open_subject(args)
        names = {"path": str(args.path), "weights": subject.weights, "step": subject.step}
        figures = names | _figures(way, subject)
        if rank_and_world()[0] == 0:
            print(json.dumps(figures) if args.json else _line(figures))
    return 0


def _line(figures: dict[str, Any]) -> str:
    """In the words by which `python -m analysis import` files it, should a log hold it."""
    step = figures["step"]
    of = "int6" if step is None else figures["weights"]
    where = "{path}" if step is None else "{path} after step {step}"
    return (
        f"{of} {{stage}} val_bpb {{val_bpb:.4f}}, val_loss {{val_loss:.4f}} of {where} "
        "({tokens:,} tokens, {bytes:,} bytes, {seconds:.1f} s)"
    ).format(**figures)


def evaluate_command(argv: list[str] | None = None) -> int:
    parser = _parser("evaluate", "Validation in bits per byte.")
    parser.add_argument(
        "--sliding", action="store_true", help="overlapping windows instead of plain sequences"
    )
    return _command(parser, lambda args: "sliding" if args.sliding else "plain", argv)


def ttt_command(argv: list[str] | None = None) -> int:
    return _command(_parser("ttt", "Legal, score-first test-time training."), lambda args: "ttt", argv)
