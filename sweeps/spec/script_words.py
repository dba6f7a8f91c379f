"""What a script's command and environment mention: placeholders, files, variables."""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sweeps.kinds.script import (
    MACHINE_PLACEHOLDERS,
    RUN_PLACEHOLDERS,
    STATE_PLACEHOLDERS,
    Script,
    placeholders,
    templates,
)
from sweeps.spec.grid import Cell
from sweeps.spec.keys import near_miss
from sweeps.spec.workdir import ScriptFiles


def own_placeholders(command: str | Iterable[str], env: Mapping[str, Any]) -> list[str]:
    """Those that the sweep file has to give values for, in order."""
    found = (name for template in templates(command, env) for name in placeholders(template))
    known = {*RUN_PLACEHOLDERS, *MACHINE_PLACEHOLDERS, *STATE_PLACEHOLDERS}
    return [name for name in dict.fromkeys(found) if name not in known]


def used_placeholders(script: Script, grid: Mapping[str, list[Any]], points: list[Cell]) -> set[str]:
    """Placeholders of the command, the environment, and values that axes give to variables."""
    axes = [v for name, values in grid.items() if name.startswith("env.") for v in values]
    axes += [v for point in points for name, v in point.items() if name.startswith("env.")]
    texts = [*templates(script.command, script.env), *(v for v in axes if isinstance(v, str))]
    return {name for template in texts for name in placeholders(template)}


def words_of(command: str | tuple[str, ...]) -> list[str]:
    if not isinstance(command, str):
        return list(command)
    try:
        return shlex.split(command, comments=True)
    except ValueError:  # the shell will say so
        return []


def notices_of(script: Script, files: ScriptFiles, varying: Iterable[str], settings: Cell) -> Iterator[str]:
    """Variables that no file of the script mentions: perhaps misspelt."""
    if not {"steps", "peak_steps"} & used_placeholders(script, {}, []):
        yield "neither command nor env of the script has {steps}: it is taken to make as many by itself"
    named = {*script.env, *(k.removeprefix("env.") for k in (*varying, *settings) if k.startswith("env."))}
    texts = [
        _text(files.root / file.name) for file in files.files if file.link is None and file.size < 2_000_000
    ]
    text = "\n".join(texts)
    words = set(re.findall(r"[A-Za-z_][A-Za-z0-9_]*", text)) if named else set()
    variables = re.findall(r"environ(?:\.get)?[\[(]\s*['\"](\w+)['\"]|getenv\(\s*['\"](\w+)['\"]", text)
    for name in sorted(named - words):
        if name not in _WELL_KNOWN:
            hint = near_miss(name, [a or b for a, b in variables])
            yield f"no file of {script.workdir} mentions the variable {name}{hint}"


_WELL_KNOWN = frozenset(
    {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "PYTHONPATH", "PYTHONHASHSEED", "PATH", "TMPDIR", "HF_HOME"}
    | {"TORCH_LOGS", "TORCHINDUCTOR_CACHE_DIR", "CUBLAS_WORKSPACE_CONFIG", "CUDA_LAUNCH_BLOCKING"}
    | {
        "NCCL_DEBUG",
        "NCCL_IB_DISABLE",
        "NCCL_P2P_DISABLE",
        "PYTORCH_CUDA_ALLOC_CONF",
        "TOKENIZERS_PARALLELISM",
    }
)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):  # not source
        return ""
