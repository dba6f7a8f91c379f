"""`launch.py export`: one run out of a store, as files that stand alone."""

import json
from pathlib import Path
from typing import Any

from gepa_core.errors import ConfigError
from sweeps.keys import near_miss
from sweeps.store import Store


def export(store: Store, run_id: str, to: Path) -> list[str]:
    """Writes run.json (configuration and figures), the artifact, and the final state if it is kept.

    Raises ConfigError: no such run, or `to` exists.
    """
    if to.exists():
        raise ConfigError(f"{to}: exists; give a folder to make")
    sweep, row = _find(store, run_id)
    written = []
    to.mkdir(parents=True)
    record = {key: value for key, value in row.items() if key != "config_json"}
    record |= {"sweep": sweep, "config": json.loads(row["config_json"])}
    (to / "run.json").write_text(json.dumps(record, indent=1, default=str) + "\n", encoding="utf-8")
    written.append("run.json")
    artifact = store.files.read(f"{sweep}/artifacts/{run_id}.int6")
    if artifact is not None:
        (to / "model.int6").write_bytes(artifact)
        written.append("model.int6")
    plan = store.sweep(sweep).read_json("plan.json") or {}
    last = store.done(plan["runs"][run_id]["segments"][-1])
    state = store.final_state(last) if last else None
    if state is not None:
        store.files.download_folder(state, to / "checkpoint")
        written.append("checkpoint/")
    return written


def _find(store: Store, run_id: str) -> tuple[str, dict[str, Any]]:
    names = []
    for sweep in store.sweeps():
        for row in store.sweep(sweep).read_runs() or []:
            if row["run_id"] == run_id:
                return sweep, row
            names.append(row["run_id"])
    raise ConfigError(f"{run_id}: no such run in {store.files.describe('')}{near_miss(run_id, names)}")
