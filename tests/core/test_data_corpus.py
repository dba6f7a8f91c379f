"""The docstring corpus: what is extracted, and that the splits stay apart."""

import sys
from pathlib import Path

import pytest

from gepa_core.data import corpus
from gepa_core.data.corpus import docstring_documents, docstrings, unit_hash
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


@pytest.fixture
def little_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Sixty modules, three of them with a docstring that others have too, one that raises when imported."""
    files = {}
    for i in range(60):
        path = tmp_path / f"m{i}.py"
        shared = '\ndef s():\n    "Shared by three."\n' if i % 20 == 0 else ""
        path.write_text(f'"""Module number {i}. {"word " * 50}"""\nraise SystemExit\n{shared}')
        files[f"pkg.m{i}"] = path
    monkeypatch.setattr(corpus, "_module_files", lambda: list(files.items()))
    return files


def test_split_is_by_module_and_shares_no_docstring(little_installation: dict[str, Path]) -> None:
    train, val = docstring_documents()
    assert len(train) + len(val) == 60
    assert 3 <= len(val) <= 5  # 5 % of the text
    assert sum("Shared by three." in text for text in train + val) == 1
    order = sorted(little_installation, key=unit_hash)
    assert [text.split(".")[0] for text in val + train] == [f"Module number {n[5:]}" for n in order]


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
    assert dataset.manifest["train"]["text_bytes"] > 8_000_000
    assert dataset.manifest["val"]["text_bytes"] > 300_000
    for split in ("train", "val"):
        assert dataset.manifest[split]["text_bytes"] == dataset.manifest[split]["token_bytes"]
