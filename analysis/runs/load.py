"""Read runs: `load(path)` takes a results folder of a sweep or a CSV of anyone's runs, and returns a Table.

Everything that cannot be read as it stands is one AnalysisError; what can be left out is left out and noted.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import pandas as pd

from analysis.runs import strictjson
from analysis.runs.averages import own_average
from analysis.runs.checks import diverged, refuse_mixed_units, refuse_signs, refuse_two_texts
from analysis.runs.errors import AnalysisError
from analysis.runs.parquet import read_parquet
from analysis.runs.rows import CURVES, METRICS, UnknownScheduleError, run_of
from analysis.runs.table import Run, Table, joined_trunks
from analysis.runs.units import counted

_MAX_CSV_BYTES = 128 << 20
_BOOKKEEPING = {
    "run_id", "sweep", "status", "error", "seed", "steps", "peak_steps", "warmdown_steps", "warmdown_ratio",
    "schedule", "final_lr_fraction", "warmup_steps", "first_step", "ranks", "device", "torch_version",
    "config_json", "commit", "started_at", "finished_at", "trunk", *METRICS,
}  # fmt: skip

_OUTPUTS = "output."
"""Columns of the files that a training script left."""
_LEFT_OUT = ["pending", "failed", "diverged", "unfinished"]

_SAME_MODEL = 1e-3  # relative difference in parameters


def load(path: str | Path, trajectories: str | Path | None = None, schedules: bool = True) -> Table:
    """Runs of a results folder (or the runs.parquet in it), or of a CSV and one of their curves.

    Args:
        schedules: leave runs of an unknown warmdown out, with a note. Otherwise their schedule is
            'unknown' and only their steps and finals are of use.

    Raises:
        AnalysisError: a file is missing, a column is missing or not numeric, a run appears twice, units are
            mixed, or no finished run is left.
    """
    source = Path(path)
    if source.name == "runs.parquet":
        source = source.parent
    if source.is_dir():
        frame, curves, axes, trunks = _read_folder(source)
        if trajectories is not None:
            curves = _read_csv(Path(trajectories), ("run_id", "step"))
    else:
        frame = _read_csv(source, ("run_id", "steps"))
        curves = None if trajectories is None else _read_csv(Path(trajectories), ("run_id", "step"))
        axes, trunks = (), {}
    notes: list[str] = []
    frame = _finished(frame, str(source), notes)
    _check_trajectory_ids(frame, curves, trajectories or source, notes)
    groups = {} if curves is None else {str(name): one for name, one in curves.groupby("run_id", sort=False)}
    runs = _runs(frame, groups, axes, str(source), notes, schedules)
    runs = [replace(run, trunk=trunks.get(run.run_id, run.trunk)) for run in runs]
    runs = _without_diverged(_one_model(runs), str(source), notes)
    runs = _finals_from_trajectories(runs)
    table = Table(tuple(joined_trunks(runs)), str(source), tuple(notes))
    if source.is_dir():
        made_of = _segments_of_runs(source / "plan.json")
        table = replace(
            table,
            folder=source,
            origin="script" if _of_script(frame) else "recipe",
            keeps_trunk=any(len(segments) > 1 for segments in made_of.values()),
        )
    refuse_signs(table)
    refuse_two_texts(table)
    if not source.is_dir() or trajectories is not None:  # a sweep writes its own columns, in their units
        refuse_mixed_units(table)
    return table


def _runs(
    frame: pd.DataFrame,
    groups: dict[str, pd.DataFrame],
    axes: tuple[str, ...],
    source: str,
    notes: list[str],
    schedules: bool,
) -> list[Run]:
    runs: list[Run] = []
    unknown: dict[str, AnalysisError] = {}
    odd: dict[str, AnalysisError] = {}
    anyones = _of_script(frame)
    for row in frame.to_dict("records"):
        try:
            runs.append(run_of(row, groups.get(row["run_id"]), axes, source, notes, schedules))
        except UnknownScheduleError as error:
            unknown[str(row["run_id"])] = error
        except AnalysisError as error:
            if not anyones:
                raise
            odd[str(row["run_id"])] = error  # a script's slip is that run's, and no damage
    if not runs:
        raise next(iter({**odd, **unknown}.values()))
    notes += [f"left out: {str(error).removeprefix(f'{source}, ')}" for error in odd.values()]
    if unknown:
        notes.append(f"{counted(len(unknown), 'run')} left out, of unknown warmdown: {', '.join(unknown)}")
    return runs


def _read_csv(path: Path, needed: tuple[str, ...]) -> pd.DataFrame:
    if not path.is_file():
        raise AnalysisError(f"{path}: no such file or results folder")
    if path.stat().st_size > _MAX_CSV_BYTES:
        raise AnalysisError(f"{path}: over {_MAX_CSV_BYTES >> 20} MiB; leave out rows that no law needs")
    try:
        frame = pd.read_csv(path, dtype={"run_id": str})
    except UnicodeDecodeError:
        told = "no text, and so no CSV; of a sweep give its results folder, in which runs.parquet is"
        raise AnalysisError(f"{path}: {told}") from None
    except Exception as error:  # pandas raises many types for a damaged file
        raise AnalysisError(f"{path}: not a readable CSV ({' '.join(str(error).split())[:300]})") from None
    missing = [name for name in needed if name not in frame.columns]
    if missing:
        raise AnalysisError(
            f"{path}: column {', '.join(missing)} is missing (has: {', '.join(frame.columns)})"
        )
    if frame.empty:
        raise AnalysisError(f"{path}: has no rows")
    return frame


def _read_folder(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame | None, tuple[str, ...], dict[str, str]]:
    """(runs, whole trajectories by run_id, the sweep's further axes, trunk of each run)."""
    file = folder / "runs.parquet"
    if not file.is_file():
        raise AnalysisError(f"{folder}: has no runs.parquet; give the folder of one sweep (results/<sweep>)")
    frame = read_parquet(file)
    if "final_lr_fraction" not in frame and "config_json" in frame:
        frame["final_lr_fraction"] = [
            _final_lr_fraction(config) if isinstance(config, str) else None for config in frame["config_json"]
        ]
    axes = tuple(
        name
        for name in frame.columns
        if name not in _BOOKKEEPING and name != "data_fingerprint" and not name.startswith(_OUTPUTS)
    )
    made_of = _segments_of_runs(folder / "plan.json")
    parts = {part.stem: read_parquet(part) for part in sorted((folder / "trajectory").glob("*.parquet"))}
    curves = []
    for run_id, segments in made_of.items():
        there = [segment in parts for segment in segments]  # what was adopted begins without
        if not all(there[there.index(True) :] if True in there else ()):
            continue  # a curve with a gap would pass for another one
        rows = [parts[segment] for segment in segments if segment in parts and len(parts[segment])]
        if rows:
            curves.append(pd.concat(rows).assign(run_id=run_id).drop_duplicates("step"))
    trunks = {run_id: segments[0] for run_id, segments in made_of.items() if segments}
    joined = pd.concat(curves, ignore_index=True) if curves else None
    if joined is not None and "ema_val_bpb_by_average" in joined and "config_json" in frame:
        configs = dict(zip(frame["run_id"].astype(str), frame["config_json"], strict=True))
        joined["ema_val_bpb"] = own_average(joined, configs)
    return frame, joined, axes, trunks


def _of_script(frame: pd.DataFrame) -> bool:
    """Whether a training script made the runs, in place of the recipe."""
    if "config_json" not in frame:
        return False
    return bool(frame["config_json"].astype(str).str.contains('"script_version"').any())


def _final_lr_fraction(config: str) -> float | None:
    with contextlib.suppress(ValueError, RecursionError, AttributeError):
        fraction = json.loads(config).get("final_lr_fraction")
        return float(fraction) if isinstance(fraction, int | float) else None
    return None


def _segments_of_runs(plan: Path) -> dict[str, list[str]]:
    """run_id -> its segments in order, as plan.json says."""
    if not plan.is_file():
        return {}
    content = strictjson.read(plan)
    try:
        runs = content.get("runs", [])
        if isinstance(runs, dict):
            made_of = {run_id: run["segments"] for run_id, run in runs.items()}
        else:
            made_of = {run["run_id"]: run.get("segments", []) for run in runs if isinstance(run, dict)}
        if all(
            isinstance(names, list) and all(isinstance(n, str) for n in names) for names in made_of.values()
        ):
            return made_of
    except (AttributeError, KeyError, TypeError):
        pass
    raise AnalysisError(f"{plan}: damaged, its runs name no segments; resuming the sweep writes it anew")


def _finished(frame: pd.DataFrame, source: str, notes: list[str]) -> pd.DataFrame:
    frame = frame.dropna(how="all")
    if frame["run_id"].isna().any():
        raise AnalysisError(
            f"{source}: row {int(frame['run_id'].isna().to_numpy().argmax()) + 2} has no run_id"
        )
    twice = frame["run_id"][frame["run_id"].duplicated()].unique()
    if len(twice):
        raise AnalysisError(
            f"{source}: run {', '.join(map(repr, twice))} appears more than once; keep one row a run"
        )
    counts = frame["status"].value_counts().to_dict() if "status" in frame else {}
    if "status" in frame:
        for status in _LEFT_OUT:
            dropped = frame["run_id"][frame["status"] == status]
            if len(dropped):
                notes.append(f"{counted(len(dropped), 'run')} left out as {status}: {', '.join(dropped)}")
        frame = frame[~frame["status"].isin(_LEFT_OUT)]
    if frame.empty:
        ended = [f"{counts[status]} {status}" for status in ("failed", "diverged") if counts.get(status)]
        if ended and not counts.get("pending"):
            raise AnalysisError(f"{source}: nothing to report: {' and '.join(ended)}, no run finished")
        raise AnalysisError(f"{source}: no finished run yet; come back when one is done")
    return frame


def _check_trajectory_ids(
    frame: pd.DataFrame, curves: pd.DataFrame | None, source: object, notes: list[str]
) -> None:
    if curves is None:
        notes.append("no trajectories: laws on final values only, no analysis of warmdowns")
        return
    if not set(CURVES) & set(curves.columns):
        raise AnalysisError(f"{source}: trajectories need one of the columns {', '.join(CURVES)}")
    known = set(curves["run_id"]) & set(frame["run_id"])
    if not known:
        raise AnalysisError(f"{source}: no trajectory belongs to any of the runs; do the run_ids match?")
    without = frame[~frame["run_id"].isin(known)]
    finals = [name for name in METRICS if name.endswith(("bpb", "_loss")) and name in frame]
    told = without[finals].notna().any(axis=1)
    if told.any():
        ids = ", ".join(without.loc[told, "run_id"])
        notes.append(f"runs without a trajectory, used by their final values: {ids}")
    if not told.all():
        ids = ", ".join(without.loc[~told, "run_id"])
        notes.append(f"runs of which no figure is known, so that nothing is told by them: {ids}")


def _one_model(runs: list[Run]) -> list[Run]:
    """Runs whose parameter counts agree within 0.1 % get the same one: logs count a scalar more or less."""
    counts = {float(str(v)): v for run in runs for axis, v in run.group if axis == "params"}
    same: dict[float, object] = {}
    near = 0.0
    for count in sorted(counts):
        if count > near * (1 + _SAME_MODEL):
            near = count
        same[count] = counts[near]
    return [
        replace(
            run,
            group=tuple((axis, same[float(str(v))] if axis == "params" else v) for axis, v in run.group),
        )
        for run in runs
    ]


def _without_diverged(runs: list[Run], source: str, notes: list[str]) -> list[Run]:
    """The runs whose curves hold to their ends; others are noted.

    Raises:
        AnalysisError: none is left.
    """
    reasons = {run.run_id: reason for run in runs if (reason := diverged(run)) is not None}
    notes += [f"run '{run_id}' left out as diverged: {reason}" for run_id, reason in reasons.items()]
    kept = [run for run in runs if run.run_id not in reasons]
    if not kept:
        raise AnalysisError(f"{source}: every run has diverged; {notes[-1]}")
    return kept


def _finals_from_trajectories(runs: list[Run]) -> list[Run]:
    """A trajectory's row at `steps` as the final value, where the table has no
    finals of that quantity at all.
    """
    for column in CURVES:
        if any(run.final(column) is not None for run in runs):
            continue
        for i, run in enumerate(runs):
            curve = run.curve(column)
            if curve is not None and curve[0][-1] == run.steps:
                runs[i] = replace(run, metrics={**run.metrics, column: float(curve[2][-1])})
    return runs
