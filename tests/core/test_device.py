"""The machine under a model: its device, how fast it multiplies, which attention kernel it is asked for."""

import subprocess
import sys
import threading

import pytest
import torch
import torch.compiler.config as compiler_config

from gepa_core import device
from gepa_core.config import ExecConfig
from gepa_core.errors import ConfigError
from gepa_core.sections import ModelConfig

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


def test_speeds_of_products_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = device.product_speeds()
    assert speeds.fp32 > 1e8 and speeds.bf16 > 0
    monkeypatch.setattr(device, "_best_seconds", None)
    assert device.product_speeds() is speeds


@pytest.mark.parametrize(
    ("dtype", "where", "slowdown", "warns"),
    [
        ("bf16", "cpu", 40.0, True),
        ("bf16", "cpu", 0.5, False),
        ("fp32", "cpu", 40.0, False),
        ("bf16", "cuda", 40.0, False),
    ],
)
def test_a_cpu_that_emulates_bf16_is_told_with_the_factor(
    dtype: str,
    where: str,
    slowdown: float,
    warns: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    speeds = device.ProductSpeeds(fp32=2e10, bf16=2e10 / slowdown)
    monkeypatch.setattr(device, "product_speeds", lambda: speeds)
    device.warn_where_emulated(ModelConfig(compute_dtype=dtype), torch.device(where))
    assert ("40 times as long as in fp32 (0.5 against 20.0 GFLOP/s)" in caplog.text) == warns


def test_cuda_that_is_not_there_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(ConfigError, match=r"gpus_per_run above 0.*needs a driver for CUDA 13\.0"):
        device.resolve_device(ExecConfig(device="cuda"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES hides them"):
        device.resolve_device(ExecConfig(device="cuda"))
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ConfigError, match="built without CUDA"):
        device.resolve_device(ExecConfig(device="cuda"))


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
