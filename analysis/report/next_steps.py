"""What to do next, as commands that can be pasted."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.effects.sparse import needed_period
from analysis.forecast.advise import interval
from analysis.forecast.cost import cost_of
from analysis.report.answer import doubled, gain_of_doubling
from analysis.report.study import Study
from analysis.runs.settings import varying_axes
from analysis.runs.strictjson import plain
from analysis.runs.sweepfile import SweepFile

_ONE_OFF = {"--plan", "--fresh", "--retry-failed", "--no-report", "--json"}


@dataclass(frozen=True)
class Step:
    """Something to do: why, and the command, '' where there is none."""

    why: str
    command: str = ""


def next_steps(study: Study, sweep: SweepFile, trajectories: str | Path | None = None) -> list[Step]:
    """Finer evaluations where they are missing, the run that tells most, budgets, a prediction, an export."""
    steps = [*_evaluate_more(study, sweep), *_best_score(study, sweep), *_next_run(study, sweep)]
    steps += _budgets(study)
    if (ahead := doubled(study)) is not None:
        words = ["python", "-m", "analysis", "predict", study.table.source]
        words += ["--trajectories", str(trajectories)] if trajectories else []
        words += ["--steps", str(ahead.steps), "--warmdown", str(ahead.warmdown)]
        steps.append(
            Step("Predict any other plan, law by law:", shlex.join([*words, "--metric", study.final_metric]))
        )
    if study.table.folder is not None and sweep.argv and study.best is not None and _has_artifact(study):
        words = ["python", "launch.py", "export", study.best[0].run_id, *_store(study)]
        steps.append(
            Step("Write the best run as a submission, proved to reproduce its score:", shlex.join(words))
        )
    return steps


def _has_artifact(study: Study) -> bool:
    folder, best = study.table.folder, study.best
    return bool(folder and best and (folder / "artifacts" / f"{best[0].run_id}.int6").is_file())


def _store(study: Study) -> list[str]:
    """--output, where the store is not the default one."""
    store = study.table.folder.parent if study.table.folder else Path("results")
    return [] if str(store) == "results" else ["--output", str(store)]


def _evaluate_more(study: Study, sweep: SweepFile) -> list[Step]:
    every = needed_period(study.warmdown)
    if not every:
        return []
    text = f"Evaluate every {every} steps, so that the warmdowns can be measured."
    if not sweep.argv or study.table.origin != "recipe":
        return [Step(text)]
    trained = "Runs with another period are other runs: they are trained again."
    return [Step(f"{text} {trained}", launch(sweep.argv, f"eval.every={every}"))]


def _next_run(study: Study, sweep: SweepFile) -> list[Step]:
    """The plan whose outcome the laws disagree about most, for its cost."""
    if study.advice is None or not study.advice.candidates:
        return []
    best, target, cost = study.advice.candidates[0], study.advice.target, study.advice.cost
    price = f", {cost.text(best.new_steps * cost.per_step + cost.fixed)}" if cost else ""
    new = f"{best.new_steps:,} new steps" + (" from the longest trunk" if best.new_steps < best.steps else "")
    why = (
        f"To learn most for its cost, run {best.steps:,} steps with {best.warmdown_steps:,} of warmdown "
        f"({new}{price}): of the plans not made it narrows the prediction for {target.steps:,} steps most."
    )
    return [_planned(study, sweep, why, best.steps, best.warmdown_steps)]


def _best_score(study: Study, sweep: SweepFile) -> list[Step]:
    """The plan that is predicted best, where it is clearly better than the best run."""
    ahead, gain = doubled(study), gain_of_doubling(study)
    if ahead is None or gain is None or not gain.above(0):
        return []
    why = (
        f"For a better score, run {ahead.steps:,} steps with {ahead.warmdown:,} of warmdown, predicted at "
        f"{interval(ahead)}."
    )
    return [_planned(study, sweep, why, ahead.steps, ahead.warmdown)]


def _planned(study: Study, sweep: SweepFile, why: str, steps: int, warmdown: int) -> Step:
    """A plan with the command that shows it, where the sweep's own is known."""
    if not sweep.argv:
        return Step(why)
    points = [*sweep.points, _point(study, sweep, steps, warmdown)]
    command = launch(sweep.argv, f"points={json.dumps(points)}", "--plan")
    return Step(f"{why} The command shows the plan; without --plan it runs.", command)


def _point(study: Study, sweep: SweepFile, steps: int, warmdown: int) -> dict[str, object]:
    """A run as a sweep file states it, in the forecast's setting: a point takes no value from the grid."""
    assert study.forecast is not None
    point: dict[str, object] = {"steps": steps, "warmdown_steps": warmdown}
    if study.forecast.schedule != "linear":
        point["schedule"] = study.forecast.schedule
    longest = max(study.forecast.ensemble.table.runs, key=lambda run: run.peak_steps)
    values = {**dict(longest.group), "seed": longest.seed}
    wanted = {axis: values.get(axis) for axis in (*sweep.grid, *varying_axes(study.table))}
    return point | {axis: plain(value) for axis, value in wanted.items() if value is not None}


def _budgets(study: Study) -> list[Step]:
    """What a budget of hours reaches, where an interval carries it."""
    if study.advice is None or study.forecast is None:
        return []
    cost = cost_of(study.forecast.ensemble.table)
    known = [b for b in study.advice.budgets if b.best.prediction.low is not None]
    if cost is None or not known:
        return []
    parts = [
        f"{cost.text(b.hours)} pay for {b.best.steps:,} steps, predicted at {interval(b.best.prediction)}"
        for b in known
    ]
    return [Step("; ".join(parts) + ".")]


def launch(argv: Sequence[str], *more: str) -> str:
    """The command of a sweep again, without what was meant for once, with further arguments.

    An override of the same key is replaced.
    """
    keys = {word.partition("=")[0] for word in more if not word.startswith("-") and "=" in word}
    kept, skip = [], False
    for word in argv:
        if skip or word in _ONE_OFF:
            skip = False
            continue
        if word == "--only":
            skip = True
            continue
        if word.startswith("--only=") or word.partition("=")[0] in keys:
            continue
        kept.append(word)
    return shlex.join(["python", *kept, *more])
