"""Text to a prepared folder: shards, tokenizer, manifest. Streaming, parallel, the same at any number of workers."""

import contextlib
import io
import lzma
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece as spm
import zstandard

from gepa_core.data.corpus import docstring_documents, read_documents, unit_hash
from gepa_core.data.folder import FORMAT, FORMAT_VERSION, MANIFEST, Dataset, open_folder, write_json
from gepa_core.data.parallel import ordered_map
from gepa_core.data.shards import Tokens, combine, file_sha256, write_shard
from gepa_core.data.tokenizer import byte_table, load_tokenizer
from gepa_core.errors import DataError

TOKENIZER = "tokenizer.model"
SHARD_TOKENS = 100_000_000
"""The challenge's shard size."""
VAL_FRACTION = 0.01
TOKENIZER_TEXT_BYTES = 8_000_000
"""Text a tokenizer is trained on, from the start of the training documents: seconds, and plenty for 1024 pieces."""
_TASK_CHARS = 1_000_000
_LINE_CHARS = 10_000

Documents = Callable[[], Iterable[str]]
Say = Callable[[str], None]


def default_workers() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def silent(_: str) -> None:
    """A `say` that says nothing."""


@dataclass(frozen=True)
class Encoded:
    """A batch of documents as tokens, each after a BOS, and what they weigh."""

    tokens: Tokens
    documents: int
    text_bytes: int
    token_bytes: int
    unknown_tokens: int


@dataclass
class SplitWriter:
    """Cuts a stream of tokens into shards of exactly `shard_tokens`, the last one shorter."""

    folder: Path
    split: str
    shard_tokens: int
    pending: list[Tokens] = field(default_factory=list)
    pending_tokens: int = 0
    files: list[dict[str, Any]] = field(default_factory=list)

    def add(self, tokens: Tokens) -> None:
        while len(tokens):
            room = self.shard_tokens - self.pending_tokens
            self.pending.append(tokens[:room])
            self.pending_tokens += len(self.pending[-1])
            tokens = tokens[room:]
            if self.pending_tokens == self.shard_tokens:
                self.flush()

    def flush(self) -> None:
        if not self.pending_tokens:
            return
        path = self.folder / f"{self.split}_{len(self.files):06d}.bin"
        write_shard(path, np.concatenate(self.pending))
        self.files.append({"name": path.name, "tokens": self.pending_tokens, "sha256": file_sha256(path)})
        self.pending, self.pending_tokens = [], 0


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
) -> Dataset:
    """Writes the prepared folder `out`, which must not exist, from train() and val(): iterables of documents.

    Uses the tokenizer given, or trains one of vocab_size pieces on the start of train(). Everything is written
    aside and renamed at the end, so a killed preparation leaves nothing that looks done.
    Raises DataError.
    """
    if (tokenizer is None) == (vocab_size is None):
        raise DataError("give either a tokenizer or a vocabulary size to train one")
    if shard_tokens < 1:
        raise DataError(f"a shard of {shard_tokens} tokens: it must hold at least 1")
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
        if sp.bos_id() < 0 or sp.vocab_size() > 65536:
            raise DataError(f"{tokenizer}: needs a BOS piece and at most 65536 pieces to fill uint16 shards")
        val_text = folder / "val.txt"
        val_entry = _write_split(folder, "val", val(), shard_tokens, workers, say, text_copy=val_text)
        # zstd and xz release the GIL: they run beside the encoding of the training text.
        with ThreadPoolExecutor(2) as pool:
            sizes = {
                "zstd_22_bytes": pool.submit(zstd_size, val_text),
                "xz_9e_bytes": pool.submit(xz_size, val_text),
            }
            train_entry = _write_split(folder, "train", train(), shard_tokens, workers, say)
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


def _write_split(
    folder: Path,
    split: str,
    documents: Iterable[str],
    shard_tokens: int,
    workers: int,
    say: Say,
    text_copy: Path | None = None,
) -> dict[str, Any]:
    """Encodes documents into shards and returns the split's manifest entry; text_copy receives the text itself."""
    writer = SplitWriter(folder, split, shard_tokens)
    sums = dict.fromkeys(("documents", "text_bytes", "token_bytes", "unknown_tokens"), 0)
    tokens = 0
    with contextlib.ExitStack() as stack:
        tasks = _tasks(documents)
        if text_copy is not None:
            tasks = _copied(tasks, stack.enter_context(text_copy.open("wb")))
        model = str(folder / TOKENIZER)
        for encoded in ordered_map(_encode, tasks, workers, _start_worker, (model,)):
            writer.add(encoded.tokens)
            tokens += len(encoded.tokens)
            for name in sums:
                sums[name] += getattr(encoded, name)
            say(f"{split}: {sums['text_bytes'] / 1e6:.0f} MB, {tokens / 1e6:.1f} M tokens")
    writer.flush()
    if not tokens:
        raise DataError(f"the {split} split is empty: no document has any text")
    return {
        "pattern": f"{split}_*.bin",
        "fingerprint": combine(entry["sha256"] for entry in writer.files),
        "tokens": tokens,
        **sums,
        "files": writer.files,
    }


def _tasks(documents: Iterable[str]) -> Iterator[list[str]]:
    """Batches of about a million characters; a task's size is fixed, so that its result is."""
    batch: list[str] = []
    chars = 0
    for text in documents:
        batch.append(text)
        chars += len(text)
        if chars >= _TASK_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def _copied(tasks: Iterator[list[str]], file: io.BufferedWriter) -> Iterator[list[str]]:
    for batch in tasks:
        file.writelines(text.encode() for text in batch)
        yield batch
    file.flush()


_worker: dict[str, Any] = {}  # a worker process's tokenizer and byte table


def _start_worker(model: str) -> None:
    _worker["sp"] = load_tokenizer(model)
    _worker["table"] = byte_table(model)


def _encode(texts: list[str]) -> Encoded:
    sp, table = _worker["sp"], _worker["table"]
    ids = sp.encode(texts, num_threads=1)
    bos = sp.bos_id()
    tokens = np.fromiter(chain.from_iterable((bos, *row) for row in ids), dtype=np.uint16)
    return Encoded(
        tokens=tokens,
        documents=len(texts),
        text_bytes=sum(len(text.encode()) for text in texts),
        token_bytes=int(
            table.count_bytes(tokens[:-1], tokens[1:]).sum()
        ),  # the first token is a BOS: 0 bytes
        unknown_tokens=int((tokens == sp.unk_id()).sum()),
    )


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> bytes:
    """A SentencePiece BPE model of exactly vocab_size pieces, as a .model's bytes.

    Ids 0-3 are pad, bos, eos, unk and digits are split, as in the challenge's tokenizers. Unlike those, nothing
    is normalised away and unseen characters fall back to bytes, so that bytes per token are those of the text.
    Raises DataError if the text has too little variety for so many pieces.
    """
    model = io.BytesIO()
    try:
        spm.SentencePieceTrainer.train(
            sentence_iterator=_lines(documents),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            character_coverage=0.9995,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            max_sentence_length=8 * _LINE_CHARS,
            num_threads=1,
            minloglevel=3,
        )
    except (RuntimeError, OSError) as error:
        reason = str(error).rsplit("]", 1)[-1].strip() or str(error)
        raise DataError(
            f"no tokenizer of {vocab_size} pieces could be trained on this text ({reason}); "
            "a vocabulary holds 4 control and 256 byte pieces and every character: change --vocab-size or give more text"
        ) from error
    return model.getvalue()


def _lines(documents: Iterable[str]) -> Iterator[str]:
    budget = TOKENIZER_TEXT_BYTES
    for text in documents:
        for line in text.splitlines():
            for start in range(0, len(line), _LINE_CHARS):
                piece = line[start : start + _LINE_CHARS].replace("\0", "")
                budget -= len(piece.encode())
                if budget < 0:
                    return
                yield piece


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
    host = socket.gethostname()
    aside = out.with_name(f".{out.name}.{host}.{os.getpid()}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for leftover in out.parent.glob(f".{out.name}.{host}.*.partial"):
            pid = leftover.name.split(".")[-2]
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
        return open_folder(out)
    workers = workers or default_workers()
    say("reading docstrings")
    train, val = docstring_documents(workers)
    return prepare(
        out,
        lambda: train,
        lambda: val,
        vocab_size=vocab_size,
        source={"corpus": "docstrings", "python": sys.version.split()[0]},
        workers=workers,
        say=say,
    )


def prepare_files(
    out: str | Path,
    inputs: list[Path],
    *,
    val_inputs: list[Path] | None = None,
    val_fraction: float = VAL_FRACTION,
    text_key: str = "text",
    tokenizer: Path | None = None,
    vocab_size: int | None = None,
    shard_tokens: int = SHARD_TOKENS,
    workers: int | None = None,
    say: Say = silent,
) -> Dataset:
    """Text files as a prepared folder. Without val_inputs, a document is validation if the hash of its text falls
    below val_fraction: equal documents never lie on both sides. Raises DataError."""

    def documents(paths: list[Path]) -> Iterator[str]:
        return chain.from_iterable(read_documents(path, text_key) for path in paths)

    source: dict[str, Any] = {"inputs": [path.name for path in inputs], "text_key": text_key}
    if val_inputs:
        train, val = (lambda: documents(inputs)), (lambda: documents(val_inputs))
        source["val_inputs"] = [path.name for path in val_inputs]
    else:
        if not 0 < val_fraction < 1:
            raise DataError(f"--val-fraction {val_fraction} must lie between 0 and 1")
        train = lambda: (text for text in documents(inputs) if unit_hash(text) >= val_fraction)  # noqa: E731
        val = lambda: (text for text in documents(inputs) if unit_hash(text) < val_fraction)  # noqa: E731
        source["val_fraction"] = val_fraction
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
    )
