"""The field's words that a page uses, explained: a line where they first appear, the rest at its end."""

from __future__ import annotations

from dataclasses import dataclass

from analysis.forecast.cost import device_of
from analysis.laws.law import SYMBOLS
from analysis.report.study import Study

_MEANINGS = {
    "bpb": (
        "BPB",
        "Bits per byte: the cross-entropy of the validation text in bits, divided by its bytes. Unlike a "
        "loss per token it compares models with different tokenizers.",
    ),
    "warmdown": (
        "Warmdown",
        "The last part of a run, in which the learning rate falls from its peak, usually to 0. Its ratio is "
        "warmdown steps / all steps.",
    ),
    "gain": (
        "Gain of a warmdown",
        "What it lowers the validation by from the step where it begins. `The steps alone` is what those "
        "steps would have brought at a constant rate; the rest of the gain is the drop.",
    ),
    "q": (
        "q",
        "How the drop follows the rate: as 1 - r^q, r being the rate over its peak. Below 1 most of it comes "
        "late in the warmdown, above 1 early.",
    ),
    "laws": ("The laws' letters", SYMBOLS),
    "trunk": (
        "Trunk",
        "The constant-rate part that several runs share: it is trained once, and its noise is common to "
        "all of its branches.",
    ),
    "interval": (
        "90 % interval",
        "In brackets. It is meant to hold the true value in 9 of 10 cases; those of predictions are "
        "calibrated on runs that the laws had not seen.",
    ),
    "ema": ("EMA", "Exponential moving average of the weights over steps, scored in place of them."),
    "int6": (
        "int6, 16 MB cap",
        "The challenge (openai/parameter-golf) allows 16,000,000 bytes for code and compressed model "
        "together, so that weights are quantized to 6 bits and compressed.",
    ),
    "sliding": ("Sliding windows", "Each token is scored with as much text before it as the model takes."),
    "ttt": (
        "Legal TTT",
        "Test-time training on the validation text that breaks no rule: each part is scored before the "
        "model learns from it, in one pass.",
    ),
    "machine": (
        "Machine-hours",
        "Hours of whatever trained a run. This table says how long its runs took, not on how many devices.",
    ),
    "worker": ("CPU-worker-minutes", "Minutes of one worker process on a CPU, whatever its threads."),
    "gepa": (
        "GEPA",
        "The architecture and recipe of openai/parameter-golf, pull request 644. Not the prompt optimizer of "
        "that name.",
    ),
}


@dataclass(frozen=True)
class Words:
    """`line`: for the first screen. `words`: (word, meaning), those that the study needs."""

    line: str
    words: tuple[tuple[str, str], ...]


def words_of(study: Study) -> Words:
    """What this study's page has to explain."""
    known = set(study.table.metrics())
    in_bits = study.final_metric.endswith("bpb")
    unit = (
        "BPB: bits per byte of validation text, lower is better."
        if in_bits
        else "Loss: nats per token of validation text, lower is better."
    )
    line = f"{unit} Warmdown: the last part of a run, in which the learning rate falls."
    words = ["bpb", "warmdown", "trunk", "interval"]
    if study.warmdown.runs:
        words += ["gain", "q"]
    if known & {"ema_bpb", "ema_val_bpb"}:
        words.append("ema")
    if known & {"int6_bpb", "artifact_bytes"}:
        words.append("int6")
    if "int6_sliding_bpb" in known:
        words.append("sliding")
    if "ttt_bpb" in known:
        words.append("ttt")
    words += ["laws"] if study.forecast is not None else []
    device = device_of(study.table)
    words += ["machine"] * (device == "machine") + ["worker"] * (device == "CPU-worker")
    if any("gepa" in str(run.run_id).lower() or run.columns.get("config_json") for run in study.table.runs):
        words.append("gepa")
    return Words(line, tuple(_MEANINGS[word] for word in words))
