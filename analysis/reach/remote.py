"""Results in an object store: read through pyarrow.fs into a folder of this machine, reports written back."""

from __future__ import annotations

import os
import shutil
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from analysis.runs.errors import AnalysisError

TABLES = ("runs.parquet", "plan.json", "sweep.json")
FOLDERS = ("trajectory", "blocks")
_CHUNK = 8 << 20


def is_url(source: str | Path) -> bool:
    return "://" in str(source)


class Copied:
    """The tables of a sweep in a store, in a folder that lives as long as this does."""

    def __init__(self, url: str) -> None:
        scratch = mkdtemp(prefix="gepa-report-")
        self._end = weakref.finalize(self, shutil.rmtree, scratch, ignore_errors=True)
        self.folder = Path(scratch, urlsplit(url).path.rstrip("/").rpartition("/")[2] or "sweep")
        _download(url, self.folder)

    def close(self) -> None:
        self._end()


def copy_of(url: str) -> Copied:
    """Raises AnalysisError: the URL cannot be read, or holds no sweep."""
    return Copied(url)


def below(url: str, name: str) -> str:
    """The URL of `name` in the folder that `url` is; options behind a question mark stay."""
    path, mark, query = url.partition("?")
    return f"{path.rstrip('/')}/{name}{mark}{query}"


@contextmanager
def at_hand(source: str | Path) -> Iterator[Path]:
    """The path itself, or a copy of a URL's tables, deleted in the end; artifacts are left where they are.

    Raises:
        AnalysisError: the URL cannot be read, or holds no sweep.
    """
    if not is_url(source):
        yield Path(source)
        return
    copied = copy_of(str(source))
    try:
        yield copied.folder
    finally:
        copied.close()


def _download(url: str, folder: Path) -> None:
    filesystem, root = _open(url)
    from pyarrow import fs

    folder.mkdir()
    try:
        found = filesystem.get_file_info([f"{root}/{name}" for name in TABLES])
        for name in FOLDERS:
            selector = fs.FileSelector(f"{root}/{name}", allow_not_found=True, recursive=True)
            found += [info for info in filesystem.get_file_info(selector) if info.is_file]
        for info in (info for info in found if info.is_file):
            target = folder / info.path[len(root) + 1 :]
            target.parent.mkdir(parents=True, exist_ok=True)
            with filesystem.open_input_stream(info.path) as read, target.open("wb") as write:
                shutil.copyfileobj(read, write, _CHUNK)
    except OSError as error:
        raise AnalysisError(f"{url}: cannot be read ({str(error).splitlines()[0]})") from None
    if not (folder / "runs.parquet").is_file():
        raise AnalysisError(f"{url}: has no runs.parquet; give the URL of one sweep (STORE/<sweep>)")


def upload(folder: Path, url: str) -> None:
    """Copies a folder's files below a URL.

    Raises:
        AnalysisError: it cannot be written.
    """
    filesystem, root = _open(url)
    try:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            target = f"{root}/{file.relative_to(folder).as_posix()}"
            with file.open("rb") as read, filesystem.open_output_stream(target) as write:
                shutil.copyfileobj(read, write, _CHUNK)
    except OSError as error:
        raise AnalysisError(f"{url}: cannot be written ({str(error).splitlines()[0]})") from None


def _open(url: str) -> tuple[Any, str]:
    """(pyarrow filesystem, root path). An S3 endpoint: AWS_ENDPOINT_URL or ?endpoint_override=."""
    import pyarrow as pa
    from pyarrow import fs

    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    if "@" in parts.netloc:
        raise AnalysisError(
            f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}: leave credentials out of the "
            "address, which ends up in logs; give them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if parts.scheme == "s3" and endpoint and "endpoint_override" not in query:
        scheme, _, host = endpoint.rpartition("://")
        query |= {"endpoint_override": host.rstrip("/"), "scheme": scheme or "https"}
    whole = urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), urlencode(query), ""))
    try:
        filesystem, root = fs.FileSystem.from_uri(whole)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise AnalysisError(f"cannot open {url}: {str(error).splitlines()[0]}") from None
    return filesystem, root.rstrip("/")
