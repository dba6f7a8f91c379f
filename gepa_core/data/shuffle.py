"""Documents in an order that does not depend on their files: by a hash of each one's place and text.

Training reads a text from its beginning, and a shortened validation scores its beginning: in the order of the
files, both would be of the first of them alone.
"""

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

BUCKET_BYTES = 256 << 20
"""Of text that is sorted in memory at a time; a larger one is first parted on disk."""
_MOST_BUCKETS = 512  # files open at a time
_RECORD = struct.Struct("<16sI")
_Keyed = tuple[bytes, bytes]


class Shuffled:
    """Gives the documents as often as it is called. `folder`: where a text of more than one bucket is parted;
    it must be there by then, and is the caller's to delete."""

    def __init__(self, documents: Callable[[], Iterable[str]], total_bytes: int, folder: Path) -> None:
        self._documents, self._folder = documents, folder
        self.buckets = min(1 + total_bytes // BUCKET_BYTES, _MOST_BUCKETS)
        self._parted = False

    def __call__(self) -> Iterator[str]:
        if self.buckets == 1:
            yield from _in_order(_keyed(self._documents()))
            return
        if not self._parted:
            self._part()
        for path in self._files():
            yield from _in_order(_records(path))

    def _files(self) -> list[Path]:
        return [self._folder / f"bucket_{i:04d}" for i in range(self.buckets)]

    def _part(self) -> None:
        with ExitStack() as stack:
            files = [stack.enter_context(path.open("wb")) for path in self._files()]
            for key, text in _keyed(self._documents()):
                file = files[int.from_bytes(key[:8]) * self.buckets >> 64]
                file.write(_RECORD.pack(key, len(text)))
                file.write(text)
        self._parted = True


def _keyed(documents: Iterable[str]) -> Iterator[_Keyed]:
    for place, document in enumerate(documents):
        text = document.encode()
        yield hashlib.blake2b(b"%d\0%s" % (place, text), digest_size=16).digest(), text


def _records(path: Path) -> Iterator[_Keyed]:
    with path.open("rb") as file:
        while head := file.read(_RECORD.size):
            key, size = _RECORD.unpack(head)
            yield key, file.read(size)


def _in_order(keyed: Iterable[_Keyed]) -> Iterator[str]:
    for _, text in sorted(keyed):
        yield text.decode()
