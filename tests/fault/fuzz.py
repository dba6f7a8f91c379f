"""Damages what every command reads, at random, and looks that each ends in a result or in a line.

    python -m tests.fault.fuzz --seconds 600 --seed 0

A reader is a command (or the function behind it) over a file that is valid at first. Each example mutates
that file, in its bytes or in its structure, and calls the reader in this process. What must hold: exit code 0
or 2, no exception, under 2 s of processor and 500 MB more memory than before. Prints JSON, a count a reader.
"""

import argparse
import contextlib
import heapq
import io
import json
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fault.damage import mutated

SECONDS, MEGABYTES = 2.0, 500.0


@dataclass(frozen=True)
class Reader:
    """A command over a file; `call` gives its exit code."""

    name: str
    file: Path
    form: str
    call: Callable[[], int]
    valid: bytes = field(init=False, repr=False)
    """What the file holds when it is whole."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "valid", self.file.read_bytes())


@dataclass(frozen=True)
class Fault:
    """An example that did not end as it must, with the damaged file for a second look."""

    reader: str
    what: str
    data: bytes


def example(reader: Reader, rng: random.Random) -> Fault | None:
    """One damage, one call; the file is whole again afterwards."""
    data = mutated(reader.valid, reader.form, rng)
    reader.file.write_bytes(data)
    memory, begun = _peak(), time.process_time()
    told = io.StringIO()
    try:
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
            code = reader.call()
        what = f"exit code {code}: {told.getvalue()[-300:]}" if code not in (0, 2) else None
        if what is None and "Traceback" in told.getvalue():
            what = told.getvalue()[-2000:]
    except SystemExit as error:  # of argparse
        what = None if error.code in (0, 2) else f"exit code {error.code}"
    except BaseException:
        what = traceback.format_exc()[-2500:]
    finally:
        reader.file.unlink(missing_ok=True)
        reader.file.parent.mkdir(parents=True, exist_ok=True)
        reader.file.write_bytes(reader.valid)
    if what is None and (seconds := time.process_time() - begun) > SECONDS:
        what = f"{seconds:.1f} s"
    if what is None and (more := _peak() - memory) > MEGABYTES:
        what = f"{more:.0f} MB more"
    return Fault(reader.name, what, data) if what else None


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def told(call: Callable[[], object]) -> Callable[[], int]:
    """A function behind a command, as the command takes its errors."""

    def run() -> int:
        from analysis.runs.errors import AnalysisError
        from gepa_core.errors import UserError

        try:
            call()
        except (UserError, AnalysisError) as error:
            print(error)
            return getattr(error, "exit_code", 2)
        return 0

    return run


def read_as(artifact: Path, expected: Any) -> Callable[[], int]:
    """The reader of an artifact of a model with these tensors."""
    from gepa_core.quantization.artifact import check_fits, num_weights, read_artifact

    return told(lambda: check_fits(read_artifact(artifact, num_weights(expected)), expected))


def make_readers(folder: Path) -> list[Reader]:
    """Every command's reader, over files of a small study that is made below `folder`."""
    return [*_of_stores(folder / "store"), *_of_runs(folder / "runs"), *_of_analysis(folder / "analysis")]


def _of_stores(folder: Path) -> Iterator[Reader]:
    import launch
    from tests.tiny_sweep import launch_here, make_data, sweep_text

    data = make_data(folder / "data")
    coded = {"quant.method": "rd", "quant.budget_bytes": 20_000, "quant.calibration_tokens": 256}
    grid = {"steps": [6, 8], "warmdown_ratio": [0.5]}
    text = sweep_text(data, grid, stages=["ema", "int6"], set=coded)
    file, store = folder / "tiny.yaml", folder / "store"
    file.write_text(text)
    assert launch_here(text, store).exit_code == 0
    run = sorted(path.stem for path in (store / "tiny" / "artifacts").iterdir())[0]
    plan = json.loads((store / "tiny" / "plan.json").read_text())
    segment, quantized = plan["runs"][run]["segments"][-1], plan["runs"][run]["stages"][1]
    attempt = next((store / "segments" / segment / "attempts").iterdir())
    stored = next((store / "segments" / quantized / "attempts").iterdir()) / "model.int6"
    lease = store / "tiny" / "lease.json"
    from sweeps.store.files import Files
    from sweeps.store.lock import Lease

    lease.write_bytes(Lease(Files(store), "tiny/lease.json", ttl=-1.0)._record())

    def fresh(*arguments: str) -> Callable[[], int]:
        def call() -> int:
            shutil.rmtree(folder / "out", ignore_errors=True)
            return launch.main(list(arguments))

        return call

    commands = {
        "status": fresh("status", str(store), "--json"),
        "gc": fresh("gc", str(store), "--dry-run", "--states"),
        "export": fresh("export", run, "--output", str(store), "--to", str(folder / "out"), "--no-verify"),
        "plan": fresh(str(file), "--plan", "--json", "--output", str(store)),
    }
    with contextlib.suppress(ImportError):
        import tensorboard  # noqa: F401

        commands["mirror"] = fresh("mirror", str(store), "--tensorboard", str(folder / "out"))
    commands["launch"] = told(lambda: launch_here(text, store))
    records = {
        "plan.json": (store / "tiny" / "plan.json", "json", commands),
        "sweep.json": (store / "tiny" / "sweep.json", "json", commands),
        "runs.parquet": (store / "tiny" / "runs.parquet", "binary", commands),
        "lease.json": (lease, "json", ["status", "gc"]),
        "DONE.json": (store / "segments" / segment / "DONE.json", "json", commands),
        "DONE.json of a stage": (store / "segments" / quantized / "DONE.json", "json", commands),
        "trajectory": (store / "tiny" / "trajectory" / f"{segment}.parquet", "binary", ["export", "mirror"]),
        "artifact": (store / "tiny" / "artifacts" / f"{run}.int6", "binary", ["export"]),
        "stored artifact": (stored, "binary", ["export", "gc"]),
        "attempt.json": (attempt / "attempt.json", "json", ["export", "gc"]),
    }
    from analysis.runs.load import load

    commands["analysis"] = told(lambda: load(store / "tiny"))
    blocks = store / "tiny" / "blocks" / f"{run}.parquet"
    records["blocks"] = (blocks, "binary", ["analysis", "launch"])
    records["trajectory"][2].append("analysis")  # type: ignore[attr-defined]
    for record, (path, form, names) in records.items():
        for name in names:
            if name in commands:
                yield Reader(f"{record} by {name}", path, form, commands[name])
    from sweeps.store.journal import events, reports_of_training

    journal = attempt / "events.jsonl"
    yield Reader("events.jsonl", journal, "lines", told(lambda: events(journal.read_bytes(), str(journal))))
    yield Reader(
        "events.jsonl of training",
        journal,
        "lines",
        told(lambda: reports_of_training(journal.read_bytes(), str(journal))),
    )
    yield Reader("sweep file", file, "yaml", commands["plan"])
    from gepa_core.config import RunConfig
    from gepa_core.model.gepa import GEPA

    config = RunConfig.model_validate_json(
        json.dumps(
            json.loads((store / "segments" / quantized / "DONE.json").read_text())["identity"]["config"]
        )
    )
    yield Reader("coded artifact", stored, "binary", read_as(stored, GEPA(config.model).state_dict()))
    yield from _of_data(data, folder)


def _of_data(data: Path, folder: Path) -> Iterator[Reader]:
    from gepa_core.data.__main__ import main
    from gepa_core.data.folder import open_patterns

    inspect = lambda: main(["inspect", str(data), "--json"])  # noqa: E731
    shard, tokenizer = data / "val_000000.bin", data / "tokenizer.model"
    pattern = str(data / "val_*.bin")
    yield Reader("manifest.json", data / "manifest.json", "json", inspect)
    yield Reader("shard", shard, "binary", lambda: main(["inspect", pattern, "--tokenizer", str(tokenizer)]))
    bare = folder / "bare"
    bare.mkdir()
    for name in ("val_000000.bin", "train_000000.bin", "tokenizer.model"):
        shutil.copy(data / name, bare / name)
    patterns = (str(bare / "train_*.bin"), str(bare / "val_*.bin"), str(bare / "tokenizer.model"))
    open_patterns(*patterns)
    yield Reader(
        "fingerprint cache", bare / ".fingerprints.json", "json", told(lambda: open_patterns(*patterns))
    )
    rows = folder / "text.jsonl"
    rows.write_text("".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(20)))
    from gepa_core.data.corpus import read_documents

    yield Reader("jsonl", rows, "lines", told(lambda: list(read_documents(rows))))


def _of_runs(folder: Path) -> Iterator[Reader]:
    """Job files, checkpoints and artifacts."""
    from gepa_core.quantization.artifact import write_artifact
    from gepa_core.quantization.methods import quantize
    from gepa_core.sections import QuantConfig
    from gepa_core.training.trained import load_model, read_job
    from tests import training

    paths = training.make_data(folder / "data")
    state = training.train(paths, folder / "run", until=1, final_step=False)[0].path
    for name, form in (("state.json", "json"), ("state.safetensors", "binary")):
        yield Reader(name, state / name, form, told(lambda: load_model(state, average=True)))
    expected = load_model(state, average=True)[0].state_dict()
    artifact = folder / "model.int6"
    write_artifact(quantize(expected, QuantConfig(keep_float_max_numel=64)), artifact)
    yield Reader("published artifact", artifact, "binary", read_as(artifact, expected))
    job = folder / "job.yaml"
    run = training.RUN.model_dump(mode="json", exclude={"data"})
    job.write_text(json.dumps({"run": run, "data": paths.model_dump()}))
    yield Reader("job file", job, "yaml", told(lambda: read_job(job)))
    from gepa_core.data.tokenizer import byte_table

    tokenizer = folder / "tokenizer.model"
    tokenizer.write_bytes(Path(paths.tokenizer).read_bytes())
    yield Reader("tokenizer.model", tokenizer, "binary", told(lambda: byte_table(tokenizer)))
    yield from _of_scripts(folder / "scripts")


def _of_scripts(folder: Path) -> Iterator[Reader]:
    """Sweep files over a training script."""
    from sweeps.spec.load import load_sweep

    folder.mkdir()
    (folder / "train.py").write_text("print('step:1/1 val_bpb:1')\n")
    file = folder / "script.yaml"
    file.write_text(
        "name: s\nscript:\n  workdir: .\n  command: python train.py\n"
        "  env: {ITERATIONS: '{steps}', SEED: '{seed}', DOWN: '{warmdown_steps}'}\n"
        "  outputs: [model.bin]\n  state: {file: state.npz, save: {AT: '{stop}'}, load: {FROM: '{state}'}}\n"
        "grid: {steps: [200, 400], warmdown_ratio: [0.2, 0.6], seed: [1, 2]}\nexec: {threads: 1}\n"
    )
    yield Reader("script sweep file", file, "yaml", told(lambda: load_sweep(file)))


def _of_analysis(folder: Path) -> Iterator[Reader]:
    from analysis.__main__ import main
    from analysis.runs.load import load

    folder.mkdir(parents=True)
    runs, curves, log = folder / "runs.csv", folder / "curves.csv", folder / "a.log"
    runs.write_text(
        "run_id,steps,warmdown_steps,schedule,seed,val_bpb,train_seconds\n"
        + "".join(f"r{n},{n},{n // 2},linear,1,{1.4 - n / 1e5:.4f},10\n" for n in (4000, 6000, 9000))
    )
    curves.write_text(
        "run_id,step,lr_scale,val_bpb\n"
        + "".join(
            f"r{n},{step},{min(1.0, 2 - 2 * step / n):.3f},{1.5 - step / 1e5:.4f}\n"
            for n in (4000, 6000, 9000)
            for step in range(500, n + 1, 500)
        )
    )
    log.write_text(
        "model_params:27030107\nseed:42\ntrain_batch_tokens:786432\n"
        + "".join(
            f"step:{s}/2000 val_loss:{4 - s / 1e3} val_bpb:{2 - s / 2e3} train_time:{s}ms\n"
            for s in range(100, 2001, 100)
        )
        + "Serialized model int6+zstd: 15632049 bytes\nfinal_int6_roundtrip_exact val_bpb:1.1\n"
    )
    yield Reader("runs.csv", runs, "csv", told(lambda: load(runs, curves)))
    yield Reader("trajectories.csv", curves, "csv", told(lambda: load(runs, curves)))
    out = folder / "imported.csv"
    records = folder / "b.log"
    records.write_text(
        '{"params": 27030107, "warmdown_iters": 400, "seed": 7, "total_steps": 1000}\n'
        + "".join(
            f'{{"_step": {s}, "val/bpb": {2 - s / 1e3}, "val/loss": 2.5}}\n' for s in range(100, 1001, 100)
        )
        + '{"stage": "final_int6_roundtrip", "val_bpb": 1.1}\n'
    )
    yield Reader(
        "log of records", records, "lines", lambda: main(["import", str(records), "--out", str(out)])
    )
    yield Reader("training log", log, "text", lambda: main(["import", str(log), "--out", str(out)]))


def campaign(readers: list[Reader], seconds: float, seed: int, say: Any = None) -> dict[str, Any]:
    """Examples for so long: every reader has its share of the processor, so that quick ones see more."""
    rng, end = random.Random(seed), time.monotonic() + seconds
    counts: Counter[str] = Counter()
    spent = [(0.0, i) for i in range(len(readers))]
    faults: list[Fault] = []
    while time.monotonic() < end:
        used, i = spent[0]
        counts[readers[i].name] += 1
        begun = time.process_time()
        if fault := example(readers[i], rng):
            faults.append(fault)
            if say:
                say(fault)
        heapq.heapreplace(spent, (used + time.process_time() - begun, i))
    by_reader = dict(sorted(counts.items()))
    return {"examples": counts.total(), "faults": len(faults), "by_reader": by_reader, "seed": seed}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", help="those whose name has this in it (default: all)", default="")
    args = parser.parse_args()

    def say(fault: Fault) -> None:
        print(f"{fault.reader}: {fault.what}\n  {fault.data[:200]!r}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        known = list(make_readers(Path(folder)))
        readers = [reader for reader in known if args.readers in reader.name]
        if not readers:
            parser.error(f"--readers {args.readers}: none of {', '.join(reader.name for reader in known)}")
        result = campaign(readers, args.seconds, args.seed, say)
    print(json.dumps(result, indent=1))
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
