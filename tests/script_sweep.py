"""Sweeps of small training scripts that tests make up, executed without Ray."""

import textwrap
from pathlib import Path
from typing import Any

import yaml

from launch import read_log
from sweeps.commands.sweep import check_sharing, over_store
from sweeps.drive.launch import RunOptions, SweepResult, run_sweep
from sweeps.plan.tree import Plan
from sweeps.spec.load import read_sweep
from sweeps.spec.sweep import Sweep
from sweeps.store.store import Outcome, Store
from tests.tiny_sweep import InThisProcess

EXAMPLE = Path(__file__).parents[1] / "examples" / "script"
HEAD = """\
import os, sys, time, math
steps, down = int(os.environ["ITERATIONS"]), int(os.environ["WARMDOWN_ITERS"])
def curve(first=1, last=None):
    for step in range(first, (last or steps) + 1):
        print(f"step:{step}/{steps} train_loss:{5 / step:.4f}")
        if step % 2 == 0 or step == steps:
            bpb = f"val_bpb:{2 / step:.4f} train_time:{10 * step}ms"
            print(f"step:{step}/{steps} val_loss:{4 / step:.4f} {bpb}")
"""
"""Of a script that prints a curve: `curve()` prints all of it."""


def write_script(folder: Path, source: str, name: str = "train.py") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(HEAD + textwrap.dedent(source), encoding="utf-8")
    return folder


def sweep_text(workdir: Path | str, script: dict[str, Any] | None = None, **top: Any) -> str:
    """A sweep file of one run of 4 steps, unless `top` says otherwise."""
    keys: dict[str, Any] = {
        "workdir": str(workdir),
        "command": "python train.py",
        "env": {"ITERATIONS": "{steps}", "WARMDOWN_ITERS": "{warmdown_steps}"},
        "grace_seconds": 0.3,
    }
    env = keys["env"] | (script or {}).pop("env", {})
    document = {
        "name": "tiny",
        "script": keys | (script or {}) | {"env": env},
        "grid": {"steps": [4], "warmdown_ratio": [0.5]},
        **top,
    }
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)


def read(text: str, overrides: tuple[str, ...] = ()) -> Sweep:
    return read_sweep(text, overrides, "tiny.yaml")


def plan_of(text: str, output: Path) -> Plan:
    return over_store(read(text), str(output))


def launch(
    text: str,
    output: Path,
    cluster: InThisProcess | None = None,
    overrides: tuple[str, ...] = (),
    **options: Any,
) -> SweepResult:
    """As launch.py does it, in this process."""
    here, chosen = cluster or InThisProcess(), RunOptions(plain=True, read_log=read_log, **options)
    sweep = check_sharing(read(text, overrides), str(output), chosen, cluster=here)
    return run_sweep(over_store(sweep, str(output)), str(output), chosen, None, here)


def rows(output: Path) -> list[dict[str, Any]]:
    found = Store(output).sweep("tiny").read_runs()
    assert found is not None
    return found


def result(output: Path) -> Outcome:
    """The committed outcome of the one script that was run."""
    (done,) = [done for done in Store(output).all_done().values() if done.kind == "script"]
    return done


def log(output: Path) -> str:
    """What every attempt printed."""
    return "".join(path.read_text() for path in sorted(output.glob("segments/*/attempts/*/script.log")))
