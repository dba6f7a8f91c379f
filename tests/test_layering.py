"""Who may know whom: each package is imported in a fresh process, and sys.modules tells."""

import ast
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


def imported_in(path: Path) -> set[str]:
    """Top-level packages that a file imports anywhere, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def test_no_room_imports_another_it_may_not_know_even_later() -> None:
    forbidden = {
        "gepa_core": {"ray", "pandas", "sweeps", "analysis", "launch"},
        "analysis": {"torch", "ray", "gepa_core", "sweeps", "launch"},
        "sweeps": {"analysis", "launch"},
    }
    for package, names in forbidden.items():
        for path in (ROOT / package).rglob("*.py"):
            assert not imported_in(path) & names, path
    for path in (ROOT / "sweeps").glob("*.py"):
        assert "ray" not in imported_in(path) or path.name == "cluster.py", path


def test_planning_is_light() -> None:
    light = ["launch", "sweeps.command", "sweeps.plan", "sweeps.spec", "sweeps.read", "sweeps.show"]
    assert not loaded_by(light) & {"ray", "torch", "pandas", "pyarrow", "numpy", "matplotlib"}


def test_what_scores_a_submission_stands_alone() -> None:
    """Model, evaluation and TTT need torch, numpy and sentencepiece: not even the configuration classes."""
    loaded = loaded_by(["gepa_core.model", "gepa_core.evaluate", "gepa_core.ttt", "gepa_core.coder"])
    assert not loaded & {"pydantic", "yaml", "rich", "pyarrow", "safetensors"}
