"""How often 90 % intervals hold where all runs known had one warmdown ratio.

    python -m benchmarks.laws_one_ratio [--reference DIR]

From one or two lengths of one ratio to every other linear run of the study up to four times as long, over
both studies of 124M. Prints JSON: predictions, coverage, mean error and width.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd

from analysis.forecast.ensemble import build
from analysis.forecast.predict import predict_run
from analysis.runs.load import load
from analysis.runs.table import Run, Table

REFERENCE = Path(__file__).parents[2] / "shared" / "reference"
STUDIES, METRIC, LEVEL = ("wsd_124m_lr1e-3", "wsd_124m_lr5e-4"), "val_loss", 0.9
_FARTHEST, _SAME_RATIO, _LONGER = 4, 0.05, 1.05


def predictions(table: Table) -> Iterator[dict[str, object]]:
    """A row a prediction: from one or two lengths of a ratio to every other run that is not shorter."""
    runs = {(run.steps, round(run.warmdown_ratio, 2)): run for run in table.runs if _is_linear(run)}
    lengths = sorted({steps for steps, _ in runs})
    for longest in lengths[:-1]:
        for ratio in sorted({ratio for _, ratio in runs}):
            for known in (1, 2):
                plans = [(steps, ratio) for steps in lengths if steps <= longest][-known:]
                if len(plans) == known and all(plan in runs for plan in plans):
                    yield from _from(table, [runs[plan] for plan in plans], runs)


def _is_linear(run: Run) -> bool:
    return run.schedule == "linear" and not run.is_constant


def _from(table: Table, known: list[Run], runs: dict[tuple[int, float], Run]) -> Iterator[dict[str, object]]:
    ensemble = build(replace(table, runs=tuple(known)), METRIC)
    longest, ratio = max(run.steps for run in known), known[0].warmdown_ratio
    for run in runs.values():
        truth = run.final(METRIC)
        if run in known or not longest <= run.steps <= _FARTHEST * longest or truth is None:
            continue
        found = predict_run(ensemble, replace(run, metrics={}, trajectory=None), LEVEL)
        if found.low is None or found.high is None:
            continue
        yield {
            "lengths_known": len(known),
            "predicted": "longer" if run.steps > _LONGER * longest else "as long",
            "ratio": "the same" if abs(run.warmdown_ratio - ratio) <= _SAME_RATIO else "another",
            "covered": found.low <= truth <= found.high,
            "error": abs(found.value - truth),
            "width": found.high - found.low,
        }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.laws_one_ratio", description=__doc__)
    parser.add_argument("--reference", type=Path, default=REFERENCE)
    options = parser.parse_args(argv)
    if not options.reference.is_dir():
        print(f"error: {options.reference} is not there; name its folder with --reference", file=sys.stderr)
        return 2
    rows: list[dict[str, object]] = []
    for study in STUDIES:
        folder = options.reference / "curves" / study
        rows += predictions(load(folder / "runs.csv", folder / "trajectories.csv"))
    groups = pd.DataFrame(rows).groupby(["lengths_known", "predicted", "ratio"])
    table = groups.agg(
        predictions=("covered", "size"),
        coverage=("covered", "mean"),
        error=("error", "mean"),
        width=("width", "mean"),
    )
    print(json.dumps(table.round(4).reset_index().to_dict("records"), indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
