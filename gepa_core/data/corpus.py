"""Where text comes from: files of documents, and the docstrings of what is installed anyway."""

import ast
import hashlib
import importlib.util
import sysconfig
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

import zstandard

from gepa_core.bounded import parse_json
from gepa_core.data.parallel import ordered_map
from gepa_core.errors import DataError

DOCSTRING_PACKAGES = ("numpy", "scipy", "pandas", "matplotlib")
DOCSTRING_VAL_FRACTION = 0.05
_NOT_PROSE = {"site-packages", "dist-packages", "test", "tests", "__pycache__", "_vendor", "lib2to3"}
_FILES_PER_TASK = 32
TXT_CHARS = 32_768
MAX_LINE_BYTES = 64 << 20
"""Of a document in .jsonl."""
_ZST_BYTES = 1 << 12  # read at a time: a frame of zeros unpacks to thirty thousand times its size


def read_documents(path: str | Path, text_key: str = "text") -> Iterator[str]:
    """Documents in file order: `text_key` of each row of .jsonl, .jsonl.zst or .parquet; of a .txt, pieces of
    TXT_CHARS characters up to the next line end, so that a large one streams and can be split.

    Lone surrogates, which UTF-8 cannot hold, become "?"; blank documents are dropped.
    Raises DataError naming file and line.
    """
    path = Path(path)
    reader = _reader(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        for text in reader(path, text_key):
            if text and not text.isspace():
                yield text if text.isascii() else text.encode("utf-8", "replace").decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason})") from error
    except (OSError, zstandard.ZstdError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _reader(path: Path) -> Callable[[Path, str], Iterator[str]]:
    readers = {".txt": _txt, ".jsonl": _jsonl, ".jsonl.zst": _jsonl_zst, ".parquet": _parquet}
    for ending, reader in readers.items():
        if path.name.endswith(ending):
            return reader
    raise DataError(f"{path}: unknown kind of text; expected {', '.join(readers)}")


def _txt(path: Path, _: str) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        while piece := file.read(TXT_CHARS):
            yield piece + file.readline(TXT_CHARS)


def _jsonl(path: Path, key: str) -> Iterator[str]:
    with path.open("rb") as file:
        lines = iter(lambda: file.readline(MAX_LINE_BYTES + 1), b"")
        yield from _json_lines(lines, path, key)


def _jsonl_zst(path: Path, key: str) -> Iterator[str]:
    with path.open("rb") as file:
        yield from _json_lines(_zst_lines(file, path), path, key)


def _zst_lines(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """Lines of one or more frames. The library's own reader takes a truncated frame for its end."""
    frame, rest = None, b""
    while data := file.read(_ZST_BYTES):
        while data:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            *lines, rest = (rest + frame.decompress(data)).split(b"\n")
            yield from lines
            if len(rest) > MAX_LINE_BYTES:
                yield rest  # which its reader refuses
            data = frame.unused_data
            frame = None if frame.eof else frame
    if frame is not None:
        raise DataError(f"{path}: truncated zstd archive")
    yield rest


def _json_lines(lines: Iterable[bytes], path: Path, key: str) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_LINE_BYTES:
            raise DataError(f"{path}, line {number}: over {MAX_LINE_BYTES:,} bytes; split the document")
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error}); truncated or damaged") from error
        text = row.get(key) if isinstance(row, dict) else None
        if not isinstance(text, str):
            found = f"it has {', '.join(row)}" if isinstance(row, dict) else f"it is a {type(row).__name__}"
            raise DataError(f"{path}, line {number}: no text under {key!r} ({found}); see --text-key")
        yield text


def _parquet(path: Path, key: str) -> Iterator[str]:
    import pyarrow as pa  # heavy, and only needed here
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            if key not in file.schema_arrow.names:
                columns = ", ".join(file.schema_arrow.names)
                raise DataError(f"{path}: no column {key!r} (it has {columns}); see --text-key")
            for batch in file.iter_batches(batch_size=1024, columns=[key]):
                for text in batch.column(0).to_pylist():
                    if not isinstance(text, str | None):
                        raise DataError(f"{path}: column {key!r} holds {type(text).__name__}, not text")
                    yield text or ""
    except pa.ArrowException as error:
        raise DataError(f"{path}: not a Parquet file, or damaged ({error})") from error


def docstring_documents(workers: int = 1) -> tuple[list[str], list[str]]:
    """(train, val): English technical prose without a download, about 12 MB.

    A document is the docstrings of one module of the standard library or of DOCSTRING_PACKAGES. Sources are
    parsed, never imported. Modules are ordered by a hash of their name; the first of them, 5 % of the text,
    are validation. A docstring that occurs twice is kept once, so none of validation is in train.
    """
    modules = sorted(_module_files())
    tasks = (modules[i : i + _FILES_PER_TASK] for i in range(0, len(modules), _FILES_PER_TASK))
    found = [entry for part in ordered_map(_extract, tasks, workers) for entry in part]
    if not any(texts for _, texts in found):
        raise DataError("no docstrings found: the standard library's sources are not installed")
    seen: set[str] = set()
    documents: list[str] = []
    for _, texts in sorted(found, key=lambda entry: unit_hash(entry[0])):
        fresh = [text for text in dict.fromkeys(texts) if text not in seen]
        seen.update(fresh)
        if fresh:
            documents.append("\n\n".join(fresh))
    ends = list(accumulate(len(text) for text in documents))
    cut = bisect_left(ends, DOCSTRING_VAL_FRACTION * ends[-1]) + 1
    return documents[cut:], documents[:cut]


def unit_hash(text: str) -> float:
    """A number in [0, 1) that depends on the text alone, not on the process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest()) / 2**48


def _module_files() -> Iterator[tuple[str, Path]]:
    roots = {"": Path(sysconfig.get_path("stdlib"))}
    for package in DOCSTRING_PACKAGES:
        spec = importlib.util.find_spec(package)  # of a top-level name: finds without importing
        if spec is None or spec.origin is None:
            raise DataError(f"the docstring corpus needs {package} installed: pip install {package}")
        roots[package] = Path(spec.origin).parent
    for package, root in roots.items():
        for path in root.rglob("*.py"):
            parts = (*path.relative_to(root).parts[:-1], path.stem)
            if not _NOT_PROSE.intersection(parts):
                yield ".".join((package, *parts)), path


def _extract(modules: list[tuple[str, Path]]) -> list[tuple[str, list[str]]]:
    return [(name, docstrings(path.read_bytes())) for name, path in modules]


def docstrings(source: bytes) -> list[str]:
    """Docstrings of Python source in textual order, spaces in a line squeezed; [] if it does not parse."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes are the source's business
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return []
    found = []
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node) or ""
            lines = (" ".join(line.split()) for line in text.splitlines())
            prose = "\n".join(lines).strip().encode("utf-8", "replace").decode()
            if prose:
                found.append(prose)
        # Only statements can hold definitions; expressions, most of a tree, are passed over.
        children = [c for c in ast.iter_child_nodes(node) if isinstance(c, ast.stmt | ast.ExceptHandler)]
        stack.extend(reversed(children))
    return found
