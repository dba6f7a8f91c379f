"""A log's bytes as clean, numbered lines: of any encoding, without colours, prefixes and printed source."""

from __future__ import annotations

import codecs
import gzip
import re
import zlib
from bisect import bisect
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from analysis.logs.reading import languages, numbers
from analysis.logs.reading.blocks import under_headings, with_tables
from analysis.logs.reading.keyed import as_records, message, source, worded
from analysis.logs.reading.prefix import common_prefix, unprefixed
from analysis.logs.reading.streams import MAIN, files_of, stream_tags
from analysis.logs.reading.tables import as_table
from analysis.logs.reading.wording import usual
from analysis.runs.errors import AnalysisError

LIMIT = 512 * 2**20
"""A log is at most this long, in bytes; gzip counts unpacked."""
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\))")
_BREAKS = re.compile(r"\r|(?<=it/s\]|s/it\])(?=\{['\"])")  # a record is printed behind a bar
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f\ufffd]")
_BINARY = 0.05  # more control characters than that are no text
_CODE = re.compile(
    r"(?:import \w|from [\w.]+ import |class \w+.*:|def \w+\(|#!|[rb]?(?:\"\"\"|''')|@\w)"
    r"|\s+(?:return\b|(?:if|for|while|with|elif|except)\b.*:\s*$|(?:else|try):\s*$)"
)
_RAN = re.compile(r"Running (?:Python|PyTorch|MLX) ")
_STEP = re.compile(r"(?:step\W{0,2})?\d+/\d+\W+(?:val|train)_loss")
_STARTED = re.compile(
    r"(?:val_bpb:enabled|(?:train|val)_loader:|model_params:\s*\d|Hyperparameters:|seed:\s*\d)"
)


_WRAPPED = re.compile(
    r"(?:np\.float\d+|(?:torch\.)?tensor|(?:jnp\.|np\.)?[aA]rray)\(\[?([-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|nan|inf))\]?(?:,[^()]*)?\)"
)
_LAST_NUMBER = re.compile(r"(?<![\w.])([a-z_]+\W{1,2})\d+\.(\d*)\Z", re.IGNORECASE)
_TAIL = 100_000


class Line(NamedTuple):
    """One line of a log: its number in the file, from 1, and its text without prefixes."""

    number: int
    text: str
    source: bool = False  # of the script, not of its run
    stream: str = ""  # the run that printed it, where several wrote one file at the same time


def read_lines(path: Path) -> list[Line]:
    """Lines of a log, without colours, timestamps, the lines of other ranks, and the script's source.

    Raises:
        AnalysisError: the file is missing, too long, or not text.
    """
    text = _uncut(_plain_numbers(languages.in_english(_decoded(_content(path), path))))
    try:
        rows = as_table(text, path.name) or as_records(text)
    except AnalysisError as error:
        raise AnalysisError(f"{path}: {error}") from None
    if rows is not None:
        return [Line(number, row) for number, row in enumerate(rows, start=1)]
    text = numbers.in_english(text)
    lines = _in_streams([each for line in _whole(list(_clean(text))) for each in _records(line)])
    if pattern := common_prefix(line.text for line in lines):
        lines = [line._replace(text=pattern.sub("", line.text, count=1)) for line in lines]
    for joined in (with_tables, under_headings):
        lines = [_saying(lines[i], said) for i, said in joined([line.text for line in lines])]
    return without_source([_saying(line, usual(worded(line.text))) for line in lines])


def _saying(line: Line, text: str) -> Line:
    return line if text is line.text else line._replace(text=text)


def _plain_numbers(text: str) -> str:
    """`tensor(2.1, device='cuda:0')` and `np.float64(2.1)` as 2.1, and a quoted text without its marks."""
    if any(call in text for call in ("tensor(", "np.float", "rray(")):
        text = _WRAPPED.sub(r"\1", text)
    lines = text.split("\n")
    if all(line.startswith(">") for line in lines if line.strip()):
        text = "\n".join(line[1:].removeprefix(" ") for line in lines)
    return text


def _uncut(text: str) -> str:
    """The text without a last number that was cut: no line's end after it, and fewer decimals than it has
    everywhere before."""
    last = _LAST_NUMBER.search(text)
    if last is None:
        return text
    before = re.findall(rf"(?<![\w.]){re.escape(last[1])}\d+\.(\d+)", text[: last.start()][-_TAIL:])
    if before and min(map(len, before)) > len(last[2]):
        return text[: last.start()]
    return text


def _whole(lines: list[Line]) -> Iterator[Line]:
    """The same with a record that was printed over many lines, from `{` to `}`, as one."""
    closing = [i for i, line in enumerate(lines) if line.text == "}"]
    at = 0
    while at < len(lines):
        if lines[at].text == "{" and (next_one := bisect(closing, at)) < len(closing):
            end = closing[next_one] + 1
            yield lines[at]._replace(text=" ".join(line.text.strip() for line in lines[at:end]))
            at = end
            continue
        yield lines[at]
        at += 1


def _records(line: Line) -> list[Line]:
    """The line, or those of the records in it, where it is a whole history in one."""
    if line.text.startswith("{") and "[" in line.text and (rows := as_records(line.text)) is not None:
        return [line._replace(text=row) for row in rows]
    return [line]


def _in_streams(lines: list[Line]) -> list[Line]:
    """The same lines, each with its stream, where there are several."""
    if (files := files_of([line.text for line in lines])) is not None:
        several = len({file for file, _ in files} - {""}) > 1
        return [
            line._replace(text=text, stream=file if several else "")
            for line, (file, text) in zip(lines, files, strict=True)
        ]
    if tags := stream_tags([line.text for line in lines]):
        streamed = []
        for line in lines:
            tag = next((tag for tag in tags if line.text.startswith(tag)), None)
            name = "" if tag is None or tags[tag].lower() in MAIN else tags[tag]
            streamed.append(line._replace(text=line.text[len(tag or "") :], stream=name))
        return streamed
    sources = [source(line.text) for line in lines]
    if len({name for name in sources if name}) > 1:
        names = ["" if name.lower() in MAIN else name for name in sources]
        return [line._replace(stream=name) for line, name in zip(lines, names, strict=True)]
    return lines


def _content(path: Path) -> bytes:
    if path.exists() and not path.is_file() and not path.is_dir():
        raise AnalysisError(f"{path}: not a regular file")
    try:
        with path.open("rb") as file:
            content = file.read(LIMIT + 1)
        if content[:2] == b"\x1f\x8b":
            content = _unpacked(path)
    except FileNotFoundError:
        raise AnalysisError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise AnalysisError(f"{path}: a folder, not a log") from None
    except OSError as error:
        raise AnalysisError(f"{path}: not readable ({error.strerror or error})") from None
    if len(content) > LIMIT:
        raise AnalysisError(f"{path}: longer than {LIMIT >> 20} MiB; cut it to the lines of one run")
    return content


def _unpacked(path: Path) -> bytes:
    """What can be unpacked: of a file cut short, the lines before the cut."""
    engine = zlib.decompressobj(wbits=31)
    try:
        content = engine.decompress(path.read_bytes(), LIMIT + 1)
    except zlib.error as error:
        try:
            with gzip.open(path) as file:
                return file.read(LIMIT + 1)
        except (OSError, EOFError, zlib.error):
            raise AnalysisError(f"{path}: damaged gzip ({error})") from None
    return content


def _decoded(content: bytes, path: Path) -> str:
    content = content.rstrip(b"\0") if not content[-2:-1].isspace() else content
    encoding = next((name for bom, name in _BOMS if content.startswith(bom)), None)
    if encoding is None:
        sample = content[:4096]
        odd, even = sample[1::2].count(0), sample[::2].count(0)
        if min(odd, even) == 0 and max(odd, even) > len(sample) // 3:
            encoding = "utf-16-le" if odd else "utf-16-be"
    if encoding is None:
        # What a crash or a full disk leaves in a file that was being written.
        content = content.replace(b"\0", b"") if content.count(0) * 4 < len(content) else content
        encoding = "utf-8"
    text = content.decode(encoding, errors="replace")
    if "\x1b" in text:
        text = _ANSI.sub("", text)
    if len(_CONTROL.findall(text[: 1 << 20])) > _BINARY * min(len(text), 1 << 20):
        raise AnalysisError(f"{path}: not a text file")
    return text


def _clean(text: str) -> Iterator[Line]:
    for number, whole in enumerate(text.split("\n"), start=1):
        for part in _BREAKS.split(whole):
            if part.startswith("{") and (wrapped := message(part)) is not None:
                part = wrapped.rstrip("\n")
            stripped = unprefixed(part)
            if stripped:
                yield Line(number, stripped)


def without_source(lines: list[Line]) -> list[Line]:
    """The same without scripts that print themselves before they run: what their text says is no figure.

    Their lines on the warmdown are kept, and marked.
    """
    kept: list[Line] = []
    at = 0
    while (span := _source(lines, at)) is not None:
        start, end = span
        kept += lines[at:start]
        kept += [line._replace(source=True) for line in lines[start:end] if "warmdown" in line.text.lower()]
        at = end
    return kept + lines[at:]


def _source(lines: list[Line], at: int) -> tuple[int, int] | None:
    """The next stretch of source from line `at` on: [first line, line after the last)."""
    ran = next((i for i in range(at, len(lines)) if _RAN.match(lines[i].text)), None)
    if ran is not None:
        first = _first_code(lines, at, ran)
        return (ran, ran + 1) if first is None else (first, ran + 1)
    imports = [i for i in range(at, len(lines)) if lines[i].text.startswith(("import ", "from "))]
    imports = [i for i in imports if _CODE.match(lines[i].text)]
    if len(imports) < 3:
        return None
    first = imports[0]
    step = next((i for i in range(first, len(lines)) if _STEP.match(lines[i].text)), len(lines))
    last = max(i for i in range(first, step) if _CODE.match(lines[i].text))
    return first, last + 1


def _first_code(lines: list[Line], at: int, ran: int) -> int | None:
    """Where the source that ends at `ran` begins: after the run before it, if there is one."""
    code = [i for i in range(at, ran) if _CODE.match(lines[i].text)]
    if not code:
        return None
    started = next((i for i in range(at, ran) if _STARTED.match(lines[i].text)), ran)
    if code[0] < started:
        return code[0]
    steps = [i for i in range(at, ran) if _STEP.match(lines[i].text)]
    return next((i for i in code if not steps or i > steps[-1]), None)
