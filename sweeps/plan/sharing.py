"""Whether a script's runs may share their trunks: a check, a node of its own, that is made once a script."""

from dataclasses import replace
from typing import TYPE_CHECKING

from gepa_core.config import digest
from sweeps.kinds.script import ScriptRun
from sweeps.kinds.table import SHARING_CHECK
from sweeps.plan.tree import Node, Plan
from sweeps.spec.sweep import Sweep

if TYPE_CHECKING:
    from sweeps.store.store import Outcome


def check_node(sweep: Sweep) -> Node | None:
    """The check that the sweep's sharing rests on; None where nothing would be shared."""
    if not sweep.share or sweep.script is None or sweep.script.state is None:
        return None
    longest = max((run for run in sweep.runs if isinstance(run, ScriptRun)), key=lambda run: run.steps)
    steps = min(sweep.script.state.check_steps, longest.steps)
    short = longest.model_copy(update={"steps": steps, "warmdown_steps": steps - steps // 2})
    # One answer for all values of the axes: what decides is the script, and how it saves and loads.
    asked = {
        "files": short.files,
        "command": short.command,
        "env": sorted(short.env),
        "state": sweep.script.state.model_dump(mode="json", exclude={"every"}),
        "version": short.script_version,
    }
    return Node(f"{SHARING_CHECK}-{digest(asked)[:16]}", SHARING_CHECK, None, short, ())


def with_check(plan: Plan, node: Node) -> Plan:
    """The plan with the check beside its other nodes."""
    return replace(plan, nodes={node.id: node, **plan.nodes})


def answer(done: "Outcome | None") -> tuple[bool | None, str]:
    """Whether sharing was found exact (None: not asked yet), and a line about it."""
    if done is None:
        return (
            None,
            "whether sharing trunks is exact is checked first, by two short runs; if not, none are shared",
        )
    if done.result.get("exact"):
        return True, f"sharing trunks was checked: {done.result['compared']} figures alike, shared and alone"
    return False, f"no trunks are shared: {done.result.get('reason')}"
