"""SentencePiece tokenizers, and how many bytes of text a token stands for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece as spm
from numpy.typing import NDArray

from gepa_core.errors import DataError

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's visible stand-in for a space


@dataclass(frozen=True)
class ByteTable:
    """Bytes per token id: the denominators of bits per byte.

    base_bytes: int16[V], bytes without a leading space (each other space is one byte of text, however it is
    written in the piece). leading_space: bool[V], the piece starts with one.
    boundary: bool[V], control, unknown, unused pieces: they stand for no bytes and swallow the space after.
    """

    base_bytes: NDArray[np.int16]
    leading_space: NDArray[np.bool_]
    boundary: NDArray[np.bool_]

    @property
    def vocab_size(self) -> int:
        return len(self.base_bytes)

    def count_bytes(self, prev: NDArray[Any], cur: NDArray[Any]) -> NDArray[np.int64]:
        """Bytes each token `cur` stands for after `prev` (integer ids of one shape); int64 of that shape."""
        return self.base_bytes[cur].astype(np.int64) + (self.leading_space[cur] & ~self.boundary[prev])


def load_tokenizer(path: str | Path) -> spm.SentencePieceProcessor:
    """Opens a SentencePiece .model. Raises DataError if it is missing or no such model."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such tokenizer file (a SentencePiece .model is expected)")
    try:
        return spm.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise DataError(f"{path}: not a SentencePiece model, or damaged") from error


def byte_table(path: str | Path, vocab_size: int | None = None) -> ByteTable:
    """The byte table of a .model, by the challenge's rule (openai/parameter-golf, train_gpt.py):

    0 bytes if control, unknown or unused; 1 if a byte piece; else the UTF-8 length of the piece without its
    leading space, which counts 1 more unless the token before is control, unknown or unused.

    That rule was written for pieces that hold a space in front only. Elsewhere in a piece (suffix and
    superword vocabularies, runs of spaces) SentencePiece's three-byte stand-in is one byte of text too.

    Raises DataError if the file is no tokenizer, or its vocabulary is not `vocab_size`.
    """
    sp = load_tokenizer(path)
    size = sp.vocab_size()
    if vocab_size is not None and size != vocab_size:
        raise DataError(
            f"{path}: the tokenizer has {size} pieces, the model a vocabulary of {vocab_size}; "
            f"set model.vocab_size to {size} or choose another tokenizer"
        )
    base_bytes = np.zeros(size, dtype=np.int16)
    leading_space = np.zeros(size, dtype=np.bool_)
    boundary = np.zeros(size, dtype=np.bool_)
    for i in range(size):
        if sp.is_control(i) or sp.is_unknown(i) or sp.is_unused(i):
            boundary[i] = True
        elif sp.is_byte(i):
            base_bytes[i] = 1
        else:
            try:
                piece = sp.id_to_piece(i)
            except UnicodeDecodeError:
                raise DataError(f"{path}: piece {i} is not UTF-8; a damaged tokenizer") from None
            leading_space[i] = piece.startswith(SPACE)
            base_bytes[i] = len(piece.removeprefix(SPACE).replace(SPACE, " ").encode())
    return ByteTable(base_bytes, leading_space, boundary)


def check_counts_of_tokens(path: str | Path, tokens: NDArray[Any], where: str) -> None:
    """Decodes the whole documents among `tokens` (ids [N]) and compares bytes with what the table counts.

    Documents with unknown tokens are left out: these have no text. Raises DataError where the counts differ
    by more than a byte a document, the space at its edge, and 1 in 1,000.
    """
    sp, table = load_tokenizer(path), byte_table(path)
    starts = np.flatnonzero(tokens == sp.bos_id())
    documents = [part.astype(np.int64) for part in np.split(tokens, starts)[1:-1]]
    documents = [part for part in documents if not (part == sp.unk_id()).any()]
    if not documents:
        return
    text = sum(len(text.encode()) for text in sp.decode([part[1:].tolist() for part in documents]))
    counted = sum(int(table.count_bytes(part[:-1], part[1:]).sum()) for part in documents)
    if abs(text - counted) > len(documents) + text / 1000:
        raise DataError(
            f"{path}: its pieces count {counted:,} bytes where the text of {where} has {text:,}; bits per "
            "byte cannot be told with this tokenizer. Prepare the text with another one"
        )
