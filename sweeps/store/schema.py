"""The columns of every Parquet file a sweep writes: one versioned schema, units in the field metadata.

An unknown value is null, never 0. Readers should go by column name; `schema_version` in the file's metadata
is raised when a column's meaning changes.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sweeps.kinds.stages import MEASURED
from sweeps.store.records import NAME, RecordError

SCHEMA_VERSION = 1
STATUSES = ("done", "diverged", "failed", "pending")


def _field(name: str, type_: pa.DataType, unit: str, what: str) -> pa.Field:
    return pa.field(name, type_, nullable=True, metadata={"unit": unit, "description": what})


_text, _int, _real = pa.string(), pa.int64(), pa.float64()
_time = pa.timestamp("ms", tz="UTC")


def _schema(fields: list[pa.Field]) -> pa.Schema:
    return pa.schema(fields, metadata={"schema_version": str(SCHEMA_VERSION), "writer": "gepa-sweeps"})


RUNS = _schema(
    [
        _field("run_id", _text, "", "slug and digest of the configuration"),
        _field("sweep", _text, "", "name of the sweep"),
        _field("status", _text, "", "done | diverged | failed | pending"),
        _field("error", _text, "", "why it diverged or failed"),
        _field("seed", _int, "", ""),
        _field("steps", _int, "steps", "optimizer steps in all"),
        _field("peak_steps", _int, "steps", "steps at the full learning rate"),
        _field("warmdown_steps", _int, "steps", "steps of decay"),
        _field("warmdown_ratio", _real, "", "warmdown_steps / steps"),
        _field("schedule", _text, "", "shape of the warmdown"),
        _field("params", _int, "parameters", "elements of the model's tensors"),
        _field("train_tokens", _int, "tokens", "tokens trained on, repeats counted"),
        _field("epochs", _real, "passes", "train_tokens / tokens of the training shards"),
        *(_field(f"{kind.name}_bpb", _real, "bits/byte", kind.what) for kind in MEASURED),
        _field("val_loss", _real, "nats/token", "raw weights, last validation, where a script tells it"),
        _field("artifact_bytes", _int, "bytes", "the compressed model"),
        _field("code_bytes", _int, "bytes", "smallest standalone bundle that decodes and evaluates it"),
        _field("quant_rows_at_floor", _int, "rows", "rows whose scale was raised to the floor"),
        _field("quant_rows", _int, "rows", "rows that were quantized"),
        _field("quantized_fraction", _real, "", "share of the parameters stored as int6"),
        _field("train_loss_final", _real, "nats/token", "training loss of the last step"),
        _field("train_seconds", _real, "s", "wall time of training along the run's whole chain of segments"),
        _field("eval_seconds", _real, "s", "wall time of its plain and sliding evaluations"),
        _field("ttt_seconds", _real, "s", "wall time of test-time training, scoring included"),
        _field("gpu_seconds_own", _real, "device s", "of this run alone; a CPU worker counts as a device"),
        _field("gpu_seconds_shared", _real, "device s", "work it shares with other runs of the sweep"),
        _field("gpus", _real, "GPUs", "GPUs a run; 0 on CPU"),
        _field("ranks", _int, "processes", "that trained a run together"),
        _field("device", _text, "", "device of the training"),
        _field("torch_version", _text, "", ""),
        _field("data_fingerprint", _text, "", "of the training shards"),
        _field("config_json", _text, "", "the whole configuration, canonical JSON"),
        _field("commit", _text, "", "git commit of the code"),
        _field("started_at", _time, "UTC", "first work of this run alone"),
        _field("finished_at", _time, "UTC", "last work of this run"),
    ]
)

TRAJECTORY = _schema(
    [
        _field("segment_id", _text, "", ""),
        _field("run_id", _text, "", "null on trunks: plan.json says which segments make a run"),
        _field("step", _int, "steps", "optimizer steps done"),
        _field("lr_scale", _real, "", "learning-rate multiplier of that step"),
        _field("train_tokens", _int, "tokens", "tokens trained on so far"),
        _field("train_loss", _real, "nats/token", "mean over the step's batch"),
        _field("val_loss", _real, "nats/token", "raw weights, plain evaluation"),
        _field("val_bpb", _real, "bits/byte", "raw weights, plain evaluation"),
        _field("ema_val_bpb", _real, "bits/byte", "EMA weights, plain evaluation"),
        _field(
            "ema_val_bpb_by_average",
            _text,
            "bits/byte",
            "where a training keeps several averages: JSON, ema_decay (and horizon) -> ema_val_bpb",
        ),
        _field("int6_val_bpb", _real, "bits/byte", "EMA weights, quantized by eval.int6_method, plain"),
        _field("artifact_bytes", _int, "bytes", "the file that they make"),
        _field("raw_int6_val_bpb", _real, "bits/byte", "raw weights, quantized by eval.int6_method, plain"),
        _field("raw_artifact_bytes", _int, "bytes", "the file that they make"),
        _field("elapsed_seconds", _real, "s", "training time since the segment began"),
    ]
)

BLOCKS = _schema(
    [
        _field("stage", _text, "", " | ".join(kind.name for kind in MEASURED)),
        _field("block", _int, "", "index of a block of consecutive validation tokens"),
        _field("tokens", _int, "tokens", "target tokens scored"),
        _field("bytes", _int, "bytes", "text bytes of those tokens"),
        _field("nll", _real, "nats", "sum of negative log-likelihoods"),
    ]
)


def runs_schema(axes: Mapping[str, Iterable[Any]]) -> pa.Schema:
    """RUNS with a column for each further grid axis, typed by the values it takes."""
    schema = RUNS
    for name, values in axes.items():
        if name not in schema.names:
            schema = schema.append(_field(name, _type_of(list(values)), "", "grid axis"))
    return schema


def _type_of(values: list[Any]) -> pa.DataType:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pa.bool_()
    if kinds and kinds <= {int}:
        return _int
    if kinds and kinds <= {int, float}:
        return _real
    return _text


def to_parquet(rows: list[dict[str, Any]], schema: pa.Schema) -> bytes:
    """A Parquet file's bytes. Missing keys become null; KeyError on a key the schema has not."""
    for row in rows:
        if unknown := row.keys() - set(schema.names):
            raise KeyError(f"columns not in the schema: {sorted(unknown)}")
    text = {field.name for field in schema if field.type == _text}
    plain = [
        {k: str(v) if k in text and v is not None and not isinstance(v, str) else v for k, v in row.items()}
        for row in rows
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(plain, schema=schema), sink, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    return data


def from_parquet(
    data: bytes, schema: pa.Schema, where: str = "table", remedy: str = ""
) -> list[dict[str, Any]]:
    """Rows of a table of `schema`, which may have further columns of plain values (grid axes).

    Raises RecordError, naming `where`, for anything else.
    """
    # Small tables, one thread: a short command may exit while a pool of Arrow's still starts, and abort.
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        if fault := _fault(file, schema):
            raise RecordError(f"{where}: {fault}; {remedy}".rstrip("; "))
        rows: list[dict[str, Any]] = file.read(use_threads=False).to_pylist()
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        told = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise RecordError(f"{where}: damaged, not Parquet ({told}); {remedy}".rstrip("; ")) from None
    for row in rows:
        if fault := next(_faults_of(row, schema), None):
            raise RecordError(f"{where}: damaged or foreign ({fault}); {remedy}".rstrip("; "))
    if schema is RUNS and len(twice := [row["run_id"] for row in rows]) > len(set(twice)):
        raise RecordError(f"{where}: damaged or foreign (a run stands in it twice); {remedy}".rstrip("; "))
    return rows


def _faults_of(row: dict[str, Any], schema: pa.Schema) -> Iterator[str]:
    """What a row says that no row of this project does; names become paths."""
    names: tuple[str, ...]
    needed: tuple[str, ...]
    if schema is RUNS:
        names, needed = ("run_id", "sweep"), ("run_id", "sweep", "status")
        if row["status"] not in STATUSES:
            yield f"status {str(row['status'])[:40]!r} is not one of {', '.join(STATUSES)}"
        for name, value in row.items():
            if name.endswith("_bpb") and value is not None and not is_bpb(value):
                yield f"{name} {value:g} of {row['run_id']} is no number of bits per byte"
        if not 0 <= (row.get("steps") or 0) <= _MOST_STEPS:
            yield f"steps {row['steps']:,} of {row['run_id']}"
    else:
        names = ("segment_id", "run_id") if schema is TRAJECTORY else ()
        # An attempt's own table does not say its segment: the driver enters it where it publishes one.
        needed = ("step",) if schema is TRAJECTORY else ("stage", "block")
    for name in needed:
        if row[name] is None:
            yield f"a row without {name}"
    for name in names:
        if row[name] is not None and not NAME.fullmatch(row[name]):
            yield f"{name} {row[name][:80]!r} is no name that this project gives"


def is_bpb(value: float) -> bool:
    """Whether a number can be one of bits per byte."""
    return 0 <= value < _MOST_BPB


_MOST_BPB = 1e6
_MOST_STEPS = 10**9
"""As many as a script's log is read up to."""
MAX_ROWS = 5_000_000
_MAX_UNPACKED_BYTES = 1 << 30
_MAX_COLUMNS = 500


def _fault(file: pq.ParquetFile, schema: pa.Schema) -> str | None:
    """What is wrong with a table, by what it says of itself, before it is unpacked."""
    there, facts = file.schema_arrow, file.metadata
    version = (there.metadata or {}).get(b"schema_version", b"1")
    if version != str(SCHEMA_VERSION).encode():
        return (
            f"of schema version {version[:20].decode(errors='replace')}; this version knows {SCHEMA_VERSION}"
        )
    if len(there.names) > _MAX_COLUMNS or len(set(there.names)) < len(there.names):
        return f"damaged or foreign ({len(there.names)} columns, some of one name or too many)"
    for field in schema:
        if field.name in there.names and (type_ := there.field(field.name).type) != field.type:
            return f"damaged or foreign (column {field.name} is {type_}, not {field.type})"
    if missing := [name for name in schema.names if name not in there.names and name not in _ADDED_LATER]:
        return f"damaged or foreign (no column {missing[0]})"
    if any(pa.types.is_nested(field.type) for field in there):
        return "damaged or foreign (a column of nested values)"
    unpacked = sum(facts.row_group(i).total_byte_size for i in range(facts.num_row_groups))
    if facts.num_rows > MAX_ROWS or unpacked > _MAX_UNPACKED_BYTES:
        return f"claims {facts.num_rows:,} rows, {unpacked:,} bytes; at most {MAX_ROWS:,} rows are read"
    return None


_ADDED_LATER = {
    *("ranks", "quant_rows", "code_bytes", "commit", "epochs"),
    *(f"{kind.name}_bpb" for kind in MEASURED if kind.optional),
    *("ema_val_bpb_by_average", "int6_val_bpb", "artifact_bytes", "raw_int6_val_bpb", "raw_artifact_bytes"),
}
"""Columns that stores of earlier versions may lack."""
