"""What sharing trunks saves: wall time of a sweep shared, with `share: false`, and as a plain Ray Tune grid.

    python -m benchmarks.sharing [--sweep sweeps/quickstart.yaml] [--turns 3] [key.path=value ...]

Each turn runs the three one after another, in processes of their own, on an empty store; the order rotates.
The time is that of the whole command, start of Ray included, the report left out. The plain grid
(tune_grid.py) trains and measures each run alone in one worker and leaves out what only a sweep keeps
(checksums, tables, size of the submission's code). The figures of all three must be equal to the last bit.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness
from gepa_core.errors import ConfigError, UserError
from gepa_core.training.trained import Job
from sweeps.commands.ending import say
from sweeps.commands.sweep import open_data
from sweeps.kinds.table import SEGMENT
from sweeps.spec.load import load_sweep
from sweeps.spec.sweep import Sweep
from sweeps.store.store import Store

ROOT = Path(__file__).parents[1]
VARIANTS = ("shared", "alone", "tune_grid")
Figures = dict[str, dict[str, float]]
"""Run -> stage -> bits a byte."""


def jobs_of(sweep: Sweep) -> list[dict[str, Any]]:
    """The sweep's runs as whole jobs. Raises ConfigError for what the plain grid does not know."""
    if (
        sweep.exec.ranks > 1
        or sweep.resources.gpus_per_run
        or any(r.quant.method == "rd" for r in sweep.recipe_runs)
    ):
        raise ConfigError(f"{sweep.file}: this benchmark runs on one CPU process a run, and without quant rd")
    jobs = []
    for run in sweep.recipe_runs:
        paths = sweep.paths_of(run)
        absolute = {key: str(Path(value).absolute()) for key, value in paths.model_dump().items()}
        job = Job(run=run, data=type(paths)(**absolute), exec=sweep.exec)
        jobs.append({"id": run.run_id, "stages": sweep.stages, "job": job.model_dump(mode="json")})
    return jobs


def launch(args: argparse.Namespace, folder: Path, *more: str) -> tuple[float, int, Figures]:
    """launch.py on an empty store: its seconds, the steps it trained, and what it measured."""
    command = [sys.executable, str(ROOT / "launch.py"), args.sweep, *args.overrides, *more]
    seconds = timed([*command, "--output", str(folder), "--no-report"])
    store = Store(folder)
    trained = [done.identity for done in store.all_done().values() if done.kind == SEGMENT]
    rows = store.sweep(store.sweeps()[0]).read_runs() or []
    figures = {
        row["run_id"]: {
            key.removesuffix("_bpb"): value
            for key, value in row.items()
            if key.endswith("_bpb") and value is not None
        }
        for row in rows
    }
    return seconds, sum(segment["stop"] - segment["start"] for segment in trained), figures


def plain_grid(jobs: list[dict[str, Any]], folder: Path) -> tuple[float, int, Figures]:
    """The same of tune_grid.py."""
    folder.mkdir()
    (folder / "jobs.json").write_text(json.dumps(jobs))
    program = [sys.executable, "-m", "benchmarks.tune_grid"]
    seconds = timed([*program, str(folder / "jobs.json"), str(folder / "out.json")])
    found = json.loads((folder / "out.json").read_text())
    steps = sum(run.pop("steps") for run in found.values())
    return seconds, steps, found


def timed(command: list[str]) -> float:
    """Wall seconds of a command, whose output goes to standard error. Raises SystemExit where it fails."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    begun = time.monotonic()
    code = subprocess.run(command, stdout=2, env=environment).returncode
    if code:
        raise SystemExit(f"{' '.join(command)}: exit code {code}")
    return time.monotonic() - begun


def measure(args: argparse.Namespace) -> dict[str, Any]:
    sweep = open_data(load_sweep(args.sweep, args.overrides), say)
    jobs = jobs_of(sweep)
    run: dict[str, Callable[[Path], tuple[float, int, Figures]]] = {
        "shared": lambda folder: launch(args, folder, "share=true"),
        "alone": lambda folder: launch(args, folder, "share=false"),
        "tune_grid": lambda folder: plain_grid(jobs, folder),
    }
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    steps: dict[str, int] = {}
    figures: list[Figures] = []
    for turn in range(args.turns):
        for name in VARIANTS[turn % 3 :] + VARIANTS[: turn % 3]:
            with tempfile.TemporaryDirectory(prefix="sharing-") as folder:
                took, steps[name], found = run[name](Path(folder) / "out")
            seconds[name].append(took)
            figures.append(found)
            say(f"turn {turn + 1}, {name}: {took:.1f} s, {steps[name]:,} steps")
    return {
        "benchmark": "sharing",
        "sweep": sweep.name,
        "overrides": args.overrides,
        "runs": len(sweep.recipe_runs),
        "cpus": len(os.sched_getaffinity(0)),
        "turns": args.turns,
        "seconds": seconds,
        "median_seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "ratio_alone_to_shared": harness.ratio(seconds["alone"], seconds["shared"]),
        "ratio_tune_grid_to_shared": harness.ratio(seconds["tune_grid"], seconds["shared"]),
        "steps_trained": steps,
        "ratio_of_steps": steps["alone"] / steps["shared"],
        "figures_compared": sum(len(stages) for stages in figures[0].values()),
        "equal_to_the_last_bit": all(found == figures[0] for found in figures),
        "versions": {name: version(name) for name in ("ray", "torch", "numpy", "pandas", "pyarrow")},
        **harness.environment(torch.device("cpu")),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sharing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="over the sweep file's")
    parser.add_argument("--sweep", default="sweeps/quickstart.yaml")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    try:
        result = measure(args := parser.parse_intermixed_args(argv))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    harness.report(result, args.out)
    return 0 if result["equal_to_the_last_bit"] else 1


if __name__ == "__main__":
    sys.exit(main())
