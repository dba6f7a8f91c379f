"""A run as the challenge wants it: a folder of script, model, log and figures, and proof that they agree."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gepa_core.config import CAP_BYTES, DataPaths, ExecConfig, RunConfig
from gepa_core.errors import ArtifactError
from gepa_core.evaluation.stages import WAYS
from gepa_core.submission.bundle import standalone_source

SCRIPT, MODEL, SUBMISSION, README, LOG = (
    "train_gpt.py",
    "model.int6",
    "submission.json",
    "README.md",
    "train.log",
)
DIGITS = 8
"""Decimals of what the script prints, and so of what is claimed."""

KINDS = {"plain": "int6", "sliding": "int6_sliding", "ttt": "ttt"}
"""The script's stages, by the names that a run's columns begin with."""
_FINAL_LINES = {
    "plain": "final_int6_roundtrip_exact",
    "sliding": "final_int6_sliding_window_exact",
    "ttt": "legal_ttt_exact",
}
_STAGE_ROWS = (
    ("float_bpb", "raw weights, plain"),
    ("ema_bpb", "averaged weights, plain"),
    ("int6_bpb", "int6, plain"),
    ("int6_sliding_bpb", "int6, sliding"),
    ("ttt_bpb", "int6, sliding, test-time training"),
)
# -I keeps the user's own modules out, None in sys.modules keeps out this project where it is installed.
_ALONE = """import runpy, sys
sys.modules.update(dict.fromkeys(("gepa_core", "sweeps", "analysis")))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class NotReproducedError(ArtifactError):
    """A folder's script does not print the figure that the folder claims."""

    exit_code = 3


def claimed_stage(metrics: Mapping[str, Any]) -> str | None:
    """The last of WAYS that was measured; None if none was."""
    return next((stage for stage in reversed(WAYS) if metrics.get(f"{KINDS[stage]}_bpb") is not None), None)


def export(
    run: RunConfig,
    artifact: bytes,
    metrics: Mapping[str, Any],
    trajectory: Sequence[Mapping[str, Any]],
    out: Path,
    *,
    exec_cfg: ExecConfig | None = None,
    author: str = "",
    github_id: str = "",
    name: str = "",
    blurb: str = "",
) -> dict[str, Any]:
    """Writes the submission's folder and returns what its submission.json claims.

    metrics: a row of runs.parquet (or what it holds), and int6_loss, int6_sliding_loss, ttt_loss where they
    are known, nats a token. trajectory: rows with step, val_loss, val_bpb, train_loss, elapsed_seconds, of
    which all but step may be missing or null. The last stage of int6 that was measured is the one claimed.
    Raises ArtifactError if none was, if `out` holds something, or if script and model exceed the cap.
    """
    stage = claimed_stage(metrics)
    if stage is None:
        raise ArtifactError(f"{run.run_id}: no int6 stage of this run was measured; nothing can be claimed")
    script = standalone_source(run, exec_cfg, artifact=MODEL, stage=stage)
    total = len(script) + len(artifact)
    if total > CAP_BYTES:
        raise ArtifactError(
            f"{run.run_id}: script ({len(script):,} bytes) and model ({len(artifact):,}) are {total:,}, "
            f"over the cap of {CAP_BYTES:,}; quantize with quant.method rd, which keeps to it"
        )
    check_folder(out)
    loss = metrics.get(f"{KINDS[stage]}_loss")
    submission = {
        "author": author,
        "github_id": github_id,
        "name": name or run.run_id,
        "blurb": blurb
        or f"GEPA, {run.steps} steps of which {run.warmdown_steps} warmdown, int6 {run.quant.method}",
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        **({} if loss is None else {"val_loss": round(float(loss), DIGITS)}),
        "val_bpb": round(float(metrics[f"{KINDS[stage]}_bpb"]), DIGITS),
        "bytes_total": total,
        "bytes_code": len(script),
        "bytes_model": len(artifact),
        "stage": stage,
    }
    files = {
        SCRIPT: script,
        MODEL: artifact,
        SUBMISSION: (json.dumps(submission, indent=2) + "\n").encode(),
        README: _readme(run, metrics, trajectory, submission).encode(),
        LOG: _log(run, metrics, trajectory, submission).encode(),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        for file, data in files.items():
            (out / file).write_bytes(data)
    except OSError as error:
        raise ArtifactError(f"{error.filename or out}: cannot be written ({error.strerror})") from error
    return submission


def check_folder(out: Path) -> None:
    """Raises ArtifactError unless `out` is new, or an empty folder."""
    if out.exists() and not out.is_dir():
        raise ArtifactError(f"{out}: a file; give a folder to make")
    if out.exists() and any(out.iterdir()):
        raise ArtifactError(f"{out}: not empty; delete it, or give another folder to make")


def printed(folder: Path, data: DataPaths, timeout_seconds: float | None = None) -> str:
    """Runs the folder's script in a fresh process, from that folder alone, and returns the line it prints.

    Only the validation shards and the tokenizer come from outside. Raises NotReproducedError if it fails.
    """
    paths = [os.path.abspath(p) for p in (data.val, data.tokenizer)]  # noqa: PTH100 (val is a pattern)
    done = subprocess.run(
        [sys.executable, "-I", "-c", _ALONE, SCRIPT, "--val", paths[0], "--tokenizer", paths[1]],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_seconds,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise NotReproducedError(f"{folder / SCRIPT}: ended with {done.returncode}: {reason}")
    return done.stdout.strip()


def verify(folder: Path, data: DataPaths, timeout_seconds: float | None = None) -> str:
    """`printed`, which must be what the folder claims: stage, val_bpb and val_loss, to the last digit.

    Raises NotReproducedError.
    """
    claimed = json.loads((folder / SUBMISSION).read_text(encoding="utf-8"))
    line = printed(folder, data, timeout_seconds)
    figures = [f"{key}:{claimed[key]:.{DIGITS}f}" for key in ("val_loss", "val_bpb") if key in claimed]
    expected = " ".join([claimed["stage"], *figures])
    if not set(expected.split(" ")) <= set(line.split(" ")):
        raise NotReproducedError(f"{folder}: claims {expected!r}, its script prints {line!r}")
    return line


def _log(
    run: RunConfig,
    metrics: Mapping[str, Any],
    trajectory: Sequence[Mapping[str, Any]],
    claim: Mapping[str, Any],
) -> str:
    """Lines as the published script prints them."""
    lines = [
        f"model_params:{metrics.get('params')} seed:{run.seed} train_batch_tokens:{run.batch.tokens_per_step}"
    ]
    for row in sorted(trajectory, key=lambda row: row["step"]):
        seconds = row.get("elapsed_seconds")
        time = "" if seconds is None else f" train_time:{1000 * seconds:.0f}ms"
        for kinds in (("train_loss",), ("val_loss", "val_bpb")):
            found = [f"{kind}:{row[kind]:.4f}" for kind in kinds if row.get(kind) is not None]
            if found:
                lines.append(f"step:{row['step']}/{run.steps} {' '.join(found)}{time}")
    lines += [
        f"Serialized model int6: {claim['bytes_model']} bytes",
        f"Code size: {claim['bytes_code']} bytes",
    ]
    if metrics.get("ema_bpb") is not None:
        lines.insert(-2, f"DIAGNOSTIC post_ema val_bpb:{metrics['ema_bpb']:.{DIGITS}f}")
    for stage, name in _FINAL_LINES.items():
        kind = KINDS[stage]
        pairs = (("val_loss", metrics.get(f"{kind}_loss")), ("val_bpb", metrics.get(f"{kind}_bpb")))
        figures = [f"{key}:{value:.{DIGITS}f}" for key, value in pairs if value is not None]
        lines += [" ".join([name, *figures])] if figures else []
    return "\n".join(lines) + "\n"


def _readme(
    run: RunConfig,
    metrics: Mapping[str, Any],
    trajectory: Sequence[Mapping[str, Any]],
    claim: Mapping[str, Any],
) -> str:
    stages = [(what, metrics[key]) for key, what in _STAGE_ROWS if metrics.get(key) is not None]
    return "\n".join(
        [
            f"# {claim['name']}",
            "",
            claim["blurb"],
            "",
            f"val_bpb **{claim['val_bpb']:.{DIGITS}f}** ({claim['stage']}), {claim['bytes_total']:,} bytes "
            f"in all: {claim['bytes_model']:,} of model, {claim['bytes_code']:,} of code.",
            "",
            *_table(("weights and evaluation", "val_bpb"), [(what, f"{v:.{DIGITS}f}") for what, v in stages]),
            f"{run.steps:,} steps of {run.batch.tokens_per_step:,} tokens, the last {run.warmdown_steps:,} a "
            f"{run.schedule} warmdown; seed {run.seed}; EMA {run.ema_decay}; int6 by {run.quant.method}."
            + _circumstances(metrics),
            "",
            f"    python {SCRIPT} --val 'PATTERN_OF_VALIDATION_SHARDS' --tokenizer TOKENIZER.model",
            "",
            "decodes the model beside it and prints the figure above; it needs torch, numpy, sentencepiece "
            "and zstandard.",
            "",
            "## Training",
            "",
            *_table(("step", "val_loss", "val_bpb"), _curve(trajectory)),
            "## Configuration",
            "",
            "```json",
            json.dumps(run.model_dump(mode="json"), indent=1),
            "```",
            "",
        ]
    )


def _circumstances(metrics: Mapping[str, Any]) -> str:
    facts = {
        "params": "{:,} parameters",
        "train_seconds": "{:,.0f} s of training",
        "device": "on {}",
        "torch_version": "torch {}",
    }
    known = [text.format(metrics[key]) for key, text in facts.items() if metrics.get(key) is not None]
    return f" {', '.join(known)}." if known else ""


def _curve(trajectory: Sequence[Mapping[str, Any]], rows: int = 20) -> list[tuple[str, ...]]:
    """The validations, thinned to some `rows` with the last among them."""
    known = [row for row in trajectory if row.get("val_bpb") is not None]
    every = math.ceil(len(known) / rows)
    return [
        (
            f"{row['step']:,}",
            "" if row.get("val_loss") is None else f"{row['val_loss']:.4f}",
            f"{row['val_bpb']:.4f}",
        )
        for i, row in enumerate(known)
        if (len(known) - 1 - i) % every == 0
    ]


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines of a Markdown table, and an empty one."""
    lines = [header, ("---",) * len(header), *rows]
    return [*(f"| {' | '.join(cells)} |" for cells in lines), ""]
