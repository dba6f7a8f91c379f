"""A stage that measures: some weights of a finished run, by some evaluation, block by block."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from gepa_core.config import DataPaths, RunConfig
from sweeps.kinds.kind import BLOCKS, Weights
from sweeps.kinds.table import KINDS
from sweeps.store.schema import BLOCKS as COLUMNS
from sweeps.store.schema import to_parquet
from sweeps.store.store import Outcome
from sweeps.work.job import Attempt, Job
from sweeps.work.torch_process import execution

__all__ = ["execution", "run"]


def run(at: Attempt) -> Outcome:
    """Measures the BPB, and writes its blocks for paired errors of stage effects."""
    from gepa_core.training.segment import prepare

    job, kind = at.job, KINDS[at.job.kind]
    assert kind.weights is not None and kind.seconds is not None
    device = prepare(job.exec)
    model = _model(job, kind.weights, at.source()).to(device)
    tokens, table = _validation(job.data, job.config)
    evaluation, result = _evaluated(job, model, tokens, table)
    blocks = evaluation.blocks
    columns = zip(blocks.tokens.tolist(), blocks.bytes.tolist(), blocks.nll.tolist(), strict=True)
    rows = [
        {"stage": job.kind, "block": i, "tokens": tokens_, "bytes": bytes_, "nll": nll}
        for i, (tokens_, bytes_, nll) in enumerate(columns)
    ]
    if at.rank == 0:
        at.workdir.write(BLOCKS, to_parquet(rows, COLUMNS))
    result |= {
        kind.seconds: evaluation.seconds,
        f"{job.kind}_bpb": evaluation.bpb,
        "tokens": evaluation.tokens,
        "bytes": evaluation.bytes,
    }
    return replace(at.outcome, result=result)


def _evaluated(job: Job, model: Any, tokens: Any, table: Any) -> tuple[Any, dict[str, Any]]:
    """The evaluation, and what else is known by it."""
    from gepa_core.evaluation.scoring import evaluate_plain, evaluate_sliding
    from gepa_core.evaluation.ttt import test_time_train
    from gepa_core.submission.bundle import code_bytes

    config = job.config
    match KINDS[job.kind].evaluation:
        case "ttt":
            adapted = test_time_train(model, tokens, table, config.eval, config.ttt, job.exec)
            # Runs that differ in their TTT alone share a quantize stage, but not the script.
            return adapted.evaluation, {"code_bytes": code_bytes(config)}
        case "sliding":
            return evaluate_sliding(model, tokens, table, config.eval, job.exec), {}
        case _:
            return evaluate_plain(model, tokens, table, config.eval, job.exec), {}


def _model(job: Job, weights: Weights, source: Path) -> Any:
    """Raw or EMA weights of the state at `source`, or those decoded from the artifact there."""
    from gepa_core.model.gepa import GEPA
    from gepa_core.quantization.artifact import check_fits, num_weights, read_artifact
    from gepa_core.training.trained import load_model

    if weights != "int6":
        return load_model(source, average=weights == "average")[0]
    model = GEPA(job.config.model)
    state = read_artifact(source, num_weights(model.state_dict()))
    check_fits(state, model.state_dict())
    model.load_state_dict(state)
    return model


@lru_cache(maxsize=1)
def _validation(paths: DataPaths, config: RunConfig) -> Any:
    """(tokens, byte table), kept for the stages that follow on this worker."""
    from gepa_core.data.shards import load_tokens, open_shards
    from gepa_core.data.tokenizer import byte_table

    limit = config.data.val_tokens
    tokens = load_tokens(open_shards(paths.val), None if limit is None else limit + 1)
    return tokens, byte_table(paths.tokenizer, config.model.vocab_size)
