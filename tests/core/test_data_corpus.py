"""The docstring corpus: what is extracted, and that the splits stay apart."""

import random
import re
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from gepa_core.data import corpus
from gepa_core.data.corpus import docstring_documents, docstrings, pieces, unit_hash
from gepa_core.data.folder import open_folder
from gepa_core.data.prepare import prepare_docstrings
from gepa_core.errors import DataError

SOURCE = b'''"""Module.

    Indented   text.
"""
import os
if os.name:
    class A:
        "Of A"
        def f(self):
            """Of f: \\d"""
            async def g():
                r"""Of g"""
            return """not a docstring"""
try:
    pass
except OSError:
    def h():
        "Of h \\ud800"
def empty(): "   "
'''


def test_docstrings_in_textual_order_with_squeezed_spaces() -> None:
    assert docstrings(SOURCE) == ["Module.\n\nIndented text.", "Of A", "Of f: \\d", "Of g", "Of h ?"]


@pytest.mark.parametrize("source", [b"def f(:", b"\0", b"# coding: nonsense\n", b"\xff\xfe", b"(" * 5000])
def test_sources_that_do_not_parse_give_nothing(source: bytes) -> None:
    assert docstrings(source) == []


SYLLABLES = ["ba", "de", "ki", "lo", "mu", "na", "po", "ri", "se", "tu"]


def prose(number: int, words: int = 60) -> str:
    """Text of its own, without five words in a row of another's."""
    state = random.Random(number)
    return f"Number {number}. " + " ".join("".join(state.choices(SYLLABLES, k=2)) for _ in range(words))


@pytest.fixture
def little_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Sixty modules of two docstrings, one of which three modules have in common; all raise when imported."""
    files = {}
    for i in range(60):
        path = tmp_path / f"m{i}.py"
        shared = f'\ndef s():\n    "Shared by three: {prose(1000)}"\n' if i % 20 == 0 else ""
        path.write_text(f'"""{prose(i)}"""\nraise SystemExit\n{shared}\ndef f():\n    "{prose(100 + i)}"\n')
        files[f"pkg.m{i}"] = path
    monkeypatch.setattr(corpus, "_module_files", lambda: list(files.items()))
    monkeypatch.setattr(corpus, "DOCSTRING_MIN_CHARS", 1000)
    return files


def numbers(documents: list[str]) -> set[int]:
    return {int(found) for text in documents for found in re.findall(r"Number (\d+)", text)}


def test_split_is_by_module_and_shares_no_docstring(little_installation: dict[str, Path]) -> None:
    train, val = docstring_documents()
    assert len(train) + len(val) == 121
    assert numbers(train).isdisjoint(numbers(val))
    first = [int(name[5:]) for name in sorted(little_installation, key=unit_hash)]
    modules = len(val) // 2
    assert 3 <= modules <= 5  # 5 % of the text
    assert numbers(val) - {1000} == {n for i in first[:modules] for n in (i, 100 + i)}


def test_documents_are_shuffled(little_installation: dict[str, Path]) -> None:
    """In the order of a hash of the text: modules are mixed, and the order is the same in every process."""
    for split in docstring_documents():
        assert split == sorted(split, key=unit_hash)
    order = [int(re.findall(r"\d+", text)[0]) % 100 for text in docstring_documents()[0]]
    assert sum(a == b for a, b in pairwise(order)) < 10


@pytest.mark.parametrize(
    ("copy", "is_kept"),
    [
        (prose(1).upper().replace(" ", "\n"), False),
        (" ".join("other" if i % 15 == 7 else word for i, word in enumerate(prose(1).split())), False),
        ("Some words before it. " + prose(1) + " And some after it.", False),
        (" ".join(prose(1).split()[:20]), False),
        (prose(1, 20) + " " + prose(2, 60), True),
        (prose(2), True),
    ],
)
def test_near_copies_are_left_out(
    copy: str, is_kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "DOCSTRING_MIN_CHARS", 0)
    texts = [prose(1), copy]
    files = []
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.py").write_text(f'"""{text}"""')
        files.append((str(i), tmp_path / f"{i}.py"))
    monkeypatch.setattr(corpus, "unit_hash", len)  # the names' order, not a hash's
    monkeypatch.setattr(corpus, "_module_files", lambda: sorted(files))
    train, val = docstring_documents()
    assert len(train) + len(val) == 1 + is_kept


def test_long_texts_are_cut_between_paragraphs_or_lines_or_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "DOCUMENT_CHARS", 12)
    assert list(pieces("one two\n\nthree\nfour five\nsix")) == ["one two", "three", "four five", "six"]
    assert list(pieces("x" * 30)) == ["x" * 12, "x" * 12, "x" * 6]
    assert list(pieces("short")) == ["short"]
    assert list(pieces("")) == []


def test_what_is_not_installed_or_not_readable_is_passed_over(
    little_installation: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = docstring_documents()
    little_installation["pkg.gone"] = tmp_path / "gone.py"
    little_installation["pkg.folder"] = tmp_path
    assert [sorted(part) for part in docstring_documents()] == [sorted(part) for part in whole]
    monkeypatch.undo()
    monkeypatch.setattr(corpus, "DOCSTRING_PACKAGES", ("numpy", "no_such_package"))
    assert {name.split(".")[0] for name, _ in corpus._module_files()} == {"", "numpy"}


def test_too_little_text_is_said(
    little_installation: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "DOCSTRING_MIN_CHARS", 1_000_000)
    with pytest.raises(DataError, match=r"only 0\.0 MB of docstrings .* needs 1\.0: .*pip install numpy"):
        docstring_documents()


def test_enough_text_is_enough(little_installation: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules past the limit are not read; those that are, are the same with several workers."""
    monkeypatch.setattr(corpus, "DOCSTRING_MAX_CHARS", 5000)
    monkeypatch.setattr(corpus, "_FILES_PER_TASK", 4)
    train, val = docstring_documents()
    assert 5000 <= sum(map(len, train + val)) < 9000


def test_modules_are_parsed_and_never_imported() -> None:
    """In the true installation: files are found for all packages, and none is imported for it."""
    before = set(sys.modules)
    names = [name for name, _ in corpus._module_files()]
    assert not {m for m in set(sys.modules) - before if m.split(".")[0] in corpus.DOCSTRING_PACKAGES}
    assert {name.split(".")[0] for name in names} == {"", *corpus.DOCSTRING_PACKAGES}
    assert not [name for name in names if "tests" in name.split(".")]
    assert len(names) == len(set(names)) > 1000


def test_prepared_once_then_opened(tmp_path: Path, little_installation: dict[str, Path]) -> None:
    said: list[str] = []
    first = prepare_docstrings(tmp_path / "out", vocab_size=300, workers=1, say=said.append)
    assert said
    said.clear()
    little_installation.clear()
    assert prepare_docstrings(tmp_path / "out", vocab_size=300, workers=1, say=said.append) == first
    assert not said
    assert first.config == open_folder(tmp_path / "out").config
    with pytest.raises(DataError, match="holds other data"):
        prepare_docstrings(tmp_path / "out", vocab_size=400, workers=1)


@pytest.mark.slow
def test_whole_docstring_corpus(tmp_path: Path) -> None:
    dataset = prepare_docstrings(tmp_path / "out")
    assert dataset.manifest is not None
    assert dataset.manifest["train"]["text_bytes"] > 3_500_000
    assert dataset.manifest["val"]["text_bytes"] > 180_000
    for split in ("train", "val"):
        assert dataset.manifest[split]["text_bytes"] == dataset.manifest[split]["token_bytes"]
