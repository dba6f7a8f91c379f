"""One job: training, quantization, evaluation, test-time training. Knows neither Ray nor sweeps.

from gepa_core import load_model

model = load_model("400-160")        # a run of results/ by its id, a checkpoint, or an artifact
print(model.generate("Returns the"))
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gepa_core.commands.load import LoadedModel, load_model
    from gepa_core.config import ExecConfig, RunConfig

__all__ = ["ExecConfig", "LoadedModel", "RunConfig", "load_model"]

_HOMES = {
    "load_model": "gepa_core.commands.load",
    "LoadedModel": "gepa_core.commands.load",
    "RunConfig": "gepa_core.config",
    "ExecConfig": "gepa_core.config",
}


def __getattr__(name: str) -> Any:
    """Torch loads with the first name that needs it, not with the package."""
    if name not in _HOMES:
        raise AttributeError(f"module 'gepa_core' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
