"""Text of one's own: what a folder holds, how text files become documents, and what is warned of."""

from pathlib import Path

import pytest
import sentencepiece as spm

from gepa_core.data.__main__ import main
from gepa_core.data.folder import check_launch, open_folder
from gepa_core.data.texts import Source, find_texts, survey
from gepa_core.errors import DataError


def said(call: str, lines: list[str]) -> str:
    """The only line that `call` occurs in."""
    (line,) = (line for line in lines if call in line)
    return line


def test_a_folder_is_its_text_in_order_of_paths(tmp_path: Path) -> None:
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    for name, text in {
        "b/deep/two.txt": "two", "a.md": "one", "c.jsonl": '{"text": "three"}\n{"text": "four"}',
        "README": "five",
        ".git/config": "hidden", "picture.png": "no", "b/other.png": "no", "page.html": "no",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(text)
    told: list[str] = []
    found = find_texts([tmp_path], "text", None, told.append)
    assert list(found.documents()) == ["five", "one", "two", "three", "four"]
    assert "4 files of text; passed over: 2 .png, 1 .html" in told[0]


@pytest.mark.parametrize("length", [10, 32_768, 40_000])
def test_text_is_cut_where_the_separator_stands(length: int, tmp_path: Path) -> None:
    """Also where it lies across two of the pieces that a file is read in."""
    documents = ["a" * (length - 3), "b\n" * length, "c"]
    (tmp_path / "a.txt").write_text("<|end|>".join([*documents, " \n"]))
    source = Source((tmp_path / "a.txt",), split_on="<|end|>")
    assert list(source.documents()) == documents


def test_a_handful_of_validation_documents_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "few").write_text("\n\n".join(f"document {i}" for i in range(60)))
    (tmp_path / "held").write_text("document 7")
    source = Source((tmp_path / "few",), split_on="\n\n")
    told: list[str] = []
    train, val = survey(source, None, 0.2, told.append)
    assert train.documents + val.documents == 60 and 0 < val.documents < 20
    assert f"a handful of documents ({val.documents})" in said("warning", told)
    told.clear()
    survey(source, Source((tmp_path / "held",)), 0.2, told.append)
    assert "1 documents of the training text are in validation too" in told[-1]
    told.clear()
    survey(source, None, 0.9, told.append)
    assert not [line for line in told if "warning" in line]


def test_the_command_takes_a_folder_and_says_what_it_made_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.txt").write_text(
            "\n\n".join(f"page {n} of book {i}, with some words" for n in range(20))
        )
    arguments = [
        "--vocab-size",
        "290",
        "--val-fraction",
        "0.3",
        "--workers",
        "1",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(["prepare", str(folder), "--split-on", r"\n\n", *arguments]) == 0
    captured = capsys.readouterr()
    assert "train: 4" in captured.err and "documents" in captured.err
    manifest = open_folder(tmp_path / "out").manifest
    assert manifest and manifest["train"]["documents"] + manifest["val"]["documents"] == 60
    assert manifest["source"]["split_on"] == "\n\n"


def test_a_tokenizer_that_drops_the_text_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without byte pieces, unseen letters are unknown: nobody would be scored on them."""
    model = tmp_path / "latin"
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(["plain latin words only"] * 30), model_prefix=str(model), model_type="bpe",
        vocab_size=40, hard_vocab_limit=False, minloglevel=3, num_threads=1,
    )  # fmt: skip
    text = tmp_path / "text"
    text.write_text("\n".join(f"добрый день {i} plain words" for i in range(60)))
    arguments = [
        "--tokenizer",
        f"{model}.model",
        "--val-fraction",
        "0.5",
        "--split-on",
        "\n",
        "--workers",
        "1",
    ]
    assert main(["prepare", str(text), *arguments, "--out", str(tmp_path / "out")]) == 2
    assert "its tokens stand for" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_folder_whose_counts_disagree_is_not_launched(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("\n".join(f"some document {i} with plain words" for i in range(80)))
    arguments = ["--vocab-size", "300", "--val-fraction", "0.5", "--split-on", "\n", "--workers", "1"]
    assert main(["prepare", str(text), *arguments, "--out", str(tmp_path / "out")]) == 0
    dataset = open_folder(tmp_path / "out")
    check_launch(dataset, vocab_size=300, seq_len=32)
    manifest = tmp_path / "out" / "manifest.json"
    counted = dataset.manifest["val"]["token_bytes"]  # type: ignore[index]
    manifest.write_text(
        manifest.read_text().replace(f'"token_bytes": {counted}', f'"token_bytes": {counted * 3 // 2}')
    )
    with pytest.raises(DataError, match="prepare again"):
        check_launch(open_folder(tmp_path / "out"), vocab_size=300, seq_len=32)
