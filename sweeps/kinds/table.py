"""The table of kinds: a further kind of work is one entry here; further stages are entries of `stages.py`."""

import math
from typing import Any

from gepa_core.config import RunConfig
from gepa_core.sizes import measure_flops, num_params, step_flops
from sweeps.kinds.kind import (
    ARTIFACT,
    FINAL_STATE,
    OUTPUTS,
    SCRIPT_LOG,
    TRAJECTORY,
    Cost,
    Kind,
    ttt_settings,
)
from sweeps.kinds.stages import MEASURED


def _training_cost(config: RunConfig, tokens: int, start: int, stop: int, averages: int = 1) -> Cost:
    """The steps, and the validations between them: of raw, averaged and, where asked for, int6 weights."""

    def times(*periods: int | None) -> int:
        """Steps in (start, stop] that are multiples of one of the periods."""
        known = sorted({period for period in periods if period})
        together = stop // math.lcm(*known) - start // math.lcm(*known) if len(known) > 1 else 0
        return sum(stop // period - start // period for period in known) - together

    every, ema_every, int6_every = config.eval.every, config.eval.ema_every, config.eval.int6_every
    validations: float = times(every, int6_every) + averages * times(ema_every, int6_every)
    looks = (2 if averages == 1 else 1) * times(int6_every)
    validations += looks
    if warmdown := max(0, stop - max(start, config.peak_steps)):
        validations += config.eval.warmdown_points * warmdown / (config.steps - config.peak_steps)
    return {
        "train": (stop - start) * step_flops(config),
        "evaluate": validations * measure_flops("plain", config, tokens),
        "quantize": looks * num_params(config.model) * _QUANTIZERS[config.eval.int6_method],
    }


_QUANTIZERS = {"reference": 1.0, "per_row": 1.2, "gptq": 5.0, "rd": 15.0}
"""Time of each on 27 million weights, coding and Hessians included, where that of `reference` is 1."""


def _quantizing_cost(config: RunConfig, *_: int) -> Cost:
    return {"quantize": num_params(config.model) * _QUANTIZERS[config.quant.method]}


def _quantize_settings(config: RunConfig) -> dict[str, Any]:
    quant = config.quant.identity()
    if config.quant.method == "rd" and config.quant.budget_bytes is None:
        quant["script"] = ttt_settings(config)  # what it leaves is the budget, and these settings are in it
    return quant


SEGMENT = "segment"
SCRIPT = "script"
SHARING_CHECK = "sharing_check"
_ALL = (
    Kind(
        SEGMENT,
        work="sweeps.work.training",
        files=(TRAJECTORY, FINAL_STATE),
        cost=_training_cost,
        gives=FINAL_STATE,
        seconds="train_seconds",
        trains=True,
        resumes=True,
    ),
    Kind(
        "quantize",
        work="sweeps.work.quantize",
        files=(ARTIFACT,),
        cost=_quantizing_cost,
        settings=_quantize_settings,
        averages=True,
        gives=ARTIFACT,
        columns=("artifact_bytes", "code_bytes", "quant_rows_at_floor", "quant_rows", "quantized_fraction"),
    ),
    *MEASURED,
    Kind(
        SCRIPT,
        work="sweeps.work.scripts.run",
        files=(TRAJECTORY, SCRIPT_LOG, OUTPUTS, FINAL_STATE),
        cost=lambda config, tokens, start, stop, *_: {"steps": float(stop - start)},
        gives=FINAL_STATE,
        seconds="train_seconds",
        trains=True,
        resumes=True,
        log=SCRIPT_LOG,
    ),
    Kind(
        SHARING_CHECK,
        work="sweeps.work.scripts.check",
        files=(SCRIPT_LOG,),
        cost=lambda config, *_: {"steps": 2.0 * config.steps},
        log=SCRIPT_LOG,
    ),
)
KINDS: dict[str, Kind] = {kind.name: kind for kind in _ALL}
STAGES = tuple(kind.name for kind in MEASURED)
"""What a sweep file's `stages` may name."""
USUAL_STAGES = tuple(kind.name for kind in MEASURED if not kind.optional)
"""What is measured where a sweep file does not say."""
STAGE_COLUMNS = tuple(dict.fromkeys(column for kind in _ALL for column in kind.columns))
