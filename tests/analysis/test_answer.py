"""The first screen: how long, how much warmdown, what a doubling brings; what is not said without proof."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.effects.repair import repair_sentences, repairs
from analysis.effects.soundness import longer_worse, unstable_trunk
from analysis.effects.sparse import evaluate_every
from analysis.effects.verdict import headline, warmdown_verdict
from analysis.effects.warmdown import analyse
from analysis.forecast.advise import Candidate
from analysis.forecast.predict import predict
from analysis.report import report
from analysis.report.answer import answer, doubled, gain_of_doubling, measured_ratios
from analysis.report.next_steps import launch, next_steps
from analysis.report.plots import draw_all
from analysis.report.study import Study, cautioned, study
from analysis.runs.errors import AnalysisError
from analysis.runs.load import load
from analysis.runs.sweepfile import SweepFile
from analysis.runs.table import Origin, Run, Table, Trajectory
from sweeps.plan.advice import few_evaluations
from sweeps.spec.load import load_sweep
from tests.synthetic_results import write_sweep


def finals(values: dict[tuple[int, float], float], **more: object) -> Table:
    """Runs of which only the result is known, by (steps, ratio)."""
    runs = [
        Run(
            run_id=f"{steps}-{ratio}",
            steps=steps,
            peak_steps=steps - round(ratio * steps),
            warmdown_steps=round(ratio * steps),
            metrics={"val_bpb": value, **more},  # type: ignore[dict-item]
        )
        for (steps, ratio), value in values.items()
    ]
    return Table(tuple(runs), "table.csv")


def curved(steps: int, down: int, value: np.ndarray, step: np.ndarray, seed: int = 0) -> Run:
    return Run(
        run_id=f"{steps}-{down}-{seed}",
        steps=steps,
        peak_steps=steps - down,
        warmdown_steps=down,
        seed=seed,
        metrics={"val_bpb": float(value[-1])},
        trajectory=Trajectory(step, np.clip((steps - step) / down, 0, 1), {"val_bpb": value}),
    )


def falling(steps: int, down: int, every: int, rng: np.random.Generator, sd: float = 0.001) -> Run:
    step = np.arange(every, steps + 1, every)
    drop = 0.1 * np.clip((step - (steps - down)) / down, 0, 1)
    return curved(steps, down, 2 + 4 * step**-0.5 - drop + rng.normal(0, sd, len(step)), step)


GRID = {
    (steps, ratio): 2 + 8 * steps**-0.5 - 0.004 * np.log(ratio * steps)
    for steps in (1000, 2000, 4000, 8000)
    for ratio in (0.1, 0.2, 0.4)
}


@pytest.fixture(scope="module")
def grid() -> Study:
    return study(finals(GRID))


def test_the_headline_says_how_long_and_how_much_warmdown(grid: Study) -> None:
    found = answer(grid, SweepFile())
    gain = gain_of_doubling(grid)
    assert gain is not None and gain.low is not None and gain.low > 0
    assert found.headline.startswith("Train longer than 8,000 steps: twice as many are predicted to gain ")
    assert f"[{gain.low:.4f}, {gain.high:.4f}] BPB" in found.headline
    assert "; at 8,000 steps 0." in found.headline
    end = " to 0.40 of the run as warmdown is best, and 0.40 is the largest that was run."
    assert found.headline.endswith(end)
    facts = dict(found.facts)
    assert facts["Best run"].startswith("8000-0.4, best of 12: ")
    ahead = doubled(grid)
    assert ahead is not None and grid.best is not None and ahead.steps == 16000
    assert ahead.low == pytest.approx(grid.best[1] - gain.high)
    assert f"{ahead.value:.4f} BPB [{ahead.low:.4f}, {ahead.high:.4f}]" in facts["Twice as long"]
    assert facts["Its cost"] == "Unknown: no run says how long it took."


def test_a_prediction_repeats_the_reports_cautions() -> None:
    table = finals({(40, 0.4): 2.40, (80, 0.4): 2.30, (120, 0.4): 2.45})
    found = predict(table, steps=240, warmdown=96, metric="val_bpb")
    (warning,) = (text for text in cautioned(found, table).warnings if text not in found.warnings)
    assert warning.startswith("Longer was worse: the best run of 120 steps ends at 2.4500")


def test_an_unstable_trunk_says_which_ratio_was_best() -> None:
    told = study(finals({(1000, r): v for r, v in ((0.2, 2.3), (0.4, 2.2), (0.6, 2.1))}))
    told = replace(told, unstable="The trunk is unstable.", forecast=None)
    assert "of 0.20 to 0.60 at 1,000 steps 0.60 was best, but the trunk is too unstable to tell" in (
        answer(told, SweepFile()).headline
    )


def test_ratios_within_the_noise_of_the_best_are_its_interval() -> None:
    """Relative noise .001 of 2: ratios are apart where they differ by .0047 or more."""
    wide = study(finals({(1000, r): 2.0 + 0.1 * (r - 0.4) ** 2 for r in (0.2, 0.4, 0.6, 0.9)}))
    assert measured_ratios(wide) == (1000, 0.4, 0.2, 0.6, pytest.approx(0.002))
    flat = study(finals({(1000, r): 2.0 for r in (0.2, 0.4)}))
    assert measured_ratios(flat) is None
    assert (
        "how much warmdown is undetermined: 0.20 to 0.40 of the steps" in answer(flat, SweepFile()).headline
    )


def test_longer_runs_that_were_worse_are_said_to_be_worse() -> None:
    table = finals({(40, 0.4): 2.40, (80, 0.4): 2.45, (120, 0.4): 2.55, (120, 0.2): 2.60}, epochs=3.0)
    found = study(table)
    assert found.forecast is None and found.longer_worse is not None
    assert found.findings[0].startswith(
        "Longer was worse: the best run of 120 steps ends at 2.5500 BPB, 0.1500"
    )
    assert "saw its data 3.0 times" in found.findings[0]
    told = answer(found, SweepFile())
    assert told.headline.startswith("Train for about 40 steps: longer runs were worse")
    assert "Not predicted" in dict(told.facts)["Twice as long"]
    # Within the noise of .0024 a run, and where lengths are one but for a clock, nothing is said.
    assert longer_worse(finals({(40, 0.4): 2.40, (120, 0.4): 2.405}), "val_bpb") is None
    assert longer_worse(finals({(7179, 0.4): 1.10, (7193, 0.4): 1.12}), "val_bpb") is None


def test_one_length_and_one_warmdown_are_undetermined() -> None:
    told = answer(study(finals({(1000, 0.4): 2.0})), SweepFile())
    assert told.headline.startswith(
        "How long to train, and how much of it as warmdown, is undetermined: all runs have 1,000 steps"
    )


KINDS: tuple[Origin, ...] = ("recipe", "script")


@pytest.mark.parametrize("every, sentence", [(100, True), (10, False)])
def test_too_few_evaluations_are_said_with_the_period_to_set(every: int, sentence: bool) -> None:
    rng = np.random.default_rng(1)
    plans = [(n, round(r * n)) for n in (150, 300, 600) for r in (0.2, 0.4, 0.6)]
    table = Table(tuple(falling(n, down, every, rng) for n, down in plans))
    found = analyse(table, "val_bpb")
    if sentence:
        assert (
            headline(found)
            == "Undetermined: 9 of 9 warmdowns have fewer than 6 evaluations; it takes one every 10 steps."
        )
        made = {kind: headline(analyse(replace(table, origin=kind), "val_bpb")) for kind in KINDS}
        assert made["recipe"].endswith("evaluations; set eval.every: 10.")
        assert made["script"].endswith("evaluations; have the script validate every 10 steps.")
        assert warmdown_verdict(found)[0] == headline(found)
    else:
        assert "Undetermined" not in headline(found)


def test_the_plan_says_so_before_money_is_spent_by_the_same_rule(tmp_path: Path) -> None:
    """sweeps and analysis know nothing of one another: what they ask for is held together here."""
    for steps in ([150, 300, 600], [9000, 20000, 25000], [40]):
        plan = f"name: t\nrecipe: gepa-nano\ngrid: {{steps: {steps}, warmdown_ratio: [0.2, 0.4, 0.6]}}\n"
        file = tmp_path / "t.yaml"
        file.write_text(plan + "set: {data.dir: d, data.corpus: docstrings, eval.every: 100000}\n")
        sweep = load_sweep(file, [])
        (said,) = few_evaluations(sweep)
        period = evaluate_every([run.warmdown_steps for run in sweep.runs])
        assert said.startswith(f"{len(sweep.runs)} of {len(sweep.runs)} warmdowns")
        assert f"set eval.every: {period}" in said
        file.write_text(plan + f"set: {{data.dir: d, data.corpus: docstrings, eval.every: {period}}}\n")
        assert list(few_evaluations(load_sweep(file, []))) == []


def test_no_ratio_share_or_exponent_without_its_interval() -> None:
    """Noise as large as the gains: nothing is left to quote, and what is quoted has its brackets."""
    rng = np.random.default_rng(3)
    for sd in (0.001, 0.05, 0.5):
        runs = tuple(falling(1000 + 100 * i, 500, 20, rng, sd) for i in range(3))
        text = " ".join(warmdown_verdict(analyse(Table(runs), "val_bpb")))
        for claim in ("times as steep", " % of the gain", " of their gain", " (1 would be proportional"):
            for found in re.finditer(re.escape(claim), text):
                assert text[: found.start()].rstrip().endswith("]"), text


def test_an_unstable_trunk_is_told_from_a_noisy_one() -> None:
    rng = np.random.default_rng(5)
    quiet = [falling(4000, 1000, 50, rng, sd) for sd in (0.001, 0.003, 0.01) for _ in range(10)]
    assert [unstable_trunk(Table((run,)), "val_bpb") for run in quiet].count("") >= 28
    run = falling(4000, 1000, 50, rng)
    assert run.trajectory is not None
    value = run.trajectory.values["val_bpb"]
    leap = np.where((run.trajectory.step > 1500) & (run.trajectory.step < 2000), value + 0.4, value)
    rise = np.where(run.trajectory.step > 1500, value + (run.trajectory.step - 1500) / 10000, value)
    for changed, word in ((leap, "stands 0.3"), (rise, "validation rises by 0.1")):
        bad = replace(run, trajectory=replace(run.trajectory, values={"val_bpb": changed}))
        text = unstable_trunk(Table((bad,)), "val_bpb")
        assert text.startswith("The trunk is unstable") and word in text
    assert study(Table((bad, falling(2000, 500, 50, rng)))).findings[0].startswith("The trunk is unstable")


def test_what_test_time_training_mends_is_paired(tmp_path: Path) -> None:
    """Planted: TTT gains .0035 on float and .0055 on int6; blocks differ by 40 times as much."""
    folder = write_sweep(tmp_path / "s", steps=(2000, 3000), ratios=(0.3, 0.6), on_float=True)
    found = repairs(load(folder))
    assert len(found) == 4
    for repair in found:
        assert repair.mended.value == pytest.approx(-0.002, abs=4 * (repair.mended.error or 0))
        assert repair.mended.error is not None and repair.mended.error < 0.0003
        assert repair.on_float.value + repair.mended.value == pytest.approx(repair.on_int6.value)
    (text,) = repair_sentences(found)
    assert "is what it mends of the quantizer's loss" in text
    unpaired = repairs(replace(load(folder), folder=None))
    assert unpaired[0].mended.error is None
    assert "undetermined" in repair_sentences(unpaired[:2])[0]


def test_the_next_command_can_be_pasted() -> None:
    argv = ("launch.py", "s.yaml", "steps=[1, 2]", "eval.every=100", "--only", "x*", "--no-report", "--plan")
    command = launch(argv, "eval.every=10", "points=[{}]", "--plan")
    assert shlex.split(command) == [
        "python", "launch.py", "s.yaml", "steps=[1, 2]", "eval.every=10", "points=[{}]", "--plan",
    ]  # fmt: skip


def test_next_steps_name_the_run_that_tells_most(grid: Study) -> None:
    assert grid.advice is not None
    telling = Candidate(steps=9000, warmdown_steps=900, predicted=2.0, settles=0.5, new_steps=2700)
    advised = replace(grid, advice=replace(grid.advice, candidates=(telling,)))
    sweep = SweepFile(argv=("launch.py", "s.yaml"), points=({"steps": 7, "warmdown_steps": 3},))
    commands = [step.command for step in next_steps(advised, sweep)]
    ahead = doubled(grid)
    assert ahead is not None
    points = [
        f'[{{"steps": 7, "warmdown_steps": 3}}, {{"steps": {steps}, "warmdown_steps": {warmdown}}}]'
        for steps, warmdown in ((16000, ahead.warmdown), (9000, 900))  # the best score, the most to learn
    ]
    wanted = [["python", "launch.py", "s.yaml", f"points={point}", "--plan"] for point in points]
    assert [shlex.split(command) for command in commands if "points=" in command] == wanted
    predict = (
        f"python -m analysis predict table.csv --steps 16000 --warmdown {ahead.warmdown} --metric val_bpb"
    )
    assert predict in commands


def test_the_next_run_names_a_value_for_every_axis(grid: Study) -> None:
    """A point takes nothing from the grid: pasted without the seed, its trunk would be another one."""
    assert grid.advice is not None
    telling = Candidate(steps=9000, warmdown_steps=900, predicted=2.0, settles=0.5, new_steps=2700)
    runs = [replace(run, seed=7, group=(("lr", 0.05), ("env.WD", 0.1))) for run in grid.table.runs]
    of_a_script = study(replace(grid.table, runs=tuple(runs), origin="script"))
    assert of_a_script.advice is not None
    advised = replace(of_a_script, advice=replace(of_a_script.advice, candidates=(telling,)))
    sweep = SweepFile(argv=("launch.py", "s.yaml"), grid=("steps", "warmdown_ratio", "seed", "lr", "env.WD"))
    command = next(s.command for s in next_steps(advised, sweep) if s.why.startswith("To learn"))
    (point,) = json.loads(shlex.split(command)[-2].removeprefix("points="))
    assert point == {"steps": 9000, "warmdown_steps": 900, "seed": 7, "lr": 0.05, "env.WD": 0.1}


WEIRD = "<script>alert(1)</script> $\\frac{a$ 日本"


@pytest.mark.parametrize(
    "name, columns, says",
    [
        ("one", {"run_id": ["a"], "steps": [1000], "ttt_bpb": [1.2]}, "How long to train, and how much"),
        ("html", {"run_id": [WEIRD, "b"], "steps": [1000, 2000], "float_bpb": [2.1, 2], "ttt_bpb": [2, 1.9]},
         "best of 2: 1.9000 val BPB after TTT"),
        ("partly", {"run_id": list("abc"), "steps": [1, 2, 3], "val_bpb": [3.0, 2.9, 2.8],
                    "ttt_bpb": [2.0, None, None]}, "c, best of 3: 2.8000"),
        ("constant", {"run_id": list("ab"), "steps": [1000, 2000], "val_loss": [3.0, 2.9],
                      "schedule": ["constant"] * 2, "warmdown_ratio": [0, 0]}, "no run has a warmdown"),
    ],
)  # fmt: skip
def test_odd_studies_get_a_page_that_says_what_it_cannot(
    name: str, columns: dict, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names that are markup, mathematics or in another script; one run; a stage of one run alone."""
    monkeypatch.setattr(report, "draw_all", lambda s, folder: draw_all(s, folder, only=("stages",)))
    pd.DataFrame({"warmdown_ratio": 0.4} | columns).to_csv(tmp_path / "runs.csv", index=False)
    path, _ = report.make_report(tmp_path / "runs.csv", out=tmp_path / "out")
    page = path.read_text()
    assert says in page and "<script>alert" not in page
    assert f"<h1>{tmp_path.name}</h1>" in page, "of a file called runs.csv its folder says more"
    assert "<strong>Caution" not in page


def test_where_all_runs_diverged_the_error_says_so(tmp_path: Path) -> None:
    frame = pd.DataFrame({"run_id": ["a", "b"], "steps": 100, "warmdown_steps": 40, "status": "diverged"})
    frame.to_csv(tmp_path / "runs.csv", index=False)
    with pytest.raises(AnalysisError, match="2 diverged, no run finished"):
        load(tmp_path / "runs.csv")
    frame.assign(status="pending").to_csv(tmp_path / "runs.csv", index=False)
    with pytest.raises(AnalysisError, match="come back when one is done"):
        load(tmp_path / "runs.csv")
