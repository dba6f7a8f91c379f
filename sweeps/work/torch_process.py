"""How a process of torch executes: for the record, and for telling breaks of bit identity."""

from typing import Any

from sweeps.work.job import Attempt


def execution(at: Attempt) -> dict[str, Any]:
    import torch

    from gepa_core.device import resolve_device
    from gepa_core.training.batches import micro_batch_seqs

    job = at.job
    device = resolve_device(job.exec)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "ranks": at.world,
        "threads": torch.get_num_threads(),
        "torch_version": torch.__version__,
        "deterministic": job.exec.deterministic,
        "micro_batch_seqs": micro_batch_seqs(
            job.config.batch, job.config.model.width, job.exec.micro_batch_seqs, device
        ),
    }
