"""A stage that measures: some weights of a finished run, by some evaluation, block by block."""

from dataclasses import replace
from typing import Any

from sweeps.kinds.kind import BLOCKS
from sweeps.kinds.table import KINDS
from sweeps.store.schema import BLOCKS as COLUMNS
from sweeps.store.schema import to_parquet
from sweeps.store.store import Outcome
from sweeps.work.job import Attempt
from sweeps.work.torch_process import execution

__all__ = ["execution", "run"]


def run(at: Attempt) -> Outcome:
    """Measures the BPB, and writes its blocks for paired errors of stage effects."""
    from gepa_core.data.text import open_text
    from gepa_core.evaluation.stages import measure
    from gepa_core.submission.bundle import code_bytes
    from gepa_core.training.segment import prepare

    job, kind, config = at.job, KINDS[at.job.kind], at.job.recipe
    assert kind.evaluation is not None and kind.seconds is not None
    device = prepare(job.exec)
    model = _model(at).to(device)
    vocab_size, limit = config.model.vocab_size, config.data.val_tokens
    text = open_text(job.paths.val, job.paths.tokenizer, vocab_size, limit)
    found = measure(kind.evaluation, model, text, config.eval, config.ttt, job.exec)
    blocks = found.blocks
    columns = zip(blocks.tokens.tolist(), blocks.bytes.tolist(), blocks.nll.tolist(), strict=True)
    rows = [
        {"stage": job.kind, "block": i, "tokens": tokens, "bytes": bytes_, "nll": nll}
        for i, (tokens, bytes_, nll) in enumerate(columns)
    ]
    if at.rank == 0:
        at.workdir.write(BLOCKS, to_parquet(rows, COLUMNS))
    result = {
        kind.seconds: found.seconds,
        f"{job.kind}_bpb": found.bpb,
        "tokens": found.tokens,
        "bytes": found.bytes,
    }
    if "code_bytes" in kind.columns:
        # Runs that differ in their TTT alone share a quantize stage, but not the script.
        result["code_bytes"] = code_bytes(config)
    return replace(at.outcome, result=result)


def _model(at: Attempt) -> Any:
    """The weights that the stage is of, as a model."""
    from gepa_core.model.gepa import GEPA
    from gepa_core.quantization.artifact import check_fits, num_weights, read_artifact
    from gepa_core.schedule import merge_weights
    from gepa_core.training.trained import load_model, merged_model

    job, config = at.job, at.job.recipe
    match KINDS[job.kind].weights:
        case "raw":
            return load_model(at.source(), average=False)[0]
        case "average":
            return load_model(at.source(), average=config.average)[0]
        case "merged":
            weights = merge_weights(config.merge.schedule, len(job.sources))
            return merged_model(config.model, map(at.workdir.fetch, job.sources), weights)
        case _:
            model = GEPA(config.model)
            state = read_artifact(at.source(), num_weights(model.state_dict()))
            check_fits(state, model.state_dict())
            model.load_state_dict(state)
            return model
