"""The runs in a file. A new one begins where steps start again; what was printed twice is one run.

What follows a run's last step, counted anew, is of adaptation, calibration or evaluation, unless a header is
before it or its losses are those of a model that begins.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from analysis.logs.events import MEASURES, Event, Fact, Figure, Mark, Step
from analysis.logs.placing import placed
from analysis.logs.resumes import counted_on
from analysis.runs.errors import AnalysisError

_HEADER = {"params", "iterations"}
_CHANGES_WEIGHTS = {"ema", "no ema", "artifact", "weights", "ttt", "learns", "sliding", "mixed"}
_WARM_UP = 0.05
"""Of the steps planned: a run that starts again before, with no other header, was warming up."""


@dataclass
class Training:
    """What a log states of one run, as it was printed; a later line of a step counts."""

    points: dict[int, dict[str, float]] = field(default_factory=dict)  # step -> name -> value
    coarse: dict[int, float] = field(default_factory=dict)  # step -> by how much its seconds were rounded
    facts: dict[str, float | str] = field(default_factory=dict)
    printed: list[Figure | Mark] = field(default_factory=list)
    totals: list[int] = field(default_factory=list)
    broken: list[Step] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    conflicts: int = 0  # validations of a step that was validated before, with another value
    twins: list[tuple[int, int, int]] = field(default_factory=list)  # step and lines of two values in a row
    last: int = 0
    first_line: int = 0
    last_line: int = 0
    ends: list[int] = field(default_factory=list)  # how much was printed before each step that was the last
    latest: Step | None = None
    left_out: bool = False  # steps after its last

    @property
    def marks(self) -> list[Mark]:
        return [event for event in self.printed if isinstance(event, Mark)]

    @property
    def after(self) -> list[Figure | Mark]:
        """What was printed after its last step."""
        return self.printed[self.ends[-1] if self.ends else 0 :]

    @property
    def measured(self) -> list[int]:
        """Steps after the first with a validation."""
        return [s for s, v in sorted(self.points.items()) if s > 0 and v.keys() & set(MEASURES)]

    @property
    def spacing(self) -> int:
        """The most steps from one that was printed to the next."""
        steps = sorted(self.points)
        return max((b - a for a, b in pairwise(steps)), default=0)

    @property
    def stop(self) -> Mark | None:
        """Where the log says that the run was stopped: at its last step, or at most at the one before."""
        since = self.ends[-2] if len(self.ends) > 1 else 0
        return next(
            (e for e in reversed(self.printed[since:]) if isinstance(e, Mark) and e.kind == "stop"), None
        )

    @property
    def over(self) -> bool:
        return bool(self.totals and self.last >= self.totals[0]) or self.stop is not None

    def add(self, event: Event) -> None:
        self.first_line = self.first_line or event.line
        self.last_line = event.line
        if isinstance(event, Step):
            self._add_step(event)
        elif isinstance(event, Fact):
            if event.name in ("planned", "eval_only") and self.points:
                return  # of whatever comes after the training
            # The header's last word counts; what is printed after training began may be of something else.
            if not self.points or event.name not in self.facts:
                self.facts[event.name] = event.value
        elif isinstance(event, Mark) and event.kind == "counted on":
            self.notes.append(event.text)
        elif isinstance(event, Figure | Mark) and (self.points or _tells_rate(event)):
            self.printed.append(event)

    def _add_step(self, event: Step) -> None:
        if not self.points or event.step > self.last:
            self.ends.append(len(self.printed))
        self.last = max(self.last, event.step)
        point = self.points.setdefault(event.step, {})
        if any(k in point and point[k] != event.values[k] for k in MEASURES if k in event.values):
            self.conflicts += 1
            if self.latest is not None and self.latest.step == event.step:
                self.twins.append((event.step, self.latest.line, event.line))
        point.update(event.values)
        if event.values.keys() & set(MEASURES):
            self.latest = event
        if "seconds" in event.values:
            self.coarse[event.step] = event.coarse
        if event.total:
            self.totals.append(event.total)
        if event.broken:
            self.broken.append(event)


def _tells_rate(event: Event) -> bool:
    return isinstance(event, Mark) and event.kind == "rate"


def trainings(found: Iterable[Event]) -> list[Training]:
    """Every run of a file, in its order, printed copies taken once; also those without any validation.

    Raises:
        AnalysisError: two runs are printed into each other.
    """
    runs, run = list[Training](), Training()
    waiting: list[Fact] = []  # a header after steps: of the next run if one begins, else of this one
    for event in counted_on(placed(list(found))):
        if isinstance(event, Fact) and run.points:
            waiting.append(event)
            continue
        if isinstance(event, Step) and run.points:
            if _measures_again(run, event):
                continue
            if _of_what_follows(run, event, waiting):
                _left_out(run, event)
                continue
            if _begins(run, event, waiting):
                warm_up = not waiting and _warmed_up(run, event)
                if warm_up and run.measured:
                    said = f"lines {run.first_line}-{run.last_line}: a warm-up, left out"
                    run = Training(facts=dict(run.facts), notes=[said])
                else:
                    runs.append(run)
                    run = Training(facts=dict(run.facts) if warm_up else {})
        if not isinstance(event, Step) and _another(run, waiting):
            if isinstance(event, Figure):
                run.notes.append(f"line {event.line}: {event.label} is below another seed's header, left out")
            continue
        if isinstance(event, Step) and any(fact.name in _HEADER for fact in waiting) and run.points:
            run.notes.append(f"resumed at step {event.step:,} (line {event.line})")
        for fact in waiting:
            run.add(fact)
        waiting = []
        run.add(event)
    runs.append(run)
    _refuse_interleaved(runs)
    return _once(runs)


def _value(facts: list[Fact], name: str) -> float | str | None:
    return next((fact.value for fact in reversed(facts) if fact.name == name), None)


def _another(run: Training, waiting: list[Fact]) -> bool:
    """Whether the header since is of another seed, or of a run with another name."""
    found = ((_value(waiting, fact), run.facts.get(fact)) for fact in ("seed", "name"))
    return any(new is not None and mine is not None and new != mine for new, mine in found)


def _measures_again(run: Training, step: Step) -> bool:
    """Whether the last step is validated again with weights that were changed since; an EMA's is a figure."""
    values = run.points.get(step.step, {})
    if step.step != run.last or not any(k in values and values[k] != step.values.get(k) for k in MEASURES):
        return False
    changed = [e for e in run.after if isinstance(e, Mark) and e.kind in _CHANGES_WEIGHTS]
    if not changed:
        return False
    if changed[-1].kind == "ema" and "val_bpb" in step.values:
        bpb = step.values["val_bpb"]
        digits = len(repr(bpb).partition(".")[2])
        run.printed.append(Figure(step.line, "ema", bpb, digits, step.values.get("val_loss")))
    else:
        _left_out(run, step)
    return True


def _left_out(run: Training, step: Step) -> None:
    run.left_out = True
    note = "steps after the training's last, of adaptation or the like, are no part of its curve"
    if not any(note in said for said in run.notes):
        run.notes.append(f"line {step.line}: {note}")


def _of_what_follows(run: Training, step: Step, waiting: list[Fact]) -> bool:
    """Whether a step is counted anew after a run that is over and under no header; see the module."""
    if not run.over or any(fact.name in {*_HEADER, "seed", "name"} for fact in waiting):
        return False
    measured = run.points[run.last].keys() & set(MEASURES)
    if step.step == run.last and step.total in (None, *run.totals[:1]) and not (measured and run.left_out):
        return False
    if not run.totals:
        return step.words.startswith("eval")
    if step.total is None:
        return True
    changed = any(isinstance(e, Mark) and e.kind in ("ttt", "learns", "sliding") for e in run.after)
    if step.total == run.totals[0]:
        return changed and step.step <= run.last and not _fresh(run, step)
    if step.words.startswith("eval") or (changed and step.step <= run.last):
        return True
    longer = step.total > run.totals[0] and step.step > run.last
    return not longer and not _fresh(run, step)


def _fresh(run: Training, step: Step) -> bool:
    """Whether a step's loss is of a model that begins, nearer to the run's first than to its last."""
    for name in (*MEASURES, "train_loss"):
        known = [values[name] for _, values in sorted(run.points.items()) if name in values]
        if name in step.values and known:
            return step.values[name] > known[-1] + 0.25 * max(known[0] - known[-1], 0.0)
    return True


def _begins(run: Training, step: Step, waiting: list[Fact]) -> bool:
    """Whether this step is of a new run, rather than a repeated or resumed one of the present run."""
    if _another(run, waiting):
        return True
    if run.over and run.totals and step.total not in (None, run.totals[0]):
        return True
    if step.step >= run.last:
        return False
    first = min((s for s in run.points if s > 0), default=1)
    return step.step <= 1 < run.last if step.step <= 1 else step.step <= first


def _warmed_up(run: Training, step: Step) -> bool:
    """Whether a run that starts again under the same header was no more than a warm-up before."""
    planned = step.total or (run.totals[-1] if run.totals else 0)
    return not run.measured or (not run.over and run.last <= _WARM_UP * planned and step.step <= 1)


def _refuse_interleaved(runs: list[Training]) -> None:
    for run in runs:
        if len(run.twins) > 1 and 2 * len(run.twins) >= len(run.measured):
            step, first, second = run.twins[0]
            raise AnalysisError(
                f"lines {first} and {second}: two values of step {step:,}, as of two runs or models "
                "printed into each other; give each a file of its own"
            )


def _once(runs: list[Training]) -> list[Training]:
    """Without copies of a run, as where a log file follows the console's output; the longer one stays."""
    kept: list[Training] = []
    for run in runs:
        twin = next((other for other in kept if _same(run, other)), None)
        if twin is None:
            kept.append(run)
            continue
        longer = run if (run.last, len(run.printed)) > (twin.last, len(twin.printed)) else twin
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
