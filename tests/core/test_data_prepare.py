"""Text to a prepared folder: every kind of input, the same at any number of workers, nothing half-done."""

import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from gepa_core.data import corpus, shuffle
from gepa_core.data.__main__ import main
from gepa_core.data.folder import open_folder
from gepa_core.data.prepare import prepare, prepare_files
from gepa_core.data.shards import load_tokens
from gepa_core.data.tokenizer import load_tokenizer
from gepa_core.errors import DataError

PROSE = "learning rate warmdown schedule of a small model; naïve Schrödinger 世界 🙂 loss"
WORDS = [*PROSE.split(), "\n"]


def texts(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [f"document {i} " + " ".join(rng.choice(WORDS, 60)) for i in range(count)]


def write_jsonl(path: Path, documents: Iterable[str], key: str = "text") -> Path:
    lines = "".join(json.dumps({key: text, "id": i}) + "\n" for i, text in enumerate(documents))
    data = lines.encode()
    if path.suffix == ".zst":  # two frames: concatenated archives are valid ones
        half = len(data) // 2
        data = b"".join(zstandard.ZstdCompressor().compress(part) for part in (data[:half], data[half:]))
    path.write_bytes(data)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder with several shards a split."""
    base = tmp_path_factory.mktemp("prepared")
    source = write_jsonl(base / "a.jsonl", texts(400))
    prepare_files(base / "out", [source], vocab_size=400, val_fraction=0.1, shard_tokens=7000, workers=1)
    return base / "out"


def decoded(folder: Path, split: str) -> list[str]:
    dataset = open_folder(folder)
    sp = load_tokenizer(dataset.paths.tokenizer)
    tokens = load_tokens(getattr(dataset, split))
    assert tokens[0] == sp.bos_id()
    documents = np.split(tokens, np.flatnonzero(tokens == sp.bos_id()))[1:]
    return [sp.decode(document[1:].tolist()) for document in documents]


def test_documents_are_shuffled_alike_however_large_the_text(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parted on disk or sorted at once; and in the order of the files where that is asked for."""
    source = folder.parent / "a.jsonl"
    options: dict[str, Any] = {"vocab_size": 400, "val_fraction": 0.1, "shard_tokens": 7000, "workers": 1}
    monkeypatch.setattr(shuffle, "BUCKET_BYTES", 10_000)
    prepare_files(tmp_path / "parted", [source], **options)
    for split in ("train", "val"):
        assert decoded(tmp_path / "parted", split) == decoded(folder, split)
    prepare_files(tmp_path / "in-order", [source], in_order=True, **options)
    train = set(decoded(folder, "train"))
    assert decoded(tmp_path / "in-order", "train") == [text for text in texts(400) if text in train]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in-order", "parted"]


def test_folder_gives_the_documents_back(folder: Path) -> None:
    train, val = decoded(folder, "train"), decoded(folder, "val")
    assert sorted(train + val) == sorted(texts(400))
    assert 20 <= len(val) <= 70
    assert train != [text for text in texts(400) if text in set(train)]  # one file after another


def test_manifest_counts_are_those_of_the_text(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    for split in ("train", "val"):
        documents = decoded(folder, split)
        entry = manifest[split]
        assert entry["documents"] == len(documents)
        assert entry["text_bytes"] == entry["token_bytes"] == len("".join(documents).encode())
        assert entry["tokens"] == sum(file["tokens"] for file in entry["files"])
        assert {file["tokens"] for file in entry["files"][:-1]} <= {7000}
    assert len(manifest["train"]["files"]) > 1


def test_compressed_sizes_are_those_of_the_validation_text(folder: Path) -> None:
    text = "".join(decoded(folder, "val")).encode()
    known = open_folder(folder).val_text
    assert known is not None
    assert known["zstd_22_bytes"] == len(zstandard.ZstdCompressor(level=22).compress(text))
    assert known["xz_9e_bytes"] == len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))


def test_workers_do_not_change_a_byte(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl.zst", [" ".join(texts(30, seed)) for seed in range(200)])
    assert sum(1 for _ in corpus.read_documents(source)) == 200
    for workers in (1, 2):  # 2 MB: several tasks
        prepare_files(
            tmp_path / f"w{workers}", [source], vocab_size=400, shard_tokens=100_000, workers=workers
        )
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("w1", "w2")
    )
    assert one == two
    assert len(one) > 5


def test_every_kind_of_input_gives_the_same_documents(tmp_path: Path) -> None:
    documents = texts(20)
    pq.write_table(pa.table({"body": [*documents, None, "  "]}), tmp_path / "a.parquet", row_group_size=7)
    write_jsonl(tmp_path / "a.jsonl", documents, "body")
    write_jsonl(tmp_path / "a.jsonl.zst", documents, "body")
    for name in ("a.parquet", "a.jsonl", "a.jsonl.zst"):
        assert list(corpus.read_documents(tmp_path / name, "body")) == documents
    (tmp_path / "a.txt").write_text(documents[0])
    assert list(corpus.read_documents(tmp_path / "a.txt")) == documents[:1]


def test_large_txt_streams_in_pieces_that_end_a_line(tmp_path: Path) -> None:
    text = "".join(f"line {i} of a play,\r\n" for i in range(9000))
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    pieces = list(corpus.read_documents(tmp_path / "a.txt"))
    assert "".join(pieces) == text
    assert len(pieces) > 4
    assert all(piece.endswith(",\r\n") for piece in pieces)


def test_lone_surrogates_become_question_marks(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud83db"}\n\n{"text": ""}\n')
    assert list(corpus.read_documents(tmp_path / "a.jsonl")) == ["a?b"]


def test_equal_documents_lie_on_one_side(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", texts(60) * 3)
    prepare_files(tmp_path / "out", [source], vocab_size=400, val_fraction=0.3, workers=1)
    assert not set(decoded(tmp_path / "out", "train")) & set(decoded(tmp_path / "out", "val"))


def test_given_tokenizer_and_validation_file(tmp_path: Path, folder: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", texts(30))
    held_out = write_jsonl(tmp_path / "v.jsonl", texts(5, seed=1))
    tokenizer = folder / "tokenizer.model"
    prepare_files(tmp_path / "out", [source, source], val_inputs=[held_out], tokenizer=tokenizer, workers=1)
    assert sorted(decoded(tmp_path / "out", "train")) == sorted(texts(30) * 2)
    assert sorted(decoded(tmp_path / "out", "val")) == sorted(texts(5, seed=1))
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == tokenizer.read_bytes()


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    def failing() -> Iterable[str]:
        yield from texts(30)
        raise DataError("the source broke off")

    with pytest.raises(DataError, match="broke off"):
        prepare(tmp_path / "out", failing, lambda: texts(3), vocab_size=300, source={}, workers=1)
    assert not list(tmp_path.iterdir())


def test_killed_preparation_leaves_no_folder_and_is_cleared(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", texts(30))
    script = (
        "import sys, time; from pathlib import Path; from gepa_core.data.prepare import prepare\n"
        "def slow():\n    yield 'some text ' * 400\n    Path('started').touch(); time.sleep(60)\n"
        "prepare(Path('out'), slow, lambda: ['val text'], tokenizer=Path(sys.argv[1]), source={}, workers=1)"
    )
    prepare_files(tmp_path / "first", [source], vocab_size=400, val_fraction=0.3, workers=1)
    process = subprocess.Popen(
        [sys.executable, "-c", script, "first/tokenizer.model"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    while not (tmp_path / "started").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.glob(".out.*.partial"))
    prepare_files(tmp_path / "out", [source], vocab_size=400, val_fraction=0.3, workers=1)
    assert not list(tmp_path.glob(".out.*.partial"))
    assert (tmp_path / "out" / "manifest.json").is_file()


def test_folder_that_appears_meanwhile_is_kept(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "out"

    def train() -> Iterable[str]:
        shutil.copytree(folder, out)
        yield "some text"

    tokenizer = folder / "tokenizer.model"
    with pytest.raises(DataError, match="appeared while it was being prepared"):
        prepare(out, train, lambda: ["val text"], tokenizer=tokenizer, source={}, workers=1)
    assert open_folder(out).config == open_folder(folder).config
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def bad_lines(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def test_wrong_input_is_one_line_and_exit_code_2(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = str(write_jsonl(tmp_path / "good.jsonl", texts(5)))
    broken = str(bad_lines(tmp_path / "broken.jsonl", '{"text": "a"}\n{"text": '))
    keyless = str(bad_lines(tmp_path / "keyless.jsonl", '{"body": "a"}\n'))
    listed = str(bad_lines(tmp_path / "list.jsonl", "[1]\n"))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "x.parquet").write_bytes(b"PAR0")
    (tmp_path / "x.jsonl.zst").write_bytes(zstandard.compress(b'{"text": "a"}\n' * 9999)[:-9])
    pq.write_table(pa.table({"n": [1]}), tmp_path / "n.parquet")
    blank = str(bad_lines(tmp_path / "blank.txt", " \n"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "page.html").write_text("<p>")
    (tmp_path / "a.txt.gz").write_bytes(b"\x1f\x8b")
    (tmp_path / "wide.txt").write_text("text", encoding="utf-16-le")
    (tmp_path / "marked.txt").write_text("text", encoding="utf-16")
    os.mkfifo(tmp_path / "pipe")
    null = str(bad_lines(tmp_path / "null.jsonl", '{"text": null}\n'))
    (tmp_path / "one").write_text("a document without an ending")
    out, size = ["--out", str(tmp_path / "out")], ["--vocab-size", "300"]
    cases: list[tuple[list[str], str]] = [
        ([str(tmp_path / "no.txt"), *size], "no.txt: no such file"),
        ([str(tmp_path / "empty"), *size], "no text in this folder"),
        ([str(tmp_path / "page.html"), *size], "unknown kind of text"),
        ([str(tmp_path / "a.txt.gz"), *size], "unpack it first: gunzip"),
        ([str(tmp_path / "wide.txt"), *size], "holds NUL bytes"),
        ([str(tmp_path / "marked.txt"), *size], "iconv -f utf-16"),
        ([str(tmp_path / "pipe"), *size], "pipe: is neither a file nor a folder"),
        ([null, *size], "null.jsonl, line 1: 'text' is null, not text; leave such rows out"),
        ([str(tmp_path / "one"), *size, "--val-fraction", "0.9999999"], "make --val-fraction smaller"),
        ([str(tmp_path / "one"), *size], "of 1 document none falls into a share of 0.01; give --val FILE"),
        ([good, *size, "--split-on", ""], "--split-on is empty"),
        ([broken, *size], "broken.jsonl, line 2: not JSON"),
        ([keyless, *size], "no text under 'text' (it has body); see --text-key"),
        ([listed, *size], "it is a list"),
        ([str(tmp_path / "latin.txt"), *size], "latin.txt: not UTF-8 text"),
        ([str(tmp_path / "x.parquet"), *size], "x.parquet: not a Parquet file"),
        ([str(tmp_path / "x.jsonl.zst"), *size], "x.jsonl.zst: truncated"),
        ([str(tmp_path / "n.parquet"), *size], "no column 'text' (it has n)"),
        ([str(tmp_path / "n.parquet"), "--text-key", "n", *size], "column 'n' holds int, not text"),
        ([good, "--val", blank, "--tokenizer", str(folder / "tokenizer.model")], "the val split is empty"),
        ([good], "give --tokenizer FILE.model, or --vocab-size N"),
        ([], "give either INPUT files or --corpus"),
        ([good, "--corpus", "docstrings"], "give either INPUT files or --corpus"),
        (["--corpus", "docstrings", "--val-fraction", ".1"], "drop --val-fraction"),
        ([good, "--vocab-size", "60000", "--val-fraction", "0.5"], "no tokenizer of 60000 pieces"),
        ([good, "--vocab-size", "0"], "no tokenizer of 0 pieces"),
        ([good, *size, "--val-fraction", "1.5"], "--val-fraction 1.5"),
        ([good, *size, "--workers", "0"], "--workers 0"),
        ([good, *size, "--val-fraction", "0.5", "--shard-tokens", "0"], "a shard of 0 tokens"),
        ([good, "--tokenizer", good], "not a SentencePiece model"),
    ]
    for args, message in cases:
        code = main(["prepare", *args, *out, *([] if "--workers" in args else ["--workers", "1"])])
        captured = capsys.readouterr()
        errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
        assert code == 2, (args, captured)
        assert len(errors) == 1 and message in errors[0], (args, captured.err)
        assert "Traceback" not in captured.err
        assert not (tmp_path / "out").exists()
        assert not list(tmp_path.glob(".out*"))
        assert "training a tokenizer" not in captured.err or "no tokenizer of" in message


def test_existing_folder_is_not_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (folder / "manifest.json").read_bytes()
    assert main(["prepare", "--corpus", "docstrings", "--out", str(folder.parent)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert (folder / "manifest.json").read_bytes() == before


def test_command_prepares_and_inspects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", texts(50))
    out = tmp_path / "out"
    args = [str(source), "--vocab-size", "400", "--val-fraction", "0.2", "--workers", "2", "--out", str(out)]
    assert main(["prepare", *args]) == 0
    assert "ready in" in capsys.readouterr().out
    assert main(["inspect", str(out), "--verify", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["verified"] is True
    assert facts["train"]["bytes_per_token"] == facts["train"]["text_bytes"] / facts["train"]["tokens"]
    assert facts["val"]["xz_9e_bpb"] == 8 * facts["val"]["xz_9e_bytes"] / facts["val"]["text_bytes"]
    pattern = [str(out / "train_*.bin"), "--tokenizer", str(out / "tokenizer.model"), "--json"]
    assert main(["inspect", *pattern]) == 0
    bare = json.loads(capsys.readouterr().out)
    for key in ("tokens", "documents", "token_bytes", "fingerprint", "bytes_per_token", "shards"):
        assert bare[key] == facts["train"][key]


def test_verify_of_a_pattern_finds_what_changed(folder: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(folder / "val_000000.bin", tmp_path))
    stamp = path.stat()
    assert main(["inspect", str(path)]) == 0
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert main(["inspect", str(path)]) == 0
    assert main(["inspect", str(path), "--verify"]) == 2


def test_inspect_counts_across_shard_boundaries(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = open_folder(folder).manifest
    assert facts is not None
    args = ["inspect", str(folder / "train_*.bin"), "--tokenizer", str(folder / "tokenizer.model"), "--json"]
    assert main(args) == 0
    bare = json.loads(capsys.readouterr().out)
    assert bare["shards"] > 1
    assert (bare["token_bytes"], bare["documents"]) == (
        facts["train"]["token_bytes"],
        facts["train"]["documents"],
    )
