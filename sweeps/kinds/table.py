"""The table of kinds: a further kind of work is one entry here; further stages are entries of `stages.py`."""

from typing import Any

from gepa_core.config import RunConfig
from sweeps.kinds.flops import plain_flops, step_flops
from sweeps.kinds.kind import ARTIFACT, FINAL_STATE, TRAJECTORY, Cost, Kind, ttt_settings
from sweeps.kinds.stages import MEASURED


def _training_cost(config: RunConfig, tokens: int, start: int, stop: int) -> Cost:
    """The steps, and the validations between them."""
    times = sum(stop // every - start // every for every in (config.eval.every, config.eval.ema_every))
    return {
        "train": (stop - start) * step_flops(config),
        "evaluate": times * plain_flops(config, tokens),
    }


def _quantize_settings(config: RunConfig) -> dict[str, Any]:
    quant = config.quant.model_dump(mode="json")
    if config.quant.method != "rd":
        del quant["budget_bytes"], quant["calibration_tokens"], quant["integer_bits"]
    elif config.quant.budget_bytes is None:  # what the script leaves, and these settings are in it
        quant["script"] = ttt_settings(config)
    return quant


SEGMENT = "segment"
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
        cost=lambda config, tokens, start, stop: {},  # seconds on one CPU core, whatever the data
        settings=_quantize_settings,
        gives=ARTIFACT,
        columns=("artifact_bytes", "code_bytes", "quant_rows_at_floor", "quant_rows", "quantized_fraction"),
    ),
    *MEASURED,
)
KINDS: dict[str, Kind] = {kind.name: kind for kind in _ALL}
STAGES = tuple(kind.name for kind in MEASURED)
"""What a sweep file's `stages` may name."""
STAGE_COLUMNS = tuple(dict.fromkeys(column for kind in _ALL for column in kind.columns))
