"""The machine under a model: device, attention kernels, compilation, ranks. Changes rounding at most."""

import contextlib
import functools
import logging
import os
import platform
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.compiler.config as compiler_config
import torch.distributed as dist
import torch.nn.functional as nnf
from torch.nn.attention import SDPBackend, sdpa_kernel

from gepa_core.errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])

# cuBLAS and Inductor read these when they start, which is later than this. The first is what deterministic
# products need.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
if torch.torch_version.TorchVersion(torch.__version__) < "2.13":
    # Over-fused backward kernels spill registers: 6-9 % of a step of this architecture on an H100
    # (pytorch/pytorch#179423, openai/parameter-golf#1420). On an H200 we saw neither loss nor gain.
    os.environ.setdefault("TORCHINDUCTOR_MIX_ORDER_REDUCTION", "0")

ATTENTION_KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
_HOPPER = 9  # major compute capability; cuDNN's attention is the faster one there, flash on Ampere
_PRODUCT = (512, 256)
_PRODUCT_DTYPES = (torch.float32, torch.bfloat16)
_PRODUCT_ROUNDS = 4  # the first makes its kernel
_EMULATED = 2.0  # times as long as in fp32; half as long with bf16 arithmetic, 4 to 100 times without
_SOUND_CUDNN = 91500  # wrong for some lengths before (pytorch/pytorch#169849)


def resolve_device(exec_cfg: Any) -> torch.device:
    """The device to run on. Raises ConfigError if CUDA is asked for and there is none."""
    name = exec_cfg.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cuda":
        return torch.device(name)
    if not torch.cuda.is_available():
        raise ConfigError(
            "a GPU is asked for (device cuda; in a sweep, resources.gpus_per_run above 0), and torch sees "
            f"none on {platform.node()}: {_why_no_cuda()}"
        )
    return torch.device("cuda", torch.cuda.current_device())


def _why_no_cuda() -> str:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA; install a build that has it"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides them"
    return (
        f"torch {torch.__version__} needs a driver for CUDA {torch.version.cuda}; what does nvidia-smi say?"
    )


@dataclass(frozen=True)
class ProductSpeeds:
    """FLOP/s of matrix products on this CPU, with the threads that torch has here."""

    fp32: float
    bf16: float

    @property
    def bf16_slowdown(self) -> float:
        """How many times as long as in fp32 a product takes in bf16; below 1 where it is the faster one."""
        return self.fp32 / self.bf16

    @property
    def emulates_bf16(self) -> bool:
        return self.bf16_slowdown > _EMULATED


@functools.cache
def product_speeds() -> ProductSpeeds:
    """Times a product of a small model's size, once a process: 0.03 s, or 0.5 where bf16 is emulated.

    The best of three, so that another process's work beside it counts little.
    """
    x, weight = torch.ones(_PRODUCT), torch.ones(_PRODUCT[1], _PRODUCT[1])
    flops = 2 * _PRODUCT[0] * _PRODUCT[1] ** 2
    return ProductSpeeds(*(flops / _best_seconds(x.to(kind), weight.to(kind)) for kind in _PRODUCT_DTYPES))


def _best_seconds(x: torch.Tensor, weight: torch.Tensor) -> float:
    seconds = []
    for _ in range(_PRODUCT_ROUNDS):
        begun = time.perf_counter()
        x @ weight
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def warn_where_emulated(model_cfg: Any, device: torch.device) -> None:
    """Logs a warning where a CPU is to multiply in bf16 and can only emulate it. model_cfg: ModelConfig."""
    if device.type != "cpu" or model_cfg.compute_dtype != "bf16" or not product_speeds().emulates_bf16:
        return
    logging.getLogger(__name__).warning("%s", emulation_warning(product_speeds()))


def emulation_warning(speeds: ProductSpeeds) -> str:
    """In words for a user."""
    return (
        f"model.compute_dtype is bf16, which this CPU emulates: a matrix product takes "
        f"{speeds.bf16_slowdown:.0f} times as long as in fp32 ({speeds.bf16 / 1e9:.1f} against "
        f"{speeds.fp32 / 1e9:.1f} GFLOP/s); set model.compute_dtype: fp32, or use a GPU"
    )


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of ranks; (0, 1) outside torch.distributed."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def share(count: int) -> slice:
    """This rank's contiguous part of `count` things; the parts of all ranks cover them once."""
    rank, world = rank_and_world()
    return slice(count * rank // world, count * (rank + 1) // world)


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Sums in place over all ranks, if there are several."""
    if rank_and_world()[1] > 1:
        dist.all_reduce(tensor)
    return tensor


def attention_order(exec_cfg: Any, device: torch.device) -> tuple[str, ...]:
    """Attention kernels by preference: the one asked for, else cuDNN on Hopper, flash elsewhere.

    The others follow, for what the first cannot do: fp32, or the masked queries of a trimmed last block.
    Empty on a CPU, which has one of its own, unless one is asked for.
    """
    first = exec_cfg.attention
    if device.type != "cuda":  # where torch heeds no order: only what is asked for is allowed
        return tuple(dict.fromkeys((first, "math"))) if first else ()
    if first is None:
        # cuDNN's backward has no deterministic form, flash's has.
        hopper = torch.cuda.get_device_capability(device)[0] == _HOPPER
        sound = (torch.backends.cudnn.version() or 0) > _SOUND_CUDNN
        first = "cudnn" if hopper and sound and not exec_cfg.deterministic else "flash"
    return (first, *(name for name in ATTENTION_KERNELS if name != first))


@contextlib.contextmanager
def attention(exec_cfg: Any, device: torch.device) -> Iterator[None]:
    """Prefers attention kernels in the order of `attention_order`."""
    order = attention_order(exec_cfg, device)
    if not order:
        yield
        return
    _settle_priorities(device)
    kernels = [ATTENTION_KERNELS[name] for name in order]
    # The cache of compiled code does not look at the order (pytorch/pytorch#185449): the tag makes it.
    tag = compiler_config.patch(cache_key_tag="attention:" + ",".join(order))  # type: ignore[attr-defined]
    with sdpa_kernel(kernels, set_priority=True), tag:
        yield


@functools.cache
def _settle_priorities(device: torch.device) -> None:
    """A process's first attention on CUDA sets torch's own order of kernels, over one set before it."""
    if device.type == "cuda":
        x = torch.zeros(1, 1, 8, 64, device=device, dtype=torch.bfloat16)
        nnf.scaled_dot_product_attention(x, x, x)


def wants_compile(exec_cfg: Any, device: torch.device) -> bool:
    """Compiling pays back its half minute on a GPU, rarely on a CPU."""
    return device.type == "cuda" if exec_cfg.compile is None else bool(exec_cfg.compile)


_compiled: dict[tuple[Callable[..., Any], tuple[str, ...]], Callable[..., Any]] = {}


def compiled(function: F, exec_cfg: Any, device: torch.device) -> F:
    """torch.compile of a module-level function, once a process and choice of attention, for static shapes.

    A graph keeps the attention kernel it was traced with, and torch caches graphs by code object: each choice
    compiles a copy of its own.
    """
    order = attention_order(exec_cfg, device)
    # A worker meets several models and shapes; past the limit torch would fall back to eager in silence.
    # Each thread has a limit of its own.
    torch._dynamo.config.recompile_limit = 64
    if (function, order) not in _compiled:
        code = function.__code__.replace(co_name="_".join((function.__name__, *order)))
        copy = types.FunctionType(code, function.__globals__, code.co_name, function.__defaults__)
        _compiled[function, order] = torch.compile(copy, dynamic=False)
    return _compiled[function, order]  # type: ignore[return-value]


def maybe_compiled(function: F, exec_cfg: Any, device: torch.device) -> F:
    """`compiled`, where `wants_compile`; else the function as it is."""
    return compiled(function, exec_cfg, device) if wants_compile(exec_cfg, device) else function


class PhaseClock:
    """Seconds spent in named phases, by CUDA events on a GPU: no wait before `seconds` is read."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._spans: list[tuple[str, Any, Any]] = []

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = self._now()
        yield
        self._spans.append((name, start, self._now()))

    def seconds(self, name: str) -> float:
        if self._cuda:
            torch.cuda.synchronize()
            return sum(a.elapsed_time(b) for n, a, b in self._spans if n == name) / 1000
        return float(sum(b - a for n, a, b in self._spans if n == name))
