"""deploy/: files are what their readers accept, commands are what launch.py accepts, and jobs really run."""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gepa_core.data.__main__ import _parser as data_parser
from sweeps.commands.parser import sweep_parser
from sweeps.spec.load import load_sweep
from sweeps.spec.sweep import Sweep
from tests import shell
from tests.tiny_sweep import make_data, rows, sweep_text

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent


def load(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text())
    return document


# Commands


def sweep_commands() -> list[list[str]]:
    """The arguments of every launch.py in deploy/ that runs or plans a sweep."""
    lines = [line for _, block in shell.blocks(DEPLOY / "README.md") for line in shell.commands(block)]
    lines.append(load("rayjob.yaml")["spec"]["entrypoint"])
    lines += re.findall(r"^# +(sbatch .*)", (DEPLOY / "slurm.sbatch").read_text(), re.MULTILINE)
    programs = [shell.program(words) for line in lines for words in shell.simple_commands(line)]
    return [found[1] for found in programs if found and found[0] == "launch.py"]


def parsed(arguments: list[str]) -> tuple[Any, Sweep]:
    args = sweep_parser("launch.py", "").parse_intermixed_args(arguments)
    return args, load_sweep(ROOT / args.sweep, args.overrides)


def test_every_sweep_command_plans() -> None:
    commands = sweep_commands()
    assert len(commands) >= 5
    for command in commands:
        args, sweep = parsed(command)
        assert sweep.runs and (args.plan or args.output != "results"), command


def test_fetch_puts_the_data_where_the_sweep_looks() -> None:
    """aws.yaml: the folder that fetch makes on every node is the one the sweep names, seen from there."""
    setup = [line for line in load("aws.yaml")["setup_commands"] if "gepa_core.data" in line]
    (line,) = setup
    folder, _, command = line.partition(" && ")
    args = data_parser().parse_args(shlex.split(command.partition("gepa_core.data ")[2]))
    out = args.out or Path("data/datasets") / f"fineweb10B_{args.variant}"
    assert folder == "cd ~/gepa-sweeps"
    (source,) = load_sweep(ROOT / "sweeps" / "warmdown.yaml").sources
    assert source.train == f"{out}/fineweb_train_*.bin"


# AWS


def test_aws_yaml_is_a_ray_cluster() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(load("aws.yaml"))
    validate_config(config)
    types = config["available_node_types"]
    gpus = {name: entry["resources"].get("GPU", 0) for name, entry in types.items()}
    assert gpus == {"head": 0, "h100": 8, "a100": 8}
    with pytest.raises(Exception, match="no_such_key"):  # the schema does look
        validate_config({**config, "no_such_key": 1})


def test_aws_labels_tell_devices_apart() -> None:
    """The sweep's node labels, as the README sets them, pick exactly one of the node types."""
    types = load("aws.yaml")["available_node_types"]
    asked = [sweep.resources.node_labels for _, sweep in map(parsed, sweep_commands())]
    labels = [label for label in asked if label]
    assert labels
    for wanted in labels:
        fitting = [name for name, entry in types.items() if wanted.items() <= entry.get("labels", {}).items()]
        assert len(fitting) == 1, wanted


@pytest.mark.skipif(not shutil.which("rsync"), reason="no rsync")
def test_nodes_get_all_the_code_and_nothing_else(tmp_path: Path) -> None:
    """What `ray up` copies, by its own rsync options: the packages whole, no environment, data or results."""
    config = load("aws.yaml")
    source, target = tmp_path / "source", tmp_path / "target"
    for path in (
        "gepa_core/data/shards.py",
        "sweeps/quickstart.yaml",
        "constraints.txt",
        ".venv/x",
        "data/x.bin",
        "results/x",
        ".git/x",
    ):
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).touch()
    shutil.copy(ROOT / ".gitignore", source)
    options = [option for pattern in config["rsync_exclude"] for option in ("--exclude", pattern)]
    options += [option for name in config["rsync_filter"] for option in ("--filter", f"dir-merge,- {name}")]
    subprocess.run(["rsync", "-a", *options, f"{source}/", target], check=True)
    copied = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert copied == {"gepa_core/data/shards.py", "sweeps/quickstart.yaml", "constraints.txt", ".gitignore"}


# Kubernetes

# Fields of the ray.io/v1 resources that KubeRay 1.5 knows (ray-operator/apis/ray/v1): an unknown one is
# refused or dropped in silence.
FIELDS = {
    kind: set(names)
    for kind, names in yaml.safe_load("""
job: [activeDeadlineSeconds, backoffLimit, clusterSelector, deletionStrategy, entrypoint, entrypointNumCpus,
  entrypointNumGpus, entrypointResources, jobId, managedBy, metadata, rayClusterSpec, runtimeEnvYAML,
  shutdownAfterJobFinishes, submissionMode, submitterConfig, submitterPodTemplate, suspend,
  ttlSecondsAfterFinished]
cluster: [autoscalerOptions, enableInTreeAutoscaling, gcsFaultToleranceOptions, headGroupSpec,
  headServiceAnnotations, managedBy, rayVersion, suspend, workerGroupSpecs]
autoscaler: [env, envFrom, idleTimeoutSeconds, image, imagePullPolicy, resources, securityContext,
  upscalingMode, version, volumeMounts]
head: [enableIngress, headService, labels, rayStartParams, resources, serviceType, template]
worker: [groupName, idleTimeoutSeconds, labels, maxReplicas, minReplicas, numOfHosts, rayStartParams,
  replicas, resources, scaleStrategy, suspend, template]
""").items()
}


def groups() -> list[dict[str, Any]]:
    cluster = load("rayjob.yaml")["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def test_rayjob_has_only_fields_that_kuberay_reads() -> None:
    job = load("rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    assert spec.keys() <= FIELDS["job"] and cluster.keys() <= FIELDS["cluster"]
    assert cluster["autoscalerOptions"].keys() <= FIELDS["autoscaler"]
    assert cluster["headGroupSpec"].keys() <= FIELDS["head"]
    assert all(group.keys() <= FIELDS["worker"] for group in cluster["workerGroupSpecs"])
    assert all(group.keys() >= {"rayStartParams", "template"} for group in groups())
    # The operator refuses labels among the start parameters; only autoscaler v2 reads a group's labels.
    assert not any("labels" in group["rayStartParams"] for group in groups())
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert all(isinstance(v, str) for group in groups() for v in group["rayStartParams"].values())
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_rayjob_pods_are_valid() -> None:
    """Kubernetes' own rules: names, quantities, mounts that name a volume, GPUs limited as requested."""
    dns = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
    quantity = re.compile(r"\d+(\.\d+)?(m|[KMGT]i?)?")
    assert re.fullmatch(dns, load("rayjob.yaml")["metadata"]["name"])
    for group in groups():
        pod = group["template"]["spec"]
        volumes = [volume["name"] for volume in pod.get("volumes", [])]
        assert len(set(volumes)) == len(volumes)
        for container in pod["containers"]:
            assert re.fullmatch(dns, container["name"])
            assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes)
            requests, limits = container["resources"]["requests"], container["resources"]["limits"]
            assert all(re.fullmatch(quantity, str(v)) for v in (*requests.values(), *limits.values()))
            assert requests.get("nvidia.com/gpu") == limits.get("nvidia.com/gpu")


def test_versions_are_the_pinned_ones() -> None:
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    assert load("rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == pins["ray"]
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    for group in groups():
        for container in group["template"]["spec"]["containers"]:
            assert container["image"].endswith(f"/gepa-sweeps:{version[1]}")
    assert f"gepa-sweeps:{version[1]}" in (DEPLOY / "README.md").read_text()


# Slurm


def test_slurm_script_is_sound() -> None:
    script = DEPLOY / "slurm.sbatch"
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    directives = re.findall(r"^#SBATCH --([a-z-]+)", text, re.MULTILINE)
    assert len(set(directives)) == len(directives)
    # sbatch stops reading directives at the first command.
    assert text.rindex("#SBATCH") < text.index("set -euo pipefail")
    assert "#SBATCH --signal=B:TERM@" in text, (
        "without B: the signal reaches Ray's processes and not the driver"
    )
    if shellcheck := shutil.which("shellcheck"):
        subprocess.run([shellcheck, "--severity=warning", script], check=True)


def slurm(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def submit(tmp_path: Path, sweep: Path) -> tuple[str, Path]:
    """(job, its log) of a sweep without GPUs."""
    script = ("deploy/slurm.sbatch", str(sweep), "--output", str(tmp_path / "results"), "--no-report")
    job = slurm("sbatch", "--parsable", "--nodes=1", f"--output={tmp_path}/%j.log", *script)
    return job, tmp_path / f"{job}.log"


def exit_code(job: str) -> str | None:
    """`code:signal` of a job that ended, None before."""
    facts = dict(pair.partition("=")[::2] for pair in slurm("scontrol", "show", "job", job).split())
    return None if facts["JobState"] in ("PENDING", "RUNNING", "COMPLETING") else facts["ExitCode"]


@pytest.mark.slow
def test_slurm_job_drains_and_goes_on(tmp_path: Path) -> None:
    """Told to end in the middle of a segment it saves its state; submitted again it finishes from there."""
    if not shutil.which("sinfo") or subprocess.run(["sinfo", "-h"], capture_output=True).returncode:
        pytest.skip("no Slurm answers here")
    if not (ROOT / ".venv" / "bin" / "ray").is_file():
        pytest.skip("the job looks for its environment in .venv")
    sweep = tmp_path / "tiny.yaml"
    settings = {"eval.every": 500, "eval.ema_every": 1000, "eval.log_every": 100}
    grid = {"steps": [1500], "warmdown_ratio": [0.5]}
    sweep.write_text(sweep_text(make_data(tmp_path / "data"), grid, set=settings, stages=["float"]))
    job, log = submit(tmp_path, sweep)
    wait_for(lambda: log.is_file() and re.search(r"^\d+:\d\d start ", log.read_text(), re.M), "work to start")
    slurm("scancel", "--signal=TERM", "--batch", job)
    wait_for(lambda: exit_code(job), "the job to drain")
    assert exit_code(job) == "130:0", log.read_text()
    assert "1 pending runs" in log.read_text()
    assert list((tmp_path / "results").glob("segments/*/attempts/*/checkpoints/*"))
    again, log = submit(tmp_path, sweep)
    wait_for(lambda: exit_code(again), "the job to finish", 300)
    assert exit_code(again) == "0:0", log.read_text()
    (row,) = rows(tmp_path / "results").values()
    assert row["status"] == "done" and row["float_bpb"]
    for name in (job, again):
        assert not Path(f"/tmp/ray-slurm-{name}").exists()


# A cluster that is there


@pytest.fixture
def ray_head(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a client of a Ray started by `ray start --head`, with its dashboard."""
    ports = [free_port() for _ in range(4)]
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": "",
    }
    temp = Path(f"/tmp/deploy-{os.getpid()}")  # short: sockets have 107 characters
    command = ["ray", "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1"]
    command += [f"--temp-dir={temp}", "--object-store-memory=100000000", f"--port={ports[0]}"]
    command += [f"--dashboard-port={ports[1]}", f"--dashboard-agent-listen-port={ports[2]}"]
    command += [f"--ray-client-server-port={ports[3]}", "--disable-usage-stats"]
    log = (tmp_path / "ray.log").open("w")
    head = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=log)
    try:
        yield {**environment, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{ports[1]}"}
    finally:
        head.terminate()
        head.wait(60)
        log.close()
        shutil.rmtree(temp, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_ray_job_submit_runs_a_sweep(ray_head: dict[str, str], tmp_path: Path) -> None:
    """The README's command, on a real cluster: the code travels in --working-dir, data and store by path."""
    (line,) = re.findall(r"^ray job submit .*", (DEPLOY / "README.md").read_text(), re.MULTILINE)
    words = shlex.split(line)
    checkout = tmp_path / "checkout"  # a tree that changes while it is packed is refused
    for name in ("gepa_core", "sweeps", "analysis"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "launch.py", checkout)
    data = make_data(tmp_path / "data")
    (checkout / "tiny.yaml").write_text(sweep_text(data, {"steps": [8], "warmdown_ratio": [0.5]}))
    replaced = {
        "http://HEAD:8265": ray_head["RAY_API_SERVER_ADDRESS"],
        "sweeps/warmdown.yaml": "tiny.yaml",
        "s3://BUCKET/results": str(tmp_path / "results"),
        "python": sys.executable,
    }
    command = [replaced.get(word, word) for word in words]
    assert len(set(command) - set(words)) == len(replaced)
    command = [word for word in command if not word.startswith("data.train=")] + ["--no-report"]
    wait_for(lambda: list_jobs(ray_head), "Ray's dashboard")
    done = subprocess.run(command, cwd=checkout, env=ray_head, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = rows(tmp_path / "results").values()
    assert row["status"] == "done" and row["ttt_bpb"]


def list_jobs(environment: dict[str, str]) -> bool:
    asked = subprocess.run(["ray", "job", "list"], env=environment, capture_output=True, timeout=60)
    return asked.returncode == 0


def wait_for(ready: Callable[[], object], what: str, seconds: float = 180) -> None:
    until = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < until, f"waited {seconds:.0f} s for {what}"
        time.sleep(1)


# One rented machine


def test_rented_machine_starts_launch_on_its_volume(tmp_path: Path) -> None:
    """With an environment on the volume: SIGTERM reaches launch.py itself, which takes the script's place."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    python = tmp_path / "venv" / "bin" / "python"
    python.write_text('#!/usr/bin/env bash\n[ "$1" = -c ] || { echo "$$ $PWD $*"; sleep 0; }\n')
    python.chmod(0o755)
    command = ["bash", str(DEPLOY / "rented.sh"), "sweeps/script.yaml", "--plan"]
    environment = {**os.environ, "VOLUME": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as started:
        told, _ = started.communicate(timeout=30)
    words = f"{ROOT} launch.py --output {tmp_path}/results sweeps/script.yaml --plan"
    assert told.strip() == f"{started.pid} {words}"
    for wrong, environ in ((command[:2], environment), (command, {**environment, "VOLUME": "/nowhere"})):
        assert subprocess.run(wrong, env=environ, capture_output=True).returncode == 2


def test_modal_app_compiles() -> None:
    compile((DEPLOY / "modal_app.py").read_text(), "modal_app.py", "exec")
