"""Quantization: the EMA weights at the end of a run, as the compressed model."""

from dataclasses import replace

from sweeps.kinds.kind import ARTIFACT
from sweeps.store.store import Outcome
from sweeps.work.job import Attempt
from sweeps.work.torch_process import execution

__all__ = ["execution", "run"]


def run(at: Attempt) -> Outcome:
    """On rank 0 alone; it is not worth sharing out."""
    from gepa_core.submission.compress import compress
    from gepa_core.training.segment import prepare
    from gepa_core.training.trained import load_model

    job = at.job
    device = prepare(job.exec)
    if at.rank != 0:
        return at.outcome
    model, _ = load_model(at.source(), average=job.recipe.average)
    done = compress(model.to(device), job.recipe, job.paths.train, at.workdir.path / ARTIFACT)
    return replace(at.outcome, result=done.figures() | {"quant_mse": done.quantized.report.mse})
