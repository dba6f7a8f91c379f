"""The live view of a terminal: a bar for the sweep, one for each worker, redrawn in place."""

import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from sweeps.drive.progress import FIRST_HALF_MINUTE, Watched, clock
from sweeps.drive.tally import Running

_MOST_WORKERS = 30
_WIDE = 100
"""Columns from which on a worker's line has the whole name and its speed."""


class LiveView:
    """Bars below, and above them what scrolls by: trouble, stretches of training, finished runs."""

    def __init__(self, watched: Watched, console: Console) -> None:
        self.watched, self.console = watched, console
        self.wide = console.width >= _WIDE
        name = watched.plan.sweep.name
        self.whole = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f} %  {task.fields[words]}"),
            console=console,
            expand=True,
        )
        self.sweep = self.whole.add_task(name, total=1.0, words="")
        self.workers = Progress(
            TextColumn("{task.fields[worker]}"),
            TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            BarColumn(bar_width=16 if self.wide else 8),
            TextColumn("{task.fields[words]}", table_column=Column(no_wrap=True)),
            console=console,
            expand=True,
        )
        self.tasks: dict[int, TaskID] = {}
        self.has_begun = False
        self._next = 0.0
        self.live = Live(console=console, get_renderable=self.render, auto_refresh=False, transient=False)
        self.live.start()

    def show(self, what: str, node: str, **facts: Any) -> None:
        tally = self.watched.tally
        self.has_begun = self.has_begun or what == "started"
        for line in self.watched.follow(what, node, facts):
            dim = line.startswith("    | ")
            text = line if dim else f"{clock(tally.clock() - tally.begun)} {line}"
            self.console.print(Text(text, style="dim" if dim else ""))

    def refresh(self) -> None:
        begun = time.monotonic()
        if begun < self._next:
            return
        self.watched.read_reports()
        self.live.refresh()
        # Thousands of runs take a while to draw: never more than a twentieth of the driver's time.
        self._next = begun + 20 * (time.monotonic() - begun)

    def close(self) -> None:
        for task in self.tasks.values():
            self.workers.update(task, visible=False)
        self.live.refresh()
        self.live.stop()

    def render(self) -> Group:
        watched, tally = self.watched, self.watched.tally
        elapsed = clock(tally.clock() - tally.begun)
        words = "  ".join(filter(None, (elapsed, watched.time_left())))
        self.whole.update(self.sweep, completed=tally.work_done, words=words)
        lines = [Text(watched.standing(), no_wrap=True, overflow="ellipsis")]
        if best := watched.best_text():
            lines.append(Text(best, style="green", no_wrap=True, overflow="ellipsis"))
        if not self.has_begun:
            lines.append(Text(FIRST_HALF_MINUTE, style="dim"))
        self._draw_workers()
        return Group(self.whole, *lines, self.workers)

    def _draw_workers(self) -> None:
        running = sorted(self.watched.tally.running.items(), key=lambda item: item[1].worker)
        shown = {at.worker: (node, at) for node, at in running[:_MOST_WORKERS]}
        for worker, task in self.tasks.items():
            if worker not in shown:
                self.workers.update(task, visible=False)
        for worker, (node, at) in shown.items():
            if worker not in self.tasks:
                self.tasks[worker] = self.workers.add_task("", total=1.0, worker=worker, words="")
            share = self.watched.tally.share(node)
            self.workers.update(
                self.tasks[worker],
                description=self.watched.name(node, short=not self.wide),
                completed=share,
                words=self._facts(node, at),
                visible=True,
            )

    def _facts(self, node: str, at: Running) -> str:
        seconds = clock(self.watched.tally.clock() - at.since)
        if not self.watched.plan.nodes[node].trains:
            return seconds
        if at.step is None:
            return f"loading torch, {seconds}" if at.fresh else f"starting, {seconds}"
        words = f"step {at.step:,}"
        if (bpb := at.last("val_bpb")) is not None:
            words += f"  {bpb:.4f} BPB"
        speed = at.last("tokens_per_second")
        return words + (f"  {speed:,.0f} tokens/s" if self.wide and speed is not None else "")
