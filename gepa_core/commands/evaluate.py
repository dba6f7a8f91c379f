"""The commands `python -m gepa_core.evaluate` and `python -m gepa_core.ttt`: what a trained model scores.

PATH is an output folder of `gepa_core.train`, one of its checkpoints, or an artifact, ours or published. An
artifact does not say its model: without a job file at hand it is taken for one of the published recipe.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from gepa_core.commands.train import torchrun_group
from gepa_core.config import DataPaths, ExecConfig, ModelConfig, RunConfig
from gepa_core.data.folder import open_folder
from gepa_core.data.text import Text, open_text
from gepa_core.device import rank_and_world
from gepa_core.errors import ArtifactError, ConfigError, DataError, DivergedError, UserError
from gepa_core.evaluation.stages import measure
from gepa_core.model.gepa import GEPA
from gepa_core.quantization.artifact import check_fits, num_weights, read_artifact
from gepa_core.training.segment import prepare
from gepa_core.training.trained import JOB, Job, open_run, open_trained, read_job


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
    parser.add_argument("path", type=Path, help="output folder of gepa_core.train, checkpoint, or artifact")
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
    path: Path = args.path
    if not path.exists():
        raise ConfigError(
            f"{path}: no such file or folder; give a training output folder, checkpoint or artifact"
        )
    if args.tokens is not None and args.tokens < 1:
        raise ConfigError(f"--tokens {args.tokens}: must be at least 1")
    job, step = _job(args.job, path), None
    if path.is_file():
        (model, run), weights = _open_artifact(path, job), "artifact"
    else:
        trained = open_trained(path, average=not args.raw)
        model, run, step = trained.model, trained.run, trained.step
        weights = "raw" if args.raw else "average"
    if args.counting:
        run = run.model_copy(update={"eval": run.eval.model_copy(update={"counting": args.counting})})
    exec_cfg = job.exec if job else ExecConfig()
    if args.device:
        exec_cfg = exec_cfg.model_copy(update={"device": args.device})
    paths = _data_paths(args.data, job, run)
    limit = run.data.val_tokens if args.tokens is None else args.tokens
    text = open_text(paths.val, paths.tokenizer, run.model.vocab_size, limit)
    model.to(prepare(exec_cfg))
    return Subject(model, weights, step, run, exec_cfg, text)


def _job(given: Path | None, path: Path) -> Job | None:
    """The job given, or that of the output folder that `path` is, or lies in."""
    if given is not None:
        return open_run(given) if given.is_dir() else read_job(given)
    for folder in (path, *path.resolve().parents[:2]):
        if (folder / JOB).is_file():
            return open_run(folder)
    return None


def _open_artifact(path: Path, job: Job | None) -> tuple[GEPA, RunConfig]:
    """The job's model with an artifact's weights; without a job, the published recipe's."""
    largest = GEPA(job.run.model if job else ModelConfig(ve_dim=256))
    state = read_artifact(path, num_weights(largest.state_dict()))
    run = job.run if job else _published_run(path, state)
    model = GEPA(run.model)
    try:
        check_fits(state, model.state_dict())
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from None
    model.load_state_dict(state)
    return model, run


def _published_run(path: Path, state: dict[str, Tensor]) -> RunConfig:
    """The published recipe, in the variant that the tensors are of; its artifacts need its rotary tables."""
    bigram, value = state.get("bigram_emb.embed.weight"), state.get("ve_shared.embed.weight")
    variant: dict[str, Any] = {"bigram": "xor" if "bigram_emb.scale" in state else "poly"}
    variant |= {"ve_layers": ()} if value is None else {"ve_dim": value.shape[-1]}
    if bigram is not None and bigram.ndim == 2:
        variant |= {"bigram_buckets": len(bigram), "bigram_dim": bigram.shape[1]}
    with contextlib.suppress(ArtifactError, ValidationError, IndexError):
        model = ModelConfig(**variant, rope_precision="bf16_published")
        with torch.device("meta"):
            check_fits(state, GEPA(model).state_dict())
        return RunConfig(steps=1, warmdown_steps=0, model=model)
    raise ConfigError(
        f"{path}: an artifact does not say its model's sizes, and they are not the published recipe's; give "
        "--job, the job file or output folder it was made from"
    )


def _data_paths(folder: Path | None, job: Job | None, run: RunConfig) -> DataPaths:
    if folder is None:
        if job is None:
            raise ConfigError("no data: no job.json is at hand that names it; give --data, a prepared folder")
        return job.data
    data = open_folder(folder)
    if run.data.tokenizer not in ("", data.config.tokenizer):
        raise DataError(f"{folder}: not the tokenizer that the model was trained with (SHA-256 differs)")
    return data.paths


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
    try:
        with torchrun_group():
            subject = open_subject(args)
            names = {"path": str(args.path), "weights": subject.weights, "step": subject.step}
            figures = names | _figures(way(args), subject)
            if rank_and_world()[0] == 0:
                print(json.dumps(figures) if args.json else _line(figures))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except DivergedError as error:
        print(f"{args.path}: {error}", file=sys.stderr)
        return 3
    return 0


def _line(figures: dict[str, Any]) -> str:
    text = (
        "{path}: {stage} val_bpb {val_bpb:.4f} of the {what} "
        "(val_loss {val_loss:.4f}, {tokens:,} tokens, {bytes:,} bytes, {seconds:.1f} s)"
    )
    step = figures["step"]
    what = "artifact" if step is None else f"{figures['weights']} weights after step {step}"
    return text.format(what=what, **figures)


def evaluate_command(argv: list[str] | None = None) -> int:
    parser = _parser("evaluate", "Validation in bits per byte.")
    parser.add_argument(
        "--sliding", action="store_true", help="overlapping windows instead of plain sequences"
    )
    return _command(parser, lambda args: "sliding" if args.sliding else "plain", argv)


def ttt_command(argv: list[str] | None = None) -> int:
    return _command(_parser("ttt", "Legal, score-first test-time training."), lambda args: "ttt", argv)
