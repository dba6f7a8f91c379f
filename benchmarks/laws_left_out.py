"""Scores on public studies left out: what other studies teach is learnt without each in turn."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm, t

from analysis.forecast.centre import BEYOND, Ensemble, mix
from analysis.forecast.ensemble import untried, weighed
from analysis.forecast.experience import EXPERIENCE, Experience, law_of
from analysis.forecast.folds import folds
from analysis.forecast.members import evaluate, fit_laws
from analysis.forecast.trials import Trial, trial
from analysis.laws.design import Design
from analysis.laws.observations import BURN_IN
from analysis.laws.plans import last_known
from analysis.runs.table import Floats, Table
from benchmarks.studies import Split, splits

LEVEL = 0.9
NATS = 2.8  # errors are relative; in reports, nats at this loss


@dataclass(frozen=True)
class Case:
    """A split with everything fitted that its training rows allow. Ratios are predicted / measured."""

    split: Split
    found: Ensemble
    trials: list[Trial]
    truth: Floats  # [test runs]
    ratios: Floats  # [members, test runs], corrected
    speaks: Floats  # [members, test runs]
    doubt: Floats  # [test runs], relative: of a stage's gap
    unknown: Floats  # [test runs], relative
    alone: dict[str, Floats]  # [test runs] by law, baselines included, as fitted; 'last value'

    @property
    def one_length(self) -> bool:
        return self.split.kind == "one length"

    def centre(self, weights: dict[str, float]) -> tuple[Floats, Floats]:
        """(relative error, standard error before scaling) of the weighted centre, each [test runs]."""
        trust = np.array([[weights[name]] for name in self.found.fits]) * self.speaks
        centre, spread = mix(trust, self.ratios)
        return centre - 1, np.sqrt(spread**2 + self.doubt**2 + self.unknown**2)


def cases(reference: Path) -> list[Case]:
    """Every split that carries a law, fitted."""
    return [case for split in splits(reference) if (case := _case(split)) is not None]


def _case(split: Split) -> Case | None:
    found = untried(split.train, split.metric, EXPERIENCE)
    if not found.fits:
        return None
    trials = []
    for fold in folds(split.train, split.metric):
        inner = untried(fold.train, split.metric, EXPERIENCE, (BURN_IN,))
        if inner.fits:
            trials.append(trial(inner, fold))
    known = [last_known(run, split.metric) for run in split.test]
    truth = np.array([k[1] for k in known if k is not None])
    finals = found.finals(split.test)
    ratios = np.array(list(finals.corrected.values())) / truth
    alone: dict[str, list[Floats]] = {}
    for name, fitted in (found.fits | fit_laws(split.train, split.metric, baselines=True)).items():
        ends = [
            evaluate(fitted, run, np.array([k[0]]), k[2])[0]
            for run, k in zip(split.test, known, strict=True)
            if k is not None
        ]
        alone.setdefault(law_of(name), []).append(np.array(ends) / truth)
        for i, k in enumerate(known):  # no final is known: compare where the curve ends
            if k is not None and not k[2] and name in found.fits:
                ratios[list(found.fits).index(name), i] = ends[i] / truth[i]
    by_law = {law: np.mean(of, axis=0) for law, of in alone.items()}
    by_law["last value"] = _last_value(split.train, split.metric) / truth
    design = Design([(run, np.array([run.steps])) for run in split.test])
    doubt = found.gap_doubt(design) / finals.centre
    return Case(split, found, trials, truth, ratios, found.speaks(split.test), doubt, finals.unknown, by_law)


def _last_value(table: Table, metric: str) -> float:
    """Of the longest run that anneals, the best one."""
    ends = [
        (run.steps, known[1])
        for run in table.runs
        if not run.is_constant and (known := last_known(run, metric))
    ]
    longest = max(steps for steps, _ in ends)
    return min(value for steps, value in ends if steps == longest)


def learn(known: list[Case]) -> Experience:
    """What a set of studies teaches: errors of laws, each study counting once, and the scales of intervals.

    A study's standardized errors are those under the weights that the others of the set give.
    """
    inside = [case for case in known if case.split.kind != "shapes" or not case.split.study.startswith("mpl")]
    scales = []
    for one in (False, True):
        squares = []
        for study in _studies(inside):
            taught = _taught([case for case in inside if case.split.study != study])
            own = [case for case in inside if case.split.study == study and case.one_length == one]
            squares += [np.mean([_standardized(case, taught) for case in own])] if own else []
        few = float(t.ppf(0.95, len(squares) - 1) / norm.ppf(0.95)) if one else 1.0
        scales.append(few * float(np.sqrt(np.mean(squares))))
    return _taught(inside, *scales)


def _studies(known: Iterable[Case]) -> list[str]:
    return list(dict.fromkeys(case.split.study for case in known))


def _taught(known: list[Case], scale: float = 1.0, scale_one: float = 1.0) -> Experience:
    errors: dict[bool, dict[str, dict[str, list[float]]]] = {False: {}, True: {}}
    for case in known:
        for name, ratio in zip(case.found.fits, case.ratios, strict=True):
            by_study = errors[case.one_length].setdefault(law_of(name), {})
            by_study.setdefault(case.split.study, []).append(float(np.mean((ratio - 1) ** 2)))
    several, one = (
        {
            law: float(np.sqrt(np.mean([np.mean(of) for of in studies.values()])))
            for law, studies in errors[o].items()
        }
        for o in (False, True)
    )
    return Experience(several, one, scale, scale_one)


def _standardized(case: Case, taught: Experience) -> float:
    found = weighed(case.found, case.trials, taught)
    error, sd = case.centre(found.weights)
    return float(np.mean(error**2 / (sd**2 + found.replicate_sd**2)))


def left_out(known: list[Case]) -> list[dict[str, Any]]:
    """A row a split: errors in nats at a loss of 2.8, by an ensemble that knows the other studies only."""
    rows = []
    for study in _studies(known):
        taught = learn([case for case in known if case.split.study != study])
        for case in known:
            if case.split.study == study:
                rows.append(_scored(case, taught))
    return rows


def _scored(case: Case, taught: Experience) -> dict[str, Any]:
    found = weighed(case.found, case.trials, taught)
    error, sd = case.centre(found.weights)
    scale = found.scale_ahead if case.split.kind == "lengths" else found.scale
    longest = max(run.steps for run in found.measured.runs)
    ahead = np.array([run.steps > BEYOND * longest for run in case.split.test])
    least = found.least_error((1 + error) * case.truth, ahead)
    half = norm.ppf((1 + LEVEL) / 2) * np.hypot(np.maximum(scale * sd, least), found.replicate_sd)
    return {
        "study": case.split.study,
        "split": case.split.name,
        "kind": case.split.kind,
        "runs": len(error),
        "mean": NATS * float(np.abs(error).mean()),
        "worst": NATS * float(np.abs(error).max()),
        "bias": NATS * float(error.mean()),
        "covered": int(np.sum(np.abs(error) <= half)),
        "width": NATS * float(2 * half.mean()),
        "laws": {law: NATS * float(np.abs(of - 1).mean()) for law, of in case.alone.items()},
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """By study and kind: the ensemble beside the law that was best there in hindsight, and simple rules."""
    found: dict[str, Any] = {}
    for row in rows:
        found.setdefault(f"{row['study']}, {row['kind']}", []).append(row)
    return {name: _group(of) for name, of in found.items()} | {"all": _group(rows)}


def _group(rows: list[dict[str, Any]]) -> dict[str, Any]:
    runs = sum(row["runs"] for row in rows)
    laws = {
        law: float(np.mean([row["laws"][law] for row in rows]))
        for law in rows[0]["laws"]
        if all(law in row["laws"] for row in rows)
    }
    simple = {name: laws.pop(name) for name in ("last value", "power") if name in laws}
    best = min(laws, key=lambda law: laws[law], default=None)
    return {
        "splits": len(rows),
        "predictions": runs,
        "mean": float(np.mean([row["mean"] for row in rows])),
        "worst": max(row["worst"] for row in rows),
        "coverage": sum(row["covered"] for row in rows) / runs,
        "width": float(np.average([row["width"] for row in rows], weights=[row["runs"] for row in rows])),
        "best_law": best,
        "best_law_mean": None if best is None else laws[best],
        "power_on_finals": simple.get("power"),
        "last_value": simple.get("last value"),
    }
