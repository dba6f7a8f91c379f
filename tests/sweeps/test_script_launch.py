"""The shipped script sweep, made tiny, on a real Ray: from the command to the report; interrupted."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import main
from sweeps.store.store import Store

ROOT = Path(__file__).parents[2]
TINY = [
    str(ROOT / "sweeps" / "script.yaml"),
    *("steps=[20, 40, 60]", "warmdown_ratio=[0.5]", "seed=1", "script.env.VAL_LOSS_EVERY=5"),
]


def test_the_shipped_script_from_the_command_to_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TINY, "--output", str(tmp_path)]) == 0
    told = capsys.readouterr().err
    assert "sharing trunks was checked: " in told and "report: " in told
    rows = Store(tmp_path).sweep("script").read_runs() or []
    assert [row["status"] for row in rows] == ["done"] * 3
    assert all(row["float_bpb"] and row["artifact_bytes"] and row["params"] == 12_288 for row in rows)
    done = Store(tmp_path).all_done().values()
    assert sorted(outcome.identity["stop"] for outcome in done if outcome.kind == "script") == [
        *(10, 20, 20, 30, 40, 60)
    ]
    assert (tmp_path / "script" / "report" / "report.html").is_file()
    assert main([*TINY, "--output", str(tmp_path)]) == 0
    assert "nothing was left to do" in capsys.readouterr().err


def test_ctrl_c_ends_scripts_at_once(tmp_path: Path) -> None:
    slow = [*TINY, "share=false", "script.env.VAL_LOSS_EVERY=1", "steps=[3000]", "--no-report"]
    command = [sys.executable, "launch.py", *slow, "--output", str(tmp_path)]
    launched = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    logs = "segments/*/attempts/*/script.log"
    while not any("step:5/" in path.read_text() for path in tmp_path.glob(logs)):
        assert launched.poll() is None, launched.communicate()
        time.sleep(0.1)
    os.kill(launched.pid, signal.SIGINT)
    _, told = launched.communicate(timeout=60)
    assert launched.returncode == 130 and "interrupted" in told
    left = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not any(b"train_gpt.py" in line and b"launch.py" not in line for line in left)
    assert [row["status"] for row in Store(tmp_path).sweep("script").read_runs() or []] == ["pending"]
