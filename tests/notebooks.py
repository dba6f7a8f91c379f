"""Runs a notebook's code in this process, as Jupyter would, and keeps what it shows: no Jupyter is needed.

python -m tests.notebooks docs/examples/quickstart.ipynb [FOLDER]: executes it in FOLDER, writes its outputs.
"""

import ast
import base64
import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any


def execute(notebook: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The notebook with the outputs that its cells give in `folder`. Raises what a cell raises."""
    here, names = Path.cwd(), {"__name__": "__main__"}
    os.chdir(folder)
    try:
        cells = [c for c in notebook["cells"] if c["cell_type"] == "code"]
        for count, cell in enumerate(cells, 1):
            cell["execution_count"] = count
            cell["outputs"] = list(_run("".join(cell["source"]), names, count))
    finally:
        os.chdir(here)
    return notebook


def _run(source: str, names: dict[str, Any], count: int) -> Any:
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "<cell>", "exec"), names)
        value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), names) if last else None
    if text := printed.getvalue():
        yield {"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)}
    if value is not None:
        data = {"text/plain": _lines(repr(value))}
        if hasattr(value, "savefig"):
            image = io.BytesIO()
            value.savefig(image, format="png", dpi=110, metadata={"Software": None})
            data["image/png"] = base64.b64encode(image.getvalue()).decode()
        elif hasattr(value, "to_html"):
            data["text/html"] = _lines(value.to_html())
        yield {"output_type": "execute_result", "execution_count": count, "metadata": {}, "data": data}


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def main(argv: list[str]) -> int:
    path = Path(argv[0]).resolve()
    folder = Path(argv[1]) if len(argv) > 1 else Path()
    made = execute(json.loads(path.read_text(encoding="utf-8")), folder)
    path.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
