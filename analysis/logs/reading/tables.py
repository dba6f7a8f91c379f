"""Tables of a step and a loss a row, as the lines that a log would have.

CSV and TSV as Lightning, W&B or a spreadsheet of any language writes them, Markdown's, and columns of fixed
width. Several runs stand in columns of their own (W&B's export of a chart), in rows that name a run or a
seed, or below one another.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import isfinite

from analysis.logs.reading.keyed import STEPS, plain
from analysis.runs.errors import AnalysisError

RUN_NAME = "run_name:"

_RUN = {"run", "run_id", "run_name", "name", "experiment", "model"}
_METRIC = {"metric", "tag", "key", "name", "variable"}
_VALUE = {"value", "val", "scalar"}
_SPLIT = {"split", "phase", "set", "mode", "stage"}
_OF_A_SEED = re.compile(r"(?P<metric>.+?)[_ -]?(?P<run>(?:seed|run)[_ -]?\d+)", re.IGNORECASE)
_OF_A_RUN = re.compile(r"(?P<run>.+?) - (?P<metric>[^ ].*?)(?P<band>__(?:MIN|MAX))?")
"""W&B's name of a column: run, metric, and the band that it draws around it."""
_VALIDATION = re.compile(r"(?<![a-z])(?:val|valid|validation|eval|evaluation|dev|held_?out)(?![a-z])")
_MEASURES = {
    "bpb": re.compile(r"(?<![a-z])(?:bpb|bits_per_byte)(?![a-z])"),
    "loss": re.compile(r"(?<![a-z])(?:loss|nll|ce|xent|cross_?entropy)(?![a-z])"),
}
_WORDS = {
    "val", "valid", "validation", "eval", "evaluation", "dev", "train", "training", "trainer", "loss", "bpb",
    "ema", "lm", "ce", "nll", "xent", "cross", "entropy", "heldout", "held", "out", "step", "epoch", "mean",
    "avg", "per", "byte", "bits", "",
}  # fmt: skip
"""Words that the name of a curve may have."""
_LONGEST = 64 << 20
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+(?:[eE][-+]?\d+)?")
_RULE = re.compile(r"[\s|:+=-]+")
_BOX = ("┏", "┌", "╭", "+-", "╔")
_BORDERS = {ord(c): "|" for c in "│┃║"} | {ord(c): "-" for c in "━─═┏┓┗┛┡┩┳┻╇┌┐└┘├┤┬┴┼╭╮╰╯╔╗╚╝╠╣╦╩╬╞╡╪"}
_MOST_COMMENTS = 50


@dataclass
class _Columns:
    """Which column holds what."""

    step: int
    curves: dict[int, tuple[str, str]]  # column -> (run, '' where none is named; name of its values)
    runs: list[int] = field(default_factory=list)
    seed: int | None = None
    split: int | None = None
    metric: int | None = None  # of tables with a row for each metric


def as_table(text: str, name: str = "") -> list[str] | None:
    """The lines of a log with the same curve; None for a text that is no table.

    `name`: the file's, by which TensorBoard's `Wall time, Step, Value` says of what.

    Raises:
        AnalysisError: a table has steps, but no column with a loss, or the reverse, or is too long; it has
            two values of one step and run.
    """
    head, rows = cells(text)
    if head is None or any(_number(name) is not None for name in head):
        return None
    of = _metric_in(name)
    head = [f"val_{of}" if of and plain(cell) == "value" else cell for cell in head]
    columns = _columns(head, rows)
    if columns is None:
        return None
    if len(text) > _LONGEST:
        raise AnalysisError(
            f"a table longer than {_LONGEST >> 20} MiB; leave out what is no step and no loss"
        )
    try:
        return list(_lines(list(rows), columns))
    except csv.Error:
        return None


def _metric_in(name: str) -> str:
    """The curve that a file's name names, '' for none."""
    found = re.search(r"val(?:id\w*)?[^a-z]*(loss|bpb)|eval[^a-z]*(loss|bpb)", name.lower())
    return "" if found is None else found[1] or found[2]


def cells(text: str) -> tuple[list[str] | None, Iterable[list[str]]]:
    """The header's cells and the rows', after lines of comment; None where the first line is no header."""
    rest = text.lstrip("\ufeff\r\n")
    if rest.startswith(_BOX):
        rest = rest.translate(_BORDERS).lstrip("\r\n -+|")
        rest = f"|{rest}"
    for _ in range(_MOST_COMMENTS):
        head, _, rest = rest.partition("\n")
        if said := re.fullmatch(r"sep=(.)\s*", head):
            return _delimited(rest.partition("\n")[0], rest.partition("\n")[2], said[1])
        if head.strip() and not head.startswith("#"):
            break
    if len(head) > 100_000:
        return None, ()
    if head.lstrip().startswith("|"):
        return _parted(head, rest, re.compile(r"\s*\|\s*"))
    if (delimiter := next((d for d in "\t;," if d in head), None)) is not None:
        return _delimited(head, rest, delimiter)
    spaced = _parted(head, rest, re.compile(r"\s{2,}"))
    return spaced if spaced[0] is not None else _parted(head, rest, re.compile(r"\s+"))


def _delimited(head: str, rest: str, delimiter: str) -> tuple[list[str] | None, Iterable[list[str]]]:
    try:
        header = [name.strip() for name in next(csv.reader([head], delimiter=delimiter))]
    except (csv.Error, StopIteration):
        return None, ()
    return header, csv.reader(rest.splitlines(), delimiter=delimiter)


def _parted(head: str, rest: str, border: re.Pattern[str]) -> tuple[list[str] | None, Iterable[list[str]]]:
    """Cells between borders, where the first rows have as many as the header; else it is text of any kind."""

    def cells(line: str) -> list[str]:
        return border.split(line.strip().strip("|").strip())

    header = cells(head)
    first = [cells(line) for line in rest.split("\n", 3)[:3] if line.strip() and not _RULE.fullmatch(line)]
    if len(header) < 2 or not first or any(len(row) != len(header) for row in first):
        return None, ()
    return header, [cells(line) for line in rest.splitlines() if not _RULE.fullmatch(line)]


def _columns(head: list[str], rows: Iterable[list[str]]) -> _Columns | None:
    names = [plain(name) for name in head]
    steps = [i for i, name in enumerate(names) if name in STEPS]
    split = next((i for i, name in enumerate(names) if name in _SPLIT), None)
    named = {
        i: curve for i, name in enumerate(head) if (curve := _curve(name, split is not None)) is not None
    }
    # Of two columns of one name, as of a step and an epoch, the first.
    curves = {i: curve for i, curve in named.items() if curve not in [named[j] for j in named if j < i]}
    value, metric = (
        next((i for i, name in enumerate(names) if name in of), None) for of in (_VALUE, _METRIC)
    )
    if curves or value is None or metric is None:
        metric = None
    else:
        curves = {value: ("", "")}  # each row names its own
    if not steps or not curves:
        if len(head) > 1 and (steps or curves):
            _refuse_other_tables(
                head, rows, "a loss: call it val_loss or val_bpb" if steps else "the step: call it step"
            )
        return None
    return _Columns(
        min(steps, key=lambda i: STEPS.index(names[i])),
        curves,
        [i for i, name in enumerate(names) if name in _RUN and i != metric],
        next((i for i, name in enumerate(names) if name == "seed"), None),
        split,
        metric,
    )


def _refuse_other_tables(header: list[str], rows: Iterable[list[str]], missing: str) -> None:
    """Refuses a table of steps and other values; a text with such a first line is none, and left alone."""
    first = next(iter(rows), [])
    numbers = [_number(cell) for cell in first]
    if len(first) == len(header) and sum(value is not None for value in numbers) > 1:
        names = ", ".join(header)[:200]
        raise AnalysisError(f"a table whose columns are {names}; none is named as {missing}")


def _lines(rows: list[list[str]], columns: _Columns) -> Iterator[str]:
    """Run after run."""
    commas = any(_DECIMAL_COMMA.fullmatch(_bare(_cell(row, i))) for row in rows for i in columns.curves)
    runs: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    single = not columns.runs and columns.seed is None
    part, first, before = 1, -1, None
    for row in rows:
        if (step := _step(_cell(row, columns.step), commas)) is None:
            continue
        if single and before is not None and step <= first and before > first:
            part += 1  # runs below one another
        first = step if before is None else first
        before = step
        name = "-".join(filter(None, (_cell(row, i) for i in columns.runs)))
        seed = "" if columns.seed is None else _cell(row, columns.seed)
        for i, (run, curve) in columns.curves.items():
            if (value := _number(_cell(row, i))) is None:
                continue
            if columns.metric is not None:
                of = _curve(_cell(row, columns.metric), False)
                if of is None:
                    continue
                run, curve = of
            if columns.split is not None:
                what = _cell(row, columns.split).lower()
                if not (_VALIDATION.search(what) or "train" in what):
                    continue
                curve = f"{'train' if 'train' in what else 'val'}_{curve.rpartition('_')[2]}"
            key = (run or name or (f"part{part}" if single and part > 1 else ""), seed)
            point = runs.setdefault(key, {}).setdefault(step, {})
            if isfinite(value) and point.setdefault(curve, value) != value:
                raise AnalysisError(
                    f"a table with two values of {curve} at step {step:,}, {point[curve]:g} and "
                    f"{value:g}: of several runs? name them in a column called run"
                )
            point.setdefault(curve, value)
    if part > 1:
        runs = {(name or "part1", seed): points for (name, seed), points in runs.items()}
    for (name, seed), points in runs.items():
        several = seed if len({s for n, s in runs if n == name}) > 1 else ""
        if title := "-seed".join(filter(None, (name, several))) if name else several and f"seed{several}":
            yield f"{RUN_NAME} {title}"
        if seed.isdigit():
            yield f"seed:{seed}"
        yield from _points(points)


def _points(points: dict[int, dict[str, float]]) -> Iterator[str]:
    """Losses that are not finite are said only where no others follow and none came before: as loggers of
    several kinds write them into all rows without a value."""
    steps = sorted(points)
    broken: set[str] = set()
    for name in {name for values in points.values() for name in values}:
        finite = [isfinite(points[step][name]) for step in steps if name in points[step]]
        if (
            any(finite)
            and not finite[-1]
            and False not in finite[: finite.index(False)]
            and True not in finite[finite.index(False) :]
        ):
            broken.add(name)
    for step in steps:
        said = [
            f"{name}:{value!r}" for name, value in points[step].items() if isfinite(value) or name in broken
        ]
        yield " ".join([f"step:{step}", *said])


def _curve(header: str, by_split: bool) -> tuple[str, str] | None:
    """(run, name of its values) of a column with a loss; None for any other."""
    match = _OF_A_RUN.fullmatch(header)
    if match is not None and match["band"]:
        return None
    match = match or _OF_A_SEED.fullmatch(header)
    run, metric = (match["run"], match["metric"]) if match else ("", header)
    words = plain(metric)
    if set(words.split("_")) - _WORDS:  # of another model, of quantized weights, of a part of the loss
        return None
    what = next((kind for kind, named in _MEASURES.items() if named.search(words)), None)
    if what is None:
        return None
    if "ema" in words.split("_"):
        return (run, "ema_val_bpb") if what == "bpb" else None
    if _VALIDATION.search(words) or (by_split and what == "bpb"):
        return run, f"val_{what}"
    return (run, "train_loss") if what == "loss" else None


def _cell(row: list[str], column: int) -> str:
    return row[column].strip() if column < len(row) else ""


def _step(cell: str, commas: bool) -> int | None:
    """A count, also of thousands that are set apart as a country does; `commas`: that of decimals is one."""
    cell = _bare(cell).replace("\u202f", " ").replace("\xa0", " ")
    apart = r"[., '_]" if commas else "[, '_]"
    if re.fullmatch(rf"\d{{1,3}}(?:{apart}\d{{3}})+", cell):
        cell = re.sub(apart, "", cell)
    thousands = re.fullmatch(r"\d+(?:\.\d+)?[kK]", cell)
    value = 1000 * float(cell[:-1]) if thousands else _number(cell)
    if value is None or not isfinite(value) or not value.is_integer() or value < 0:
        return None
    return int(value)


def _bare(cell: str) -> str:
    """Without Markdown's marks of what is bold, slanted or code."""
    return cell.strip("*_` ")


def _number(cell: str) -> float | None:
    cell = _bare(cell)
    try:
        return float(cell.replace(",", ".", 1) if _DECIMAL_COMMA.fullmatch(cell) else cell)
    except ValueError:
        return None
