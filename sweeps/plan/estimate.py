"""What a plan costs: device-hours with and without sharing, money, disk, and time. Pure."""

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gepa_core.config import CAP_BYTES, RunConfig
from gepa_core.sizes import num_params, state_bytes
from sweeps.kinds.kind import ARTIFACT, Rate
from sweeps.plan.tree import Node, Plan
from sweeps.spec.sweep import Sweep

HOUR = 3600.0


@dataclass(frozen=True)
class Hours:
    """Device-hours: GPU-hours, or those of one-thread CPU workers."""

    train: float
    eval: float
    """Validation while training, quantizing, and the plain and sliding stages."""
    ttt: float

    @property
    def total(self) -> float:
        return self.train + self.eval + self.ttt


def naive_hours(plan: Plan) -> Hours:
    """If every run were trained and measured alone."""
    return _hours(plan, (node for run_id in plan.runs for node in plan.alone(run_id)))


def shared_hours(plan: Plan, *, left: bool = False) -> Hours:
    """As planned; `left`: without what the store already has."""
    skipped = plan.done if left else frozenset()
    return _hours(plan, (node for node in plan.nodes.values() if node.id not in skipped))


def _hours(plan: Plan, nodes: Iterable[Node]) -> Hours:
    seconds: Counter[Rate] = Counter()
    for node in nodes:
        seconds.update(plan.cost(node))
    return Hours(
        (seconds["train"] + seconds["steps"]) / HOUR,
        (seconds["evaluate"] + seconds["quantize"]) / HOUR,
        seconds["ttt"] / HOUR,
    )


def disk_bytes(plan: Plan, leases: int) -> int:
    """States on trunks (and what `keep` adds) and artifacts, which stay, and three states for each lease at
    work. With `keep: all`, checkpoints on the way come on top: their number depends on the time it takes.
    """
    models = {n.id: n.config.model for n in plan.nodes.values() if isinstance(n.config, RunConfig)}
    sizes = {
        id_: state_bytes(models[id_], len(node.averages) or 1)
        for id_, node in plan.segments.items()
        if id_ in models
    }
    keeps = plan.sweep.keep != "artifacts"
    states = sum(sizes[id_] for id_ in sizes if plan.nodes[id_].trunk or keeps)
    states += 3 * leases * max(sizes.values(), default=0)
    artifacts = (id_ for id_ in models if plan.kind(id_).gives == ARTIFACT)
    return states + sum(min(num_params(models[id_]), CAP_BYTES) for id_ in artifacts)


@dataclass(frozen=True)
class Machine:
    """A machine: its resources by Ray's names (CPU, GPU, memory, custom ones) and its labels."""

    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)


def places(sweep: Sweep, nodes: Iterable[Machine]) -> int:
    """How many leases the nodes hold at once. A lease may span nodes; one that is spread must."""
    bundles = sweep.bundles()  # which are equal
    bundle = {name: amount for name, amount in bundles[0].items() if amount > 0}
    wanted = sweep.resources.node_labels.items()
    # An amount that leaves a rounding error of a thousandth is still taken to fit.
    fitting = [
        int(min(node.resources.get(name, 0.0) / need + 1e-3 for name, need in bundle.items()))
        for node in nodes
        if wanted <= node.labels.items()
    ]
    leases = sum(fitting) // len(bundles)
    while sweep.spread and sum(min(fits, leases) for fits in fitting) < leases * len(bundles):
        leases -= 1
    return leases


def refusal(sweep: Sweep, nodes: Sequence[Machine]) -> str | None:
    """Why these nodes could never run one lease of the sweep; None if they can."""
    bundles = sweep.bundles()
    if places(sweep, nodes):
        return None
    need = _amounts(bundles[0])
    labels = sweep.resources.node_labels
    apart = ", each on a node of its own" if sweep.spread else ""
    each = f"{len(bundles)} x ({need}){apart}" + (f" on nodes with labels {labels}" if labels else "")
    most = {name: max((node.resources.get(name, 0.0) for node in nodes), default=0.0) for name in bundles[0]}
    return (
        f"a run asks for {each}, which no set of nodes here has "
        f"({len(nodes)} node(s), at most {_amounts(most)} each)"
    )


def _amounts(resources: Mapping[str, float]) -> str:
    """Ray counts memory in bytes."""
    return ", ".join(
        f"{amount / 1e9:.4g} GB {name}" if name == "memory" else f"{amount:g} {name}"
        for name, amount in resources.items()
    )


def eta_seconds(plan: Plan, leases: int) -> float:
    """Wall time of what is left on `leases` leases, the longest remaining path first."""
    devices = plan.sweep.devices
    left = plan.nodes.keys() - plan.done
    waiting = [(-plan.priority[id_], id_) for id_ in left if left.isdisjoint(plan.nodes[id_].needs)]
    heapq.heapify(waiting)
    running: list[tuple[float, str]] = []
    now = 0.0
    while waiting or running:
        while waiting and len(running) < leases:
            _, node = heapq.heappop(waiting)
            heapq.heappush(running, (now + plan.seconds[node] / devices, node))
        now, finished = heapq.heappop(running)
        left.discard(finished)
        for child in plan.children.get(finished, ()):
            if child in left and left.isdisjoint(plan.nodes[child].needs):
                heapq.heappush(waiting, (-plan.priority[child], child))
    return now


def summary(plan: Plan, *, leases: int, leases_basis: str) -> dict[str, Any]:
    """The figures of `--plan --json`."""
    naive, shared, left = naive_hours(plan), shared_hours(plan), shared_hours(plan, left=True)
    price = plan.sweep.resources.price_per_gpu_hour
    on_gpu = plan.sweep.resources.gpus_per_run > 0
    devices = plan.sweep.devices
    undone = plan.nodes.keys() - plan.done
    figures: dict[str, Any] = {
        "sweep": plan.sweep.name,
        "runs": len(plan.runs),
        "segments": len(plan.segments),
        "stages": len(plan.stages),
        "trunks": len({segment.trunk_id for segment in plan.segments.values()}),
        "steps_naive": plan.steps_naive,
        "steps_shared": plan.steps_shared,
        "steps_left": plan.steps_left,
        "critical_path_steps": plan.critical_path_steps,
        "critical_path_hours": max((plan.priority[node] for node in undone), default=0.0) / devices / HOUR,
        "hours_of": "GPU" if on_gpu else "CPU worker",
    }
    for name in ("train", "eval", "ttt"):
        figures[f"gpu_hours_{name}_naive"] = getattr(naive, name)
        figures[f"gpu_hours_{name}_shared"] = getattr(shared, name)
    return figures | {
        "gpu_hours_naive": naive.total,
        "gpu_hours_shared": shared.total,
        "gpu_hours_left": left.total,
        "speeds": plan.speeds.source,
        "price_per_gpu_hour": price,
        "cost_naive": naive.total * price if price is not None else None,
        "cost_shared": shared.total * price if price is not None else None,
        "cost_left": left.total * price if price is not None else None,
        "disk_bytes": disk_bytes(plan, leases),
        "leases": leases,
        "leases_basis": leases_basis,
        "eta_hours": eta_seconds(plan, leases) / HOUR,
    }
