"""Fit on the rows that a column calls train, predict those it calls test, and score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.forecast.centre import Ensemble
from analysis.forecast.ensemble import build
from analysis.forecast.experience import EXPERIENCE, Experience
from analysis.forecast.members import Fitted, evaluate, fit_laws
from analysis.forecast.predict import Prediction, check_level, one_group, predict_run
from analysis.laws.plans import last_known
from analysis.runs.errors import AnalysisError
from analysis.runs.table import Floats, Ints, Run, Table, default_metric

Scores = dict[str, float | None]


def backtest(table: Table, *, split: str, metric: str | None = None, level: float = 0.9) -> dict[str, Any]:
    """Scores of the ensemble, and of each law, on the test runs: whole trajectory and last measurement.

    Fits see only the training rows. Groups of runs (peak_lr, params, ...) are fitted apart. The last
    measurement is the final value where one is known, else the trajectory's last row. The ensemble reads
    the part of a test run that repeats a training run's learning rates off that run; "centre" among the
    laws is the ensemble without that.

    Raises:
        AnalysisError: the column is missing, or names no train or no test run, the training rows carry no
        law, or the level is not between 0 and 1.
    """
    check_level(level)
    metric = metric or default_metric(table)
    if not any(split in run.columns for run in table.runs):
        raise AnalysisError(f"{table.source}: no column '{split}' that says train or test")
    train, test = table.split(split, "train"), table.split(split, "test")
    test = test.where(lambda run: last_known(run, metric) is not None)
    for part, name in ((train, "train"), (test, f"test with a known {metric}")):
        if not part.runs:
            raise AnalysisError(f"{table.source}: column '{split}' calls no run {name}")
    return {"metric": metric, "split": split, "level": level, **score(train, test, metric, level)}


def score(
    train: Table, test: Table, metric: str, level: float = 0.9, experience: Experience = EXPERIENCE
) -> dict[str, Any]:
    """What `backtest` gives, for two tables. Only `train` reaches the fits.

    A test run is predicted from the training runs that agree with it in every axis both tables have; one
    without any is not scored, and `warnings` say so.

    Raises:
        AnalysisError: no test run has such training runs, or they still differ in an axis of their own.
    """
    shared = train.axes() & test.axes()
    unscored: list[str] = []
    scores: dict[str, dict[str, Scores]] = {}
    predictions: dict[str, Prediction] = {}
    for group, members in test.groups().items():
        like = {axis: value for axis, value in group if axis in shared}
        if not train.where(lambda run, like=like: run.agrees(like)).runs:  # type: ignore[misc]
            told = ", ".join(f"{axis}={value}" for axis, value in like.items())
            unscored.append(f"no training run has {told}: {len(members.runs)} test runs are not scored")
            continue
        training = one_group(train, like)
        ensemble = build(training, metric, experience)
        baselines = fit_laws(training, metric, baselines=True)
        for run in members.runs:
            predictions[run.run_id], scores[run.run_id] = _score_run(ensemble, baselines, run, level)
    laws = dict.fromkeys(law for by_law in scores.values() for law in by_law if law != "ensemble")
    if not scores:
        raise AnalysisError(f"{test.source}: {'; '.join(unscored)}")
    return {
        "runs": {run_id: by_law["ensemble"] for run_id, by_law in scores.items()},
        **_summary([by_law["ensemble"] for by_law in scores.values()]),
        "laws": {
            law: {
                "runs": {run_id: by_law[law] for run_id, by_law in scores.items() if law in by_law},
                **_summary([by_law[law] for by_law in scores.values() if law in by_law]),
            }
            for law in laws
        },
        "warnings": unscored + sorted({w for p in predictions.values() for w in p.warnings}),
        "reasons": sorted({p.reason for p in predictions.values() if p.reason}),
    }


def _score_run(
    ensemble: Ensemble, baselines: Mapping[str, Fitted], run: Run, level: float
) -> tuple[Prediction, dict[str, Scores]]:
    known = last_known(run, ensemble.metric)
    assert known is not None
    step, truth, is_final = known
    last = np.array([step])
    prediction = predict_run(ensemble, run, level, None if is_final else step)
    steps, measured = _rows(run, ensemble.metric)
    laws = ensemble.laws(run, steps, final=False)
    ends: dict[str, float] = {**prediction.laws, "centre": prediction.value}
    curves: dict[str, Floats] = {**laws, "centre": ensemble.centre(laws)} if laws else {}
    for name, fitted in baselines.items():
        ends[name] = float(evaluate(fitted, run, last, is_final)[0])
        curves[name] = evaluate(fitted, run, steps, False)
    nothing = np.empty(0)
    scores = {name: _errors(curves.get(name, nothing), measured, ends[name] - truth) for name in ends}
    end = prediction.value if is_final else float(ensemble.trajectory(run, last)[0])
    whole = ensemble.trajectory(run, steps) if laws else nothing
    scores["ensemble"] = _errors(whole, measured, end - truth)
    low, high = prediction.low, prediction.high
    covered = None if low is None or high is None else low <= truth <= high
    scores["ensemble"] |= {"value": end, "truth": truth, "low": low, "high": high, "covered": covered}
    return prediction, scores


def _rows(run: Run, metric: str) -> tuple[Ints, Floats]:
    """Every measured row after warm-up; none for quantities that are only measured at the end."""
    curve = run.curve(metric)
    if curve is None:
        return np.empty(0, np.int64), np.empty(0)
    wanted = (curve[0] >= max(run.warmup_steps, 1)) & (curve[0] <= run.steps)
    return curve[0][wanted], curve[2][wanted]


def _errors(predicted: Floats, measured: Floats, final_error: float) -> Scores:
    """PredE is the mean, WorstE the largest |error| / value."""
    if len(measured) == 0 or len(predicted) == 0:
        return dict.fromkeys(("mae", "rmse", "r2", "pred_e", "worst_e")) | {"final_error": final_error}
    error = predicted - measured
    spread = float(np.sum((measured - measured.mean()) ** 2))
    return {
        "mae": float(np.abs(error).mean()),
        "rmse": float(np.sqrt(np.mean(error**2))),
        "r2": 1.0 - float(np.sum(error**2)) / spread if spread > 0 else None,
        "pred_e": float(np.mean(np.abs(error) / measured)),
        "worst_e": float(np.max(np.abs(error) / measured)),
        "final_error": final_error,
    }


def _summary(scores: list[Scores]) -> Scores:
    def known(name: str) -> Floats:
        return np.array([s[name] for s in scores if s.get(name) is not None], float)

    def mean(values: Floats) -> float | None:
        return float(values.mean()) if len(values) else None

    final = np.abs(known("final_error"))
    return {
        "mean_mae": mean(known("mae")),
        "mean_pred_e": mean(known("pred_e")),
        "mean_worst_e": mean(known("worst_e")),
        "mean_abs_final_error": mean(final),
        "max_abs_final_error": float(final.max()) if len(final) else None,
        "coverage": mean(known("covered")),
        "mean_width": mean(known("high") - known("low")),
    }
