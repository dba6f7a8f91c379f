"""What a running sweep's files say now, as plain JSON: runs, stretches of training, and curves."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from analysis.runs.errors import AnalysisError
from analysis.runs.parquet import read_parquet
from analysis.runs.units import STAGES

CURVES = ("val_bpb", "train_loss")
_ROW = ("run_id", "status", "steps", "warmdown_steps", "schedule", "seed", "error")


class Watcher:
    """Reads a sweep's folder again and again; what is committed is read once."""

    def __init__(self, folder: Path) -> None:
        """Raises AnalysisError where the folder is not one sweep's."""
        if not (folder / "plan.json").is_file():
            inside = ", ".join(sorted(str(plan.parent) for plan in folder.glob("*/plan.json"))) or "none"
            raise AnalysisError(
                f"{folder}: not the folder of one sweep (no plan.json); sweeps in it: {inside}"
            )
        self.folder = folder.resolve()
        self._committed: dict[str, list[list[float | None]]] = {}

    def state(self) -> dict[str, Any]:
        """Everything the page shows. A file that is being replaced, or is damaged, is not there yet."""
        plan = _read_json(self.folder / "plan.json")
        segments = {
            id_: {
                "start": segment.get("start", 0),
                "stop": segment.get("stop", 0),
                "trunk": bool(segment.get("trunk")),
                **self._curve(id_),
            }
            for id_, segment in plan.get("segments", {}).items()
        }
        runs = self._runs()
        for run in runs:
            run["segments"] = plan.get("runs", {}).get(run["run_id"], {}).get("segments", [])
            known = [s for s in run["segments"] if segments.get(s, {}).get("points")]
            run["step"] = segments[known[-1]]["points"][-1][0] if known else 0
            run["running"] = any(segments[s]["running"] for s in run["segments"] if s in segments)
        return {
            "sweep": self.folder.name,
            "folder": str(self.folder),
            "curves": CURVES,
            "runs": runs,
            "segments": segments,
            "report": (self.folder / "report" / "report.html").is_file(),
        }

    def _runs(self) -> list[dict[str, Any]]:
        try:
            frame = read_parquet(self.folder / "runs.parquet")
        except AnalysisError:
            return []
        rows = []
        for row in frame.to_dict("records"):
            final = {name: row[name] for name in STAGES if _known(row.get(name))}
            rows.append({name: _plain(row.get(name)) for name in _ROW} | {"final": final})
        return rows

    def _curve(self, id_: str) -> dict[str, Any]:
        """Points [step, val_bpb, train_loss] of a stretch of training, and whether it is at work."""
        if id_ in self._committed:
            return {"points": self._committed[id_], "running": False}
        try:
            frame = read_parquet(self.folder / "trajectory" / f"{id_}.parquet")
        except AnalysisError:
            points = self._under_way(id_)
            return {"points": points, "running": bool(points)}
        rows = frame.sort_values("step").to_dict("records")
        self._committed[id_] = [_point(row) for row in rows]
        return {"points": self._committed[id_], "running": False}

    def _under_way(self, id_: str) -> list[list[float | None]]:
        """From the journal of the newest attempt."""
        journals = (self.folder.parent / "segments" / id_ / "attempts").glob("*/events.jsonl")
        stamped = []
        for journal in journals:
            try:
                stamped.append((journal.stat().st_mtime, journal.read_bytes()))
            except OSError:  # deleted meanwhile
                continue
        found: dict[int, list[float | None]] = {}
        for line in max(stamped, default=(0.0, b""))[1].splitlines():
            try:
                event = json.loads(line)
            except ValueError:  # half written
                continue
            if isinstance(event, dict) and event.get("event") == "report" and "step" in event:
                found[event["step"]] = _point(event)
        return [found[step] for step in sorted(found)]


def _point(row: dict[Any, Any]) -> list[float | None]:
    return [int(row["step"]), *(row[name] if _known(row.get(name)) else None for name in CURVES)]


def _known(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _plain(value: Any) -> Any:
    """Without NaN, which is not JSON."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value.item() if hasattr(value, "item") else value


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
