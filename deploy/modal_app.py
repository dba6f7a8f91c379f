"""A sweep on one machine of Modal: `modal run --detach deploy/modal_app.py --sweep sweeps/script.yaml`.

Results, and data that the sweep file looks for in `data`, are on the volume `gepa-sweeps`. The same command
starts a function that was ended again, and it goes on. `--options` are launch.py's, in one text.
"""

import shlex
import subprocess
import sys

import modal

GPU = "H100:8"  # what resources.gpus_per_run divides; None for CPUs alone
HOURS = 24  # Modal's limit for a function

app = modal.App("gepa-sweeps")
volume = modal.Volume.from_name("gepa-sweeps", create_if_missing=True)
image = (
    modal.Image.debian_slim(python_version="3.11")
    .add_local_dir(".", "/app", copy=True, ignore=[".git", ".venv", "results", "data", "**/__pycache__"])
    .run_commands("cd /app && pip install -q -c constraints.txt -e .", "ln -s /volume/data /app/data")
)


@app.function(image=image, gpu=GPU, volumes={"/volume": volume}, timeout=HOURS * 3600)
def launch(sweep: str, options: str) -> int:
    command = [sys.executable, "launch.py", sweep, "--output", "/volume/results", *shlex.split(options)]
    try:
        return subprocess.run(command, cwd="/app", check=False).returncode
    finally:
        volume.commit()


@app.local_entrypoint()
def main(sweep: str, options: str = "") -> None:
    sys.exit(launch.remote(sweep, options))
