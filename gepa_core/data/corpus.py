"""Where text comes from: files of documents, and the docstrings of what is installed anyway."""

import ast
import hashlib
import importlib.util
import re
import sysconfig
import warnings
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, chain
from pathlib import Path
from typing import BinaryIO

import zstandard

from gepa_core.bounded import parse_json
from gepa_core.data.parallel import ordered_map
from gepa_core.errors import DataError

DOCSTRING_PACKAGES = ("numpy", "scipy", "pandas", "matplotlib")
DOCSTRING_VAL_FRACTION = 0.05
DOCSTRING_MIN_CHARS, DOCSTRING_MAX_CHARS = 500_000, 4_000_000
"""Below, there is not enough to train on; above, no quickstart reads on."""
DOCUMENT_CHARS = 2000
_SHINGLE, _MAX_SEEN = 5, 0.5
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
            raise DataError(f"{path}, line {number}: {_what_stands_there(row, key)}")
        yield text


def _what_stands_there(row: object, key: str) -> str:
    """Why a row has no text, and what to do."""
    if isinstance(row, dict) and key in row:
        kind = "null" if row[key] is None else f"a {type(row[key]).__name__}"
        return f"{key!r} is {kind}, not text; leave such rows out"
    found = f"it has {', '.join(row)}" if isinstance(row, dict) else f"it is a {type(row).__name__}"
    return f"no text under {key!r} ({found}); see --text-key"


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
    """(train, val): English technical prose without a download, about 4 MB.

    A document is a docstring of the standard library or of DOCSTRING_PACKAGES, a long one in pieces. Sources
    are parsed, never imported. Modules are taken in the order of a hash of their name: the first of them, 5 %
    of the text, are validation. A document that is largely in those before it is left out, so none of
    validation is in train. Either split is then shuffled, by a hash of each text. Raises DataError where less
    than DOCSTRING_MIN_CHARS is found.
    """
    modules = sorted(_module_files(), key=lambda module: unit_hash(module[0]))
    tasks = (modules[i : i + _FILES_PER_TASK] for i in range(0, len(modules), _FILES_PER_TASK))
    seen: set[int] = set()
    kept: list[list[str]] = []
    chars = 0
    for part in ordered_map(_extract, tasks, workers):
        for documents in part:
            kept.append([text for text, shingles in documents if _is_new(shingles, seen)])
            chars += sum(map(len, kept[-1]))
        if chars >= DOCSTRING_MAX_CHARS:
            break
    if chars < DOCSTRING_MIN_CHARS:
        raise DataError(
            f"only {chars / 1e6:.1f} MB of docstrings are installed, and the corpus needs "
            f"{DOCSTRING_MIN_CHARS / 1e6:.1f}: are the sources of Python's standard library there? "
            f"`pip install {' '.join(DOCSTRING_PACKAGES)}` has more, and data.dir takes any prepared text"
        )
    ends = list(accumulate(sum(map(len, texts)) for texts in kept))
    cut = bisect_left(ends, DOCSTRING_VAL_FRACTION * chars) + 1
    train, val = (sorted(chain.from_iterable(part), key=unit_hash) for part in (kept[cut:], kept[:cut]))
    return train, val


def _is_new(shingles: set[int], seen: set[int]) -> bool:
    """Whether most of a document is not in those before it; then it is added to them."""
    if len(shingles & seen) > _MAX_SEEN * len(shingles):
        return False
    seen |= shingles
    return True


def shingles(text: str) -> set[int]:
    """Hashes of every run of _SHINGLE words, by which near-copies are known; only letters and digits count.

    Broder, "On the resemblance and containment of documents", 1997.
    """
    words = re.findall(r"\w+", text.lower())
    runs = (words[i : i + _SHINGLE] for i in range(max(1, len(words) - _SHINGLE + 1)))
    return {zlib.crc32(" ".join(run).encode()) for run in runs}


def pieces(text: str) -> Iterator[str]:
    """A text in parts of at most DOCUMENT_CHARS, cut between paragraphs, else lines, else anywhere."""
    while len(text) > DOCUMENT_CHARS:
        ends = (text.rfind(gap, 1, DOCUMENT_CHARS) for gap in ("\n\n", "\n"))
        end = next((end for end in ends if end > 0), DOCUMENT_CHARS)
        yield text[:end]
        text = text[end:].strip()
    if text:
        yield text


def unit_hash(text: str) -> float:
    """A number in [0, 1) that depends on the text alone, not on the process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest()) / 2**48


def _module_files() -> Iterator[tuple[str, Path]]:
    """(dotted name, file) of what is installed of the standard library and of DOCSTRING_PACKAGES."""
    roots = {"": Path(sysconfig.get_path("stdlib"))}
    for package in DOCSTRING_PACKAGES:
        spec = importlib.util.find_spec(package)  # of a top-level name: finds without importing
        if spec is not None and spec.origin is not None:
            roots[package] = Path(spec.origin).parent
    for package, root in roots.items():
        for path in root.rglob("*.py"):
            parts = (*path.relative_to(root).parts[:-1], path.stem)
            if not _NOT_PROSE.intersection(parts):
                yield ".".join((package, *parts)), path


def _extract(modules: list[tuple[str, Path]]) -> list[list[tuple[str, set[int]]]]:
    """Of each module its documents, with their shingles."""
    found = []
    for _, path in modules:
        try:
            texts = docstrings(path.read_bytes())
        except OSError:  # a broken link, or a file that only its owner may read
            texts = []
        found.append([(piece, shingles(piece)) for text in texts for piece in pieces(text)])
    return found


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
