"""Anyone's training script as the job of a sweep: how it is started, listened to, ended and read."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sweeps.commands.sweep import changed
from sweeps.store.gc import find_waste
from sweeps.store.schema import TRAJECTORY, from_parquet
from sweeps.store.store import Store
from sweeps.work.policy import Observed
from sweeps.work.scripts.log import Curve, Lines
from tests.script_sweep import EXAMPLE, launch, log, plan_of, read, result, rows, sweep_text, write_script
from tests.tiny_sweep import InThisProcess

EXAMPLE_STATE = {
    "file": "state.npz",
    "save": {"SAVE_AT": "{stop}", "SAVE_TO": "{state}"},
    "load": {"LOAD_FROM": "{state}"},
    "check_steps": 8,
}


def example(**top: Any) -> str:
    """A sweep of the shipped example, of two runs that could share a trunk."""
    script: dict[str, Any] = {
        "command": "python train_gpt.py",
        "env": {"SEED": "{seed}", "MAX_WALLCLOCK_SECONDS": 0, "VAL_LOSS_EVERY": 2, "TRAIN_LOG_EVERY": 1},
        "outputs": ["final_model.int8.ptz"],
        "artifact": "final_model.int8.ptz",
        "state": EXAMPLE_STATE,
    }
    script |= top.pop("script", {})
    grid = {"steps": [8, 12], "warmdown_ratio": [0.5], "seed": [1]}
    return sweep_text(EXAMPLE, script, grid=top.pop("grid", grid), exec={"threads": 1}, **top)


FIGURES = ("float_bpb", "train_loss_final", "artifact_bytes", "params", "train_tokens", "steps")


def test_shared_and_alone_give_the_same_figures(tmp_path: Path) -> None:
    cluster = InThisProcess()
    assert launch(example(), tmp_path / "shared", cluster).exit_code == 0
    kinds = [(job.kind, job.identity.get("start"), job.until) for job in cluster.jobs]
    assert kinds[0][0] == "sharing_check"
    assert sorted(kinds[1:]) == [("script", 0, 4), ("script", 4, 6), ("script", 4, 8), ("script", 6, 12)]
    assert launch(example(share=False), tmp_path / "alone").exit_code == 0
    shared, alone = rows(tmp_path / "shared"), rows(tmp_path / "alone")
    assert [[row[key] for key in FIGURES] for row in shared] == [
        [row[key] for key in FIGURES] for row in alone
    ]
    assert all(
        row["float_bpb"] and row["artifact_bytes"] == row["output.final_model.int8.ptz"] for row in shared
    )
    again = InThisProcess()
    assert launch(example(), tmp_path / "shared", again).exit_code == 0 and not again.jobs
    assert find_waste(Store(tmp_path / "shared")) == []
    curve = Store(tmp_path / "shared").sweep("tiny")
    assert curve.has(
        f"trajectory/{plan_of(example(), tmp_path / 'shared').runs[shared[1]['run_id']].last}.parquet"
    )


def test_sharing_that_is_not_exact_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same script, but for one that forgets its momentum when it loads."""
    folder = tmp_path / "forgetful"
    folder.mkdir()
    source = (EXAMPLE / "train_gpt.py").read_text()
    forgetful = source.replace('saved[f"momentum.{name}"] for name', "np.zeros_like(weights[name]) for name")
    assert forgetful != source
    (folder / "train_gpt.py").write_text(forgetful)
    cluster = InThisProcess()
    text = example(script={"workdir": str(folder)})
    assert launch(text, tmp_path / "out", cluster).exit_code == 0
    assert "no trunks are shared: train_loss at step 6:" in capsys.readouterr().err
    assert sorted(job.until for job in cluster.jobs if job.kind == "script") == [8, 12]
    assert all(job.start is None for job in cluster.jobs)
    more = InThisProcess()
    assert launch(text.replace("- 8\n", "- 10\n"), tmp_path / "out", more).exit_code == 0
    assert [job.kind for job in more.jobs] == ["script"], "it is asked once"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("curve()", "left none"),
        ("open(os.environ.get('SAVE_TO') or 'x', 'w'); curve()", "went on to 4"),
        ("'SAVE_AT' in os.environ and sys.exit(7); curve()", "that saves its state failed \\(exit code 7"),
        (
            "'SAVE_AT' in os.environ and sys.exit(open(os.environ['SAVE_TO'], 'w') and None)",
            "no loss after step 2",
        ),
    ],
)
def test_why_trunks_are_not_shared(source: str, reason: str, tmp_path: Path, capsys: Any) -> None:
    folder = write_script(tmp_path / "work", source)
    state = {"save": {"SAVE_AT": "{stop}", "SAVE_TO": "{state}"}, "load": {"FROM": "{state}"}}
    assert launch(sweep_text(folder, {"state": state}), tmp_path / "out").exit_code == 0
    assert re.search(f"no trunks are shared: .*{reason}", capsys.readouterr().err)


def test_a_check_that_is_killed_is_no_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mark = tmp_path / "mark"
    source = f"""
    if not os.path.exists({str(mark)!r}):
        open({str(mark)!r}, "w")
        os.kill(os.getpid(), 9)
    first = int(open(os.environ["FROM"]).read()) + 1 if "FROM" in os.environ else 1
    curve(first, int(os.environ.get("SAVE_AT", steps)))
    "SAVE_AT" in os.environ and open(os.environ["SAVE_TO"], "w").write(os.environ["SAVE_AT"])
    """
    folder = write_script(tmp_path / "work", source)
    state = {"save": {"SAVE_AT": "{stop}", "SAVE_TO": "{state}"}, "load": {"FROM": "{state}"}}
    assert launch(sweep_text(folder, {"state": state}), tmp_path / "out").exit_code == 0
    assert "sharing trunks was checked: 4 figures alike" in capsys.readouterr().err


COMPLETE = 'curve(); print("final_int6_roundtrip_exact val_loss:1.0 val_bpb:0.5000"); '


@pytest.mark.parametrize(
    ("source", "status", "attempts", "words"),
    [
        ("curve(last=3); print('step:4/4 val_loss:nan val_bpb:nan')", "diverged", 1, "not finite"),
        ("curve(last=2); print('step:4/4 train_loss:nan')", "diverged", 1, "not finite"),
        ("", "done", 1, ""),
        ("curve(); sys.exit(3)", "failed", 3, "exit code 3"),
        (COMPLETE + "sys.exit(3)", "done", 1, ""),
        (COMPLETE + "os.abort()", "done", 1, ""),
        (
            "curve(last=2); sys.exit('something odd')",
            "failed",
            3,
            "exit code 1: its last line: something odd",
        ),
        ("import nowhere", "failed", 1, "ModuleNotFoundError: No module named 'nowhere'"),
        ("print('torch.OutOfMemoryError: CUDA out of memory.'); sys.exit(1)", "failed", 1, "out of memory"),
        ("curve(1, 2); time.sleep(60)", "failed", 3, "printed nothing for 0.005 minutes"),
    ],
)
def test_ends_of_a_script(source: str, status: str, attempts: int, words: str, tmp_path: Path) -> None:
    folder = write_script(tmp_path / "work", source)
    cluster = InThisProcess()
    sweep = sweep_text(folder, {"silence_minutes": 0.005 if "sleep" in source else 1})
    launch(sweep, tmp_path / "out", cluster)
    (row,) = rows(tmp_path / "out")
    assert (row["status"], len(cluster.jobs)) == (status, attempts), row["error"]
    assert words in (row["error"] or "")
    if source.startswith(COMPLETE):
        assert row["int6_bpb"] == 0.5 and row["float_bpb"] == 0.5
        assert any("after it was complete" in note for note in result(tmp_path / "out").result["notes"])
    if not source:
        assert row["float_bpb"] is None and row["train_loss_final"] is None


def test_a_run_that_was_killed_is_made_again_whole(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    source = f"""
    curve(last=2)
    if not os.path.exists({str(mark)!r}):
        open({str(mark)!r}, "w")
        os.kill(os.getpid(), 9)
    curve(first=3)
    """
    cluster = InThisProcess()
    folder = write_script(tmp_path / "work", source)
    assert launch(sweep_text(folder), tmp_path / "out", cluster).exit_code == 0
    assert len(cluster.jobs) == 2 and rows(tmp_path / "out")[0]["float_bpb"] == 0.5


def example_killed_once(folder: Path, step: int, before: str) -> Path:
    """The shipped example, but that it executes `before` and kills itself, once, at a step."""
    source = (EXAMPLE / "train_gpt.py").read_text()
    fatal = f"""
        if step == {step} and not os.path.exists({str(folder / "killed")!r}):
            open({str(folder / "killed")!r}, "w").close()
            {before}
            os.kill(os.getpid(), 9)
        if step == last:
"""
    folder.mkdir()
    (folder / "train_gpt.py").write_text(source.replace("\n        if step == last:\n", fatal))
    (folder / ".gitignore").write_text("killed\n")
    return folder


@pytest.mark.parametrize("cut_short", ["", "state", "state.json"])
def test_a_run_that_was_cut_off_goes_on_from_its_last_whole_state(cut_short: str, tmp_path: Path) -> None:
    """Its trunk of 9 steps saves after 4 and 8, and is killed after 8."""
    saved = str(tmp_path / "out/segments/*/attempts/*/checkpoints/8" / (cut_short or "state"))
    spoil = f"import glob; os.truncate(glob.glob({saved!r})[0], 9)" if cut_short else ""
    folder = example_killed_once(tmp_path / "work", 8, spoil)
    script = {"workdir": str(folder), "state": EXAMPLE_STATE | {"every": 4, "check_steps": 6}}
    grid = {"steps": [12], "warmdown_ratio": [0.25], "seed": [1]}
    cluster = InThisProcess()
    assert launch(example(script=script, grid=grid), tmp_path / "out", cluster).exit_code == 0
    jobs = [job for job in cluster.jobs if job.kind == "script"]
    assert [(job.until, len(job.resume)) for job in jobs] == [(9, 0), (9, 2), (12, 0)]
    trunk = Store(tmp_path / "out").all_done()[jobs[1].id]
    attempt = tmp_path / "out" / "segments" / trunk.id / "attempts" / trunk.attempt
    events = [json.loads(line) for line in (attempt / "events.jsonl").read_text().splitlines()]
    assert [e["step"] for e in events if e["event"] == "started"][-1] == (4 if cut_short else 8)
    trained = re.findall(r"^step:(\d+)/12 train_loss", (attempt / "script.log").read_text(), re.MULTILINE)
    assert [int(step) for step in trained] == [*range(1, 10)], "its log is of the run, not of the attempt"
    assert not (attempt / "checkpoints").exists()
    assert launch(example(script=script, grid=grid, share=False), tmp_path / "alone").exit_code == 0
    (resumed,), (alone,) = rows(tmp_path / "out"), rows(tmp_path / "alone")
    assert [resumed[key] for key in FIGURES] == [alone[key] for key in FIGURES]
    curve = from_parquet(Store(tmp_path / "out").read_file(trunk, "trajectory.parquet"), TRAJECTORY)
    assert [row["step"] for row in curve] == [*range(1, 10)]


def alive(pids: list[int]) -> list[int]:
    """Those of the processes that still are there."""
    return [
        pid for pid in pids if (stat := Path(f"/proc/{pid}/stat")).exists() and ") Z" not in stat.read_text()
    ]


STUBBORN = """
import signal, subprocess
signal.signal(signal.SIGTERM, signal.SIG_IGN)
code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"
children = [subprocess.Popen([sys.executable, "-c", code], start_new_session=i == 1) for i in range(2)]
print("pids", os.getpid(), *(child.pid for child in children))
curve(last=2)
"""


def pids_of(text: str) -> list[int]:
    return [int(pid) for line in text.splitlines() if line.startswith("pids") for pid in line.split()[1:]]


def test_a_stubborn_script_is_ended_with_all_its_children(tmp_path: Path) -> None:
    """It ignores SIGTERM, as do its children, one of them in a session of its own."""
    folder = write_script(tmp_path / "work", STUBBORN + "time.sleep(300)")
    cluster = InThisProcess(lambda job: Observed.STOPPED)
    text = sweep_text(folder)
    assert launch(text, tmp_path / "out", cluster).runs["pending"] == 1
    pids = pids_of(log(tmp_path / "out"))
    assert not alive(pids)


def test_children_left_behind_are_ended_and_said(tmp_path: Path) -> None:
    folder = write_script(tmp_path / "work", STUBBORN + "curve(); os._exit(0)")
    assert launch(sweep_text(folder), tmp_path / "out").exit_code == 0
    pids = pids_of(log(tmp_path / "out"))
    assert len(pids) == 3 and not alive(pids)
    assert "it left 2 processes behind, which were ended" in result(tmp_path / "out").result["notes"]


def test_nothing_of_a_script_outlives_its_worker(tmp_path: Path) -> None:
    """A worker killed outright, as Ray does it, has no chance to end its script."""
    folder = write_script(tmp_path / "work", STUBBORN + "time.sleep(300)")
    sweep = tmp_path / "tiny.yaml"
    sweep.write_text(sweep_text(folder))
    program = (
        "from pathlib import Path; from tests.script_sweep import launch\n"
        f"launch(Path({str(sweep)!r}).read_text(), Path({str(tmp_path / 'out')!r}))"
    )
    worker = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parents[2])
    try:
        while len(pids := pids_of(log(tmp_path / "out") if (tmp_path / "out").exists() else "")) < 3:
            assert worker.poll() is None
            time.sleep(0.1)
        os.kill(worker.pid, signal.SIGKILL)
    finally:
        worker.kill()
        worker.wait()
    while alive(pids):  # pytest's own time limit ends a wait in vain
        time.sleep(0.1)


def test_names_with_spaces_and_other_letters(tmp_path: Path) -> None:
    folder = tmp_path / "mein Eintrag (é)"
    source = (
        'curve(); open("modell größe 1.bin", "wb").write(b"12345"); print(sys.argv[1:], os.environ["NOTE"])'
    )
    write_script(folder, source, "train me.py")
    script = {
        "command": "python 'train me.py' {note} --out {out}/x",
        "env": {"NOTE": "{note}"},
        "outputs": ["modell *.bin"],
    }
    text = sweep_text(folder, script, set={"note": "it's $HOME & more"})
    assert launch(text, tmp_path / "a store").exit_code == 0
    (row,) = rows(tmp_path / "a store")
    assert row["output.modell *.bin"] == 5
    kept = tmp_path / "a store" / row["output.folder"] / "modell größe 1.bin"
    assert kept.read_bytes() == b"12345"
    printed = log(tmp_path / "a store")
    assert "it's $HOME & more" in printed and "\"it's $HOME & more\", '--out'" in printed


def test_progress_bars_huge_logs_and_lines_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.work.scripts.log.MAX_LOG_BYTES", 100_000)
    monkeypatch.setattr("sweeps.work.scripts.log._TAIL_BYTES", 10_000)
    source = """
    for i in range(50):
        sys.stdout.write(f"\\rstep {i}/50 of a bar")
    print()
    sys.stdout.buffer.write(b"\\xff" * 200_000 + b"\\n")
    for i in range(5_000):
        print("x" * 100)
    curve()
    print("the end")
    """
    folder = write_script(tmp_path / "work", source)
    assert launch(sweep_text(folder), tmp_path / "out").exit_code == 0
    assert rows(tmp_path / "out")[0]["float_bpb"] == 0.5
    printed = log(tmp_path / "out")
    assert len(printed) < 200_000 and printed.endswith("the end\n") and "lines left out" in printed


def test_what_a_script_inherits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MUON_WD": "9", "RANK": "3", "WORLD_SIZE": "8", "API": "key", "LC_ALL": "C"}.items():
        monkeypatch.setenv(name, value)
    folder = write_script(
        tmp_path / "work", 'curve(); print("\\n".join(f"{k}={v}" for k, v in os.environ.items()))'
    )
    script = {
        "env": {"A": True, "B": None, "C": 0.04, "D": "${HOME}", "E": "{{x}}", "F": '{"a": {"b": 1}}'},
        "pass_env": ["API"],
    }
    assert launch(sweep_text(folder, script), tmp_path / "out").exit_code == 0
    found = dict(line.partition("=")[::2] for line in log(tmp_path / "out").splitlines())
    assert not {"MUON_WD", "RANK", "WORLD_SIZE", "B"} & found.keys()
    assert [found[name] for name in "ACDEF"] == ["1", "0.04", "${HOME}", "{x}", '{"a": {"b": 1}}']
    assert found["API"] == "key" and found["LC_ALL"] == "C" and found["CUDA_VISIBLE_DEVICES"] == ""
    assert found["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert 1024 < int(found["MASTER_PORT"]) < 65536
    assert not any("key" in path.read_text() for path in tmp_path.rglob("*.json"))


def test_data_is_linked_and_its_fingerprint_is_part_of_a_run(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.bin").write_bytes(b"1" * 100)
    folder = write_script(tmp_path / "work", 'curve(); print(os.path.getsize("./data/a.bin"), "bytes")')
    text = sweep_text(folder, {"links": {"data": "../data"}, "data": ["data/*.bin"]})
    assert launch(text, tmp_path / "out").exit_code == 0 and "100 bytes" in log(tmp_path / "out")
    before = read(text).runs[0].run_id
    (data / "a.bin").write_bytes(b"2" * 100)
    assert read(text).runs[0].run_id != before


def test_identity_is_of_what_changes_the_numbers(tmp_path: Path) -> None:
    folder = write_script(tmp_path / "work", "curve()")
    text = sweep_text(folder)
    before = read(text).runs[0].run_id
    (folder / ".gitignore").write_text("*.log\n")
    with_ignore = read(text).runs[0].run_id
    (folder / "my.log").write_text("1")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "x.pyc").write_text("1")
    assert read(text).runs[0].run_id == with_ignore != before
    assert read(sweep_text(folder, {"silence_minutes": 5, "outputs": ["x"]})).runs[0].run_id == with_ignore
    assert read(sweep_text(folder, {"env": {"X": 1}})).runs[0].run_id != with_ignore
    (folder / "more.py").write_text("")
    assert read(text).runs[0].run_id != with_ignore


def test_what_changed_in_the_scripts_folder_is_said(tmp_path: Path) -> None:
    folder = write_script(tmp_path / "work", "curve()")
    assert launch(sweep_text(folder), tmp_path / "out").exit_code == 0
    assert changed(plan_of(sweep_text(folder), tmp_path / "out"), str(tmp_path / "out")) == []
    (folder / "train.log").write_text("left over")
    (folder / "train.py").write_text((folder / "train.py").read_text() + "# a remark\n")
    files, runs = changed(plan_of(sweep_text(folder), tmp_path / "out"), str(tmp_path / "out"))
    assert files.startswith("the script's files: changed train.py; new train.log. All runs")
    assert runs == "0 runs still match and are kept, 1 new, 1 left out"


def test_axes_of_variables_and_placeholders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_script(tmp_path / "work", 'curve(); print(sys.argv, os.environ["MUON_WD"])')
    grid = {"steps": [4], "warmdown_steps": [2], "env.MUON_WD": [0.04, 0.08], "lr": [1e-3]}
    script = {"command": ["python", "train.py", "--lr={lr}"], "env": {"MUON_WD": 0.04}}
    assert launch(sweep_text(folder, script, grid=grid), tmp_path / "out").exit_code == 0
    assert [(row["env.MUON_WD"], row["lr"]) for row in rows(tmp_path / "out")] == [
        (0.04, 0.001),
        (0.08, 0.001),
    ]
    assert "['train.py', '--lr=0.001'] 0.08" in log(tmp_path / "out")
    told = capsys.readouterr()
    assert "(env.MUON_WD 0.08, lr 0.001): " in told.out + told.err


def test_lines_and_curve() -> None:
    lines = Lines()
    assert lines.feed(b"one\rtwo\r\nthr") == ["one", "two"] and lines.feed(b"ee\n") == ["three"]
    curve = Curve()
    for line in (
        "warmup_step:1/20",
        "step:0/20000 val_loss:6.93 val_bpb:4.1036 train_time:0ms",
        "[rank0]: step:1,000/20000 train_loss:3.5 train_time:1.5m",
        "2000/20000 val_loss: 2.9214 val_bpb: 1.1310",
        "iter 3000: loss 2.5, tok/s: 8000",
        "ttt: step 5 loss:1.0",
        "DIAGNOSTIC post_ema val_loss:1.9 val_bpb:1.12",
    ):
        curve.read(line)
    assert sorted(curve.reports) == [0, 1000, 2000, 3000] and curve.last_step == 3000
    assert curve.reports[1000] == {"step": 1000, "train_loss": 3.5, "elapsed_seconds": 90.0}
    assert curve.reports[3000] == {"step": 3000, "train_loss": 2.5, "tokens_per_second": 8000.0}
    assert curve.finals == [("DIAGNOSTIC post_ema val_loss", 1.12)] and curve.diverged is None
