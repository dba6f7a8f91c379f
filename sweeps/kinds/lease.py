"""What a lease occupies: the one place that turns GPUs and ranks into devices."""


def devices(gpus: float, ranks: float) -> float:
    """Devices of a lease: its GPUs (a share of one where runs share it), or its CPU workers without any."""
    return gpus or float(ranks)
