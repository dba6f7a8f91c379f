"""Anyone's runs: what is read, what is noted, and one clear error for what cannot be used."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.forecast.predict import planned_run, predict
from analysis.runs.averages import own_average
from analysis.runs.errors import AnalysisError
from analysis.runs.load import load
from analysis.runs.parquet import read_parquet
from analysis.runs.table import Table, default_metric

RUNS = """run_id,steps,peak_steps,warmdown_steps,schedule,float_bpb,ttt_bpb,seed
a,9000,5000,4000,linear,1.1353,1.1157,42
b,12000,7000,5000,linear,1.1268,1.1079,42
c,15000,9000,6000,linear,1.1217,1.1035,42
"""


def write(folder: Path, runs: str = RUNS, curves: str | None = None) -> tuple[Path, Path | None]:
    (folder / "runs.csv").write_text(runs)
    if curves is None:
        return folder / "runs.csv", None
    (folder / "curves.csv").write_text(curves)
    return folder / "runs.csv", folder / "curves.csv"


def curve_of(run_id: str, steps: int, start: float = 1.3, end: float = 1.1268) -> str:
    rows = [f"{run_id},{s},{start + (end - start) * s / steps:.6f}" for s in range(500, steps + 1, 500)]
    return "run_id,step,val_bpb\n" + "\n".join(rows) + "\n"


def test_the_published_study_is_read_whole(shared: Path) -> None:
    table = load(shared / "reference/gepa_runs.csv", shared / "reference/gepa_trajectories.csv")
    assert len(table.runs) == 5
    assert table.run("gepa-25k").final("ttt_bpb") == 1.09440207
    assert table.run("gepa-12k").final("artifact_bytes") == 15432359
    assert table.run("gepa-9k").final("artifact_bytes") is None
    curve = table.run("gepa-20k").curve("float_bpb")
    assert curve is not None and curve[0][-1] == 20000 and curve[1][-1] == 0.0 and curve[2][-1] == 1.1153
    assert any("gepa-9k, gepa-15k" in note for note in table.notes)
    assert len({run.trunk for run in table.runs}) == 5  # the same prefix was trained three times over


def test_branches_are_joined_to_their_trunk_and_retrained_ones_are_not(shared: Path) -> None:
    folder = shared / "reference/curves/wsd_124m_lr1e-3"
    table = load(folder / "runs.csv", folder / "trajectories.csv")
    trunk = table.run("lr0.001-50k-const-r1").trunk
    assert table.run("lr0.001-25k-linear-0.2").trunk == trunk
    assert table.run("lr0.001-50k-const").trunk != trunk
    assert table.run("lr0.001-25k-const").trunk == table.run("lr0.001-50k-const").trunk
    assert table.run("lr0.001-15k-linear-0.8").trunk != trunk  # from scratch
    assert (
        table.run("lr0.001-25k-const").final("val_loss") is None
    )  # the table's finals are measured otherwise


def test_runs_without_trajectories_are_used_by_their_finals(tmp_path: Path) -> None:
    table = load(*write(tmp_path))
    assert default_metric(table) == "val_bpb"
    assert any("no trajectories" in note for note in table.notes)
    found = predict(table, steps=20000, warmdown=8000, metric="float_bpb")
    assert set(found.laws) == {"power"}


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (RUNS.replace("run_id,", "name,"), "column run_id is missing"),
        (RUNS.replace(",steps,", ",n,"), "column steps is missing"),
        (RUNS.replace("peak_steps,warmdown_steps", "x,y"), "give peak_steps, warmdown_steps, or"),
        (RUNS.replace("\nb,", "\na,"), "run 'a' appears more than once"),
        (RUNS.replace("1.1268", "fast"), "run 'b': float_bpb is 'fast', not a number"),
        (RUNS.replace("1.1268", "9" * 400), "float_bpb is inf; leave unknown cells empty"),
        (RUNS.replace("1.1268", "inf"), "float_bpb is inf; leave unknown cells empty"),
        (RUNS.replace("1.1268", "1.9026"), "float_bpb of run 'b' is 1.9026, but runs of like steps"),
        (RUNS.replace("float_bpb", "val_bpb").replace("1.1268", "1.9026"), "val_bpb of run 'b' is 1.9026"),
        (RUNS.replace("float_bpb", "val_loss").replace("1.1353", "-3.2"), "val_loss of run 'a' is -3.2; it"),
        (RUNS.replace("1.1353", "-1.12"), "float_bpb of run 'a' is -1.12; it must be positive"),
        (RUNS.replace("7000,5000", "7000,6000"), "peak_steps 7000 + warmdown_steps 6000 is not steps"),
        (RUNS.replace("12000", "12000.5"), "steps is 12000.5, not a whole number"),
        (RUNS.replace("12000,7000", ",7000"), "run 'b': steps is empty or 0"),
        (RUNS.replace("b,12000,7000,5000,linear", "b,12000,7000,5000,zigzag"), "'zigzag' is unknown"),
        (RUNS.split("\n")[0] + "\n", "has no rows"),
        ("", "not a readable CSV"),
    ],
)  # fmt: skip
def test_runs_that_cannot_be_used(tmp_path: Path, broken: str, told: str) -> None:
    with pytest.raises(AnalysisError) as caught:
        load(*write(tmp_path, broken))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_out_of_its_folder_is_told_where_it_belongs(tmp_path: Path) -> None:
    copied = tmp_path / "mine.parquet"
    pd.DataFrame({"run_id": ["a"], "steps": [7000]}).to_parquet(copied)
    with pytest.raises(AnalysisError, match=r"mine\.parquet: no text.* its results folder"):
        load(copied)


B_CURVE = curve_of("b", 12000)


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (B_CURVE.replace("run_id,step,val_bpb", "run_id,step,accuracy"), "need one of the columns val_bpb"),
        (B_CURVE.replace("run_id,step", "run_id,t"), "column step is missing"),
        (B_CURVE.replace("b,", "unknown,"), "no trajectory belongs to any of the runs"),
        (B_CURVE.replace("b,1000,", "b,500,"), "step 500 appears twice"),
        (B_CURVE.replace("b,1000,", "b,-5,"), "no step, or a negative one"),
        (B_CURVE.replace("b,1000,", "b,one,"), "trajectory column step has 'one', not a number"),
        (
            B_CURVE.replace("b,12000,", "b,12500,"),
            "run 'b': its trajectory has a row at step 12500, past its",
        ),
        (B_CURVE.replace("b,1000,1.", "b,1000,-1."), "val_bpb at step 1000 of run 'b' is -1."),
        (
            B_CURVE + curve_of("a", 9000, start=2.2, end=1.9026).split("\n", 1)[1],
            "val_bpb of run 'a' is 1.65 times that of run 'b' at like steps: mixed units",
        ),
        (curve_of("b", 12000, start=2.2, end=1.9026), "its trajectory's end says 1.9026: mixed units"),
    ],
)
def test_trajectories_that_cannot_be_used(tmp_path: Path, broken: str, told: str) -> None:
    with pytest.raises(AnalysisError) as caught:
        load(*write(tmp_path, RUNS, broken))
    assert told in str(caught.value)


def test_the_metric_is_that_of_the_trajectories(tmp_path: Path) -> None:
    nats = B_CURVE.replace("val_bpb", "val_loss")
    assert default_metric(load(*write(tmp_path, RUNS, nats))) == "val_loss"


@pytest.mark.parametrize("lengths", [(1, 2, 4, 8), (1, 4, 16, 64)])
def test_finals_of_another_unit_are_told_at_any_length(tmp_path: Path, lengths: tuple[int, ...]) -> None:
    runs = "run_id,steps,warmdown_ratio,val_bpb\n"
    for steps, final in zip(lengths, (1.30, 1.25, 2.05, 1.17), strict=True):
        runs += f"{steps},{1000 * steps},0.4,{final}\n"
    with pytest.raises(AnalysisError, match="mixed units"):
        load(*write(tmp_path, runs))
    assert len(load(*write(tmp_path, runs.replace("2.05", "1.21"))).runs) == 4


def test_units_are_compared_where_runs_were_evaluated_at_other_steps(tmp_path: Path) -> None:
    """Nats in one run of three; the short run ends where the long ones are still steep."""
    runs = "run_id,steps,schedule\na,300,constant\nb,900,constant\nc,4000,constant\n"
    honest = {
        name: [(s, 1.1 + 8 * s**-0.5) for s in range(every, end + 1, every)]
        for name, every, end in (("a", 30, 300), ("b", 70, 900), ("c", 250, 4000))
    }

    def curves(factor: float) -> str:
        rows = ((n, s, v * (factor if n == "b" else 1)) for n, values in honest.items() for s, v in values)
        return "run_id,step,val_bpb\n" + "".join(f"{n},{s},{v}\n" for n, s, v in rows)

    assert len(load(*write(tmp_path, runs, curves(1.0))).runs) == 3
    with pytest.raises(AnalysisError, match=r"val_bpb of run 'b' is 1\.\d+ times that of run"):
        load(*write(tmp_path, runs, curves(1.689)))


def test_missing_evaluations_are_left_out_and_noted(tmp_path: Path) -> None:
    holes = B_CURVE.replace(B_CURVE.split("\n")[3], "b,1500,nan").replace(B_CURVE.split("\n")[5], "b,2500,")
    table = load(*write(tmp_path, RUNS, holes))
    curve = table.run("b").curve("val_bpb")
    assert curve is not None and len(curve[0]) == 22 and 1500 not in curve[0]
    assert any("2 rows of its trajectory hold no value" in note for note in table.notes)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match=r"nowhere\.csv: no such file"):
        load(tmp_path / "nowhere.csv")
    with pytest.raises(AnalysisError, match=r"has no runs\.parquet"):
        load(tmp_path)


def test_a_logged_rate_stands_for_an_unknown_schedule(tmp_path: Path) -> None:
    runs = "run_id,steps,schedule,final_loss\nx,4000,trapezoid,3.1\n"
    rates = {500: 1.0, 2000: 1.0, 3000: 0.5, 4000: 0.0}
    curves = "run_id,step,lr_scale,val_loss\n" + "".join(
        f"x,{s},{r},{4 - s / 5000}\n" for s, r in rates.items()
    )
    run = load(*write(tmp_path, runs, curves)).run("x")
    assert (run.peak_steps, run.warmdown_steps) == (2000, 2000)
    assert run.rate(np.array([1000, 2500, 3500])) == pytest.approx([1.0, 0.75, 0.25])
    observed = Table((run,))
    with pytest.raises(AnalysisError, match="give --schedule"):
        planned_run(observed, 8000, 4000, None)
    assert planned_run(observed, 8000, 4000, "linear").rate(np.array([6000])) == [0.5]


def losses(run_id: str, values: dict[int, object], bpb: float | None = None) -> str:
    """Rows run_id,step,val_loss,val_bpb."""
    return "".join(
        f"{run_id},{step},{value},{'' if bpb is None or not isinstance(value, float) else value / bpb}\n"
        for step, value in values.items()
    )


FALLING = {n: 3.0 + 1000 / n for n in range(1000, 9001, 1000)}


def test_parameters_that_differ_by_one_are_one_model(tmp_path: Path) -> None:
    runs = (
        "run_id,steps,warmdown_steps,params,final_loss\na,9000,3000,27030107,3.1\nb,9000,4000,27030108,3.0\n"
    )
    assert len(load(*write(tmp_path, runs)).groups()) == 1
    assert len(load(*write(tmp_path, runs.replace("27030108", "28030108"))).groups()) == 2


def test_two_texts_in_one_group_are_refused(tmp_path: Path) -> None:
    runs = "run_id,steps,warmdown_steps,schedule\na,9000,3000,linear\nb,9000,3000,linear\n"
    header = "run_id,step,val_loss,val_bpb\n"
    same = header + losses("a", FALLING, 1.69) + losses("b", FALLING, 1.6901)
    assert len(load(*write(tmp_path, runs, same)).runs) == 2
    with pytest.raises(
        AnalysisError, match=r"is 1\.7100 in run 'b' and 1\.6900 in run 'a': they were evaluated"
    ):
        load(*write(tmp_path, runs, header + losses("a", FALLING, 1.69) + losses("b", FALLING, 1.71)))


@pytest.mark.parametrize(
    ("late", "told"),
    [
        (dict.fromkeys(range(5000, 9001, 1000), ""), "has no value after step 4000 of 9000"),
        ({8000: "inf", 9000: "inf"}, "is infinite at step 8000"),
        ({8000: 5.0, 9000: 7.2}, "ends at 7.2"),
    ],
)
def test_half_of_a_run_that_diverged_is_not_its_curve(
    tmp_path: Path, late: dict[int, object], told: str
) -> None:
    runs = "run_id,steps,warmdown_steps,schedule\na,9000,3000,linear\nb,9000,3000,linear\n"
    curves = "run_id,step,val_loss,train_loss\n" + "".join(
        f"{name},{step},{value},3.0\n"
        for name, values in (("a", FALLING), ("b", {**FALLING, **late}))
        for step, value in values.items()
    )
    table = load(*write(tmp_path, runs, curves))
    assert [run.run_id for run in table.runs] == ["a"]
    assert any("run 'b' left out as diverged" in note and told in note for note in table.notes)


@pytest.mark.parametrize(
    ("runs", "step", "told"),
    [
        (f"run_id,steps,warmdown_steps\na,{10**9},3000\n", "9000", "steps is 1,000,000,000"),
        ("run_id,steps,warmdown_steps\na,9000,3000\n", "1e18", r"has step 1e\+18; steps are whole numbers"),
        (
            "run_id,steps,warmdown_steps\na,9000,3000\n",
            "1000.5",
            r"has step 1000\.5; steps are whole numbers",
        ),
    ],
)
def test_steps_that_no_run_has_are_a_clear_error(tmp_path: Path, runs: str, step: str, told: str) -> None:
    with pytest.raises(AnalysisError, match=told):
        load(*write(tmp_path, runs, f"run_id,step,val_loss\na,{step},3.0\n"))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A results folder as a sweep leaves it: one trunk, two branches, a pending run."""
    plan = {
        "segments": {name: {} for name in ("trunk", "short", "long")},
        "runs": {
            "s": {"segments": ["trunk", "short"], "stages": []},
            "l": {"segments": ["trunk", "long"], "stages": []},
        },
    }
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    pd.DataFrame(
        {
            "run_id": ["s", "l", "p"],
            "status": ["done", "done", "pending"],
            "steps": [1000, 1200, 2000],
            "peak_steps": [800, 800, 1000],
            "warmdown_steps": [200, 400, 1000],
            "schedule": "linear",
            "seed": 7,
            "float_bpb": [1.5, 1.4, None],
            "optim.matrix_lr": 0.025,
            "config_json": json.dumps({"final_lr_fraction": 0.1}),
        }
    ).to_parquet(tmp_path / "runs.parquet")
    (tmp_path / "trajectory").mkdir()
    for name, steps in {"trunk": [400, 800], "short": [800, 1000], "long": [1000, 1200]}.items():
        rows = {"segment_id": name, "run_id": None, "step": steps, "lr_scale": 1.0, "val_bpb": [2.0, 1.5]}
        pd.DataFrame(rows).to_parquet(tmp_path / "trajectory" / f"{name}.parquet")
    return tmp_path


def test_segments_are_joined_to_whole_curves(results: Path) -> None:
    table = load(results)
    assert [run.run_id for run in table.runs] == ["s", "l"]
    assert table.folder == results
    curves = {run.run_id: run.curve("val_bpb") for run in table.runs}
    assert {name: list(curve[0]) for name, curve in curves.items() if curve is not None} == {
        "s": [400, 800, 1000],
        "l": [400, 800, 1000, 1200],
    }
    short, long = table.runs
    assert short.trunk == long.trunk and short.final_lr_fraction == 0.1
    assert ("optim.matrix_lr", 0.025) in short.group
    assert any("pending" in note and "p" in note for note in table.notes)


def test_a_damaged_results_file_is_an_error(results: Path) -> None:
    whole = (results / "runs.parquet").read_bytes()
    (results / "runs.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AnalysisError, match=r"runs\.parquet: not readable"):
        load(results)


def test_a_damaged_segment_is_an_error(results: Path) -> None:
    (results / "trajectory" / "long.parquet").write_bytes(b"PAR1")
    with pytest.raises(AnalysisError, match=r"long\.parquet: not readable"):
        load(results)


def test_values_of_different_axes_are_different_groups(results: Path) -> None:
    frame = read_parquet(results / "runs.parquet")
    frame["optim.matrix_lr"] = np.array([0.025, 0.05, 0.05])
    frame.to_parquet(results / "runs.parquet")
    assert len(load(results).groups()) == 2


def test_each_run_shows_the_average_that_it_asked_for() -> None:
    several = json.dumps({"0.9": 1.3, "0.99": 1.2, "0.99 lr": 1.25})
    rows = [("a", 1.1, None), ("a", None, several), ("b", None, several), ("c", None, several)]
    rows += [("a", None, "[" * 10_000), ("d", None, several), ("a", None, None)]
    curves = pd.DataFrame(rows, columns=["run_id", "ema_val_bpb", "ema_val_bpb_by_average"])
    configs: dict[str, object] = {
        "a": '{"ema_decay": 0.9}',
        "b": '{"ema_decay": 0.99, "ema_horizon": "lr"}',
        "c": '{"ema_decay": 0.5}',
        "d": None,
    }
    found = own_average(curves, configs)
    np.testing.assert_array_equal(found, [1.1, 1.3, 1.25, np.nan, np.nan, np.nan, np.nan])
