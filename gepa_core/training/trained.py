"""A job file for the commands of this package: which run, on which data, executed how; and what a run leaves.

run: {recipe: gepa-nano, steps: 600, warmdown_steps: 240}   # any RunConfig keys over the recipe's
data: data/docstrings                                      # a prepared folder, or {train:, val:, tokenizer:}
exec: {device: cpu}                                        # ExecConfig keys
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from gepa_core.bounded import MAX_TEXT_BYTES, parse_json, read_bytes
from gepa_core.config import Average, DataPaths, ExecConfig, RunConfig
from gepa_core.data.folder import Dataset, check_launch, open_folder, open_patterns
from gepa_core.data.overlap import launch_warning
from gepa_core.errors import CheckpointError, ConfigError, DataError
from gepa_core.invocation import module
from gepa_core.model.gepa import GEPA
from gepa_core.recipes import PRESETS
from gepa_core.sections import ModelConfig
from gepa_core.training import checkpoint
from gepa_core.training.averages import averages_of, merged, prefix_of
from gepa_core.yamlfile import Document, parse

JOB = "job.json"
CHECKPOINTS = "checkpoints"


class Job(BaseModel):
    """A resolved job; `job.json` of an output folder is one, and can be run again."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    run: RunConfig
    data: DataPaths
    exec: ExecConfig = ExecConfig()


def read_job(path: Path) -> Job:
    """Reads a YAML or JSON job file and opens its data. Raises ConfigError or DataError, naming the key."""
    try:
        text = read_bytes(path, MAX_TEXT_BYTES).decode("utf-8")
        document = Document(parse_json(text)) if path.suffix == ".json" else parse(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ConfigError(f"{path}: neither JSON nor YAML ({' '.join(str(error).split())[:300]})") from error
    if document.problems:
        raise ConfigError("\n".join(f"{path}, {problem}" for problem in document.problems))
    raw = document.value
    if not isinstance(raw, dict) or not {"run", "data"} <= raw.keys() <= {"run", "data", "exec"}:
        raise ConfigError(f"{path}: must have the keys run and data, may have exec, and no others")
    if not isinstance(raw["run"], dict):
        raise ConfigError(f"{path}: run must be a mapping of RunConfig keys")
    run = over_recipe(raw["run"], path)
    try:
        dataset = _open(raw["data"], path)
    except OSError as error:  # a name that no file can have
        raise DataError(f"{path}: data: {str(error.filename)[:200]}: {error.strerror}") from None
    job = validate(Job, {**raw, "run": run, "data": dataset.paths.model_dump()}, path, document=document)
    check_launch(dataset, vocab_size=job.run.model.vocab_size, seq_len=job.run.eval.seq_len)
    if warning := launch_warning(dataset):
        logging.getLogger(__name__).warning("%s: %s", path, warning)
    return job.model_copy(update={"run": _fingerprinted(job.run, dataset, path)})


def over_recipe(run: Mapping[str, Any], place: Path | str) -> dict[str, Any]:
    """Lays the keys of `run` over those of the preset it names as `recipe` (none: the published recipe)."""
    own = dict(run)
    name = own.pop("recipe", "gepa-11l")
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(f"{place}: run.recipe {name!r} is not one of {', '.join(PRESETS)}")
    return _merged(PRESETS[name], own)


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(under)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _merged(result[key], value) if both else value
    return result


def _open(data: Any, place: Path) -> Dataset:
    if isinstance(data, str):
        return open_folder(data)
    paths = validate(DataPaths, data, place, "data.")
    return open_patterns(paths.train, paths.val, paths.tokenizer)


def _fingerprinted(run: RunConfig, dataset: Dataset, place: Path) -> RunConfig:
    """Enters the data's fingerprints into the run's identity; those given must be the data's."""
    for key, found in dataset.config.model_dump(exclude={"val_tokens"}).items():
        given = getattr(run.data, key)
        if given not in ("", found):
            raise DataError(f"{place}: run.data.{key} is {given}, but the {key} data at hand is {found}")
    found = dataset.config.model_copy(update={"val_tokens": run.data.val_tokens})
    return run.model_copy(update={"data": found})


_M = TypeVar("_M", bound=BaseModel)


def validate(
    model: type[_M], raw: Any, place: Path | str, prefix: str = "", document: Document | None = None
) -> _M:
    """Strict validation with one line per wrong key, and where it stands in the document it was read from."""
    try:
        return model.model_validate_json(json.dumps(raw))
    except (ValidationError, TypeError, ValueError, RecursionError) as error:
        if not isinstance(error, ValidationError):
            raise ConfigError(f"{place}: {error}") from error
        document = document or Document()
        lines = [
            ", ".join(filter(None, [str(place), document.place(fault["loc"])]))
            + f": {prefix}{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}"
            + (f" (got {repr(fault['input'])[:200]})" if fault["type"] != "missing" and fault["loc"] else "")
            for fault in error.errors()
        ]
        raise ConfigError("\n".join(lines)) from error


def open_run(out: Path) -> Job:
    """The job whose output folder this is. Raises ConfigError if it is none."""
    path = out / JOB
    if not path.is_file():
        raise ConfigError(f"{out}: no {JOB} here; give the --out folder of `{module('gepa_core.train')}`")
    try:
        raw = parse_json(read_bytes(path, MAX_TEXT_BYTES))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: unreadable ({error}); start afresh in another folder") from None
    if isinstance(raw, dict) and "exec" in raw:
        raw["exec"] = ExecConfig.without_retired(raw["exec"])
    return validate(Job, raw, path)


@dataclass(frozen=True)
class Trained:
    """A model as training left it after `step` of the run's steps. path: of the checkpoint."""

    path: Path
    step: int
    run: RunConfig
    model: GEPA

    @property
    def folder(self) -> Path:
        """The training output folder it is in, else the one the checkpoint is in."""
        output = self.path.resolve().parents[1]
        return output if (output / JOB).is_file() else self.path.resolve().parent


def open_trained(path: Path, *, average: bool) -> Trained:
    """The newest whole state of a training output folder, or the checkpoint that `path` is.

    Raises ConfigError if it is neither, CheckpointError.
    """
    path, state = open_state(path)
    told = state.told(path)
    run = validate(RunConfig, told.config, path)
    return Trained(path, told.step, run, model_of(state, path, average=average))


def open_state(path: Path) -> tuple[Path, checkpoint.State]:
    """The newest whole checkpoint of a training output folder, or the checkpoint that `path` is.

    Raises ConfigError if it is neither, CheckpointError.
    """
    if not path.is_dir():
        raise ConfigError(f"{path}: no such folder; give an output folder of gepa_core.train or a checkpoint")
    if not checkpoint.in_order(path / CHECKPOINTS):
        return path, checkpoint.load(path)
    found = checkpoint.newest(path / CHECKPOINTS)
    if found is None:
        raise CheckpointError(f"{path / CHECKPOINTS}: every checkpoint is damaged; train again")
    return found


def load_model(path: Path, *, average: bool | Average) -> tuple[GEPA, dict[str, Any]]:
    """The model of a checkpoint directory, with averaged (EMA) or raw weights, and the checkpoint's meta.

    average: False for the raw weights, True for the average of the run that wrote it, or the one wanted.
    Raises CheckpointError.
    """
    state = checkpoint.load(path)
    return model_of(state, path, average=average), state.meta


def model_of(state: checkpoint.State, path: Path, *, average: bool | Average) -> GEPA:
    """The model of a state read from `path`, see `load_model`. Raises CheckpointError."""
    told = state.told(path)
    run = validate(RunConfig, told.config, path)
    prefix = "model/"
    if average:
        wanted = run.average if isinstance(average, bool) else average
        constant = told.step <= run.peak_steps
        prefix = prefix_of(wanted, averages_of(state, path), path, constant=constant)
    tensors = {
        name.removeprefix(prefix): tensor for name, tensor in state.tensors.items() if name.startswith(prefix)
    }
    return _filled(run.model, tensors, path)


def merged_model(config: ModelConfig, paths: Iterable[Path], weights: Sequence[float]) -> GEPA:
    """The weighted mean of the raw weights of several checkpoints, one read at a time.

    Raises CheckpointError.
    """
    return _filled(config, merged((checkpoint.load(path) for path in paths), weights), "the merged states")


def _filled(config: ModelConfig, tensors: Mapping[str, Tensor], path: Path | str) -> GEPA:
    model = GEPA(config)
    extra = tensors.keys() - model.state_dict().keys()
    if extra == {"ve_shared.proj.weight"}:
        raise CheckpointError(
            f"{path}: has a ve_shared.proj though ve_dim is the width of the values; only earlier versions "
            "trained such models, the published code does not; train it again"
        )
    try:
        model.load_state_dict(tensors)  # an average is fp32; copying rounds where the model stores bf16
    except RuntimeError as error:
        raise CheckpointError(f"{path}: weights do not fit the model ({error})") from error
    return model
