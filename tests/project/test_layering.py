"""Who may know whom: each package is imported in a fresh process, and sys.modules tells."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
RAY = "sweeps.drive.ray_cluster"
"""The one file that imports Ray."""
ROOMS = {
    "gepa_core": {
        "": set(),
        "model": {""},
        "data": {""},
        "evaluation": {"", "model", "data"},
        "training": {"", "model", "data", "evaluation", "quantization"},
        "quantization": {"", "model"},
        "submission": {"", "model", "data", "evaluation", "training", "quantization"},
        "commands": {"", "model", "data", "evaluation", "training", "quantization", "submission"},
    },
    "sweeps": {
        "kinds": set(),
        "spec": {"kinds"},
        "store": {"kinds"},
        "plan": {"kinds", "spec", "store"},
        "work": {"kinds", "store"},
        "drive": {"kinds", "spec", "store", "plan", "work"},
        "exchange": {"kinds", "spec", "store", "plan"},
        "commands": {"kinds", "spec", "store", "plan", "drive", "exchange"},
    },
    "analysis": {
        "runs": set(),
        "laws": {"runs"},
        "forecast": {"runs", "laws"},
        "effects": {"runs"},
        "logs": {"runs"},
        "reach": {"runs"},
        "report": {"runs", "laws", "forecast", "effects", "reach"},
        "live": {"runs", "reach"},
        "face": {"runs", "reach", "laws", "forecast", "effects", "report"},
    },
}
"""Each room, and the rooms of its package that it may import; "" is the package's own files."""
DOORS = {"train", "evaluate", "ttt", "quantize", "__main__", "__init__"}
"""Files of a package's own that are commands or its face: they stand on top of its rooms."""


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
    loaded = loaded_by([name for name in modules_of("sweeps") if name != RAY])
    assert not loaded & {"ray", "torch", "analysis", "pandas"}
    assert "ray" in loaded_by([RAY])


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
    for path in (ROOT / "sweeps").rglob("*.py"):
        assert "ray" not in imported_in(path) or path.name == "ray_cluster.py", path


def test_planning_is_light() -> None:
    light = [
        "launch",
        "sweeps.commands.sweep",
        "sweeps.plan.planner",
        "sweeps.spec.sweep",
        "sweeps.spec.read",
        "sweeps.plan.show",
    ]
    assert not loaded_by(light) & {"ray", "torch", "pandas", "pyarrow", "numpy", "matplotlib"}


def test_what_scores_a_submission_stands_alone() -> None:
    """Model, evaluation and TTT need torch, numpy and sentencepiece: not even the configuration classes."""
    loaded = loaded_by(
        [
            "gepa_core.model.gepa",
            "gepa_core.evaluation.scoring",
            "gepa_core.evaluation.ttt",
            "gepa_core.quantization.rans",
        ]
    )
    assert not loaded & {"pydantic", "yaml", "rich", "pyarrow", "safetensors"}


def imports_of(path: Path) -> set[str]:
    """Modules of the project that a file imports, by whole name, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ROOMS:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if _file(inner).exists() else node.module)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names if alias.name.split(".")[0] in ROOMS)
    return found


def _file(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def room_of(module: str) -> str:
    """The second part of a module's name where that is a folder, else ""."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and ROOT.joinpath(*parts[:2]).is_dir() else ""


def test_every_room_is_known_and_stays_small() -> None:
    for package, rooms in ROOMS.items():
        folders = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
        assert folders == rooms.keys() - {""}, package
        for room in folders:
            files = [p for p in (ROOT / package / room).glob("*.py") if not p.name.startswith("__")]
            assert len(files) <= 14, (package, room, len(files))


def test_arrows_between_rooms_run_one_way() -> None:
    for package, rooms in ROOMS.items():
        for path in (ROOT / package).rglob("*.py"):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            if path.parent == ROOT / package and path.stem in DOORS:
                continue
            here = room_of(module)
            for other in imports_of(path):
                if other.split(".")[0] == package and other != package:
                    there = room_of(other)
                    assert there == here or there in rooms[here], f"{module} imports {other}"


def test_no_circle_between_files() -> None:
    files = {path for package in ROOMS for path in (ROOT / package).rglob("*.py")}
    arrows = {path: {_file(module) for module in imports_of(path)} & files - {path} for path in files}
    while free := {path for path, others in arrows.items() if not others & arrows.keys()}:
        arrows = {path: others for path, others in arrows.items() if path not in free}
    assert not arrows, "files that import each other: " + ", ".join(sorted(map(str, arrows)))
