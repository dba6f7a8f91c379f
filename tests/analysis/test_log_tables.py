"""Curves that are in no log, but in a table or a record: read as they are, or a line says why not."""

import json
from pathlib import Path

import pandas as pd
import pytest

from analysis.logs.importing import import_logs, read_runs
from analysis.runs.errors import AnalysisError

STEPS = range(0, 1001, 100)


def loss(step: int, more: float = 0.0) -> float:
    return round(2 + more + 3 / (1 + step / 50), 4)


def lightning() -> str:
    rows = [f"0,0.001,{s},{loss(s, -0.1)},\n0,,{s},,{loss(s)}\n" for s in STEPS]
    return "epoch,lr-AdamW,step,train_loss,val_loss\n" + "".join(rows)


def wandb() -> str:
    names = [
        f"{run} - val/loss{band}" for run in ("warm-wave-3", "calm-sea-7") for band in ("", "__MIN", "__MAX")
    ]
    rows = [[s, *[loss(s)] * 3, *[loss(s, 0.1)] * 3] for s in STEPS]
    table = [["Step", *names], *rows, [1100, *[""] * 3, *[2.2] * 3]]
    return "".join(",".join(f'"{cell}"' for cell in row) + "\n" for row in table)


def spreadsheet() -> str:
    return "\ufeffSteps;Val Loss\r\n" + "".join(f"{s};{loss(s)}\r\n".replace(".", ",") for s in STEPS)


def transformers() -> str:
    history = [
        record
        for s in STEPS
        for record in (
            {"loss": loss(s, -0.1), "step": s},
            {"eval_loss": loss(s), "eval_runtime": 3.0, "step": s},
        )
    ]
    return json.dumps({"max_steps": 1000, "global_step": 1000, "log_history": history}, indent=2)


FORMS = {
    "metrics.csv": lightning(),
    "sheet.csv": spreadsheet(),
    "trainer_state.json": transformers(),
    "records.json": json.dumps([{"_step": s, "val/loss": loss(s)} for s in STEPS]),
    "metrics.jsonl": "".join(json.dumps({"step": s, "val/loss": loss(s)}) + "\n" for s in STEPS),
    "columns.json": json.dumps({"step": [*STEPS], "val_loss": [loss(s) for s in STEPS]}),
    "nested.jsonl": "".join(
        json.dumps({"step": s, "metrics": {"val": {"loss": loss(s)}}}) + "\n" for s in STEPS
    ),
    "split.csv": "step,split,loss\n" + "".join(f"{s},train,1.9\n{s},val,{loss(s)}\n" for s in STEPS),
    "german.csv": "Step;Val Loss\n"
    + "".join(f"{s:,};{loss(s)}\n".replace(".", "#").replace(",", ".").replace("#", ",") for s in STEPS),
    "american.csv": "step,val_loss\n" + "".join(f'"{s:,}",{loss(s)}\n' for s in STEPS),
    "named.csv": "# of the run of Monday\nstep,val_loss\n" + "".join(f"{s},{loss(s)}\n" for s in STEPS),
    "excel.csv": "sep=;\nstep;val_loss\n" + "".join(f"{s};{loss(s)}\n" for s in STEPS),
    "table.md": "| step | val_loss |\n|-----:|---------:|\n"
    + "".join(f"| {s} | {loss(s)} |\n" for s in STEPS),
    "rich.txt": "┏━━━━━━┳━━━━━━━━━━┓\n┃ step ┃ val_loss ┃\n┡━━━━━━╇━━━━━━━━━━┩\n"
    + "".join(f"│ {s} │ {loss(s)} │\n" for s in STEPS)
    + "└──────┴──────────┘\n",
    "tags.jsonl": "".join(json.dumps({"tag": "val/loss", "step": s, "value": loss(s)}) + "\n" for s in STEPS),
    "strings.jsonl": "".join(json.dumps({"step": f"{s}", "val_loss": f"{loss(s)}"}) + "\n" for s in STEPS),
    "by_step.json": json.dumps({"val_loss": {f"{s}": loss(s) for s in STEPS}}),
    "pairs.json": json.dumps({"val_loss": [[s, loss(s)] for s in STEPS]}),
    "thousands.csv": "step,val_loss\n" + "".join(f"{s / 1000:g}k,{loss(s)}\n" for s in STEPS),
    "columns.txt": "step   val_loss\n" + "".join(f"{s:<6} {loss(s)}\n" for s in STEPS),
    "curve.tsv": "iter\tvalidation loss\n" + "".join(f"{s}\t{loss(s)}\n" for s in STEPS),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_curve_in_another_form_is_the_same_curve(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(FORMS[name], encoding="utf-8", newline="")
    (record,) = read_runs(tmp_path / name, warmdown_steps=200)
    assert [(row["step"], row["val_loss"]) for row in record.curve] == [(s, loss(s)) for s in STEPS]
    assert (record.row["status"], record.row["steps"], record.row["warmdown_steps"]) == ("done", 1000, 200)


def test_runs_of_a_table_keep_their_names(tmp_path: Path) -> None:
    (tmp_path / "chart.csv").write_text(wandb())
    rows = [f"{s},{run},{loss(s, more)}\n" for s in STEPS for run, more in (("x", 0.0), ("y", 0.2))]
    (tmp_path / "long.csv").write_text("step,run,val_loss\n" + "".join(rows))
    import_logs([tmp_path / "chart.csv"], tmp_path / "one.csv", [200])
    assert pd.read_csv(tmp_path / "one_runs.csv")["run_id"].tolist() == ["warm-wave-3", "calm-sea-7"]
    assert pd.read_csv(tmp_path / "one_runs.csv")["steps"].tolist() == [1000, 1100]
    import_logs([tmp_path / "chart.csv", tmp_path / "long.csv"], tmp_path / "two.csv", [200])
    curves = pd.read_csv(tmp_path / "two.csv").groupby("run_id")["val_loss"].last()
    assert curves.to_dict() == {
        "chart/warm-wave-3": loss(1000),
        "chart/calm-sea-7": 2.2,
        "long/x": loss(1000),
        "long/y": loss(1000, 0.2),
    }


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "Wall time,Step,Value\n17.0,100,2.1\n",
            "columns are Wall time, Step, Value; none is named as a loss",
        ),
        ("step,loss\n100,2.1\n200,2.0\n", "no validation after step 0"),
        ("step,tokens,val_loss\n100,1,2.1\n100,2,2.2\n", "two values of val_loss at step 100, 2.1 and 2.2"),
        ("step,val_loss\n100,2.1\n200,2.0\n200,2.1\n", "of several runs. name them in a column"),
        ("tokens,val_loss\n1000,2.1\n2000,2.0\n", "none is named as the step: call it step"),
        ("step,int6_val_bpb,teacher_val_loss\n100,1.1,2.0\n", "none is named as a loss"),
        ("step,val_loss\n", "no line like"),
        ("step,val_loss\n100\n,2\nx,y\n-5,2.0\n1e300,2.0\n200,nan\n", "no line like"),
        ("name,price\napple,3\n", "no line like"),
        ("[1, 2]", "no line like"),
        ("[" * 100_000, "no line like"),
        ('{"log_history": 3}', "no line like"),
    ],
)
def test_a_table_without_a_curve_is_refused(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(AnalysisError, match=why):
        read_runs(tmp_path / "table.csv")


def test_columns_of_other_weights_are_not_the_curve(tmp_path: Path) -> None:
    table = "step,val_bpb,int6_val_bpb,ema_val_bpb\n" + "".join(f"{s},1.2,1.3,1.1\n" for s in (100, 200))
    (tmp_path / "table.csv").write_text(table)
    (record,) = read_runs(tmp_path / "table.csv", warmdown_steps=50)
    assert (record.row["float_bpb"], record.row["ema_bpb"], record.row["int6_bpb"]) == (1.2, 1.1, None)


SEVERAL = {
    "seeds.csv": "seed,step,val_loss\n" + "".join(f"{k},{s},{2 + k}\n" for s in (1, 2, 3) for k in (0, 1)),
    "wide.csv": "step,val_loss_seed1,val_loss_seed2\n" + "".join(f"{s},2,3\n" for s in (1, 2, 3)),
    "below.csv": "step,val_loss\n" + "".join(f"{s},{2 + k}\n" for k in (0, 1) for s in (1, 2, 3)),
    "records.jsonl": "".join(
        json.dumps({"step": s, "run": "ab"[k], "val_loss": 2.0 + k}) + "\n" for s in (1, 2, 3) for k in (0, 1)
    ),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_runs_that_a_table_holds_are_told_apart(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(SEVERAL[name])
    records = read_runs(tmp_path / name, warmdown_steps=1)
    assert [[row["val_loss"] for row in record.curve] for record in records] == [[2.0] * 3, [3.0] * 3]
    assert len({record.name for record in records}) == 2


def test_another_model_of_the_same_training_is_left_out(tmp_path: Path) -> None:
    lines = [
        json.dumps({"step": s, "model": m, "val_loss": v})
        for s in (1, 2)
        for m, v in (("main", 2), ("draft", 3))
    ]
    (tmp_path / "two.jsonl").write_text("\n".join(lines))
    (record,) = read_runs(tmp_path / "two.jsonl", warmdown_steps=1)
    assert [row["val_loss"] for row in record.curve] == [2.0, 2.0]


@pytest.mark.parametrize(("filled", "status"), [(True, "diverged"), (False, "done")])
def test_what_is_not_a_number_at_the_end_is_of_a_run_that_diverged(
    filled: bool, status: str, tmp_path: Path
) -> None:
    """Where loggers write it into rows without a value, it says nothing."""
    between = "" if filled else "150,nan\n"
    (tmp_path / "a.csv").write_text(f"step,val_loss\n100,2.1\n{between}200,2.0\n300,nan\n")
    (record,) = read_runs(tmp_path / "a.csv", warmdown_steps=1)
    assert record.row["status"] == status


def test_a_log_that_begins_like_a_table_is_a_log(tmp_path: Path) -> None:
    (tmp_path / "train.log").write_text("step, losses\nstep 100, val_loss 2.1\nstep 200, val_loss 2.0\n")
    (record,) = read_runs(tmp_path / "train.log")
    assert [row["step"] for row in record.curve] == [100, 200]
