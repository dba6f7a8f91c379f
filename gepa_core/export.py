"""A run as the challenge wants it: a folder of script, model, log and figures, and proof that they agree."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gepa_core.bundle import standalone_source
from gepa_core.config import CAP_BYTES, DataPaths, ExecConfig, RunConfig
from gepa_core.errors import ArtifactError
from gepa_core.standalone import STAGES

SCRIPT, MODEL, SUBMISSION, README, LOG = (
    "train_gpt.py",
    "model.int6",
    "submission.json",
    "README.md",
    "train.log",
)
DIGITS = 8
"""Decimals of what the script prints, and so of what is claimed."""

_COLUMNS = {"plain": "int6_bpb", "sliding": "int6_sliding_bpb", "ttt": "ttt_bpb"}
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
    blurb: str = "",
) -> list[str]:
    """Writes the submission's folder and returns the names of its files.

    metrics: a row of runs.parquet (or what it holds); trajectory: rows with step, val_loss, val_bpb,
    train_loss, elapsed_seconds, any of which may be null. The last stage of int6 that was measured is the
    one claimed. Raises ArtifactError if none was, if `out` holds something, or if script and model exceed
    the cap.
    """
    stage = next((s for s in reversed(STAGES) if metrics.get(_COLUMNS[s]) is not None), None)
    if stage is None:
        raise ArtifactError(f"{run.run_id}: no int6 stage of this run was measured; nothing can be claimed")
    script = standalone_source(run, exec_cfg, artifact=MODEL, stage=stage)
    total = len(script) + len(artifact)
    if total > CAP_BYTES:
        raise ArtifactError(
            f"{run.run_id}: script ({len(script):,} bytes) and model ({len(artifact):,}) are {total:,}, "
            f"over the cap of {CAP_BYTES:,}; quantize with quant.method rd, which keeps to it"
        )
    if out.exists() and any(out.iterdir()):
        raise ArtifactError(f"{out}: not empty; give a folder to make")
    submission = {
        "author": author,
        "github_id": github_id,
        "name": run.run_id,
        "blurb": blurb
        or f"GEPA, {run.steps} steps of which {run.warmdown_steps} warmdown, int6 {run.quant.method}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "val_bpb": round(float(metrics[_COLUMNS[stage]]), DIGITS),
        "stage": stage,
        "bytes_total": total,
        "bytes_code": len(script),
        "bytes_model": len(artifact),
    }
    files = {
        SCRIPT: script,
        MODEL: artifact,
        SUBMISSION: (json.dumps(submission, indent=2) + "\n").encode(),
        README: _readme(run, metrics, submission).encode(),
        LOG: _log(run, metrics, trajectory, submission).encode(),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (out / name).write_bytes(data)
    return list(files)


def verify(folder: Path, data: DataPaths, timeout_seconds: float | None = None) -> str:
    """Runs the folder's script in a fresh process, from that folder alone, and returns the line it prints.

    Only the validation shards and the tokenizer come from outside. Raises ArtifactError if the script fails,
    or prints another val_bpb than the folder claims, to the last digit.
    """
    claimed = json.loads((folder / SUBMISSION).read_text(encoding="utf-8"))
    paths = [os.path.abspath(p) for p in (data.val, data.tokenizer)]  # noqa: PTH100 (val is a pattern)
    done = subprocess.run(
        # -I: neither this project nor the user's own modules can be imported.
        [sys.executable, "-I", SCRIPT, "--val", paths[0], "--tokenizer", paths[1]],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_seconds,
    )
    line = done.stdout.strip()
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ArtifactError(f"{folder / SCRIPT}: ended with {done.returncode}: {reason}")
    expected = f"val_bpb:{claimed['val_bpb']:.{DIGITS}f}"
    if line.split(" ")[0] != claimed["stage"] or expected not in line.split(" "):
        raise ArtifactError(f"{folder}: claims {claimed['stage']} {expected}, its script prints {line!r}")
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
    for stage, name in _FINAL_LINES.items():
        if (bpb := metrics.get(_COLUMNS[stage])) is not None:
            lines.append(f"{name} val_bpb:{bpb:.{DIGITS}f}")
    return "\n".join(lines) + "\n"


def _readme(run: RunConfig, metrics: Mapping[str, Any], claim: Mapping[str, Any]) -> str:
    stages = [f"| {what} | {metrics[key]:.{DIGITS}f} |" for key, what in _STAGE_ROWS if metrics.get(key)]
    return "\n".join(
        [
            f"# {claim['name']}",
            "",
            f"val_bpb **{claim['val_bpb']:.{DIGITS}f}** ({claim['stage']}), {claim['bytes_total']:,} bytes "
            f"in all: {claim['bytes_model']:,} of model, {claim['bytes_code']:,} of code.",
            "",
            "| weights and evaluation | val_bpb |",
            "|---|---|",
            *stages,
            "",
            f"{run.steps} steps of {run.batch.tokens_per_step:,} tokens, the last {run.warmdown_steps} a "
            f"{run.schedule} warmdown; seed {run.seed}; EMA {run.ema_decay}; int6 by {run.quant.method}.",
            "",
            f"    python {SCRIPT} --val 'PATTERN_OF_VALIDATION_SHARDS' --tokenizer TOKENIZER.model",
            "",
            "decodes the model beside it and prints the figure above; it needs torch, numpy, sentencepiece "
            "and zstandard. The configuration, whole:",
            "",
            "```json",
            json.dumps(run.model_dump(mode="json"), indent=1),
            "```",
            "",
        ]
    )
