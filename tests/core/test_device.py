"""The machine under a model: which attention kernel is asked for, and that compiled code keeps it."""

import subprocess
import sys
import threading

import pytest
import torch
import torch.compiler.config as compiler_config

from gepa_core import device
from gepa_core.config import ExecConfig

COMPILES = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
CUDA = torch.device("cuda")


@pytest.mark.parametrize(
    ("capability", "cudnn", "deterministic", "first"),
    [
        ((8, 0), 91900, False, "flash"),
        ((9, 0), 91900, False, "cudnn"),
        ((9, 0), 91500, False, "flash"),
        ((9, 0), None, False, "flash"),
        ((9, 0), 91900, True, "flash"),
        ((10, 0), 91900, False, "flash"),
    ],
)
def test_attention_kernel_of_a_device(
    capability: tuple[int, int],
    cudnn: int | None,
    deterministic: bool,
    first: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
    order = device.attention_order(ExecConfig(deterministic=deterministic), CUDA)
    assert order[0] == first
    assert set(order) == set(device.ATTENTION_KERNELS)
    assert device.attention_order(ExecConfig(attention="math"), CUDA)[0] == "math"


def test_the_order_of_kernels_enters_the_key_of_compiled_code() -> None:
    cpu = torch.device("cpu")
    assert device.attention_order(ExecConfig(), cpu) == ()
    keys = set()
    for name in (None, "math", "flash"):
        with device.attention(ExecConfig(attention=name), cpu):
            keys.add(compiler_config.cache_key_tag)
    assert len(keys) == 3
    assert compiler_config.cache_key_tag == ""


def _nothing(x: torch.Tensor) -> torch.Tensor:
    return x


@COMPILES
def test_every_thread_may_compile_many_shapes() -> None:
    found = []

    def look() -> None:
        device.compiled(_nothing, ExecConfig(), torch.device("cpu"))
        found.append(torch._dynamo.config.recompile_limit)

    look()
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [64, 64]


_COMPILED_ATTENTION = """
import sys, torch
from torch.profiler import profile
from gepa_core import device
from gepa_core.config import ExecConfig
from gepa_core.model.gepa import causal_attention

cfg, cpu = ExecConfig(device="cpu", compile=True, attention=sys.argv[1]), torch.device("cpu")
q, k = torch.ones(2, 32, 2, 16), torch.ones(2, 32, 1, 16)
with device.attention(cfg, cpu):
    function = device.compiled(causal_attention, cfg, cpu)
    function(q, k, k)
    with profile() as trace:
        function(q, k, k)
print(any("flash_attention" in event.key for event in trace.key_averages()))
"""


@pytest.mark.slow
def test_cached_code_has_the_kernel_that_was_asked_for(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
    for name, flash in (("flash", True), ("math", False), ("flash", True)):
        command = [sys.executable, "-c", _COMPILED_ATTENTION, name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.split()[-1] == str(flash)
