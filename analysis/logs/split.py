"""The runs in a file. A new one begins where steps start again; what was printed twice is one run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from analysis.logs.events import Event, Fact, Figure, Loose, Mark, Step

_HEADER = {"params", "iterations"}


@dataclass
class Training:
    """What a log states of one run, as it was printed; a later line of a step counts."""

    points: dict[int, dict[str, float]] = field(default_factory=dict)  # step -> name -> value
    coarse: dict[int, float] = field(default_factory=dict)  # step -> by how much its seconds were rounded
    facts: dict[str, float | str] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    totals: list[int] = field(default_factory=list)
    broken: list[Step] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    conflicts: int = 0  # validations of a step that was validated before, with another value
    last: int = 0
    first_line: int = 0
    last_line: int = 0
    end_line: int = 0  # where the last of its steps was first printed

    @property
    def measured(self) -> list[int]:
        """Steps after the first with a validation."""
        return [s for s, v in sorted(self.points.items()) if s > 0 and v.keys() & {"val_bpb", "val_loss"}]

    @property
    def spacing(self) -> int:
        """The most steps from one that was printed to the next."""
        steps = sorted(self.points)
        return max((b - a for a, b in pairwise(steps)), default=0)

    def add(self, event: Event) -> None:
        self.first_line = self.first_line or event.line
        self.last_line = event.line
        if isinstance(event, Step):
            if not self.points or event.step > self.last:
                self.end_line = event.line
            self.last = max(self.last, event.step)
            point = self.points.setdefault(event.step, {})
            other = (
                k in point and point[k] != event.values[k]
                for k in ("val_loss", "val_bpb")
                if k in event.values
            )
            self.conflicts += any(other)
            point.update(event.values)
            if "seconds" in event.values:
                self.coarse[event.step] = event.coarse
            if event.total:
                self.totals.append(event.total)
            if event.broken:
                self.broken.append(event)
        elif isinstance(event, Fact):
            # The header's last word counts; what is printed after training began may be of something else.
            if not self.points or event.name not in self.facts:
                self.facts[event.name] = event.value
        elif self.points:
            (self.figures if isinstance(event, Figure) else self.marks).append(event)  # type: ignore[arg-type]


def trainings(found: Iterable[Event]) -> list[Training]:
    """Every run of a file, in its order, printed copies taken once; also those without any validation."""
    runs, run = [], Training()
    found = _placed(list(found))
    waiting: list[Fact] = []  # a header after steps: of the next run if one begins, else of this one
    for event in found:
        if isinstance(event, Fact) and run.points:
            waiting.append(event)
            continue
        if isinstance(event, Step) and _of_what_follows(run, event, waiting):
            note = "steps after the training's last, of adaptation or the like, are no part of its curve"
            if not any(note in said for said in run.notes):
                run.notes.append(f"line {event.line}: {note}")
            continue
        if isinstance(event, Step) and run.points and _begins(run, event, waiting):
            runs.append(run)
            run = Training()
        elif not isinstance(event, Step) and _another(run, waiting):
            if isinstance(event, Figure):
                run.notes.append(f"line {event.line}: {event.label} is below another seed's header, left out")
            continue
        elif isinstance(event, Step) and any(fact.name in _HEADER for fact in waiting) and run.points:
            run.notes.append(f"resumed at step {event.step:,} (line {event.line})")
        for fact in waiting:
            run.add(fact)
        waiting = []
        run.add(event)
    return _once([*runs, run])


def _placed(found: list[Event]) -> list[Event]:
    """The same with validations that name no step at the step before them, the first of all at step 0.

    Some trainers print `val loss 2.1` on a line of its own between the lines of their steps.
    Where validations name their steps, such a line is of something else and left out, as are plain losses.
    """
    measured = any(isinstance(e, Step) and e.values.keys() & {"val_loss", "val_bpb"} for e in found)
    placed: list[Event] = []
    between = 0
    last: Step | None = None
    taken = False  # whether the step before has its validation
    for event in found:
        if isinstance(event, Step):
            between += taken and last is not None
            last, taken = event, False
        elif isinstance(event, Loose):
            if not taken:
                step, total = (0, None) if last is None else (last.step, last.total)
                placed.append(Step(event.line, step, total, event.values, broken=event.broken))
            taken = True
            continue
        placed.append(event)
    if between and not measured:
        return placed
    return [e for e in found if not isinstance(e, Loose) and not (isinstance(e, Step) and e.loose)]


def _value(facts: list[Fact], name: str) -> float | str | None:
    return next((fact.value for fact in reversed(facts) if fact.name == name), None)


def _another(run: Training, waiting: list[Fact]) -> bool:
    """Whether the header since is of another seed, or of a run with another name."""
    found = ((_value(waiting, fact), run.facts.get(fact)) for fact in ("seed", "name"))
    return any(new is not None and mine is not None and new != mine for new, mine in found)


def _of_what_follows(run: Training, step: Step, waiting: list[Fact]) -> bool:
    """Whether a step is counted anew, to another total, after a run that is over and under no header."""
    if not run.totals or any(fact.name in _HEADER or fact.name == "seed" for fact in waiting):
        return False
    over = run.last >= run.totals[0] or any(mark.kind == "stop" for mark in run.marks)
    adapts = any(mark.kind == "ttt" and mark.line > run.end_line for mark in run.marks)
    return over and adapts and step.total not in (None, run.totals[0]) and step.step <= run.last


def _begins(run: Training, step: Step, waiting: list[Fact]) -> bool:
    """Whether this step is of a new run, rather than a repeated or resumed one of the present run."""
    if _another(run, waiting):
        return True
    if step.step >= run.last:
        return False
    first = min((s for s in run.points if s > 0), default=1)
    return step.step <= 1 < run.last if step.step <= 1 else step.step <= first


def _once(runs: list[Training]) -> list[Training]:
    """Without copies of a run, as where a log file follows the console's output; the longer one stays."""
    kept: list[Training] = []
    for run in runs:
        twin = next((other for other in kept if _same(run, other)), None)
        if twin is None:
            kept.append(run)
            continue
        longer = run if (run.last, len(run.figures)) > (twin.last, len(twin.figures)) else twin
        longer.notes = [
            *twin.notes,
            f"printed twice in the file (lines {twin.first_line} and {run.first_line})",
        ]
        kept[kept.index(twin)] = longer
    return kept


def _same(a: Training, b: Training) -> bool:
    """Curves that agree in every value and time of a step cannot be of two trainings."""
    common = [s for s in a.measured if s in b.points]
    if not common or any(a.facts.get(fact) != b.facts.get(fact) for fact in ("seed", "name")):
        return False
    both = [s for s in a.points if s in b.points and s > 0]
    timed = any("seconds" in a.points[s] for s in both)
    return timed and all(a.points[s] == b.points[s] for s in both)
