"""What a store already has, as a plan needs it: finished segments and stages, and how fast they went."""

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from gepa_core.config import RunConfig, digest
from gepa_core.sizes import training_flops_per_token
from sweeps.kinds.script import ScriptRun
from sweeps.kinds.table import KINDS
from sweeps.plan.speeds import Measurement
from sweeps.plan.tree import KnownSegment
from sweeps.store.store import Outcome, Store

_THREADS = 16


@dataclass(frozen=True)
class History:
    segments: tuple[KnownSegment, ...] = ()
    stages: frozenset[str] = frozenset()
    measurements: tuple[tuple[str, Measurement], ...] = ()
    """Device ("cpu" or a GPU's name) and what was timed on it."""
    faults: tuple[str, ...] = ()
    """States that are there and of no use."""

    def on(self, *, gpu: bool, script: str = "") -> list[Measurement]:
        """What was timed on such devices; steps only of the script with that digest of its files."""
        return [m for device, m in self.measurements if (device != "cpu") == gpu and m.of == script]


def read_history(store: Store) -> History:
    """Everything committed in the store, by any sweep."""
    done = store.all_done()
    segments = [outcome for outcome in done.values() if trains(outcome)]
    with ThreadPoolExecutor(_THREADS) as pool:
        looked = list(pool.map(store.look_at_state, segments))
    known = tuple(
        known_segment(outcome, kept=path is not None)
        for outcome, (path, _) in zip(segments, looked, strict=True)
    )
    timed = ((str(o.execution.get("device", "cpu")), measurement(o)) for o in done.values())
    return History(
        segments=known,
        stages=frozenset(id_ for id_, outcome in done.items() if not trains(outcome)),
        measurements=tuple((device, m) for device, m in timed if m is not None),
        faults=tuple(fault for _, fault in looked if fault),
    )


def trains(outcome: Outcome) -> bool:
    """Whether it is a stretch of training; False for kinds this version does not know."""
    return outcome.kind in KINDS and KINDS[outcome.kind].trains


def known_segment(outcome: Outcome, *, kept: bool) -> KnownSegment:
    identity = outcome.identity
    config = _config(identity.get("config"))
    held = identity.get("averages") or ([[config.ema_decay]] if config else [])
    return KnownSegment(
        observed=digest(config.unaveraged()) if config else "",
        decays=tuple(sorted({average[0] for average in held})),
        id=outcome.id,
        parent=identity["parent"],
        trunk_id=identity["trunk_id"],
        start=identity["start"],
        stop=identity["stop"],
        trunk=identity["trunk"],
        kept=kept,
    )


def measurement(outcome: Outcome) -> Measurement | None:
    """How fast a node went; None where its record does not tell."""
    kind, result = KINDS.get(outcome.kind), outcome.result
    config = _config(outcome.identity.get("config"))
    if config is None or kind is None or kind.seconds is None or not (seconds := result.get(kind.seconds)):
        return None
    devices = outcome.devices or float(outcome.execution.get("ranks", 1))
    if isinstance(config, ScriptRun):
        return Measurement("steps", float(result.get("steps_made") or 0), seconds, devices, config.files)
    if kind.trains:
        if not (rate := result.get("tokens_per_second")):
            return None
        flops = training_flops_per_token(config.model, config.batch.seq_len) * rate * seconds
        return Measurement("train", flops, seconds, devices)
    if not (tokens := result.get("tokens")):
        return None
    ((unit, amount),) = kind.cost(config, tokens, 0, 0).items()
    return Measurement(unit, amount, seconds, devices)


def _config(record: Mapping[str, Any] | None) -> RunConfig | ScriptRun | None:
    try:
        model = ScriptRun if record and "script_version" in record else RunConfig
        return model.model_validate(record, strict=False) if record else None
    except ValidationError:  # written by another version
        return None


def changes(old: Mapping[str, Any], new: Mapping[str, Any], runs: Iterable[str]) -> list[str]:
    """What differs between sweep.json of an earlier launch and the sweep (its `document`, its run ids)."""
    before: Mapping[str, Any] = old.get("document") or {}
    new = json.loads(json.dumps(new))  # with lists for tuples, as the earlier one was read
    lines = []
    for key in dict.fromkeys([*before, *new]):
        was, now = before.get(key), new.get(key)
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            for name in dict.fromkeys([*was, *now]):
                if was.get(name) != now.get(name):
                    lines.append(f"{key}.{name}: {_shown(was.get(name))} -> {_shown(now.get(name))}")
        elif was != now:
            lines.append(f"{key}: {_shown(was)} -> {_shown(now)}")
    earlier, present = set(old.get("runs") or ()), set(runs)
    if earlier != present:
        kept, new_ones, gone = earlier & present, present - earlier, earlier - present
        lines.append(f"{len(kept)} runs still match and are kept, {len(new_ones)} new, {len(gone)} left out")
    return lines


def _shown(value: Any) -> str:
    return "nothing" if value is None else str(value)
