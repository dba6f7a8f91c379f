"""What a store's records must look like: one model each, strict about types, bounds and version.

Everything this project writes into a store as JSON is read back through these. A record that does not fit is
damaged or foreign: the reader gets a RecordError of one line, nothing is guessed and nothing deleted.
"""

import contextlib
import re
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from gepa_core.errors import UserError
from gepa_core.sections import MAX_STEPS
from sweeps.kinds.table import KINDS, STAGE_COLUMNS

FORMAT = 1
"""Of every record; raised when what an entry means changes."""
MAX_RECORD_BYTES = 256 << 20

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
Name = Annotated[str, StringConstraints(pattern=f"^{NAME.pattern}$")]
"""Of a sweep, run, segment, stage or attempt: it names a folder, and cannot lead out of one."""


def _stays_inside(path: str) -> str:
    parts = path.split("/")
    if len(path) > 1000 or len(parts) > 20 or any(part.startswith(".") or not part for part in parts):
        raise ValueError("not a path below an attempt's folder")
    if any(ord(character) < 32 or character == "\\" for character in path):
        raise ValueError("a path with control characters")
    return path


FilePath = Annotated[str, AfterValidator(_stays_inside)]
"""Of a file in an attempt's folder; a script's outputs may have any name that does not begin with a dot."""
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, StringConstraints(max_length=100_000)]
Step = Annotated[int, Field(ge=0, le=MAX_STEPS)]
Whole = Annotated[int, Field(ge=0, le=2**63 - 1)]
Integer = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Seconds = Annotated[float, Field(ge=0, le=1e10)]
Moment = Annotated[float, Field(ge=0, le=2e11)]
"""Seconds since 1970."""
Amount = Integer | Annotated[float, Field(ge=-1e18, le=1e18)]
Scalar = bool | Integer | float | Text | None


class RecordError(UserError):
    """A record is not what this project writes: path, what is wrong, and what remakes it."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)


class _OpenRecord(_Record):
    """Keeps what it does not know."""

    model_config = ConfigDict(extra="allow")


class FileFacts(_Record):
    bytes: Annotated[int, Field(ge=0, le=1 << 50)]
    sha256: Sha256


class SegmentIdentity(_Record):
    """A segment's place in the tree."""

    parent: Name | None
    trunk_id: Name
    start: Step
    stop: Step
    trunk: bool
    config: dict[str, Any]
    adopted: Text | None = None

    @model_validator(mode="after")
    def _goes_on(self) -> Self:
        if self.stop <= self.start:
            raise ValueError(f"stop {self.stop} is not after start {self.start}")
        return self


class StageIdentity(_Record):
    kind: Name
    after: Name | None
    config: dict[str, Any]


class Execution(_OpenRecord):
    """How an attempt was executed; an adopted state does not say."""

    __pydantic_extra__: dict[str, Scalar]
    host: Text | None = None
    device: Text | None = None
    ranks: Annotated[int, Field(ge=1, le=4096)] = 1
    gpus: Annotated[float, Field(ge=0, le=4096)] | None = None
    threads: Annotated[int, Field(ge=1, le=4096)] | None = None
    torch_version: Text | None = None
    micro_batch_seqs: Whole | None = None
    commit: Text | None = None
    breaks: list[Text] = Field(default_factory=list)


class Done(_Record):
    """DONE.json of a segment or stage, and outcome.json of an attempt."""

    model_config = ConfigDict(extra="forbid")

    id: Name
    attempt: Name
    kind: Name
    status: Literal[
        "finished",
        "stopped",
        "preempted",
        "lost",
        "diverged",
        "out_of_memory",
        "bad_input",
        "damaged",
        "storage",
        "disk_full",
        "crashed",
        "hung",
    ]
    error: Text | None
    result: dict[str, bool | Amount | Text | list[Text] | dict[str, float] | None]
    execution: Execution
    identity: dict[str, Any]
    files: dict[FilePath, FileFacts]
    started_at: Moment
    seconds: Seconds
    format: Literal[1]

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if (kind := KINDS.get(self.kind)) is None:
            raise ValueError(f"kind {self.kind!r} is not one of {', '.join(KINDS)}")
        (SegmentIdentity if kind.trains else StageIdentity).model_validate(self.identity)
        measured = "step" if kind.trains else next(iter(kind.columns), "exact")
        if self.status == "finished" and self.result.get(measured) is None:
            raise ValueError(f"its result has no {measured}")
        for name, value in self.result.items():
            if (name in _FIGURES or name.endswith(_UNITS)) and isinstance(value, str | list | dict):
                raise ValueError(f"its {name} is no number")
        counted = (self.result.get(name) for name in ("tokens", "bytes") if kind.column)
        if self.status == "finished" and not all(isinstance(n, int) and n > 0 for n in counted):
            raise ValueError("its result does not say of how many tokens and bytes it is")
        return self


_UNITS = ("_seconds", "_bpb", "_bytes", "_per_second", "_tokens")
_FIGURES = {*STAGE_COLUMNS, "step", "steps_made", "tokens", "bytes", "train_loss_final"}
"""Entries of a result that are counted with."""


class AttemptRecord(_Record):
    """attempt.json: what an attempt was asked to do otherwise than the sweep says."""

    micro_batch_seqs: Annotated[int, Field(ge=1, le=1 << 20)] | None


class PlannedSegment(_OpenRecord):
    parent: Name | None
    start: Step
    stop: Step
    trunk: bool
    trunk_id: Name
    estimated_device_seconds: Annotated[float, Field(ge=0)] | None = None


class PlannedStage(_Record):
    kind: Name
    after: Name | None
    estimated_device_seconds: Annotated[float, Field(ge=0)] | None = None


class PlannedRun(_Record):
    segments: list[Name] = Field(max_length=100_000)
    stages: list[Name] = Field(max_length=100)


class PlanRecord(_OpenRecord):
    """plan.json: the segments and stages that a sweep's runs are made of."""

    format: Literal[1] = 1
    sweep: Name
    steps_naive: Whole
    steps_shared: Whole
    segments: dict[Name, PlannedSegment]
    stages: dict[Name, PlannedStage]
    runs: dict[Name, PlannedRun]

    @model_validator(mode="after")
    def _names_what_it_describes(self) -> Self:
        for run_id, run in self.runs.items():
            if unknown := {*run.segments} - self.segments.keys() | {*run.stages} - self.stages.keys():
                raise ValueError(f"run {run_id} is made of {min(unknown)}, which is not described")
        return self


class DataRecord(_OpenRecord):
    source: Text
    paths: dict[str, Text]
    fingerprint: Text
    train_tokens: Whole
    val_tokens: Whole
    val_text: dict[str, Whole] | None = None


class SweepRecord(_OpenRecord):
    """sweep.json: what was launched, with what, on what."""

    format: Literal[1] = 1
    name: Name
    file: Text = ""
    document: dict[str, Any] = Field(default_factory=dict)
    recipe: Text | None = None
    stages: list[Text] = Field(default_factory=list)
    share: bool = True
    resources: dict[str, Any] = Field(default_factory=dict)
    exec: dict[str, Any] = Field(default_factory=dict)
    runs: dict[Name, Text]
    argv: list[Text] = Field(default_factory=list)
    commit: Text | None = None
    dirty: bool | Literal[""] | None = None
    """Whether the checkout had changes; "" in records of earlier versions = none."""
    data: list[DataRecord] = Field(default_factory=list)


class LeaseRecord(_Record):
    """lease.json: which driver works on a sweep, and until when that is to be believed."""

    driver: Name
    expires: Moment
    host: Text
    machine: Text
    pid: Annotated[int, Field(ge=1, le=2**31 - 1)]
    process_start: Text | None


class Event(_OpenRecord):
    """A line of events.jsonl."""

    event: Annotated[str, StringConstraints(pattern=r"^[a-z_]{1,40}$")]


_Measured = Annotated[float, Field(allow_inf_nan=True)]  # a validation may diverge before training does


class Report(_OpenRecord):
    """A step that was looked at."""

    step: Step
    lr_scale: _Measured | None = None
    train_tokens: Whole | None = None
    train_loss: _Measured | None = None
    val_loss: _Measured | None = None
    val_bpb: _Measured | None = None
    ema_val_bpb: _Measured | None = None
    elapsed_seconds: Seconds | None = None
    tokens_per_second: Annotated[float, Field(ge=0)] | None = None


class ReportEvent(Report):
    event: Literal["report"]


class StartedEvent(_OpenRecord):
    """An attempt began at `step`."""

    event: Literal["started"]
    step: Step
    pid: Whole
    resumed_at: Step | None = None
    execution: Execution = Execution()
    breaks: list[Text] = Field(default_factory=list)


EVENTS: dict[str, type[_Record]] = {"report": ReportEvent, "started": StartedEvent}
"""Those with entries that are read; others are events by name alone."""

_M = TypeVar("_M", bound=BaseModel)


def read(model: type[_M], data: bytes, where: str, remedy: str) -> _M:
    """A record. `where`: its path, `remedy`: what makes it again, both for the RecordError."""
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise RecordError(f"{where}: {what_is_wrong(error)}; {remedy}") from None


def what_is_wrong(error: ValidationError) -> str:
    """The first fault of a record, in words."""
    fault = min(error.errors(include_url=False), key=lambda fault: fault["loc"] != ("format",))
    where = ".".join(str(part) for part in fault["loc"])[:200]
    message = str(fault["msg"]).removeprefix("Value error, ").splitlines()[0][:300]
    if fault["type"] == "json_invalid":
        return f"damaged, not JSON ({message.removeprefix('Invalid JSON: ')})"
    if where == "format" and fault["type"] != "missing":
        return f"of a format that this version does not know ({str(fault['input'])[:20]}; it knows {FORMAT})"
    with contextlib.suppress(KeyError):
        if not isinstance(fault["input"], dict | list):
            message += f", not {repr(fault['input'])[:80]}"
    return f"damaged or foreign ({where}: {message})" if where else f"damaged or foreign ({message})"
