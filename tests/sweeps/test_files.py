"""Files on a disk and on an object store (moto's server): whole or absent, waited for, told."""

import errno
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from sweeps.store.files import Files, StorageError
from sweeps.store.gc import collect, find_waste
from sweeps.store.store import Store


def test_files_are_whole_or_absent(url: str) -> None:
    files = Files(url)
    assert files.read("a/b") is None and not files.exists("a/b")
    files.put("a/b", b"one")
    files.put("a/b", b"two")
    assert files.read("a/b") == b"two" and files.size("a/b") == 3
    assert not files.put_new("a/b", b"three") and files.put_new("a/c", b"four")
    assert [(e.name, e.size, e.is_dir) for e in files.list("a")] == [("b", 3, False), ("c", 4, False)]
    files.delete("a/b")
    assert [entry.name for entry in files.list("a")] == ["c"]
    files.delete("a")
    files.delete("a")
    assert files.list("a") == [] and files.list("never") == []


def test_a_folder_half_deleted_has_lost_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at the second file, in whatever order the disk lists them: of several names some come last."""
    files = Files(tmp_path)
    deleted: list[Any] = []
    real = os.unlink

    def unlink(*args: Any, **kwargs: Any) -> None:
        if deleted:
            raise KeyboardInterrupt
        deleted.append(args)
        real(*args, **kwargs)

    for i in range(8):
        files.put(f"x{i}/attempts/a/log.txt", b"1")
        files.put(f"x{i}/DONE{i}.json", b"1")
        deleted.clear()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "unlink", unlink)
            files.delete(f"x{i}")
        assert [entry.name for entry in files.list(f"x{i}")] == ["attempts"]
        files.delete(f"x{i}")
    assert files.list("") == []


def test_what_cannot_be_deleted_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    for name in ("a", "b"):
        store.files.put(f"segments/{name}/attempts/x/log.txt", b"1")
    real = os.rmdir

    def rmdir(path: Any, **kwargs: Any) -> None:
        if str(path).endswith("a/attempts/x"):
            raise PermissionError(errno.EACCES, "Permission denied")
        real(path, **kwargs)

    monkeypatch.setattr(os, "rmdir", rmdir)
    with pytest.raises(StorageError, match=r"1 of 2 could not be deleted: .*segments/a: Permission denied"):
        collect(store, find_waste(store))
    assert store.ids() == ["a"]


def test_folders_travel_both_ways(url: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "file").write_bytes(b"x" * 100_000)
    files = Files(url)
    files.upload_folder(source, "copy")
    assert [e.name for e in files.list("copy", recursive=True) if not e.is_dir] == ["deep/file"]
    files.download_folder("copy", tmp_path / "back")
    assert (tmp_path / "back" / "deep" / "file").read_bytes() == b"x" * 100_000


def test_an_object_store_by_endpoint_in_the_url(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    host = s3_endpoint.removeprefix("http://")
    files = Files(f"s3://bucket/by-url?endpoint_override={host}&scheme=http")
    files.put("x", b"1")
    assert files.read("x") == b"1"
    assert files.describe("x") == "s3://bucket/by-url/x"


def test_of_many_writers_of_a_new_file_on_a_disk_one_wins(tmp_path: Path) -> None:
    files = Files(tmp_path)
    won: list[bytes] = []

    def write(data: bytes) -> None:
        if files.put_new("prize", data):
            won.append(data)

    threads = [threading.Thread(target=write, args=(str(i).encode(),)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and files.read("prize") == won[0]
    assert [entry.name for entry in files.list("")] == ["prize"]


def test_unknown_scheme_is_said() -> None:
    with pytest.raises(StorageError, match="ftp://host/x"):
        Files("ftp://host/x")


def test_storage_away_for_a_while_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = Files(tmp_path, patience=10.0)
    (tmp_path / "file").write_bytes(b"data")
    back = time.monotonic() + 0.5

    def read_bytes(path: Path, *limits: object) -> bytes:
        if time.monotonic() < back:
            raise OSError(errno.ESTALE, "Stale file handle")
        return path.read_bytes()

    monkeypatch.setattr("sweeps.store.files.read_bytes", read_bytes)
    assert files.read("file") == b"data" and time.monotonic() >= back


def test_storage_that_stays_away_is_an_error_that_says_so(s3_endpoint: str) -> None:
    files = Files("s3://bucket/x?endpoint_override=127.0.0.1:9&scheme=http", patience=1.0)
    with pytest.raises(StorageError, match=r"cannot read s3://bucket/x/file: .*try again when it is back"):
        files.read("file")


def test_a_bucket_that_is_not_there_is_an_error_at_once(
    s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.store.patience.time.sleep", lambda seconds: pytest.fail("waited for it"))
    with pytest.raises(StorageError, match="cannot write s3://no-such-bucket/x"):
        Files("s3://no-such-bucket", patience=60.0).put("x", b"")


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs /dev/full")
def test_a_full_disk_is_told_and_leaves_the_old_file(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.put("runs.parquet", b"old")
    # The kernel's own answer to a write on a full device, at the place of the file written aside.
    real = os.fsync

    def full(descriptor: int) -> None:
        with Path("/dev/full").open("wb", buffering=0) as device:
            device.write(b"x")
        real(descriptor)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(StorageError, match="disk full: cannot write"):
        patch.setattr(os, "fsync", full)
        files.put("runs.parquet", b"new")
    assert files.read("runs.parquet") == b"old"
    assert [entry.name for entry in files.list("")] == ["runs.parquet"]


def test_a_disk_without_hard_links_has_new_files_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Volumes of some clouds, and shared folders of a container."""

    def link(*paths: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    files = Files(tmp_path)
    assert files.put_new("a/DONE.json", b"1") and not files.put_new("a/DONE.json", b"2")
    assert files.read("a/DONE.json") == b"1"
    assert [entry.name for entry in files.list("a")] == ["DONE.json"]
