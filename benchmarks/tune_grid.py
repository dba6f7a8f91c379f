"""A grid of whole jobs on Ray Tune, as one would write it without the sweeps package: one trial a run.

    python -m benchmarks.tune_grid JOBS.json OUT.json

JOBS.json: list of {id, stages, job}, `job` as in gepa_core/training/trained.py, of one process each. A trial
trains its job from the initial weights and measures it, all in one worker; Tune keeps as many trials going
as there are CPUs. OUT.json: what each measured. The project has what
`ray[tune]` needs beside Ray (pandas, pyarrow).
"""

import json
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

# As sweeps/drive/ray_cluster.py has it: Ray's default of 15 starves workers wherever anything else runs.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray import tune

from gepa_core.training.trained import Job, load_model


def train_and_measure(config: dict[str, Any], work: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The trial: the stages' bits a byte and the steps trained."""
    from gepa_core.data.text import open_text
    from gepa_core.evaluation.stages import measure
    from gepa_core.quantization.artifact import read_artifact, write_artifact
    from gepa_core.quantization.methods import quantize
    from gepa_core.training.segment import train_segment

    stages = work[config["id"]]["stages"]
    job = Job.model_validate_json(json.dumps(work[config["id"]]["job"]))
    run = job.run
    folder = Path(tune.get_context().get_trial_dir())
    trained = train_segment(
        run, job.data, job.exec, start=None, until=run.steps, workdir=folder, on_report=lambda report: None
    )
    text = open_text(job.data.val, job.data.tokenizer, run.model.vocab_size, run.data.val_tokens)

    def bpb(way: str, model: Any) -> float:
        return measure(way, model, text, run.eval, run.ttt, job.exec).bpb

    found: dict[str, Any] = {"steps": trained.steps_done}
    for stage, average in (("float", False), ("ema", True)):
        if stage in stages:
            model, _ = load_model(trained.path, average=average)
            found[stage] = bpb("plain", model)
    if {"int6", "int6_sliding", "ttt"} & set(stages):
        model, _ = load_model(trained.path, average=True)
        write_artifact(quantize(model.state_dict(), run.quant), folder / "model.int6")
        model.load_state_dict(read_artifact(folder / "model.int6"))
        if "int6" in stages:
            found["int6"] = bpb("plain", model)
        if "int6_sliding" in stages:
            found["int6_sliding"] = bpb("sliding", model)
        if "ttt" in stages:  # last: it changes the model
            found["ttt"] = bpb("ttt", model)
    return found


def run_grid(work: list[dict[str, Any]], folder: Path) -> dict[str, dict[str, Any]]:
    """Trains and measures every job; what each trial returned, by id. Raises RuntimeError if one failed."""
    by_id = {item["id"]: item for item in work}
    resources = {"cpu": work[0]["job"]["exec"]["threads"] or 1}
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(train_and_measure, work=by_id), resources),
        param_space={"id": tune.grid_search(list(by_id))},
        run_config=tune.RunConfig(name="grid", storage_path=str(folder / "tune"), verbose=0),
    )
    results = tuner.fit()
    if results.errors:
        raise RuntimeError(f"{results.num_errors} of {len(work)} trials failed: {results.errors[0]}")
    keys = ("steps", "float", "ema", "int6", "int6_sliding", "ttt")
    found = {}
    for result in (results[i] for i in range(len(results))):
        assert result.config is not None and result.metrics is not None, "a trial without error reports"
        metrics = result.metrics
        found[result.config["id"]] = {key: metrics[key] for key in keys if key in metrics}
    return found


def main(argv: list[str]) -> int:
    jobs, out = map(Path, argv)
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:  # short: Ray's sockets lie in it
        ray.init(
            include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, _temp_dir=f"{folder}/r"
        )
        try:
            out.write_text(json.dumps(run_grid(json.loads(jobs.read_text()), Path(folder))))
        finally:
            ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
