"""Storage that is away, misspelt or impossible: a line after 5 s, an end after a stated patience."""

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import launch
from sweeps.store import patience
from sweeps.store.files import Files, StorageError
from sweeps.store.redact import credentials_in, redacted

LONG = "a" * 300


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the real ones, a hundred times faster."""
    monkeypatch.setattr(patience, "_SILENCE", 0.05)
    monkeypatch.setattr(patience, "_FIRST_PAUSE", 0.02)
    monkeypatch.setattr("sweeps.store.files.FIRST_PATIENCE", 0.6)


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An S3 endpoint where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name, value in {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b" * 20,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("impatient", "refusing")
def test_s3_that_refuses_is_told_once_and_given_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["status", "s3://bucket/results"]) == 2
    waiting, end = capsys.readouterr().err.splitlines()[-2:]  # before: of a machine busy with imports
    assert waiting.startswith("cannot look at s3://bucket/results/sweep.json yet: ")
    assert waiting.endswith("s more") and "waiting for up to" in waiting
    assert end.startswith("cannot look at s3://bucket/results/sweep.json: ") and "stayed away" in end


@pytest.mark.usefixtures("impatient")
def test_a_call_that_does_not_return_is_told_too(capsys: pytest.CaptureFixture[str]) -> None:
    held = threading.Event()
    threading.Timer(0.3, held.set).start()
    assert patience.patiently(lambda: held.wait(5), "read s3://b/x", 60.0, is_remote=True)
    assert "cannot read s3://b/x yet: no answer; waiting for up to" in capsys.readouterr().err
    assert patience.patiently(lambda: 1, "read s3://b/x", 60.0, is_remote=True) == 1
    time.sleep(0.1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ("/proc/results", "no folder can be made there; give another --output"),
        ("{tmp}/file", "a file stands where a folder is needed"),
        ("{tmp}/{long}", "File name too long"),
        ("s3://", "names no bucket; write s3://BUCKET/PREFIX"),
        ("gs:///x", "names no bucket"),
        ("ftp://host/x", "give a path, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX"),
        ("s3://bucket/x?colour=red", "unknown option colour"),
        ("s3://KEYKEYKEY:HIDDENHIDDEN@bucket/x", "give them in AWS_ACCESS_KEY_ID"),
        ("s3://bucket/x?secret_key=HIDDENHIDDEN", "give them in AWS_ACCESS_KEY_ID"),
    ],
)
def test_a_store_that_cannot_be_ends_at_once(tmp_path: Path, output: str, told: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((StorageError, OSError), match=told) as caught:
        Files(output.format(tmp=tmp_path, long=LONG)).put("tiny/lease.json", b"{}")
    assert "HIDDEN" not in str(caught.value) and "KEYKEY" not in str(caught.value)


def test_a_file_in_place_of_the_sweeps_folder(tmp_path: Path) -> None:
    (tmp_path / "tiny").write_text("")
    files = Files(tmp_path)
    assert files.read("tiny/sweep.json") is None and files.list("tiny") == []
    with pytest.raises(StorageError, match="a file stands where a folder is needed; move it away"):
        files.put_new("tiny/lease.json", b"{}")


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("s3://KEY:SECRET@bucket/x", "s3://***@bucket/x"),
        ("launch.py x.yaml --output s3://K:S@b", "launch.py x.yaml --output s3://***@b"),
        ("HF_TOKEN=hf_abc x", "HF_TOKEN=*** x"),
        ("https://h/x?token=abc&a=1", "https://h/x?token=***&a=1"),
        ("data.tokenizer=/a/b.model data.val_tokens=9", "data.tokenizer=/a/b.model data.val_tokens=9"),
        ("ttt.chunk_tokens=32 a@b.c", "ttt.chunk_tokens=32 a@b.c"),
        ("the token is tok-0123456789", "the token is ***"),
    ],
)
def test_credentials_are_hidden_and_nothing_else_is(
    monkeypatch: pytest.MonkeyPatch, text: str, hidden: str
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "tok-0123456789")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert redacted({"argv": [text], "n": 1}) == {"argv": [hidden], "n": 1}


def test_credentials_in_addresses() -> None:
    assert all(
        map(credentials_in, ("s3://a:b@c/d", "s3://a@c", "s3://c/d?access_key=x", "https://c/?token="))
    )
    assert not any(map(credentials_in, ("s3://bucket/a@b", "results", "s3://b/x?region=eu", "/a@b:c")))


def test_names_that_no_file_can_have_are_a_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = tmp_path / "x.yaml"
    good.write_text("grid: {steps: [10], warmdown_ratio: [0.5]}\n")
    plan = [str(good), "--plan"]
    for arguments in (
        [f"{LONG}.yaml", "--plan"],
        ["status", LONG],
        [*plan, "--output", LONG],
        [*plan, f"data.dir={LONG}"],
    ):
        assert launch.main(arguments) == 2
        told = capsys.readouterr()
        assert told.err.count("\n") == 1 and "File name too long" in told.err, told


def pipe(path: Path) -> Path:
    import os

    os.mkfifo(path)
    return path


@pytest.mark.parametrize("make", [lambda path: Path("/dev/zero"), pipe, lambda path: path])
def test_a_sweep_file_is_a_regular_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], Path]
) -> None:
    file = make(tmp_path / "sweep.yaml")
    if file.parent == tmp_path and not file.exists():
        file.write_bytes(b"# " + b"x" * (1 << 20))
    assert launch.main([str(file), "--plan"]) == 2
    told = capsys.readouterr().err
    assert "not a regular file" in told or "over 1,048,576 bytes" in told
