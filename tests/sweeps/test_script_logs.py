"""What scripts of others print, and how it is read: as they run, and from their whole log."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from analysis.logs.importing import read_runs
from sweeps.store.schema import TRAJECTORY, from_parquet
from sweeps.work.scripts.log import Curve, Lines
from tests.script_sweep import launch, result, rows, sweep_text

STEPS = 40
FORMS = {
    "challenge": (
        "step:{s}/40 train_loss:{t:.4f} train_time:{s}ms step_avg:1.00ms",
        "step:{s}/40 val_loss:{v:.4f} val_bpb:{b:.4f} train_time:{s}ms step_avg:1.00ms",
    ),
    "no word for a step": ("{s}/40 train_loss: {t:.4f}", "{s}/40 val_loss: {v:.4f} val_bpb: {b:.4f}"),
    "modded nanoGPT": ("", "step:{s}/40 val_loss:{v:.4f} train_time:{s}ms step_avg:1.00ms"),
    "nanoGPT": (
        "iter {s}: loss {t:.4f}, time 50.12ms, mfu 1.25%",
        "step {s}: train loss 2.9876, val loss {v:.4f}",
    ),
    "nanochat": (
        "step {s:05d}/00040 (2.50%) | loss: {t:.4f} | lrm: 1.00 | dt: 50.00ms | tok/sec: 1,000 | mfu: 1.2",
        "Step {s:05d} | Validation bpb: {b:.4f}",
    ),
    "llm.c": ("step {s}/40 | loss {t:.4f} (+0.1z)| norm 1.0 | lr 1.00e-03 | 50.1 ms", "val loss {v:.4f}"),
    "Megatron": (
        " iteration {s:8d}/      40 | consumed samples: 80 | elapsed time per iteration (ms): 50.1 | "
        "learning rate: 1.0E-03 | lm loss: {t:.4f} | grad norm: 1.0 |",
        " validation loss at iteration {s} | lm loss value: {v:.4f} | lm loss PPL: 7.1E+00 |",
    ),
    "litgpt": (
        "Epoch 1 | iter {s} step {s} | loss train: {t:.4f}, val: n/a | iter time: 50.12 ms",
        "iter {s}: val loss {v:.4f}, val time: 100.12 ms",
    ),
    "Keras": (
        "step {s}/40 - loss: {t:.4f}",
        "step {s}/40 - loss: {t:.4f} - val_loss: {v:.4f} - val_bpb: {b:.4f}",
    ),
    "transformers": (
        "{{'loss': {t:.4f}, 'learning_rate': 1e-04, 'step': {s}}}",
        "{{'eval_loss': {v:.4f}, 'eval_bpb': {b:.4f}, 'step': {s}}}",
    ),
    "JSON": (
        '{{"step": {s}, "train_loss": {t:.4f}}}',
        '{{"step": {s}, "val_loss": {v:.4f}, "val_bpb": {b:.4f}}}',
    ),
    "JSON of W&B": (
        '{{"_step": {s}, "train/loss": {t:.4f}, "lr": 0.1}}',
        '{{"_step": {s}, "val/loss": {v:.4f}, "val/bpb": {b:.4f}}}',
    ),
    "a table": ("| step {s:5d} | loss {t:.4f} |", "| step {s:5d} | val loss {v:.4f} | val bpb {b:.4f} |"),
    "capitals": ("Step {s} | Train Loss: {t:.4f}", "Step {s} | Val Loss: {v:.4f} | Val BPB: {b:.4f}"),
    "words": (
        "Iteration {s}: training loss = {t:.4f}",
        "Iteration {s}: validation loss = {v:.4f}, bpb = {b:.4f}",
    ),
    "equals signs": ("step={s} train_loss={t:.4f}", "step={s} val_loss={v:.4f} val_bpb={b:.4f}"),
    "the loss first": ("loss={t:.4f} at step {s}", "val_loss={v:.4f} val_bpb={b:.4f} at step {s}"),
    "eval at": ("step {s} loss {t:.4f}", "eval at step {s}: val_loss {v:.4f} val_bpb {b:.4f}"),
    "sections in brackets": ("[train] step {s} loss {t:.4f}", "[val] step {s} loss {v:.4f} bpb {b:.4f}"),
    "sections": ("train: step {s}, loss {t:.4f}", "val: step {s}, loss {v:.4f}, bpb {b:.4f}"),
    "global step": ("global_step: {s} train_loss: {t:.4f}", "global_step: {s} val_loss: {v:.4f}"),
    "a logger": (
        "2026-03-01 10:00:00,123 INFO train: step {s} loss {t:.4f}",
        "2026-03-01 10:00:00,123 INFO train: step {s} val_loss {v:.4f} val_bpb {b:.4f}",
    ),
    "colours": (
        "\x1b[32mstep {s}\x1b[0m loss \x1b[1m{t:.4f}\x1b[0m",
        "\x1b[32mstep {s}\x1b[0m val_loss \x1b[1m{v:.4f}\x1b[0m val_bpb {b:.4f}",
    ),
    "a progress bar": (
        "\r 25%|####    | {s}/40 [00:10<00:10, 20.0it/s, loss={t:.4f}]",
        "\n{s}/40 val_loss:{v:.4f} val_bpb:{b:.4f}",
    ),
}


def losses(step: int) -> dict[str, float]:
    """At a step: of the batch, of the validation, and that in bits a byte."""
    return {"t": 2 + 2 / (1 + step), "v": 2.1 + 2 / (1 + step), "b": round((2.1 + 2 / (1 + step)) / 2.4, 4)}


def measured(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: row[name] for name in ("val_loss", "val_bpb") if row.get(name) is not None}


def trajectory(output: Path, run_id: str) -> list[dict[str, Any]]:
    tables = [
        from_parquet(path.read_bytes(), TRAJECTORY) for path in output.glob("tiny/trajectory/*.parquet")
    ]
    return next(table for table in tables if table[0]["run_id"] == run_id)


def log_of(form: str) -> str:
    train, validation = FORMS[form]
    lines = []
    for step in range(0, STEPS + 1, 5):
        lines += [train.format(s=step, **losses(step))] if step and train else []
        lines += [validation.format(s=step, **losses(step))] if step % 10 == 0 else []
    return "\n".join([*lines, "final_int6_roundtrip_exact val_loss:2.40000000 val_bpb:1.00000000", ""])


def expected(form: str) -> dict[int, dict[str, float]]:
    """Step -> the validation's values that the form states."""
    names = {"val_loss": "v", "val_bpb": "b"}
    stated = {name for name, key in names.items() if f"{{{key}:" in FORMS[form][1]}
    return {
        step: {name: round(losses(step)[names[name]], 4) for name in stated}
        for step in range(0, STEPS + 1, 10)
    }


@pytest.mark.parametrize("form", FORMS)
def test_both_readers_agree(form: str, tmp_path: Path) -> None:
    """One reads while a script runs, the other its whole log: neither may know more forms than the other."""
    data = log_of(form).encode()
    (tmp_path / "train.log").write_bytes(data)
    lines, curve = Lines(), Curve()
    for line in [*lines.feed(data), *lines.end()]:
        curve.read(line)
    (record,) = read_runs(tmp_path / "train.log", planned_steps=STEPS)
    imported = {
        int(row["step"]): {k: row[k] for k in row if k in ("val_loss", "val_bpb")} for row in record.curve
    }
    live = {
        step: {k: report[k] for k in ("val_loss", "val_bpb") if k in report}
        for step, report in curve.reports.items()
    }
    assert imported == expected(form) == {step: values for step, values in live.items() if values}
    assert record.row["status"] == "done" and record.row["int6_bpb"] == 1.0
    assert record.row["float_bpb"] == expected(form)[STEPS].get("val_bpb")


def test_a_sweep_over_scripts_that_print_as_others_do(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    forms = list(FORMS)
    for number, form in enumerate(forms):
        (work / f"{number}.log").write_text(log_of(form), encoding="utf-8", newline="")
    script = {"command": "cat {form}.log; : {steps} {warmdown_steps}"}
    grid = {"steps": [STEPS], "warmdown_ratio": [0.5], "form": [*range(len(forms))]}
    assert launch(sweep_text(work, script, grid=grid), tmp_path / "out").exit_code == 0
    table = rows(tmp_path / "out")
    assert [(row["status"], row["steps"], row["int6_bpb"]) for row in table] == [("done", STEPS, 1.0)] * len(
        forms
    )
    for row, form in zip(sorted(table, key=lambda row: int(row["form"])), forms, strict=True):
        points = trajectory(tmp_path / "out", row["run_id"])
        assert {p["step"]: measured(p) for p in points if measured(p)} == expected(form), form


def test_an_adaptation_to_the_validation_text_is_no_part_of_the_curve(tmp_path: Path) -> None:
    """Its lines look like the training's; only the whole log tells. Not in silence: the row says so."""
    lines = [f"step:{s}/40 val_loss:{4 - s / 40:.2f} val_bpb:{2 - s / 80:.3f}" for s in range(0, 41, 10)]
    lines += ["dttt: fine-tuning on val for 20 steps"]
    lines += [f"step:{s}/20 val_loss:1.2 val_bpb:0.6" for s in range(10, 21, 10)]
    lines += ["final_int6_roundtrip_exact val_loss:1.3 val_bpb:0.65"]
    work = tmp_path / "work"
    work.mkdir()
    (work / "a.log").write_text("\n".join(lines) + "\n")
    script = {"command": "cat a.log; : {steps} {warmdown_steps}"}
    grid = {"steps": [STEPS], "warmdown_ratio": [0.5]}
    assert launch(sweep_text(work, script, grid=grid), tmp_path / "out").exit_code == 0
    (row,) = rows(tmp_path / "out")
    assert (row["float_bpb"], row["int6_bpb"]) == (1.5, None)
    assert any("adaptation" in note for note in result(tmp_path / "out").result["notes"])
    points = trajectory(tmp_path / "out", row["run_id"])
    assert [(p["step"], p["val_bpb"]) for p in points] == [(s, 2 - s / 80) for s in range(0, 41, 10)]


@pytest.mark.parametrize(
    ("printed", "steps", "final"),
    [
        ("step:{s}/{n} val_loss:2.0 val_bpb:1.{s:03d}", range(0, 40, 10), (40, None)),  # counted from 0
        ("step:{s}/{n} val_loss:2.0 val_bpb:1.{s:03d}", [0, 20, 39], (40, 1.039)),  # its last, counted from 0
        ("step {s} val_loss 2.0 val_bpb 1.{s:03d}", range(0, 41, 10), (40, 1.04)),  # says nowhere how many
        ("step:{s}/{n} val_loss:2.0 val_bpb:1.{s:03d}", range(0, 21, 5), (20, 1.02)),  # stopped, unsaid
    ],
)
def test_how_far_a_run_came_that_ended_well(
    printed: str, steps: range, final: tuple[int, float | None], tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "a.log").write_text("".join(printed.format(s=s, n=40) + "\n" for s in steps))
    script = {"command": "cat a.log; : {steps} {warmdown_steps}"}
    grid = {"steps": [STEPS], "warmdown_ratio": [0.5]}
    assert launch(sweep_text(work, script, grid=grid), tmp_path / "out").exit_code == 0
    (row,) = rows(tmp_path / "out")
    assert (row["status"], row["steps"], row["float_bpb"]) == ("done", *final)
    assert row["warmdown_steps"] == (20 if final[0] == STEPS else None)


def test_a_history_in_one_line_is_the_importers_to_read(tmp_path: Path) -> None:
    history = json.dumps({"history": [{"step": s, "train_loss": 3.0, "val_loss": 4 / s} for s in (1, 2, 4)]})
    (tmp_path / "a.log").write_text(f"starting\n{history}\n")
    (record,) = read_runs(tmp_path / "a.log", planned_steps=4)
    assert [(row["step"], row["val_loss"]) for row in record.curve] == [(1, 4.0), (2, 2.0), (4, 1.0)]
    live = Curve()
    live.read(history)
    assert not live.reports
