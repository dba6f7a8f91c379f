"""Text to a prepared folder of shards, tokenizer and manifest: streaming, parallel, alike at any workers."""

import contextlib
import functools
import glob
import lzma
import os
import shutil
import socket
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import zstandard

from gepa_core.data.corpus import docstring_documents, unit_hash
from gepa_core.data.encode import Say, SplitWriter, train_tokenizer, write_split
from gepa_core.data.folder import (
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    Dataset,
    check_counted,
    open_folder,
    write_json,
)
from gepa_core.data.shards import file_sha256
from gepa_core.data.shuffle import Shuffled
from gepa_core.data.texts import find_texts, survey
from gepa_core.data.tokenizer import load_tokenizer
from gepa_core.errors import DataError

TOKENIZER = "tokenizer.model"
SHARD_TOKENS = 100_000_000
"""The challenge's shard size."""
VAL_FRACTION = 0.01
MIN_PIECES, MAX_PIECES = 261, 65_536
"""A vocabulary to train: 4 control and 256 byte pieces, and what uint16 shards can hold."""
MAX_WORKERS = 1024

Documents = Callable[[], Iterable[str]]


def default_workers() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def silent(_: str) -> None:
    """A `say` that says nothing."""


def prepare(
    out: Path,
    train: Documents,
    val: Documents,
    *,
    tokenizer: Path | None = None,
    vocab_size: int | None = None,
    source: Mapping[str, Any],
    shard_tokens: int = SHARD_TOKENS,
    workers: int | None = None,
    say: Say = silent,
    warn: Say = silent,
) -> Dataset:
    """Writes the prepared folder `out`, which must not exist, from train() and val(): iterables of documents.

    Uses the tokenizer given, or trains one of vocab_size pieces on the start of train(). All is written aside
    and renamed at the end: a killed preparation leaves nothing that looks done. `say` hears of progress,
    `warn` what should stay in sight. Raises DataError.
    """
    if (tokenizer is None) == (vocab_size is None):
        raise DataError("give either a tokenizer or a vocabulary size to train one")
    if not 1 <= shard_tokens < 1 << 31:  # its header counts in int32
        raise DataError(f"a shard of {shard_tokens} tokens: it must hold at least 1, and less than 2**31")
    if vocab_size is not None and not 1 <= vocab_size <= MAX_PIECES:
        raise DataError(f"a vocabulary of {vocab_size} pieces: 1 to {MAX_PIECES:,}, to fill uint16 shards")
    if workers is not None and not 1 <= workers <= MAX_WORKERS:
        raise DataError(f"{workers} workers: 1 to {MAX_WORKERS:,}")
    workers = workers or default_workers()
    with written_aside(out) as folder:
        model = folder / TOKENIZER
        if tokenizer is not None:
            load_tokenizer(tokenizer)
            shutil.copyfile(tokenizer, model)
        else:
            say(f"training a tokenizer of {vocab_size} pieces")
            model.write_bytes(train_tokenizer(train(), int(vocab_size or 0)))
        sp = load_tokenizer(model)
        if sp.bos_id() < 0 or sp.vocab_size() > MAX_PIECES:
            raise DataError(
                f"{tokenizer}: needs a BOS piece and at most {MAX_PIECES} pieces to fill uint16 shards"
            )
        val_text = folder / "val.txt"
        writer = SplitWriter(folder, "val", shard_tokens)
        val_entry = write_split(writer, val(), model, workers=workers, say=say, text_copy=val_text)
        if doubt := check_counted(val_entry, str(tokenizer or "the tokenizer trained on it")):
            warn(f"warning: {doubt}")
        # zstd and xz release the GIL: they run beside the encoding of the training text.
        with ThreadPoolExecutor(2) as pool:
            sizes = {
                "zstd_22_bytes": pool.submit(zstd_size, val_text),
                "xz_9e_bytes": pool.submit(xz_size, val_text),
            }
            writer = SplitWriter(folder, "train", shard_tokens)
            train_entry = write_split(writer, train(), model, workers=workers, say=say)
            val_entry |= {name: size.result() for name, size in sizes.items()}
        val_text.unlink()
        manifest = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "source": dict(source),
            "tokenizer": {
                "file": TOKENIZER,
                "sha256": file_sha256(model),
                "vocab_size": sp.vocab_size(),
                "bos_id": sp.bos_id(),
            },
            "train": train_entry,
            "val": val_entry,
        }
        write_json(folder / MANIFEST, manifest)
        open_folder(folder)
    return open_folder(out)


def zstd_size(path: Path) -> int:
    """Bytes of the file's content after zstd level 22."""
    size = path.stat().st_size
    compressor = zstandard.ZstdCompressor(level=22).compressobj(size=size)
    return _compressed_size(path, compressor)


def xz_size(path: Path) -> int:
    """Bytes of the file's content after xz -9e."""
    return _compressed_size(path, lzma.LZMACompressor(preset=9 | lzma.PRESET_EXTREME))


def _compressed_size(path: Path, compressor: Any) -> int:
    total = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            total += len(compressor.compress(chunk))
    return total + len(compressor.flush())


@contextlib.contextmanager
def written_aside(out: Path) -> Iterator[Path]:
    """A new directory beside `out` that becomes it if the block ends well, and is removed if it does not.

    Leftovers of killed preparations of the same folder on this machine are cleared away.
    """
    out = out.absolute()
    if out.exists():
        raise DataError(f"{out}: exists already; remove it or choose another --out")
    host, aside = socket.gethostname(), _aside(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for leftover in out.parent.glob(f".{glob.escape(out.name)}.{host}.*.partial"):
            pid = leftover.name.split(".")[-3]
            if pid.isdigit() and not _alive(int(pid)):
                shutil.rmtree(leftover, ignore_errors=True)
        aside.mkdir()
        yield aside
        try:
            aside.rename(out)
        except OSError as error:
            raise DataError(f"{out}: appeared while it was being prepared ({error.strerror})") from error
    except OSError as error:
        raise DataError(f"{error.filename or out}: cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _aside(out: Path) -> Path:
    """A name beside `out` for what is not whole yet, which tells whose it is."""
    return out.with_name(f".{out.name}.{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}.partial")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def prepare_docstrings(
    out: str | Path, *, vocab_size: int = 1024, workers: int | None = None, say: Say = silent
) -> Dataset:
    """The docstring corpus as a prepared folder; opens it if it is there already. Raises DataError."""
    out = Path(out)
    if (out / MANIFEST).is_file():
        dataset = open_folder(out)
        found = dataset.manifest or {}
        if found["source"].get("corpus") != "docstrings" or found["tokenizer"]["vocab_size"] != vocab_size:
            raise DataError(
                f"{out}: holds other data than docstrings in {vocab_size} pieces; choose another folder"
            )
        return dataset
    workers = workers or default_workers()
    documents = functools.cache(
        lambda: docstring_documents(workers)
    )  # read once prepare() has found `out` free
    try:
        return prepare(
            out,
            lambda: documents()[0],
            lambda: documents()[1],
            vocab_size=vocab_size,
            source={"corpus": "docstrings", "python": sys.version.split()[0]},
            workers=workers,
            say=say,
        )
    except DataError:
        if (out / MANIFEST).is_file():  # another launch was quicker
            return prepare_docstrings(out, vocab_size=vocab_size)
        raise


def prepare_files(
    out: str | Path,
    inputs: list[Path],
    *,
    val_inputs: list[Path] | None = None,
    val_fraction: float = VAL_FRACTION,
    text_key: str = "text",
    split_on: str | None = None,
    in_order: bool = False,
    tokenizer: Path | None = None,
    vocab_size: int | None = None,
    shard_tokens: int = SHARD_TOKENS,
    workers: int | None = None,
    say: Say = silent,
    warn: Say = silent,
) -> Dataset:
    """Text files, or folders of them, as a prepared folder. Without val_inputs, a document is validation if
    the hash of its text is below val_fraction: equal documents never lie on both sides. Documents of either
    part are shuffled, the same way every time, unless `in_order`.

    Everything is read once before anything is made: `warn` hears what the splits will be. Raises DataError.
    """
    if Path(out).exists():
        raise DataError(f"{out}: exists already; remove it or choose another --out")
    if not val_inputs and not 0 < val_fraction < 1:
        raise DataError(f"--val-fraction {val_fraction} must lie between 0 and 1")
    if tokenizer is not None:
        load_tokenizer(tokenizer)
    elif vocab_size is not None and not MIN_PIECES <= vocab_size <= MAX_PIECES:
        raise DataError(
            f"no tokenizer of {vocab_size} pieces: --vocab-size must lie between {MIN_PIECES}, for 4 "
            f"control and 256 byte pieces, and {MAX_PIECES}, which uint16 shards can hold"
        )
    texts = find_texts(inputs, text_key, split_on, warn)
    held_out = find_texts(val_inputs, text_key, split_on, warn) if val_inputs else None
    train: Documents
    val: Documents
    say("reading the text")
    train_size, val_size = survey(texts, held_out, val_fraction, warn)
    source: dict[str, Any] = {"inputs": [path.name for path in inputs], "text_key": text_key}
    if split_on is not None:
        source["split_on"] = split_on
    if held_out and val_inputs:
        train, val = texts.documents, held_out.documents
        source["val_inputs"] = [path.name for path in val_inputs]
    else:
        train = lambda: (text for text in texts.documents() if unit_hash(text) >= val_fraction)  # noqa: E731
        val = lambda: (text for text in texts.documents() if unit_hash(text) < val_fraction)  # noqa: E731
        source["val_fraction"] = val_fraction
    source["order"] = "of the files" if in_order else "shuffled"
    with contextlib.ExitStack() as stack:
        if not in_order:
            train = _shuffled(train, train_size.bytes, Path(out), stack)
            val = _shuffled(val, val_size.bytes, Path(out), stack)
        return prepare(
            Path(out),
            train,
            val,
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            source=source,
            shard_tokens=shard_tokens,
            workers=workers,
            say=say,
            warn=warn,
        )


def _shuffled(documents: Documents, total_bytes: int, out: Path, stack: contextlib.ExitStack) -> Documents:
    """The documents shuffled, with a folder for large ones that is deleted with the stack."""
    folder = _aside(out.absolute())
    shuffled = Shuffled(documents, total_bytes, folder)
    if shuffled.buckets > 1:
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise DataError(f"{error.filename or out}: cannot be written ({error.strerror})") from error
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
    return shuffled
