"""How a process of torch executes: for the record, and for telling breaks of bit identity."""

from typing import Any

from sweeps.work.job import Attempt


def execution(at: Attempt) -> dict[str, Any]:
    import torch

    from gepa_core.device import resolve_device
    from gepa_core.training.batches import micro_batch_seqs

    job = at.job
    is_missing = job.exec.device == "cuda" and not torch.cuda.is_available()  # which is why it failed
    device = torch.device("cpu") if is_missing else resolve_device(job.exec)
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else "none" if is_missing else "cpu",
        "ranks": at.world,
        "threads": torch.get_num_threads(),
        "torch_version": torch.__version__,
        "deterministic": job.exec.deterministic,
        "micro_batch_seqs": micro_batch_seqs(
            job.recipe.batch, job.recipe.model.width, job.exec.micro_batch_seqs, device
        ),
    }
