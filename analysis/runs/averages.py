"""Of a training that kept several averages of the weights, the one that each run asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray


def own_average(curves: pd.DataFrame, configs: Mapping[str, object]) -> NDArray[np.float64]:
    """ema_val_bpb of every row, [n]; where it is empty, the entry of ema_val_bpb_by_average with the run's
    decay and horizon. NaN where neither is known.

    Args:
        curves: rows with run_id and ema_val_bpb_by_average (JSON: decay and horizon -> BPB).
        configs: config_json of every run.
    """
    names = {run_id: _name(_dict(config)) for run_id, config in configs.items()}
    several = curves["ema_val_bpb_by_average"]
    known = curves.get("ema_val_bpb", pd.Series(np.nan, curves.index))
    values = pd.to_numeric(known, errors="coerce").to_numpy(float).copy()
    for at in np.flatnonzero(np.isnan(values) & several.notna().to_numpy()):
        name = names.get(str(curves["run_id"].iloc[at]))
        value = _dict(several.iloc[at]).get(name) if name else None
        values[at] = value if isinstance(value, int | float) else np.nan
    return values


def _name(config: Mapping[str, object]) -> str:
    """As the trajectory names an average: its decay, and its horizon where that is not fixed."""
    decay, horizon = config.get("ema_decay"), config.get("ema_horizon", "fixed")
    if not isinstance(decay, int | float):
        return ""
    return f"{float(decay)}" + ("" if horizon == "fixed" else f" {horizon}")


def _dict(text: object) -> dict[str, object]:
    try:
        found = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
