"""Which view a launch gets."""

import sys
from collections.abc import Collection

from rich.console import Console

from sweeps.drive.live import LiveView
from sweeps.drive.progress import PlainView, View, Watched
from sweeps.drive.tally import Tally
from sweeps.plan.tree import Plan
from sweeps.store.store import Store


def make_view(
    plan: Plan, store: Store, *, plain: bool, runs: Collection[str] | None = None, workers: int = 1
) -> View:
    """The view that fits where standard error goes, which is where progress is shown."""
    console = Console(file=sys.stderr, highlight=False)
    watched = Watched(plan, store, Tally(plan, runs, workers))
    final = watched.tally.final_stage
    earlier = [id_ for id_, stage in plan.stages.items() if id_ in plan.done and stage.kind == final]
    for outcome in store.all_done(earlier).values():
        watched.tally.measured(outcome)
    if plain or not console.is_terminal:
        return PlainView(watched, lambda line: print(line, file=sys.stderr, flush=True))
    return LiveView(watched, console)
