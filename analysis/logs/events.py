"""What lines of a log may state."""

from __future__ import annotations

from dataclasses import dataclass, field

MEASURES = ("val_loss", "val_bpb")
"""What a validation measures."""


@dataclass(slots=True)
class Step:
    """A point of the run: what the line of a step says. Seconds are of training, rounded to `coarse` ones."""

    line: int
    step: int
    total: int | None
    values: dict[str, float]
    coarse: float = 0.0
    broken: bool = False  # a loss that is not finite
    loose: bool = False  # a plain `loss`, of training, adaptation or calibration: only a Loose needs it
    bar: bool = False  # a progress bar, which repeats its last validation
    epoch: int | None = None  # whose bar counts from 0 again
    words: str = ""  # before the step
    skipped: bool = False  # what is not finite is of training: the step may have been skipped
    part: bool = False  # measured on a part of the text
    tokens: float | None = None  # of which it says to have measured so many
    micro: int | None = None  # the micro-batch that this step ended with


@dataclass(slots=True)
class Loose:
    """A validation that names no step: of the step before it, if the file has them all so."""

    line: int
    values: dict[str, float]
    broken: bool = False
    epoch: float | None = None
    label: str = ""  # of which text, where it says


@dataclass(slots=True)
class Figure:
    """A measure printed outside of the curve: the words before it, and its value as printed."""

    line: int
    label: str
    bpb: float
    digits: int
    loss: float | None = None


@dataclass(slots=True)
class Fact:
    """A setting, by the name that this package gives it."""

    line: int
    name: str
    value: float | str


@dataclass(slots=True)
class Mark:
    """An event that says something of the lines after it; `values` by kind."""

    line: int
    kind: str
    text: str
    values: dict[str, float] = field(default_factory=dict)


Event = Step | Loose | Figure | Fact | Mark
