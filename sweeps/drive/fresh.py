"""--fresh: forgets what a store has of a sweep, so that its runs are trained again.

A segment belongs to every sweep whose plan names it, and a result is never replaced by another. So where
sweeps share segments, one of them cannot be trained again in the same store: that is refused, not half done.
"""

from collections import Counter

from gepa_core.errors import ConfigError
from sweeps.plan.tree import Plan
from sweeps.store.store import Store


def forget(store: Store, plan: Plan) -> None:
    """Deletes the sweep's tables and its segments and stages. `plan`: as it is without any history.

    Kept: adopted checkpoints, and what an earlier launch of this sweep used of other sweeps' segments.
    Raises ConfigError, and deletes nothing, where other sweeps' results are made of what would be deleted.
    """
    name = plan.sweep.name
    if why := refusal(store, plan):
        raise ConfigError(why)
    earlier = _named(store, name)
    own = plan.nodes.keys() | earlier
    own -= {node for other in store.sweeps() if other != name for node in _named(store, other)}
    adopted = {id_ for id_, done in store.all_done(earlier).items() if done.identity.get("adopted")}
    for node in own - adopted:
        store.files.delete(f"segments/{node}")
    for entry in store.files.list(name):
        if entry.name != "lease.json":
            store.files.delete(f"{name}/{entry.name}")


def refusal(store: Store, plan: Plan) -> str | None:
    """Why the sweep cannot be trained again in this store; None if it can."""
    there = plan.nodes.keys() & store.ids()
    shared = Counter(
        {other: len(there & _named(store, other)) for other in store.sweeps() if other != plan.sweep.name}
    )
    using = ", ".join(f"{other} ({count} of them)" for other, count in shared.items() if count)
    if not using:
        return None
    return (
        f"--fresh would delete segments and stages that other sweeps of this store are made of: {using}; "
        "train again into another store (--output), or delete those sweeps' folders first"
    )


def _named(store: Store, sweep: str) -> set[str]:
    """Segments and stages that a sweep's plan, as last launched, names."""
    plan = store.sweep(sweep).read_json("plan.json") or {}
    return {id_ for part in ("segments", "stages") for id_ in plan.get(part, {})}
