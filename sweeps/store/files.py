"""A directory at a path or URL: whole-file reads and atomic writes, alike on a disk, NFS and object stores.

A file written here appears whole or not at all: on a disk it is written aside, synced and renamed; an
object store shows an object only when its upload is complete (there is no rename there, and none is used).
Storage that is away for a while is waited for, with growing pauses, up to `patience` seconds.
"""

import contextlib
import errno
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from gepa_core.errors import UserError

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 20.0
# Waiting does not mend these.
_PERMANENT = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR}
_PERMANENT |= {errno.ENOTEMPTY}  # somebody still writes there
_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE}
_PERMANENT_TEXT = ("ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH")
_CHUNK = 8 << 20
T = TypeVar("T")
TEMPORARY_SUFFIX = ".tmp"


class StorageError(UserError):
    """The store cannot be read or written."""


@dataclass(frozen=True)
class Entry:
    """A file or folder: its name in the listed folder (a path when listed recursively), size in bytes."""

    name: str
    size: int
    is_dir: bool
    modified: float | None


class Files:
    """Files below one root. Paths given to methods are relative to it, with "/" between parts."""

    def __init__(self, url: str | Path, patience: float = 300.0) -> None:
        """Raises StorageError where the URL's scheme is not known."""
        self.url = str(url)
        self.patience = patience
        self.local: Path | None = None
        self._fs: Any = None
        scheme = urlsplit(self.url).scheme
        if len(scheme) <= 1:  # a one-letter scheme would be a drive
            self.local = Path(self.url).expanduser().absolute()
        elif scheme == "file":
            self.local = Path(urlsplit(self.url).path)
        else:
            self._fs, self._root = _open_remote(self.url)

    def __repr__(self) -> str:
        return f"Files({self.url!r})"

    def __reduce__(self) -> tuple[type["Files"], tuple[str, float]]:
        return Files, (str(self.local or self.url), self.patience)

    def describe(self, path: str) -> str:
        """The full path or URL of `path`, for messages."""
        return str(self.local / path) if self.local else f"{self.url.split('?')[0].rstrip('/')}/{path}"

    def read(self, path: str) -> bytes | None:
        """The bytes of a file; None where there is none."""

        def attempt() -> bytes | None:
            try:
                if self.local:
                    return (self.local / path).read_bytes()
                with self._fs.open_input_stream(self._remote(path)) as stream:
                    data: bytes = stream.read()
                    return data
            except (FileNotFoundError, NotADirectoryError):
                return None

        return self._patiently(attempt, "read", path)

    def put(self, path: str, data: bytes) -> None:
        """Write a file whole, replacing any other."""

        def attempt() -> None:
            if not self.local:
                with self._fs.open_output_stream(self._remote(path)) as stream:
                    stream.write(data)
                return
            aside = self._write_aside(path, data)
            try:
                aside.replace(self.local / path)
            except OSError:
                aside.unlink(missing_ok=True)
                raise
            _sync_folder(aside.parent)

        self._patiently(attempt, "write", path)

    def put_new(self, path: str, data: bytes) -> bool:
        """Write a file only where there is none; False where there is one already.

        On a disk a hard link decides. pyarrow has no conditional put, so on an object store two writers
        within one round trip can both be told True; the last one's bytes stay.
        """

        def attempt() -> bool:
            if not self.local:
                if self.exists(path):
                    return False
                self.put(path, data)
                return self.read(path) == data
            aside = self._write_aside(path, data)
            try:
                os.link(aside, self.local / path)
            except FileExistsError:
                return False
            finally:
                aside.unlink(missing_ok=True)
            _sync_folder(aside.parent)
            return True

        return self._patiently(attempt, "write", path)

    def exists(self, path: str) -> bool:
        return self.size(path) is not None

    def size(self, path: str) -> int | None:
        """Bytes of a file; None where there is none."""

        def attempt() -> int | None:
            if self.local:
                target = self.local / path
                return target.stat().st_size if target.is_file() else None
            info = self._fs.get_file_info(self._remote(path))
            size: int | None = info.size if info.is_file else None
            return size

        return self._patiently(attempt, "look at", path)

    def list(self, path: str, recursive: bool = False) -> list[Entry]:
        """What a folder holds, by name; nothing where there is no such folder."""

        def attempt() -> list[Entry]:
            found = self._list_local(path, recursive) if self.local else self._list_remote(path, recursive)
            return sorted(found, key=lambda entry: entry.name)

        return self._patiently(attempt, "list", path)

    def delete(self, path: str) -> None:
        """Delete a file or a folder with all it holds; nothing where there is neither.

        What lies higher goes first: half deleted, a folder has lost the record that vouches for the rest.
        """

        def attempt() -> None:
            if self.local:
                target = self.local / path
                if target.is_dir() and not target.is_symlink():
                    _delete_folder(target)
                else:
                    target.unlink(missing_ok=True)
                return
            info = self._fs.get_file_info(self._remote(path))
            if info.is_file:
                self._fs.delete_file(info.path)
            for entry in sorted(self.list(path, recursive=True), key=lambda entry: entry.name.count("/")):
                if not entry.is_dir:
                    self._fs.delete_file(self._remote(f"{path}/{entry.name}"))
            if info.type.name == "Directory":
                self._fs.delete_dir(info.path)

        self._patiently(attempt, "delete", path)

    def upload(self, source: Path, path: str) -> None:
        """Copy a local file to `path`."""

        def attempt() -> None:
            if self.local:
                target = self.local / path
                target.parent.mkdir(parents=True, exist_ok=True)
                aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}{TEMPORARY_SUFFIX}")
                shutil.copyfile(source, aside)
                aside.replace(target)
                return
            with source.open("rb") as read, self._fs.open_output_stream(self._remote(path)) as write:
                while chunk := read.read(_CHUNK):
                    write.write(chunk)

        self._patiently(attempt, "write", path)

    def upload_folder(self, source: Path, path: str) -> None:
        """Copy a local folder to `path`, file by file in name order."""
        for file in sorted(source.rglob("*")):
            if file.is_file():
                self.upload(file, f"{path}/{file.relative_to(source).as_posix()}")

    def download_folder(self, path: str, target: Path) -> None:
        """Copy a folder to a local one that need not exist."""

        def attempt() -> None:
            for entry in self.list(path, recursive=True):
                if entry.is_dir:
                    continue
                file = target / entry.name
                file.parent.mkdir(parents=True, exist_ok=True)
                if self.local:
                    shutil.copyfile(self.local / path / entry.name, file)
                    continue
                remote = self._remote(f"{path}/{entry.name}")
                with self._fs.open_input_stream(remote) as read, file.open("wb") as write:
                    shutil.copyfileobj(read, write, _CHUNK)

        self._patiently(attempt, "read", path)

    def _remote(self, path: str) -> str:
        return f"{self._root}/{path}".rstrip("/")

    def _write_aside(self, path: str, data: bytes) -> Path:
        assert self.local
        target = self.local / path
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}{TEMPORARY_SUFFIX}")
        try:
            with aside.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError:
            aside.unlink(missing_ok=True)
            raise
        return aside

    def _list_local(self, path: str, recursive: bool) -> Iterator[Entry]:
        assert self.local
        base = self.local / path
        try:
            found = list(base.rglob("*") if recursive else base.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return
        for item in found:
            try:
                stat = item.stat()
            except FileNotFoundError:  # deleted meanwhile
                continue
            yield Entry(item.relative_to(base).as_posix(), stat.st_size, item.is_dir(), stat.st_mtime)

    def _list_remote(self, path: str, recursive: bool) -> Iterator[Entry]:
        from pyarrow import fs

        base = self._remote(path)
        selector = fs.FileSelector(base, allow_not_found=True, recursive=recursive)
        for info in self._fs.get_file_info(selector):
            modified = info.mtime.timestamp() if info.mtime else None
            yield Entry(info.path[len(base) + 1 :], info.size or 0, not info.is_file, modified)

    def _patiently(self, attempt: Callable[[], T], verb: str, path: str) -> T:
        """Run `attempt`, again after a pause where waiting may help. Raises StorageError in the end."""
        started, pause = time.monotonic(), _FIRST_PAUSE
        while True:
            try:
                return attempt()
            except OSError as error:
                permanent = error.errno in _PERMANENT or any(text in str(error) for text in _PERMANENT_TEXT)
                if permanent or time.monotonic() - started + pause > self.patience:
                    raise StorageError(_explain(error, verb, self.describe(path), permanent)) from error
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


def is_storage_fault(error: BaseException) -> bool:
    """Whether an exception says that a disk is full or failing, and not that a file is missing.

    Libraries in Rust (safetensors) have exceptions of their own, with the number of the error in the text.
    """
    told = re.search(r"\(os error (\d+)\)", str(error))
    number = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
    cause = error.__cause__
    return number in _FAULTS or (cause is not None and is_storage_fault(cause))


def _explain(error: OSError, verb: str, where: str, permanent: bool) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"disk full: cannot {verb} {where}; free some space, then give the same command again"
    what = error.strerror or str(error).splitlines()[0]
    hint = (
        "check the path and your rights" if permanent else "the store stayed away; try again when it is back"
    )
    return f"cannot {verb} {where}: {what}; {hint}"


def _delete_folder(folder: Path) -> None:
    """Its own files before its folders; what another process deleted meanwhile is passed over."""
    with contextlib.suppress(FileNotFoundError):
        for path in sorted(folder.iterdir(), key=lambda path: path.is_dir()):
            if path.is_dir() and not path.is_symlink():
                _delete_folder(path)
            else:
                path.unlink(missing_ok=True)
        folder.rmdir()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _open_remote(url: str) -> tuple[Any, str]:
    """(pyarrow filesystem, root path). An S3 endpoint: AWS_ENDPOINT_URL or ?endpoint_override=."""
    import pyarrow as pa
    from pyarrow import fs

    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if parts.scheme == "s3" and endpoint and "endpoint_override" not in query:
        scheme, _, host = endpoint.rpartition("://")
        query |= {"endpoint_override": host.rstrip("/"), "scheme": scheme or "https"}
    whole = urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), urlencode(query), ""))
    try:
        filesystem, root = fs.FileSystem.from_uri(whole)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise StorageError(
            f"cannot open {url}: {str(error).splitlines()[0]}; give a path, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX"
        ) from error
    return filesystem, root.rstrip("/")
