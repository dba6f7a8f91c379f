"""Writes docs/api.md, the reference of public classes and functions, from signatures and docstrings.

python docs/api.py            after a change to a public signature or docstring
python docs/api.py --check    exit code 1 where api.md is stale

It reads the source and imports nothing.
"""

import argparse
import ast
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "api.md"
PACKAGES = {
    "gepa_core": "One job: model, data, optimizers, training, evaluation, int6, test-time training.",
    "sweeps": "Grids of jobs as a tree of shared segments, executed on Ray.",
    "analysis": "From tables of runs to laws, intervals, figures and a report.",
}
HEADER = """# API

Documented public classes and functions by module. Generated from the source: `python docs/api.py`.
"""
Node = ast.FunctionDef | ast.ClassDef


def render() -> str:
    """The whole of api.md."""
    parts = [HEADER]
    for package, what in PACKAGES.items():
        modules = [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in _files(package)]
        parts.append(f"## {package}\n\n{what}\n")
        parts += [section for path, tree in modules if (section := _module(path, tree))]
    return "\n".join(parts)


def _files(package: str) -> list[Path]:
    return sorted(path for path in (ROOT / package).rglob("*.py") if not path.name.startswith("__main__"))


def _module(path: Path, tree: ast.Module) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    entries = [_entry(node) for node in _public(tree.body)]
    if not entries:
        return ""
    about = _text(ast.get_docstring(tree)).partition("\n\n")[0]
    return "\n".join([f"### {name}\n", *([about + "\n"] if about else []), *entries])


def _public(body: list[ast.stmt]) -> Iterator[Node]:
    """Classes and functions that are meant for others: named without underscore, and documented."""
    for node in body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
            continue
        if ast.get_docstring(node):
            yield node


def _entry(node: Node) -> str:
    """Signature and docstring; of a class also its fields and its methods that have a docstring."""
    doc = _text(ast.get_docstring(node))
    if isinstance(node, ast.FunctionDef):
        return f"**`{_signature(node)}`**\n\n{doc}".rstrip() + "\n"
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    lines = [f"**`class {node.name}{f'({bases})' if bases else ''}`**\n"]
    lines += [doc + "\n"] if doc else []
    fields = list(_fields(node))
    methods = [(m, ast.get_docstring(m) or "") for m in _public(node.body) if isinstance(m, ast.FunctionDef)]
    items = [f"- `{field}`{f': {about}' if about else ''}" for field, about in fields]
    items += [f"- `.{_signature(m)}`: {_one_line(text)}" for m, text in methods]
    return "\n".join([*lines, *items]) + ("\n" if items else "")


def _fields(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """Annotated fields with the string that follows them, as dataclasses and models here document them."""
    for statement, after in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if statement.target.id.startswith("_") or statement.target.id == "model_config":
            continue
        about = ""
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            about = _one_line(str(after.value.value))
        value = f" = {ast.unparse(statement.value)}" if statement.value else ""
        yield f"{statement.target.id}: {ast.unparse(statement.annotation)}{value}", about


def _signature(node: ast.FunctionDef) -> str:
    returned = ast.unparse(node.returns) if node.returns else "None"
    returns = f" -> {returned}" if returned != "None" else ""
    if any(ast.unparse(decorator).endswith("property") for decorator in node.decorator_list):
        return node.name + returns
    arguments = re.sub(r"^(self|cls)(, )?", "", ast.unparse(node.args))
    return f"{node.name}({arguments}){returns}"


def _text(doc: str | None) -> str:
    """A docstring as Markdown: paragraphs and the indented blocks of arguments and errors."""
    if not doc:
        return ""
    text = inspect.cleandoc(doc)
    text = re.sub(
        r"^( {4,}\S.*)$",
        lambda m: f"- {m[1].strip()}" if ": " in m[1] else f"  {m[1].strip()}",
        text,
        flags=re.M,
    )
    return re.sub(r"^(Args|Raises|Returns):$", r"*\1*\n", text, flags=re.M)


def _one_line(text: str) -> str:
    return " ".join(text.partition("\n\n")[0].split())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python docs/api.py", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where it is stale")
    check = parser.parse_args(argv).check
    text = render()
    if check:
        stale = not TARGET.is_file() or TARGET.read_text(encoding="utf-8") != text
        if stale:
            print("docs/api.md is stale: run `python docs/api.py`", file=sys.stderr)
        return int(stale)
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
