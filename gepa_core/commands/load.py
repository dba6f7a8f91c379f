"""Trained models by whatever names them: a run's id, an output folder, a checkpoint, an artifact.

`load_model` is for Python; the commands open what they score in the same way.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from gepa_core import files
from gepa_core.config import DataPaths, ExecConfig, RunConfig
from gepa_core.data.tokenizer import load_tokenizer
from gepa_core.errors import ArtifactError, ConfigError, DataError
from gepa_core.model.gepa import GEPA
from gepa_core.quantization.artifact import check_fits, num_weights, read_artifact
from gepa_core.sections import ModelConfig
from gepa_core.training.trained import JOB, Job, open_run, open_trained, read_job

_MODEL = "model.int6"


@dataclass(frozen=True)
class Opened:
    """A model on the CPU, and what is known of it."""

    model: GEPA
    weights: str
    """average | raw | artifact"""
    step: int | None
    """Of training; an artifact does not say."""
    run: RunConfig
    data: DataPaths | None
    """Where the run's own data lies, if that is known."""
    exec: ExecConfig


def open_model(
    what: str | Path, *, job: Path | None = None, average: bool = True, store: str | Path = "results"
) -> Opened:
    """The model that `what` names.

    job: job file or output folder that describes an artifact. store: where runs are looked for by their ids.

    Raises UserError where it cannot be found, or is damaged or foreign.
    """
    path = Path(what)
    if not path.exists():
        stored = find_stored(str(what), Path(store))
        if stored is None:
            raise ConfigError(
                f"{what}: no such file or folder, and no run of {store} has that id; give a training output "
                "folder, a checkpoint, an artifact or a run's id"
            )
        return _artifact(stored.artifact, stored.job)
    found = _job(job, path)
    if path.is_file():
        return _artifact(path, found)
    trained = open_trained(path, average=average)
    weights = "average" if average else "raw"
    data, exec_cfg = (found.data, found.exec) if found else (None, ExecConfig())
    return Opened(trained.model, weights, trained.step, trained.run, data, exec_cfg)


@dataclass(frozen=True)
class Described:
    """What is known of an artifact besides its tensors."""

    run: RunConfig
    data: DataPaths | None
    exec: ExecConfig


@dataclass(frozen=True)
class Stored:
    """A run's artifact in a sweep's folder."""

    artifact: Path
    job: Described


def find_stored(text: str, store: Path) -> Stored | None:
    """The run of a store, or of one sweep's folder, whose id is `text` or begins (or whose digest begins) so.

    None where there is none. Raises ConfigError where several are meant, ArtifactError
    where the run has no artifact.
    """
    sweeps = (
        [store]
        if (store / "runs.parquet").is_file()
        else sorted(p.parent for p in store.glob("*/runs.parquet"))
    )
    runs = [(sweep, id_, config) for sweep in sweeps for id_, config in _runs(sweep)]
    meant = [entry for entry in runs if entry[1] == text] or [
        entry
        for entry in runs
        if text and (entry[1].startswith(text) or entry[1].rpartition("-")[2].startswith(text))
    ]
    ids = list(dict.fromkeys(id_ for _, id_, _ in meant))
    if len(ids) > 1:
        raise ConfigError(
            f"{text}: {len(ids)} runs of {store} begin so ({', '.join(ids[:4])}); give more of it"
        )
    if not ids:
        close = get_close_matches(text, [id_ for _, id_, _ in runs], n=1)
        if close:
            raise ConfigError(f"{text}: no such run in {store}; did you mean {close[0]}?")
        return None
    for sweep, id_, config in meant:
        artifact = sweep / "artifacts" / f"{id_}.int6"
        if artifact.is_file():
            _check_committed(artifact, sweep, id_)
            return Stored(artifact, _described(sweep, id_, config))
    raise ArtifactError(f"{ids[0]}: has no artifact in {meant[0][0]}; is the run done, and was it quantized?")


def _check_committed(artifact: Path, sweep: Path, run_id: str) -> None:
    """Raises ArtifactError where a run's artifact is not the one that was made, as far as records tell."""
    try:
        plan = json.loads((sweep / "plan.json").read_bytes())
        stages = plan["runs"][run_id]["stages"]
        done = [json.loads((sweep.parent / "segments" / id_ / "DONE.json").read_bytes()) for id_ in stages]
        made = [record["files"][_MODEL]["sha256"] for record in done if _MODEL in record["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return  # copied out of its store, say
    if made and files.sha256(artifact) not in made:
        raise ArtifactError(
            f"{artifact}: not the one that {run_id} made; delete it, and the sweep's launch.py command puts "
            "it there again"
        )


def _runs(sweep: Path) -> Iterator[tuple[str, str]]:
    """(run_id, config_json) of a sweep's table."""
    import pyarrow as pa  # heavy, and only needed here
    import pyarrow.parquet as pq

    try:
        buffer = pa.BufferReader((sweep / "runs.parquet").read_bytes())
        table = pq.ParquetFile(buffer).read(columns=["run_id", "config_json"], use_threads=False)
    except (OSError, pa.ArrowException, KeyError) as error:
        raise ConfigError(f"{sweep}/runs.parquet: not readable ({error})") from error
    yield from ((row["run_id"], row["config_json"]) for row in table.to_pylist())


def _described(sweep: Path, run_id: str, config: str) -> Described:
    try:
        run = RunConfig.model_validate_json(config)
        record = json.loads((sweep / "sweep.json").read_text(encoding="utf-8"))
        places = [e["paths"] for e in record.get("data", []) if e.get("fingerprint") == run.data.train]
        data = DataPaths(**places[0]) if places else None
        exec_cfg = ExecConfig.model_validate_json(
            json.dumps(ExecConfig.without_retired(record.get("exec", {})))
        )
    except (OSError, ValueError, ValidationError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{sweep}: what it says of {run_id} is not of this version ({error})") from None
    return Described(run, data, exec_cfg.model_copy(update={"ranks": 1}))


def _job(given: Path | None, path: Path) -> Job | Described | None:
    """The job given, or that of the output folder that `path` is or lies in, or of the sweep it is from."""
    if given is not None:
        return open_run(given) if given.is_dir() else read_job(given)
    for folder in (path, *path.resolve().parents[:2]):
        if (folder / JOB).is_file():
            return open_run(folder)
    sweep = path.resolve().parent.parent
    if path.is_file() and path.resolve().parent.name == "artifacts" and (sweep / "runs.parquet").is_file():
        known = dict(_runs(sweep))
        if path.stem in known:
            return _described(sweep, path.stem, known[path.stem])
    return None


def _artifact(path: Path, job: Job | Described | None) -> Opened:
    """The job's model with an artifact's weights; without a job, the published recipe's."""
    largest = GEPA(job.run.model if job else ModelConfig(ve_dim=256))
    state = read_artifact(path, num_weights(largest.state_dict()))
    run = job.run if job else _published_run(path, state)
    model = GEPA(run.model)
    try:
        check_fits(state, model.state_dict())
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from None
    model.load_state_dict(state)
    data, exec_cfg = (job.data, job.exec) if job else (None, ExecConfig())
    return Opened(model, "artifact", None, run, data, exec_cfg)


def _published_run(path: Path, state: dict[str, Tensor]) -> RunConfig:
    """The published recipe, in the variant that the tensors are of; its artifacts need its rotary tables."""
    bigram, value = state.get("bigram_emb.embed.weight"), state.get("ve_shared.embed.weight")
    variant: dict[str, Any] = {"bigram": "xor" if "bigram_emb.scale" in state else "poly"}
    variant |= {"ve_layers": ()} if value is None else {"ve_dim": value.shape[-1]}
    if bigram is not None and bigram.ndim == 2:
        variant |= {"bigram_buckets": len(bigram), "bigram_dim": bigram.shape[1]}
    with contextlib.suppress(ArtifactError, ValidationError, IndexError):
        model = ModelConfig(**variant, rope_precision="bf16_published")
        with torch.device("meta"):
            check_fits(state, GEPA(model).state_dict())
        return RunConfig(steps=1, warmdown_steps=0, model=model)
    raise ConfigError(
        f"{path}: an artifact does not say its model's sizes, and they are not the published recipe's; give "
        "--job, the job file or output folder it was made from"
    )


class LoadedModel:
    """A trained model with its tokenizer, for a notebook or a script."""

    def __init__(self, opened: Opened, tokenizer: str | Path | None, device: str) -> None:
        self.model = opened.model.to(device).eval()
        """The network itself: ids [B,T] -> logits [B,T,V]."""
        self.run, self.weights, self.step = opened.run, opened.weights, opened.step
        self.device = torch.device(device)
        path = tokenizer or (opened.data.tokenizer if opened.data else None)
        self.tokenizer = load_tokenizer(path) if path else None
        """SentencePiece's; None where nothing says which one it is."""
        if self.tokenizer is not None and self.tokenizer.vocab_size() != self.run.model.vocab_size:
            raise DataError(
                f"{path}: the tokenizer has {self.tokenizer.vocab_size()} pieces, the model a vocabulary of "
                f"{self.run.model.vocab_size}"
            )

    def __repr__(self) -> str:
        size = sum(parameter.numel() for parameter in self.model.parameters())
        return f"<{self.weights} weights of {self.run.run_id}, {size:,} parameters on {self.device}>"

    @torch.no_grad()
    def logits(self, ids: Sequence[int]) -> Tensor:
        """ids [T] -> soft-capped logits [V], fp32, of the token that follows."""
        window = torch.tensor([list(ids)[-self.run.eval.seq_len :]], device=self.device)
        logits: Tensor = self.model.head(self.model.features(window, 1))[0, -1]
        return logits

    def generate(
        self,
        text: str = "",
        *,
        tokens: int = 100,
        temperature: float = 0.8,
        top_k: int | None = 50,
        seed: int = 0,
    ) -> str:
        """`text` with up to `tokens` more tokens that the model samples; ends early where it ends a document.

        temperature 0 takes the likeliest token each time. Raises ConfigError without a tokenizer.
        """
        if self.tokenizer is None:
            raise ConfigError(
                "generate: no tokenizer is known for this model; load_model(..., tokenizer=FILE.model)"
            )
        if temperature < 0 or tokens < 0 or (top_k is not None and top_k < 1):
            raise ConfigError(
                f"generate: temperature {temperature}, tokens {tokens}, top_k {top_k} make no sense"
            )
        sp = self.tokenizer
        generator = torch.Generator().manual_seed(seed)
        ends = {sp.bos_id(), sp.eos_id()}
        never = (i for i in range(sp.vocab_size()) if sp.is_unknown(i) or sp.is_control(i))
        banned = [i for i in never if i not in ends]
        ids = [sp.bos_id(), *sp.encode(text)]
        for _ in range(tokens):
            logits = self.logits(ids).cpu()
            logits[banned] = float("-inf")
            new = _sample(logits, temperature, top_k, generator)
            if new in ends:
                break
            ids.append(new)
        made: str = sp.decode(ids[1:])
        return made


def _sample(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    if top_k is not None and top_k < len(logits):
        least = logits.topk(top_k).values[-1]
        logits = logits.masked_fill(logits < least, float("-inf"))
    return int(torch.multinomial((logits / temperature).softmax(0), 1, generator=generator))


def load_model(
    what: str | Path,
    *,
    store: str | Path = "results",
    average: bool = True,
    tokenizer: str | Path | None = None,
    job: str | Path | None = None,
    device: str = "cpu",
) -> LoadedModel:
    """A trained model. `what`: a run's id in `store` (its int6 artifact is meant), an output folder of
    gepa_core.train, a checkpoint, or an artifact, ours or published.

    average: EMA weights of a checkpoint rather than raw ones. tokenizer: a SentencePiece .model, where the
    run does not tell. job: what describes an artifact (see `gepa_core.evaluate --job`).
    Raises UserError where it cannot be found, or is damaged or foreign.
    """
    opened = open_model(what, job=Path(job) if job else None, average=average, store=store)
    return LoadedModel(opened, tokenizer, device)


def data_paths(folder: Path | None, opened: Opened) -> DataPaths:
    """A prepared folder's paths, or the run's own.

    Raises ConfigError where none are known, DataError where the folder's tokenizer is another one.
    """
    from gepa_core.data.folder import open_folder

    run: Any = opened.run
    if folder is None:
        if opened.data is None:
            raise ConfigError("no data: no job.json is at hand that names it; give --data, a prepared folder")
        return opened.data
    data = open_folder(folder)
    if run.data.tokenizer not in ("", data.config.tokenizer):
        raise DataError(f"{folder}: not the tokenizer that the model was trained with (SHA-256 differs)")
    return data.paths
