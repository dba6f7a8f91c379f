"""A directory at a path or URL: whole-file reads and atomic writes, alike on a disk, NFS and object stores.

A file written here appears whole or not at all: on a disk it is written aside, synced and renamed; an
object store shows an object only when its upload is complete (there is no rename there, and none is used).
Storage that is away for a while is waited for, with growing pauses, up to `patience` seconds, and the one who
waits is told so; what waiting does not mend ends at once.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from gepa_core.bounded import read_bytes, read_stream
from sweeps.store.patience import FIRST_PATIENCE, StorageError, patiently
from sweeps.store.remote import check_url, open_remote

__all__ = ["TEMPORARY_SUFFIX", "Entry", "Files", "StorageError"]

_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV}
_CHUNK = 8 << 20
MAX_FILE_BYTES = 2 << 30
T = TypeVar("T")
TEMPORARY_SUFFIX = ".tmp"


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
        """Raises StorageError where no store can be at the URL, or it holds credentials."""
        self.url = str(url)
        if "\0" in self.url or not self.url:
            raise StorageError("a store needs a path, or a URL like s3://BUCKET/PREFIX; none was given")
        self.patience = patience
        self._has_answered = False
        self.local: Path | None = None
        self._fs: Any = None
        scheme = urlsplit(self.url).scheme
        if len(scheme) <= 1:  # a one-letter scheme would be a drive
            self.local = Path(self.url).expanduser().absolute()
        elif scheme == "file":
            self.local = Path(unquote(urlsplit(self.url).path))
        else:
            check_url(self.url)
            # Opening may ask the bucket for its region.
            self._fs, self._root = self._patiently(lambda: open_remote(self.url), "open", "")
            self._has_answered = False

    def __repr__(self) -> str:
        return f"Files({self.url!r})"

    def __reduce__(self) -> tuple[type["Files"], tuple[str, float]]:
        return Files, (str(self.local or self.url), self.patience)

    def describe(self, path: str) -> str:
        """The full path or URL of `path`, for messages."""
        return str(self.local / path) if self.local else f"{self.url.split('?')[0].rstrip('/')}/{path}"

    def read(self, path: str, limit: int = MAX_FILE_BYTES) -> bytes | None:
        """The bytes of a file; None where there is none. Raises StorageError for one over `limit` bytes."""

        def attempt() -> bytes | None:
            try:
                if self.local:
                    return read_bytes(self.local / path, limit, StorageError)
                with self._fs.open_input_stream(self._remote(path)) as stream:
                    data = read_stream(stream, limit)
            except (FileNotFoundError, NotADirectoryError):
                return None
            if data is None:
                raise StorageError(f"{self.describe(path)}: over {limit:,} bytes, and no more are read of it")
            return data

        return self._patiently(attempt, "read", path)

    def read_end(self, path: str, most: int) -> bytes:
        """The last bytes of a file, `most` at most; none where there is no file."""

        def attempt() -> bytes:
            try:
                if self.local:
                    with (self.local / path).open("rb") as file:
                        file.seek(max(0, file.seek(0, os.SEEK_END) - most))
                        return file.read(most)
                with self._fs.open_input_file(self._remote(path)) as stream:
                    stream.seek(max(0, stream.size() - most))
                    data: bytes = stream.read(most)
                    return data
            except (FileNotFoundError, NotADirectoryError):
                return b""

        return self._patiently(attempt, "read", path)

    def sha256(self, path: str) -> str | None:
        """Hex SHA-256 of a file, read piece by piece; None where there is none."""

        def attempt() -> str | None:
            try:
                if self.local:
                    with (self.local / path).open("rb") as stream:
                        return hashlib.file_digest(stream, "sha256").hexdigest()
                digest = hashlib.sha256()
                with self._fs.open_input_stream(self._remote(path)) as stream:
                    while chunk := stream.read(_CHUNK):
                        digest.update(chunk)
                return digest.hexdigest()
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
            except OSError as error:
                if error.errno not in _NO_HARD_LINKS:
                    raise
                return self._create(path, data)
            finally:
                aside.unlink(missing_ok=True)
            _sync_folder(aside.parent)
            return True

        return self._patiently(attempt, "write", path)

    def _create(self, path: str, data: bytes) -> bool:
        """Like `put_new` on a disk without hard links: who creates the file writes it, though not at once."""
        assert self.local is not None
        try:
            with (self.local / path).open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError:
            return False
        return True

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
        Raises StorageError, and deletes nothing, where the path leads out of the store through a link.
        """
        if self.local and path and not _lies_in(self.local / path, self.local):
            raise StorageError(f"{self.describe(path)} leads out of the store: nothing there is deleted")

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
        if not _is_inside(path):
            raise StorageError(f"{path[:200]!r} is no path inside a store")
        patience = self.patience if self._has_answered else min(self.patience, FIRST_PATIENCE)
        result = patiently(attempt, f"{verb} {self.describe(path)}", patience, is_remote=not self.local)
        self._has_answered = True
        return result


def _is_inside(path: str) -> bool:
    """Whether a path stays below where it starts, as text."""
    return not path or not ({"", ".", ".."} & {*path.split("/")} or "\0" in path)


def _lies_in(path: Path, root: Path) -> bool:
    """Whether a path, but for its own last part, really lies below `root`."""
    return path.parent.resolve().is_relative_to(root.resolve())


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
