"""Warmdown measures: planted truth comes back, intervals cover, the published study says what it said."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.effects.slopes import Estimate, fit_linear, log_ratio, piecewise_design
from analysis.effects.verdict import collapse, headline, warmdown_verdict
from analysis.effects.warmdown import analyse, drop_exponent, segment_slopes
from analysis.runs.load import load
from analysis.runs.table import Run, Table, Trajectory
from tests.synthetic_results import DROP, GROWTH, Q, true_bpb, write_sweep


def _ar1(rng: np.random.Generator, n: int, rho: float) -> np.ndarray:
    noise = rng.normal(size=n) * np.sqrt(1 - rho**2)
    noise[0] /= np.sqrt(1 - rho**2)
    for i in range(1, n):
        noise[i] += rho * noise[i - 1]
    return noise


def _run(
    steps: int, down: int, value: np.ndarray, step: np.ndarray, schedule: str = "linear", **more: object
) -> Run:
    trajectory = Trajectory(step, np.ones(len(step)), {"val_bpb": value})
    return Run(
        run_id=f"{steps}-{down}-{schedule}",
        steps=steps,
        peak_steps=steps - down,
        warmdown_steps=down,
        schedule=schedule,
        trajectory=trajectory,
        **more,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Table:
    folder = tmp_path_factory.mktemp("planted")
    return load(write_sweep(folder, schedules=("linear", "1-sqrt"), noise=0.0002))


@pytest.mark.parametrize("rho", [0.0, 0.4])
def test_slope_intervals_cover_under_autocorrelation(rho: float) -> None:
    """Nominal 90 % over 300 curves of the published 12k run's size (18 points, 7 parameters)."""
    rng = np.random.default_rng(3)
    knots = np.array([3.5, 7, 8, 9, 10, 11, 12])
    design = piecewise_design(np.arange(3.5, 12.01, 0.5), knots)
    truth = np.array([2.0, -0.1, -0.2, -0.3, -0.4, -0.5, -0.6])
    covered = []
    for _ in range(300):
        fit = fit_linear(design, design @ truth + 0.05 * _ar1(rng, len(design), rho))
        for i in range(1, 7):
            slope = fit.combination(np.eye(7)[i], 0.9)
            covered.append(slope.low <= truth[i] <= slope.high)  # type: ignore[operator]
    assert 0.80 < np.mean(covered) < 0.95


def test_log_ratio_has_no_interval_where_a_slope_may_be_zero() -> None:
    x = np.arange(0, 4.01, 0.25)
    design = piecewise_design(x, np.array([0.0, 2.0, 4.0]))
    noise = 0.2 * np.random.default_rng(0).normal(size=len(x))
    flat = fit_linear(design, design @ np.array([1.0, 0.0, -1.0]) + noise)
    assert log_ratio(flat, 2, 1, 0.9).low is None
    steep = fit_linear(design, design @ np.array([1.0, -1.0, -3.0]) + 0.1 * noise)
    ratio = log_ratio(steep, 2, 1, 0.9)
    assert ratio.above(1) and ratio.low < 3 < ratio.high  # type: ignore[operator]


@pytest.mark.parametrize("q", [0.4, 0.7, 1.0, 1.6])
def test_drop_exponent_is_recovered(q: float) -> None:
    remaining = np.linspace(1, 0, 30)
    noise = 0.0005 * np.random.default_rng(1).normal(size=30)
    drop, estimate = drop_exponent(remaining, 0.1 * (1 - remaining**q) + noise, 0.9)
    assert drop == pytest.approx(0.1, rel=0.03)
    assert estimate is not None and estimate.value == pytest.approx(q, rel=0.06)
    assert estimate.low < q < estimate.high  # type: ignore[operator]


def test_drop_exponent_of_a_curve_that_does_not_drop_is_none() -> None:
    assert drop_exponent(np.linspace(1, 0, 10), np.linspace(0, -0.1, 10), 0.9) == (None, None)


def test_planted_exponent_and_length_law(sweep: Table) -> None:
    """Both shapes give the planted q, as the drop was planted in the remaining rate."""
    result = analyse(sweep, "val_bpb")
    assert len(result.runs) == len(sweep.runs)
    for run in result.runs:
        assert run.q is not None and run.q.value == pytest.approx(Q, abs=0.05)
        planted = DROP * (run.run.warmdown_steps / 1000) ** GROWTH
        assert run.drop_inf == pytest.approx(planted, rel=0.08)
    slopes = {law.schedule: law.b.value for law in result.lengths}
    # d drop / d ln n of the planted power law, at the middle of the sweep's lengths.
    assert slopes["linear"] == pytest.approx(DROP * GROWTH * 1.5**GROWTH, rel=0.25)
    assert set(slopes) == {"linear", "1-sqrt"}


def test_two_shapes_tell_rate_from_progress(sweep: Table) -> None:
    result = analyse(sweep, "val_bpb")
    found = collapse(result.runs)
    assert found is not None and found.followed == "rate"
    words = " ".join(warmdown_verdict(result))
    assert "the drop follows how far the learning rate has fallen, not the number of steps nor" in words
    assert "under linear, improvement per step accelerates" in words.lower()
    assert "under 1-sqrt, improvement per step slows down" in words.lower()
    short = headline(result)
    assert short.startswith("Improvement accelerates towards the end of a linear warmdown")
    assert "and slows towards the end of a 1-sqrt warmdown" in short


@pytest.mark.parametrize("shapes", [("linear",), ("linear", "1-sqrt")])
@pytest.mark.parametrize("world", ["rate", "steps"])
def test_planted_worlds_are_told_apart(world: str, shapes: tuple[str, ...]) -> None:
    """A drop in proportion to the rate removed, and one that grows by the same with every step."""
    runs = []
    for steps, down, shape in (
        (n, d, s) for n, d in ((3000, 600), (4500, 1500), (6000, 3000)) for s in shapes
    ):
        step = np.arange(0, steps + 1, 50)
        bare = _run(steps, down, np.zeros(len(step)), step, shape)
        removed = 1 - bare.rate(step)
        since = np.maximum(step - bare.peak_steps, 0) / 1000
        drop = 0.1 * removed if world == "rate" else 0.04 * since
        noise = 0.0003 * np.random.default_rng(steps + len(shape)).normal(size=len(step))
        runs.append(_run(steps, down, 2 + 10 * np.maximum(step, 50.0) ** -0.5 - drop + noise, step, shape))
    result = analyse(Table(tuple(runs)), "val_bpb")
    found = collapse(result.runs)
    told = " ".join((headline(result), *warmdown_verdict(result)))
    assert found is not None
    if world == "steps":
        assert found.followed == "steps" and "follows the number of steps since the peak" in told
    else:
        assert found.followed == ("rate" if len(shapes) > 1 else "rate or share")
        assert "not the number of steps" in told
    assert ("only another shape can tell rate from share" in told) == (len(shapes) == 1)


def test_the_gain_comes_late_only_where_intervals_say_so(sweep: Table) -> None:
    result = analyse(sweep, "val_bpb")

    def words(*qs: Estimate | None) -> str:
        runs = tuple(replace(run, q=q) for run, q in zip(result.runs[::3], qs, strict=False))
        return " ".join(warmdown_verdict(replace(result, runs=runs)))

    assert "the gain comes late" in words(Estimate(0.9, 0.85, 0.95), Estimate(0.9, 0.85, 0.95))
    assert "not clearly otherwise" in words(Estimate(0.99, 0.9, 1.08), Estimate(0.98, 0.9, 1.06))
    assert "With one run, the steps" in words(None)
    several = words(None, None)
    assert "known for fewer than two, the steps" in several and "With one run" not in several
    equal = replace(result, runs=tuple(r for r in result.runs if r.run.warmdown_steps == 600))
    assert "With warmdowns of one length, the steps" in " ".join(warmdown_verdict(equal))


def test_fractions_are_of_the_gain_since_the_peak() -> None:
    step = np.arange(0, 1001, 50)
    value = np.where(step < 500, 2.0, 2.0 - 0.1 * ((step - 500) / 500) ** 2)
    result = analyse(Table((_run(1000, 500, value, step),)), "val_bpb").runs[0]
    assert result.gain == pytest.approx(0.1)
    for share, reached in result.fractions.items():
        assert reached == pytest.approx(share**2, abs=0.003)


def test_slopes_are_per_1000_steps_on_tail_and_fifths() -> None:
    step = np.arange(0, 2001, 20)
    value = np.where(step < 1000, 3 - step / 1000 * 0.5, 2.5 - (step - 1000) / 1000 * 2)
    tail, fifths, over_tail, over_first = segment_slopes(
        _run(2000, 1000, value, step), step.astype(float), value, 0.9
    )
    assert tail is not None and tail.value == pytest.approx(-0.5)
    assert [slope.value for slope in fifths] == pytest.approx([-2.0] * 5)
    assert over_tail is not None and over_tail.value == pytest.approx(4)
    assert over_first.value == pytest.approx(1)


def test_measured_continuation_is_used_and_extrapolation_is_said() -> None:
    step = np.arange(100, 3001, 100)
    short = step[step <= 2000]
    trunk = 2 + 10 * step**-0.5
    down = np.where(short > 1000, (short - 1000) / 1000, 0)
    annealed = _run(2000, 1000, 2 + 10 * short**-0.5 - 0.1 * down, short)
    constant = _run(3000, 0, trunk, step, "constant")
    alone, both = (analyse(Table(runs), "val_bpb").runs[0] for runs in ((annealed,), (annealed, constant)))
    assert alone.extrapolated and not both.extrapolated
    expected = 10 * 1000**-0.5 - 10 * 2000**-0.5
    assert both.steps_gain is not None and both.steps_gain.value == pytest.approx(expected, rel=0.02)
    assert both.drop is not None and both.drop[-1] == pytest.approx(0.1, rel=0.02)


def test_runs_that_cannot_be_measured_are_named_with_the_reason() -> None:
    step = np.arange(0, 1001, 100)
    value = 2 - step / 1e4
    few = _run(1000, 400, value, step)
    cut = _run(1000, 800, value[:-3], step[:-3])
    none = Run(run_id="none", steps=1000, peak_steps=500, warmdown_steps=500)
    constant = _run(1000, 0, value, step, "constant")
    flat = _run(1000, 500, np.full(21, 2.0), np.arange(0, 1001, 50))
    result = analyse(Table((few, cut, none, constant, flat)), "val_bpb")
    reasons = dict(result.skipped)
    assert result.runs == ()
    assert "4 evaluations in the warmdown" in reasons["1000-400-linear"]
    assert "last evaluation is at step 700" in reasons["1000-800-linear"]
    assert "no trajectory" in reasons["none"]
    assert "constant" in reasons["1000-0-constant"]
    assert reasons["1000-500-linear"] == "no change over its warmdown"
    assert warmdown_verdict(result)[0].startswith("No verdict on the warmdown")
    assert headline(result) == ""


def test_variants_of_what_follows_training_count_once(sweep: Table) -> None:
    variants = tuple(
        replace(run, run_id=run.run_id + suffix, group=(*run.group, ("quant.method", f"per_row{suffix}")))
        for suffix in ("", "-a", "-b")
        for run in sweep.runs
    )
    tripled, alone = (analyse(table, "val_bpb") for table in (replace(sweep, runs=variants), sweep))
    assert warmdown_verdict(tripled) == warmdown_verdict(alone)
    assert len(tripled.lengths) == len(alone.lengths)
    assert len(tripled.skipped) == 2 * len(sweep.runs) + len(alone.skipped)


def test_published_study(shared: Path) -> None:
    """Shares of the gain of about .18/.36/.62/.84; acceleration that the rate, not the steps, explains."""
    reference = shared / "reference"
    table = load(reference / "gepa_runs.csv", reference / "gepa_trajectories.csv")
    result = analyse(table, "val_bpb")
    assert [run.run.run_id for run in result.runs] == ["gepa-12k", "gepa-20k", "gepa-25k"]
    shares = np.mean([list(run.fractions.values()) for run in result.runs], axis=0)
    assert shares == pytest.approx([0.18, 0.36, 0.62, 0.84], abs=0.01)
    assert all(run.last_over_first.above(1.5) for run in result.runs)
    assert all(run.steps_gain is not None and run.steps_gain.value < 0.12 * run.gain for run in result.runs)
    found = collapse(result.runs)
    assert found is not None and found.followed == "rate or share"
    assert len(result.lengths[0].drop) == 5 and result.lengths[0].b.above(0)
    assert "All are linear" in " ".join(warmdown_verdict(result))


def test_what_few_runs_tell_is_said_of_them_and_not_of_all(tmp_path: Path) -> None:
    found = analyse(load(write_sweep(tmp_path)), "val_bpb")
    slowing, silent = Estimate(0.25, 0.1, 0.5), Estimate(0.9)
    runs = tuple(
        replace(run, last_over_first=slowing if i == 0 else silent) for i, run in enumerate(found.runs)
    )
    said = headline(replace(found, runs=runs))
    assert f"slows in 1 of {len(runs)} runs towards the end" in said
    assert f"in {len(runs) - 1} it is within the noise" in said


def test_public_wsd_curves_do_not_accelerate_much(shared: Path) -> None:
    """124M, linear: nearly proportional to the rate removed, last/first fifth .8-1.3 at ratios .1-.4."""
    folder = shared / "reference" / "curves" / "wsd_124m_lr1e-3"
    table = load(folder / "runs.csv", folder / "trajectories.csv")
    result = analyse(table.where(lambda run: run.warmdown_ratio <= 0.4), "val_loss")
    linear = [run for run in result.runs if run.run.schedule == "linear"]
    assert len(linear) >= 10
    assert all(0.75 < run.last_over_first.value < 1.35 for run in linear)
    assert all(run.q is not None and 0.75 < run.q.value < 1.05 for run in result.runs)


def test_true_curve_is_continuous_at_the_peak() -> None:
    """The fixture itself: no jump where the warmdown begins, the whole drop at the end."""
    at = true_bpb(np.array([1200, 1200.001]), 2000, 800)
    assert at[0] == pytest.approx(at[1], abs=1e-5)


def test_documented_verdict_is_what_the_data_say(shared: Path) -> None:
    """docs/warmdown.md quotes numbers; each is computed here and looked up there."""
    page = " ".join((Path(__file__).parents[2] / "docs" / "warmdown.md").read_text().split())

    def short(value: float, digits: int) -> str:
        return f"{value:.{digits}f}"

    reference = shared / "reference"
    published = analyse(load(reference / "gepa_runs.csv", reference / "gepa_trajectories.csv"), "val_bpb")
    quoted = [run.last_over_first.text(".2f") for run in published.runs]
    quoted.append(f"{quoted[0]}, {quoted[1]} and {quoted[2]} times as steep")
    q = [short(run.q.value, 2) for run in published.runs if run.q is not None]
    quoted.append(f"q = {q[0]}, {q[1]} and {q[2]}")
    steps = sorted(run.steps_gain.value for run in published.runs if run.steps_gain is not None)
    quoted.append(f"{short(steps[0], 4)} to {short(steps[-1], 4)} BPB")
    shares = np.mean([list(run.fractions.values()) for run in published.runs], axis=0)
    quoted.append(" / ".join(short(share, 2) for share in shares))
    lined = collapse(published.runs)
    assert lined is not None
    quoted.append(
        f"by {short(lined.remaining, 2)} of their mean (SD), lined up by steps by {short(lined.steps, 2)}"
    )
    folder = reference / "curves" / "wsd_124m_lr1e-3"
    curves = load(folder / "runs.csv", folder / "trajectories.csv")
    fifth = curves.where(lambda run: run.is_constant or abs(run.warmdown_ratio - 0.2) < 0.01)
    lined = collapse(analyse(fifth, "val_loss").runs)
    assert lined is not None and lined.part_by_rate is not None and lined.part_by_share is not None
    quoted.append(f"at equal rate by {short(lined.remaining, 2)}, at equal steps by {short(lined.steps, 2)}")
    quoted.append(
        f"{short(lined.part_by_rate, 3)} at equal rate and {short(lined.part_by_share, 3)} at equal share"
    )
    for number in quoted:
        assert number in page, number
