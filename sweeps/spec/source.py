"""Where a run's data comes from: a prepared folder, a corpus to prepare there, or bare shard patterns."""

import glob
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gepa_core.config import canonical_json
from gepa_core.errors import DataError
from gepa_core.invocation import module
from gepa_core.sections import DataConfig

if TYPE_CHECKING:
    from gepa_core.data.folder import Dataset

SOURCE_KEYS = ("data.dir", "data.corpus", "data.train", "data.val", "data.tokenizer")
UNRESOLVED = "unresolved:"
"""Prefix of a fingerprint whose data has not been looked at: run ids made of it are provisional."""


def how_to_prepare() -> str:
    return (
        "make one from any .txt, .jsonl or .parquet, or a folder of such files, with "
        f"`{module('gepa_core.data')} prepare TEXT... --out FOLDER` and set data.dir to it"
    )


@dataclass(frozen=True)
class DataSource:
    """Paths are relative to the current directory; all None = no data named."""

    dir: str | None = None
    corpus: str | None = None
    train: str | None = None
    val: str | None = None
    tokenizer: str | None = None

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> "DataSource":
        """Raises ValueError where the keys do not go together."""
        source = cls(**{key.removeprefix("data."): values[key] for key in SOURCE_KEYS if values.get(key)})
        if source.dir and (source.train or source.val or source.tokenizer):
            raise ValueError(
                "data.dir names a whole prepared folder: leave out data.train, data.val, data.tokenizer"
            )
        if source.corpus and not source.dir:
            raise ValueError("data.corpus needs data.dir, the folder to prepare it in")
        if (source.val or source.tokenizer) and not source.train:
            raise ValueError("data.val and data.tokenizer need data.train")
        return source

    def __str__(self) -> str:
        return self.dir or self.train or "no data"

    @property
    def named(self) -> bool:
        return bool(self.dir or self.train)

    def placeholder(self, val_tokens: int | None) -> DataConfig:
        """Stands for the data's fingerprints until `open_source`; another one for every source."""
        name = UNRESOLVED + canonical_json(asdict(self))
        return DataConfig(train=name, val=name, tokenizer=name, val_tokens=val_tokens)

    def patterns(self) -> tuple[str, str, str]:
        """Train, validation and tokenizer; where not given, as the challenge lays them out.

        Raises DataError where one can be neither read nor told.
        """
        assert self.train is not None
        if not glob.glob(self.train):  # noqa: PTH207 - the pattern may be absolute
            published = f"`{module('gepa_core.data')} fetch` gets the published ones; " * (
                "fineweb" in self.train
            )
            raise DataError(
                f"{self.train}: no such shards; {published}for text of your own, {how_to_prepare()}"
            )
        folder, _, pattern = self.train.rpartition("/")
        val = self.val
        if val is None:
            if "train" not in pattern:
                raise DataError(f"data.val is not given and cannot be told from data.train {self.train!r}")
            val = f"{folder}/{pattern.replace('train', 'val')}"
        if self.tokenizer is not None:
            return self.train, val, self.tokenizer
        # fineweb10B_sp1024/ beside ../tokenizers/fineweb_1024_bpe.model, or a .model among the shards.
        beside = sorted(Path(folder).glob("*.model"))
        size = Path(folder).name.rpartition("_sp")[2]
        shared = Path(folder).parent.parent / "tokenizers" / f"fineweb_{size}_bpe.model"
        for found in (*beside[: len(beside) == 1], shared):
            if found.is_file():
                return self.train, val, str(found)
        raise DataError(
            f"data.tokenizer is not given, and neither {folder}/*.model nor {shared} is there; "
            "set data.tokenizer to the SentencePiece model the shards were made with"
        )


def open_source(
    source: DataSource, *, vocab_size: int = 1024, prepare: bool, say: Callable[[str], None] = print
) -> "Dataset":
    """Opens the data and reads its fingerprints; prepares a missing corpus if `prepare`.

    Raises DataError saying how to get the data.
    """
    from gepa_core.data.folder import open_folder, open_patterns

    if source.dir:
        if source.corpus and prepare and not (Path(source.dir) / "manifest.json").is_file():
            _prepare_corpus(source, vocab_size, say)
        return open_folder(source.dir)
    if source.train:
        return open_patterns(*source.patterns())
    raise DataError(f"the sweep names no data: {how_to_prepare()}")


def _prepare_corpus(source: DataSource, vocab_size: int, say: Callable[[str], None]) -> None:
    from gepa_core.data.prepare import prepare_docstrings

    say(f"{source.dir}: preparing the docstring corpus, once")
    assert source.dir is not None
    prepare_docstrings(source.dir, vocab_size=vocab_size)
