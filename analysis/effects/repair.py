"""Does test-time training learn the text, or mend the quantizer? Paired, run by run.

Where the EMA weights that were never quantized are scored with sliding windows and trained at test time too,
TTT's gain on them is what it learns of the text. What it gains beyond that on the int6 weights mends the
quantizer: (int6 - float before TTT) - (int6 - float after it).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.effects.slopes import Estimate, mean_of
from analysis.runs.blocks import Effect, paired_sum, read_blocks
from analysis.runs.table import Run, Table

NEEDED = ("ema_sliding_bpb", "ema_ttt_bpb", "int6_sliding_bpb", "ttt_bpb")
Z = 1.645  # of a 90 % interval


@dataclass(frozen=True)
class Repair:
    """One run's effects in BPB, negative = better, each with its error paired over validation blocks."""

    run: Run
    on_float: Effect  # TTT on EMA weights that were never quantized
    on_int6: Effect
    tax_before: Effect  # int6 less float, sliding windows
    tax_after: Effect  # the same after TTT
    mended: Effect  # tax_after less tax_before


def repairs(table: Table) -> tuple[Repair, ...]:
    """Of every run that has all four stages."""
    found = []
    for run in table.runs:
        if not all(name in run.metrics for name in NEEDED):
            continue
        blocks = read_blocks(table.folder, run.run_id) if table.folder else {}

        def effect(_run: Run = run, _blocks: dict = blocks, **weights: float) -> Effect:
            names = {name: f"{name}_bpb" for name in weights}
            value = sum(weight * _run.metrics[names[name]] for name, weight in weights.items())
            known = all(name in _blocks for name in weights)
            paired = paired_sum([(w, _blocks[name]) for name, w in weights.items()]) if known else None
            return Effect(value, paired.error if paired else None)

        found.append(
            Repair(
                run,
                on_float=effect(ema_sliding=-1, ema_ttt=1),
                on_int6=effect(int6_sliding=-1, ttt=1),
                tax_before=effect(ema_sliding=-1, int6_sliding=1),
                tax_after=effect(ema_ttt=-1, ttt=1),
                mended=effect(ema_sliding=1, int6_sliding=-1, ema_ttt=-1, ttt=1),
            )
        )
    return tuple(found)


def repair_sentences(found: tuple[Repair, ...]) -> list[str]:
    """What TTT gains on float, on int6, and what of the second mends the quantizer, with intervals."""
    if not found:
        return []
    on_float, on_int6, mended = (
        _mean([getattr(r, name) for r in found]) for name in ("on_float", "on_int6", "mended")
    )
    if not (on_float.bounded and on_int6.bounded and mended.bounded):
        return ["What TTT mends of the quantizer is undetermined: one or two runs, and no errors per block."]
    over = f"mean over {len(found)} runs" if len(found) > 1 else "one run"
    word = "is within the noise: it learns the text, and nothing shows that it mends the quantizer"
    if mended.below(0):
        word = "is what it mends of the quantizer's loss"
    elif mended.above(0):
        word = "is what it gains less on int6: it mends nothing of the quantizer's loss"
    return [
        f"TTT changes float weights by {on_float.text('+.4f')} BPB and int6 weights by "
        f"{on_int6.text('+.4f')} ({over}). The difference, {mended.text('+.4f')}, {word}."
    ]


def _mean(effects: list[Effect]) -> Estimate:
    """Over runs from three on, with the larger of their spread and their blocks' error; else the blocks'."""
    mean = mean_of([effect.value for effect in effects])
    errors = [effect.error for effect in effects]
    known = [error for error in errors if error is not None]
    half = Z * float(np.mean(known)) if len(known) == len(errors) else None
    if mean.low is not None:
        half = max(half or 0.0, mean.value - mean.low)
    return mean if half is None else Estimate(mean.value, mean.value - half, mean.value + half)
