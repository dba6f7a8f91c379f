"""What general compressors make of the very text that a sweep validates on: a floor that needs no model."""

import lzma
from pathlib import Path

import numpy as np

MAX_TOKENS = 1_000_000
"""More is not worth a minute of compression at each launch."""


def compressed_sizes(val_pattern: str, tokenizer: str, val_tokens: int) -> dict[str, int] | None:
    """Bytes of the text behind the first `val_tokens` target tokens: plain, zstd -22 and xz -9e.

    None for more than MAX_TOKENS.
    """
    if val_tokens > MAX_TOKENS:
        return None
    import zstandard

    from gepa_core.data.shards import load_tokens, open_shards
    from gepa_core.data.tokenizer import load_tokenizer

    tokens = np.asarray(load_tokens(open_shards(val_pattern), val_tokens + 1), np.int64)[1:]
    pieces = load_tokenizer(Path(tokenizer))
    starts = np.flatnonzero(tokens == pieces.bos_id())
    documents = [part[part != pieces.bos_id()].tolist() for part in np.split(tokens, starts)]
    text = "".join(pieces.decode(document) for document in documents).encode()
    return {
        "text_bytes": len(text),
        "zstd_22_bytes": len(zstandard.ZstdCompressor(level=22).compress(text)),
        "xz_9e_bytes": len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)),
    }
