"""The byte rule, held against the byte counts of the text itself."""

import io
from pathlib import Path

import numpy as np
import pytest
import sentencepiece as spm

from gepa_core.data import tokenizer
from gepa_core.data.corpus import read_documents
from gepa_core.data.encode import train_tokenizer
from gepa_core.data.tokenizer import ByteTable, byte_table, check_counts_of_tokens, load_tokenizer
from gepa_core.errors import DataError

TEXT = (
    "The quick brown fox jumps over the lazy dog, 1234 times; naïve café — über Straße.\n"
    "  two  spaces and\ttabs\r\n\nДобрый день, 世界! 🙂 👩‍👩‍👧 ­\u200b end "
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "t.model"
    path.write_bytes(train_tokenizer(["the quick brown fox jumps over the lazy dog " * 20, TEXT] * 5, 330))
    return path


def counted(sp: spm.SentencePieceProcessor, table: ByteTable, *texts: str) -> int:
    """Bytes the table counts for documents, each after a BOS."""
    ids = np.array([i for text in texts for i in (sp.bos_id(), *sp.encode(text))], dtype=np.uint16)
    return int(table.count_bytes(ids[:-1], ids[1:]).sum())


@pytest.mark.parametrize(
    "text", [TEXT, "a", " a", "  ", "\n", "日本", "🙂", "x" * 3000, "e\u0301", "\x01\x7f"]
)
def test_trained_tokenizer_counts_the_bytes_of_the_text(trained: Path, text: str) -> None:
    sp, table = load_tokenizer(trained), byte_table(trained)
    leading = len(text) > 0 and text[0] == " "  # right after a BOS the rule swallows one space
    assert counted(sp, table, text) == len(text.encode()) - leading
    assert counted(sp, table, "x " + text, text) == len(f"x {text}{text}".encode()) - leading


@pytest.mark.parametrize(
    "options",
    [
        {"treat_whitespace_as_suffix": True},
        {"split_by_whitespace": False},
        {"allow_whitespace_only_pieces": True},
    ],
)
def test_a_space_is_one_byte_wherever_it_stands_in_a_piece(options: dict[str, bool], tmp_path: Path) -> None:
    """Suffix, superword and white-space pieces; SentencePiece's stand-in takes three bytes."""
    lines = ["the quick brown  fox jumps over    the lazy dog"] * 40 + [TEXT]
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type="bpe", vocab_size=380,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        add_dummy_prefix=False, unk_id=0, bos_id=1, eos_id=2, minloglevel=3, num_threads=1, **options,
    )  # fmt: skip
    path = tmp_path / "t.model"
    path.write_bytes(model.getvalue())
    sp, table = load_tokenizer(path), byte_table(path)
    assert any("▁" in sp.id_to_piece(i)[1:] for i in range(sp.vocab_size()))
    for text in (lines[0], TEXT, "x "):
        assert counted(sp, table, text) == len(text.encode())
    tokens = np.array([i for text in lines for i in (sp.bos_id(), *sp.encode(text))], np.uint16)
    check_counts_of_tokens(path, tokens, "here")


def test_a_count_that_is_not_the_texts_is_refused(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sp = load_tokenizer(trained)
    tokens = np.array([i for _ in range(3) for i in (sp.bos_id(), *sp.encode(TEXT))], np.uint16)
    check_counts_of_tokens(trained, tokens, "here")
    wrong = ByteTable(np.full(330, 3, np.int16), np.zeros(330, bool), np.zeros(330, bool))
    monkeypatch.setattr(tokenizer, "byte_table", lambda path: wrong)
    with pytest.raises(DataError, match="bits per byte cannot be told"):
        check_counts_of_tokens(trained, tokens, "here")


def test_unseen_characters_are_byte_pieces(trained: Path) -> None:
    sp, table = load_tokenizer(trained), byte_table(trained)
    ids = sp.encode("ꙮ")
    assert [sp.is_byte(i) for i in ids] == [True, True, True]
    assert [int(table.base_bytes[i]) for i in ids] == [1, 1, 1]
    assert not table.boundary[ids].any()


def test_training_is_deterministic_and_exact_in_size(trained: Path) -> None:
    again = train_tokenizer(["the quick brown fox jumps over the lazy dog " * 20, TEXT] * 5, 330)
    assert again == trained.read_bytes()
    sp = load_tokenizer(trained)
    assert (sp.vocab_size(), sp.pad_id(), sp.bos_id(), sp.eos_id(), sp.unk_id()) == (330, 0, 1, 2, 3)


def test_rule_by_hand(trained: Path) -> None:
    sp, table = load_tokenizer(trained), byte_table(trained)
    the = sp.piece_to_id("▁the")
    assert the != sp.unk_id()
    prev = np.array([the, sp.bos_id(), sp.unk_id(), sp.eos_id(), sp.piece_to_id("<0x0A>")])
    assert table.count_bytes(prev, np.full(5, the)).tolist() == [4, 3, 3, 3, 4]
    assert table.count_bytes(np.full(4, the), np.arange(4)).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("name", ["fineweb_1024_bpe.model", "fineweb_4096_bpe.model"])
def test_published_tokenizer_against_its_own_normalised_text(shared: Path, name: str) -> None:
    """The published tokenizers normalise (NFKC, white space) and have no byte pieces: what they count is the
    bytes of the normalised text, less the characters they do not know and the spaces after those."""
    model = shared / "data" / "tokenizers" / name
    sp, table = load_tokenizer(model), byte_table(model)
    assert table.vocab_size == int(name.split("_")[1])
    assert table.boundary.nonzero()[0].tolist() == [0, 1, 2, 3]
    normalize = spm.SentencePieceNormalizer(model_file=str(model))
    for text in (TEXT, *list(read_documents(shared / "data" / "enwiki2015_val.jsonl.zst"))[:20]):
        ids, pieces = sp.encode(text), sp.encode(text, out_type=str)
        normalised = normalize.normalize(text).replace("▁", " ")
        assert "".join(pieces).replace("▁", " ") == normalised
        unknown = sum(len(p.encode()) for i, p in zip(ids, pieces, strict=True) if sp.is_unknown(i))
        swallowed = sum(sp.is_unknown(i) and p[0] == "▁" for i, p in zip(ids, pieces[1:], strict=False))
        expected = len(normalised.encode()) - unknown - swallowed
        assert counted(sp, table, text) == expected


def test_wrong_tokenizers_are_named(tmp_path: Path, trained: Path) -> None:
    with pytest.raises(DataError, match=r"no\.model: no such tokenizer"):
        byte_table(tmp_path / "no.model")
    bad = tmp_path / "bad.model"
    bad.write_bytes(b"not a model" * 50)
    with pytest.raises(DataError, match=r"bad\.model: not a SentencePiece model"):
        byte_table(bad)
    with pytest.raises(DataError, match=r"has 330 pieces, the model a vocabulary of 1024"):
        byte_table(trained, 1024)


def test_too_little_text_for_the_vocabulary() -> None:
    with pytest.raises(DataError, match=r"no tokenizer of 5000 pieces.*--vocab-size"):
        train_tokenizer(["a short text"], 5000)
