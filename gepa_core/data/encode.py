"""Documents to tokens: training a tokenizer, and encoding in parallel into shards."""

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece as spm

from gepa_core.data.parallel import ordered_map
from gepa_core.data.shards import Tokens, combine, file_sha256, write_shard
from gepa_core.data.tokenizer import byte_table, load_tokenizer
from gepa_core.errors import DataError

TOKENIZER_TEXT_BYTES = 8_000_000
"""A tokenizer is trained on that much, from the start of the training documents: plenty for 1024 pieces."""
_TASK_CHARS = 1_000_000
_LINE_CHARS = 10_000

Say = Callable[[str], None]


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


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> bytes:
    """A SentencePiece BPE model of exactly vocab_size pieces, as a .model's bytes.

    Ids 0-3 are pad, bos, eos, unk and digits are split, as in the challenge's tokenizers. Unlike those,
    nothing is normalised away and unseen characters fall back to bytes: counted bytes are the text's.
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
            "a vocabulary holds 4 control and 256 byte pieces and every character: "
            "change --vocab-size or give more text"
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


def write_split(
    writer: SplitWriter,
    documents: Iterable[str],
    tokenizer: Path,
    *,
    workers: int,
    say: Say,
    text_copy: Path | None = None,
) -> dict[str, Any]:
    """Encodes documents into shards; returns the split's manifest entry. `text_copy` receives the text.

    Raises DataError if there is no text at all.
    """
    split = writer.split
    sums = dict.fromkeys(("documents", "text_bytes", "token_bytes", "unknown_tokens"), 0)
    tokens = 0
    with contextlib.ExitStack() as stack:
        tasks = _tasks(documents)
        if text_copy is not None:
            tasks = _copied(tasks, stack.enter_context(text_copy.open("wb")))
        for encoded in ordered_map(_encode, tasks, workers, _start_worker, (tokenizer,)):
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


def _start_worker(model: Path) -> None:
    _worker["sp"] = load_tokenizer(model)
    _worker["table"] = byte_table(model)


def _encode(texts: list[str]) -> Encoded:
    sp, table = _worker["sp"], _worker["table"]
    ids = sp.encode(texts, num_threads=1)
    bos = sp.bos_id()
    tokens = np.fromiter(chain.from_iterable((bos, *row) for row in ids), dtype=np.uint16)
    token_bytes = table.count_bytes(tokens[:-1], tokens[1:])  # the first token is a BOS: no bytes
    return Encoded(
        tokens=tokens,
        documents=len(texts),
        text_bytes=sum(len(text.encode()) for text in texts),
        token_bytes=int(token_bytes.sum()),
        unknown_tokens=int((tokens == sp.unk_id()).sum()),
    )
