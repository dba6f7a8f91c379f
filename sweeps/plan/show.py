"""A plan for people: the tree, what it costs naive and shared, and what was not checked."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from gepa_core.sizes import num_params
from sweeps.plan.figures import human_bytes, human_hours
from sweeps.plan.tree import Node, Plan

MAX_TREE_LINES = 60


def show_plan(
    console: Console,
    plan: Plan,
    figures: Mapping[str, Any],
    *,
    notes: Sequence[str] = (),
    advice: Sequence[str] = (),
) -> None:
    console.print(_headline(plan, figures))
    console.print(_tree(plan))
    console.print(_costs(figures))
    console.print(_totals(figures))
    for note in notes:
        console.print(Text(f"note: {note}", style="yellow"))
    for line in advice:
        console.print(Text(f"advice: {line}", style="cyan"))


def _headline(plan: Plan, figures: Mapping[str, Any]) -> Text:
    sizes = sorted({num_params(run.model) for run in plan.sweep.recipe_runs})
    params = " to ".join(f"{n / 1e6:.3g} M" for n in dict.fromkeys((*sizes[:1], *sizes[-1:])))
    parts = [
        f"{_count(figures['runs'], 'run')} in {_count(figures['trunks'], 'tree')}",
        _count(figures["segments"], "segment"),
        _count(figures["stages"], "stage"),
        f"{params} parameters" if params else "each a run of the script",
    ]
    return Text.assemble((plan.sweep.name, "bold"), ": " + ", ".join(parts))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("s" if number != 1 else "")


def _tree(plan: Plan) -> RenderableType:
    """Trunks with their branches; summed up, one line a trunk, where that would be too long."""
    trunks: dict[str, list[Node]] = {}
    for segment in plan.segments.values():
        trunks.setdefault(segment.trunk_id, []).append(segment)
    if len(plan.segments) + len(trunks) <= MAX_TREE_LINES:
        return Group(*(_trunk(plan, segments) for segments in trunks.values()))
    lines = [_trunk_line(plan, segments) for segments in list(trunks.values())[:MAX_TREE_LINES]]
    if len(trunks) > MAX_TREE_LINES:
        lines.append(Text(f"and {len(trunks) - MAX_TREE_LINES:,} more trees"))
    return Group(*lines)


def _trunk(plan: Plan, segments: list[Node]) -> Tree:
    """Branches hang where they leave the trunk; the trunk itself stays in one column."""
    tree = Tree(Text(_trunk_name(plan, segments), style="bold"))
    for segment in (s for s in segments if not s.trunk and s.after is None):
        tree.add(_segment_text(plan, segment))
    for segment in (s for s in segments if s.trunk):
        node = tree.add(_segment_text(plan, segment))
        for child in plan.children.get(segment.id, ()):
            if child in plan.segments and not plan.segments[child].trunk:
                node.add(_segment_text(plan, plan.segments[child]))
    return tree


def _trunk_name(plan: Plan, segments: list[Node]) -> str:
    config = segments[0].config
    axes = {"seed": config.seed, **plan.sweep.axis_values(config)}
    axes = {key: value for key, value in axes.items() if value is not None}
    if not segments[0].trunk and segments[0].start == 0:
        return f"alone: {plan.named(segments[0].runs[0])}"
    shared = {"quant.", "ttt."}
    values = [f"{key} {value}" for key, value in axes.items() if not key.startswith(tuple(shared))]
    return f"trunk ({', '.join(values)})"


def _segment_text(plan: Plan, segment: Node) -> Text:
    config = segment.config
    words = f"{segment.start:,} → {segment.stop:,}"
    if segment.trunk:
        words += f"  trunk, {_count(segment.steps, 'step')}"
    else:
        words += f"  {config.schedule} over {config.warmdown_steps:,}"
    if segment.final:
        ending = [run for run in segment.runs if plan.runs[run].last == segment.id]
        words += f"  {plan.named(ending[0]) if len(ending) == 1 else _count(len(ending), 'run')}"
    done = segment.id in plan.done
    return Text(words + ("  (done)" if done else ""), style="dim" if done else "")


def _trunk_line(plan: Plan, segments: list[Node]) -> Text:
    trunk = [segment for segment in segments if segment.trunk]
    branches = len(segments) - len(trunk)
    words = _trunk_name(plan, segments)
    if trunk:
        stops = [segment.stop for segment in trunk]
        points = _count(len(stops), "branch point")
        words += f": {points} {min(stops):,} .. {max(stops):,}, {_count(branches, 'branch')}"
        words = words.replace("branchs", "branches")
    done = sum(segment.id in plan.done for segment in segments)
    return Text(words + (f", {done} of {len(segments)} segments done" if done else ""))


def _costs(figures: Mapping[str, Any]) -> Table:
    unit = f"{figures['hours_of']}-hours"
    table = Table(box=None, pad_edge=False)
    for heading in ("", "naive", "shared", "saved"):
        table.add_column(heading, justify="left" if not heading else "right")
    rows: list[tuple[str, float, float, str]] = [
        ("steps", figures["steps_naive"], figures["steps_shared"], ",.0f")
    ]
    for label, name in (("training", "train"), ("evaluation", "eval"), ("TTT", "ttt")):
        naive, shared = figures[f"gpu_hours_{name}_naive"], figures[f"gpu_hours_{name}_shared"]
        rows.append((f"{label}, {unit}", naive, shared, ",.1f" if naive >= 10 else ",.3f"))
    rows.append((f"all, {unit}", figures["gpu_hours_naive"], figures["gpu_hours_shared"], ",.1f"))
    if figures["gpu_hours_naive"] < 10:
        rows[-1] = (*rows[-1][:3], ",.3f")
    if figures["cost_naive"] is not None:
        rows.append(("cost", figures["cost_naive"], figures["cost_shared"], ",.0f"))
    for label, naive, shared, form in rows:
        saved = f"{naive / shared:.2f}x" if shared else ""
        table.add_row(label, format(naive, form), format(shared, form), saved)
    return table


def _totals(figures: Mapping[str, Any]) -> Text:
    lines = [
        f"critical path {figures['critical_path_steps']:,} steps",
        f"disk up to {human_bytes(figures['disk_bytes'])} (trunk states, artifacts, work in hand)"
        if figures["disk_bytes"]
        else "disk: the script's outputs, and its states where trunks are shared",
        f"about {human_hours(figures['eta_hours'])} with {figures['leases_basis']}",
    ]
    if figures["steps_left"] < figures["steps_shared"]:
        left = (
            f"{figures['steps_left']:,} steps, {figures['gpu_hours_left']:,.1f} {figures['hours_of']}-hours"
        )
        lines.insert(0, f"left to do: {left}")
    lines.append(f"speed: {figures['speeds']}")
    return Text("\n".join(lines))
