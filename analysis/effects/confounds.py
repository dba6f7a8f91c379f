"""What may explain a sweep's differences besides what it set out to vary. Only what the data show is said."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np

from analysis.runs.table import Run, Table
from analysis.runs.units import counted, span, unit


def confounds(table: Table, metric: str) -> tuple[str, ...]:
    """Sentences, each with its numbers; none where nothing is known to confound."""
    found = [_seeds(table, metric), _one_ratio_a_length(table), _trunks(table), _rates(table)]
    found += [_epochs(table)]
    found += [_floor(table), _embedding(table), _average(table)]
    return tuple(sentence for sentence in found if sentence)


def replicate_sd(table: Table, metric: str) -> tuple[float, int] | None:
    """(SD, degrees of freedom): noise of one value of `metric` between trainings equal but for chance.

    From final values of runs that differ in the seed only (branches of one trunk count once), and from
    retrained trunks over the later half of the steps that two of them spent at the full rate. Of n equal
    trainings n - 1 are independent differences, however many pairs there are. None without any.
    """
    square, freedom = 0.0, 0
    plans: dict[tuple[object, ...], dict[str, list[float]]] = {}
    for run in table.runs:
        if (final := run.final(metric)) is not None:
            plan = (run.group, run.steps, run.warmdown_steps, run.schedule)
            plans.setdefault(plan, {}).setdefault(run.trunk or run.run_id, []).append(final)
    compared: set[frozenset[str]] = set()
    by_trunks: dict[frozenset[str], list[float]] = {}  # plans off the same trunks repeat one comparison
    for trunks in plans.values():
        means = np.array([np.mean(finals) for finals in trunks.values()])
        by_trunks.setdefault(frozenset(trunks), []).append(float(np.sum((means - means.mean()) ** 2)))
        compared |= {frozenset(pair) for pair in combinations(trunks, 2)}
    for of, squares in by_trunks.items():
        square += float(np.mean(squares))
        freedom += len(of) - 1
    retrained: dict[frozenset[str], float] = {}
    for a, b in combinations(table.runs, 2):
        pair = frozenset((a.trunk or a.run_id, b.trunk or b.run_id))
        if a.group != b.group or len(pair) < 2 or pair in compared or pair in retrained:
            continue
        if (found := _trunk_square(a, b, metric)) is not None:
            retrained[pair] = found
    if retrained:
        independent = len(frozenset().union(*retrained)) - 1
        square += float(np.mean(list(retrained.values()))) * independent
        freedom += independent
    return (float(np.sqrt(square / freedom)), freedom) if freedom else None


def _trunk_square(a: Run, b: Run, metric: str) -> float | None:
    """Half the mean squared difference over the later half of the steps both spent at the full rate."""
    one, other = a.curve(metric), b.curve(metric)
    if one is None or other is None:
        return None
    end = min(run.steps if run.is_constant else run.peak_steps for run in (a, b))
    common, ia, ib = np.intersect1d(one[0], other[0], return_indices=True)
    late = (common <= end) & (common > end / 2)
    return float(np.mean((one[2][ia] - other[2][ib])[late] ** 2) / 2) if late.any() else None


def _seeds(table: Table, metric: str) -> str:
    noise = replicate_sd(table, metric)
    seeds = len({run.seed for run in table.runs})
    measured = (
        f" Trainings that should be equal differ by {noise[0]:.4f} {unit(metric)} (SD, from "
        f"{counted(noise[1], 'independent comparison')}{', which is too few to rely on' * (noise[1] < 3)})."
        if noise
        else " Nothing measures the noise between equal trainings."
    )
    if seeds == 1:
        return f"One seed: differences between runs include the noise of that seed.{measured}"
    return f"{seeds} seeds, averaged per configuration before anything is fitted across runs.{measured}"


def ratios_compared(table: Table) -> bool:
    """Whether two warmdown ratios were run at one number of steps, all else equal."""
    ratios: dict[tuple[object, ...], set[float]] = {}
    for run in table.runs:
        if not run.is_constant:
            ratios.setdefault((run.group, run.steps), set()).add(round(run.warmdown_ratio, 2))
    return any(len(of) > 1 for of in ratios.values())


def _one_ratio_a_length(table: Table) -> str:
    """Longer runs that warmed down for another share: length and share cannot be told apart by comparison."""
    runs = [run for run in table.runs if not run.is_constant]
    tried = {round(run.warmdown_ratio, 2) for run in runs}
    if len({run.steps for run in runs}) < 2 or len(tried) < 2 or ratios_compared(table):
        return ""
    return (
        "No number of steps was run with two warmdown ratios: which ratio is best rests on the laws that "
        "were fitted, not on a comparison."
    )


def _trunks(table: Table) -> str:
    trunks = {run.trunk or run.run_id for run in table.runs}
    if len(trunks) == len(table.runs):
        return ""
    return (
        f"{len(table.runs)} runs have {counted(len(trunks), 'trunk')}, shared or repeated to the last digit: "
        "they share its noise, and agree with one another better than fresh runs would."
    )


def _rates(table: Table) -> str:
    axes = {name for run in table.runs for name, _ in run.group if "lr" in name.split(".")[-1]}
    varied = [name for name in axes if len({dict(run.group).get(name) for run in table.runs}) > 1]
    return "" if varied else "One peak learning rate: the best warmdown is known to depend on it."


def _epochs(table: Table) -> str:
    epochs = {run.steps: run.metrics["epochs"] for run in table.runs if "epochs" in run.metrics}
    if not epochs or max(epochs.values()) <= 1:
        return ""
    from_steps = min(steps for steps, passes in epochs.items() if passes > 1)
    return (
        f"Data repeat: runs of {from_steps:,} steps and more see them "
        f"{span(e for e in epochs.values() if e > 1)} times, so the longest gain less from each step "
        f"than fresh "
        "data would give."
    )


def _floor(table: Table) -> str:
    rows = [run.metrics["quant_rows_at_floor"] for run in table.runs if "quant_rows_at_floor" in run.metrics]
    if not rows or max(rows) == 0:
        return ""
    return (
        f"Quantizer floor: {span(rows, ',.0f')} rows have their int6 scale raised to the floor, so int6 "
        f"loss and "
        "artifact size follow the weights' size and not only the training."
    )


def _embedding(table: Table) -> str:
    configs = [_config(run) for run in table.runs]
    stored = [_nested(config, "model", "embedding_dtype") for config in configs if config]
    if "bf16" not in stored:
        return ""
    return "The token embedding is bf16 without an fp32 master: late, small updates may round away."


def _average(table: Table) -> str:
    """EMA windows that are long against the shortest warmdown, or still hold initial weights."""
    texts = []
    for run in table.runs:
        decay = config_value(run, "ema_decay")
        if not isinstance(decay, float) or run.is_constant or not 0 < decay < 1:
            continue
        horizon = 1 / (1 - decay)
        if decay**run.steps > 0.01:
            texts.append(
                (0.0, f"{run.run_id} still holds {100 * decay**run.steps:.0f} % of the initial weights")
            )
        elif horizon > 0.1 * run.warmdown_steps:
            share = horizon / run.warmdown_steps
            texts.append(
                (
                    1 / share,
                    f"it averages over some {horizon:.0f} steps, {100 * share:.0f} % of the warmdown of "
                    f"{run.run_id}, and so shows less than the warmdown's whole gain",
                )
            )
    return f"EMA: {min(texts)[1]} (the worst of {len(texts)} such runs)." if texts else ""


def _config(run: Run) -> dict[str, object] | None:
    text = run.columns.get("config_json")
    if not isinstance(text, str):
        return None
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return config if isinstance(config, dict) else None


def config_value(run: Run, *path: str) -> object:
    """What the run's config_json says at a path of keys; None where it says nothing."""
    return _nested(_config(run) or {}, *path)


def _nested(config: dict[str, object], *path: str) -> object:
    value: object = config
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value
