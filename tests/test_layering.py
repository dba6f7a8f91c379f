"""Who may know whom: each package is imported in a fresh process, and sys.modules tells."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def modules_of(package: str) -> list[str]:
    """Every module of a package, by its files; __main__ files run when they are imported."""
    paths = sorted((ROOT / package).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]


def loaded_by(modules: list[str]) -> set[str]:
    """Top-level packages in sys.modules after importing them all in one fresh process."""
    code = "import importlib, sys\n" + "".join(f"importlib.import_module({name!r})\n" for name in modules)
    code += "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_gepa_core_knows_neither_ray_nor_results() -> None:
    loaded = loaded_by(modules_of("gepa_core"))
    assert not loaded & {"ray", "pandas", "sweeps", "analysis"}


def test_analysis_reads_files_only() -> None:
    loaded = loaded_by(modules_of("analysis"))
    assert not loaded & {"torch", "ray", "gepa_core", "sweeps"}


def test_sweeps_imports_ray_in_one_file_and_torch_nowhere() -> None:
    loaded = loaded_by([name for name in modules_of("sweeps") if name != "sweeps.cluster"])
    assert not loaded & {"ray", "torch", "analysis", "pandas"}
    assert "ray" in loaded_by(["sweeps.cluster"])


def test_only_cluster_mentions_ray_imports() -> None:
    for path in (ROOT / "sweeps").glob("*.py"):
        lines = path.read_text(encoding="utf-8").splitlines()
        imports = [line for line in lines if line.strip().startswith(("import ray", "from ray"))]
        assert not imports or path.name == "cluster.py", path


def test_planning_is_light() -> None:
    light = ["launch", "sweeps.command", "sweeps.plan", "sweeps.spec", "sweeps.read", "sweeps.show"]
    assert not loaded_by(light) & {"ray", "torch", "pandas", "pyarrow", "numpy", "matplotlib"}


def test_what_scores_a_submission_stands_alone() -> None:
    """Model, evaluation and TTT need torch, numpy and sentencepiece: not even the configuration classes."""
    loaded = loaded_by(["gepa_core.model", "gepa_core.evaluate", "gepa_core.ttt", "gepa_core.coder"])
    assert not loaded & {"pydantic", "yaml", "rich", "pyarrow", "safetensors"}
