"""Text of one's own: which files are meant, how they become documents, and whether these can be split.

A row of .jsonl, .jsonl.zst or .parquet is a document. A text file (.txt and the like, or no ending) is cut
where `split_on` stands; without one, a file is a document, and a long one is cut at line ends.
"""

import codecs
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from gepa_core.data.corpus import TXT_CHARS, read_documents, unit_hash
from gepa_core.errors import DataError

ROWS = (".jsonl", ".jsonl.zst", ".parquet")
PLAIN = (".txt", ".text", ".md", ".markdown", ".rst", ".tex")
FEW_DOCUMENTS = 20
"""Fewer are a handful: the score then depends on which they happen to be."""
_PACKED = {".gz": "gunzip", ".zip": "unzip", ".bz2": "bunzip2", ".xz": "unxz", ".zst": "unzstd"}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """Files of text, in the order in which they are read."""

    files: tuple[Path, ...]
    text_key: str = "text"
    split_on: str | None = None

    def documents(self) -> Iterator[str]:
        """Every document that is not blank. Raises DataError naming the file at fault."""
        return chain.from_iterable(self._documents(path) for path in self.files)

    def _documents(self, path: Path) -> Iterator[str]:
        if path.name.lower().endswith(ROWS):
            yield from read_documents(path, self.text_key)
            return
        pieces = plain_text(path)
        for text in pieces if self.split_on is None else _cut(pieces, self.split_on):
            if not text.isspace() and text:
                yield text


def find_texts(inputs: Iterable[Path], text_key: str, split_on: str | None, say: Say) -> Source:
    """The files that are meant: those named, and of a folder all that hold text, in order of their paths.

    `say` hears what of a folder is passed over. Raises DataError where an input cannot be read as text.
    """
    if split_on == "":
        raise DataError("--split-on is empty: give the text that stands between documents, e.g. $'\\n\\n'")
    files: list[Path] = []
    for path in inputs:
        files += _folder(path, say) if path.is_dir() else [_file(path)]
    return Source(tuple(files), text_key, split_on)


def _file(path: Path) -> Path:
    if not path.is_file():
        what = "is neither a file nor a folder" if path.exists() else "no such file or folder"
        raise DataError(f"{path}: {what}")
    if path.suffix.lower() in _PACKED and not path.name.endswith(ROWS):
        raise DataError(f"{path}: is compressed; unpack it first: {_PACKED[path.suffix.lower()]} {path}")
    if not _is_text(path):
        raise DataError(
            f"{path}: unknown kind of text; expected {', '.join((*PLAIN, *ROWS))}, a file without an ending, "
            "or a folder of such files"
        )
    return path


def _folder(folder: Path, say: Say) -> list[Path]:
    inside = sorted(path for path in folder.rglob("*") if path.is_file() and not _hidden(path, folder))
    texts = [path for path in inside if _is_text(path)]
    if not texts:
        raise DataError(
            f"{folder}: no text in this folder; expected files that end in {', '.join((*PLAIN, *ROWS))}"
        )
    if others := Counter(path.suffix for path in inside if not _is_text(path)):
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
        say(f"{folder}: {len(texts)} files of text; passed over: {kinds}")
    return texts


def _is_text(path: Path) -> bool:
    return not path.suffix or path.name.lower().endswith((*PLAIN, *ROWS))


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith((".", "__")) for part in path.relative_to(folder).parts)


def _has_utf16_mark(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def plain_text(path: Path) -> Iterator[str]:
    """A text file as it is, in pieces of TXT_CHARS characters up to the next line end, so that a large one
    streams and can be split. Raises DataError: it is not UTF-8 text."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            while piece := file.read(TXT_CHARS):
                if "\0" in piece:
                    raise DataError(
                        f"{path}: holds NUL bytes; a binary file, or UTF-16: iconv -f utf-16 -t utf-8"
                    )
                yield piece + file.readline(TXT_CHARS)
    except UnicodeDecodeError as error:
        encoding = "utf-16" if _has_utf16_mark(path) else "latin1"
        raise DataError(
            f"{path}: not UTF-8 text ({error.reason}); convert it first, as by iconv -f {encoding} -t utf-8"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _cut(pieces: Iterable[str], separator: str) -> Iterator[str]:
    """The text between separators; a separator may lie across two pieces."""
    rest = ""
    for piece in pieces:
        *whole, rest = (rest + piece).split(separator)
        yield from whole
    yield rest


@dataclass
class Split:
    """Documents and bytes of text in a part of the data."""

    documents: int = 0
    bytes: int = 0

    def add(self, text: str) -> None:
        self.documents += 1
        self.bytes += len(text.encode())

    def __str__(self) -> str:
        plural = "s" * (self.documents != 1)
        return f"{self.documents:,} document{plural}, {self.bytes / 1e6:.3g} MB"


def survey(source: Source, held_out: Source | None, val_fraction: float, say: Say) -> tuple[Split, Split]:
    """(train, val) as they will be, from one reading of everything: what is wrong is said before any work.

    Raises DataError where a file cannot be read, or a part would be empty.
    """
    train, val = Split(), Split()
    seen: set[float] = set()
    for text in held_out.documents() if held_out else ():
        val.add(text)
        seen.add(unit_hash(text))
    repeated = 0
    for text in source.documents():
        share = unit_hash(text)
        (val if not held_out and share < val_fraction else train).add(text)
        repeated += share in seen
    total = train.documents + val.documents
    if not train.documents:
        why = f"all {total} documents fall into validation; make --val-fraction smaller"
        raise DataError("the train split is empty: " + (why if total else "no document has any text"))
    if not val.documents:
        raise DataError("the val split is empty: " + _why_empty(total, held_out is not None, val_fraction))
    say(f"train: {train}; validation: {val}")
    if val.documents < FEW_DOCUMENTS:
        say(
            f"warning: validation is a handful of documents ({val.documents}), and its score says little of "
            "other text; "
            + (
                "give --val more of them"
                if held_out
                else f"raise --val-fraction {val_fraction:g}, give --val"
            )
            + " or cut the text into more documents with --split-on"
        )
    if repeated:
        say(f"warning: {repeated} documents of the training text are in validation too: a flattered score")
    return train, val


def _why_empty(total: int, given: bool, val_fraction: float) -> str:
    if given:
        return "no document of --val has any text"
    plural = "s" * (total != 1)
    return (
        f"of {total} document{plural} none falls into a share of {val_fraction:g}; give --val FILE, "
        "a larger --val-fraction, or cut the text into more documents with --split-on"
    )
