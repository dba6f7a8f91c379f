"""Laws against brute force, in their limits, and recovered where they were planted."""

from dataclasses import replace

import numpy as np
import pytest

from analysis.laws import FINAL_LAWS, TRAJECTORY_LAWS, fsl, momentum, mpl
from analysis.laws.design import MAX_BLOCKS, Design, lr_blocks
from analysis.laws.fit import Fit, fit
from analysis.laws.law import Law
from analysis.laws.observations import final_rows, trajectory_rows
from analysis.runs.schedule import SHAPES, rate_at
from analysis.runs.table import Run, Table, Trajectory

LINEAR = np.array([2.6, 0.9, 0.15])


def run(steps: int, warmdown: int, schedule: str = "linear", **more: object) -> Run:
    return Run(
        run_id=f"{steps}-{warmdown}-{schedule}",
        steps=steps,
        peak_steps=steps - warmdown,
        warmdown_steps=warmdown,
        schedule=schedule,
        **more,  # type: ignore[arg-type]
    )


def planted(law: Law, theta: np.ndarray, plans: list[Run], noise: float = 0.0) -> Table:
    """Runs whose trajectories and finals are the law's, every 250 steps."""
    rng, runs = np.random.default_rng(0), []
    for plan in plans:
        steps = np.arange(250, plan.steps + 1, 250)
        value = law.terms(theta, Design([(plan, steps)])) @ LINEAR[: len(law.linear)]
        value = value * np.exp(rng.normal(0, noise, len(steps)))
        curve = Trajectory(steps, plan.rate(steps - 1), {"val_loss": value})
        runs.append(
            replace(plan, trajectory=curve, metrics={"final_loss": float(value[-1])}, trunk=plan.run_id)
        )
    return Table(tuple(runs), "planted")


GRID = [run(n, round(r * n)) for n in (6000, 10000, 16000) for r in (0.2, 0.5)]


@pytest.mark.parametrize("schedule", list(SHAPES))
def test_lr_curves_start_at_one_and_end_where_they_should(schedule: str) -> None:
    r = rate_at(np.arange(1000), 1000, 600, schedule, 0.0, warmup_steps=100)
    assert r[0] == pytest.approx(0.01)
    assert np.all(r[100:600] == 1)
    assert r[600] == pytest.approx(0.0 if schedule == "step" else 1.0)
    expected = {"constant": 1.0, "exponential": 0.01, "step": 0.0}.get(schedule, 0.0)
    assert r[-1] == pytest.approx(expected, abs=0.012)


def test_blocks_keep_the_sums_of_the_rate() -> None:
    plan = run(20000, 9000, "cosine", warmup_steps=300)
    start, rate = lr_blocks(plan)
    lr = plan.rate(np.arange(plan.steps))
    length = np.diff(np.append(start, plan.steps))
    assert len(start) <= MAX_BLOCKS
    assert (rate * length).sum() == pytest.approx(lr.sum(), rel=1e-9)
    assert (rate**0.5 * length).sum() == pytest.approx((lr**0.5).sum(), rel=1e-4)


def test_lagged_drops_against_a_sum_over_every_step() -> None:
    plan, kappa, q, tau = run(3000, 1200), 0.6, 0.8, 0.2
    at = np.array([1000, 1801, 2400, 3000])
    lr = plan.rate(np.arange(plan.steps))
    speed = lr**kappa / 1000
    clock = np.concatenate([[0.0], np.cumsum(speed)])
    expected = []
    for t in at:
        k = np.arange(1, t)
        drop = lr[k - 1] ** q - lr[k] ** q
        expected.append(np.sum(drop * -np.expm1(-(clock[t] - clock[k]) / tau)))
    found = Design([(plan, at)]).lagged_drops(kappa, q, lambda age, rate: -np.expm1(-age / tau))
    assert found == pytest.approx(np.array(expected), abs=2e-3)
    assert Design([(plan, at)]).clock(kappa)[0] == pytest.approx(clock[at], rel=1e-4)


def test_drops_are_counted_after_warmup_only() -> None:
    plan = run(2000, 0, "constant", warmup_steps=500)
    assert np.all(Design([(plan, np.array([600, 2000]))]).lagged_drops(1.0, 1.0, lambda a, r: a + 1) == 0)


def test_momentum_law_is_its_published_recursion() -> None:
    plan = run(4000, 2000)
    m, s2, lr = 0.0, 0.0, plan.rate(np.arange(plan.steps))
    for i in range(1, plan.steps):
        m = momentum.DECAY * m + lr[i - 1] - lr[i]
        s2 += m
    drops = 1 - momentum.terms(np.array([0.5]), Design([(plan, np.array([plan.steps]))]))[0, 2]
    assert drops / (1 - momentum.DECAY) == pytest.approx(s2, rel=2e-3)


def test_laws_contain_each_other() -> None:
    design = Design([(plan, np.array([4000, plan.steps])) for plan in GRID])
    alpha, tau, beta = 0.5, 0.1, 0.4
    plain = fsl.terms(np.array([alpha, tau, beta]), design)
    assert fsl.kappa_terms(np.array([alpha, 1.0, tau, beta]), design) == pytest.approx(plain)
    assert fsl.power_terms(np.array([alpha, 1.0, 1.0, tau, beta]), design) == pytest.approx(plain)
    assert mpl.terms(np.array([alpha, tau, beta, 1e-9]), design) == pytest.approx(plain)
    assert mpl.kappa_terms(np.array([alpha, 1.0, tau, beta, 1e-9]), design) == pytest.approx(plain)


TRUE_THETA = {"alpha": 0.46, "kappa": 0.8, "q": 0.7, "tau": 0.15, "beta": 0.8, "gamma": 0.5, "stretch": 0.7}
STIFF = {"alpha": 0.5, "kappa": 0.52, "q": 0.92, "p": 0.125}
"""Near the priors of the creep law, which are known before any run."""


@pytest.mark.parametrize("law", TRAJECTORY_LAWS, ids=lambda law: law.name)
@pytest.mark.parametrize("prior", [False, True])
def test_a_planted_law_is_recovered(law: Law, prior: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = STIFF if law.name == "creep" else TRUE_THETA
    theta = np.array([truth[p.name] for p in law.parameters])
    data = trajectory_rows(planted(law, theta, GRID, noise=1e-5), "val_loss")
    if not prior:
        monkeypatch.setattr("analysis.laws.fit.PRIOR_SCALE", 0.0)
    found = fit(law, data)
    if not prior:
        assert found.theta == pytest.approx(theta, rel=0.15)
    far = Design([(run(40000, 24000), np.array([20000, 30000, 40000]))])
    close = 0.002 if prior else 5e-4  # the weak prior is off the planted parameters by one or two spreads
    assert found.predict(far) == pytest.approx(law.terms(theta, far) @ LINEAR, abs=close)


@pytest.mark.parametrize("law", FINAL_LAWS, ids=lambda law: law.name)
def test_a_planted_law_of_finals_is_recovered(law: Law) -> None:
    coefficients = {"power": [2.6, 0.9], "log-linear": [2.0, 0.05], "surface": [2.0, 0.9, 0.03]}.get(
        law.name, [2.0, 0.03]
    )
    plans = [run(n, round(r * n)) for n in (4000, 6000, 9000, 14000, 20000) for r in (0.2, 0.5)]
    theta = np.array([0.45] * len(law.parameters))
    rows = [(plan, np.array([plan.steps])) for plan in plans]
    value = law.terms(theta, Design(rows)) @ np.array(coefficients)
    runs = tuple(replace(p, metrics={"final_loss": float(v)}) for p, v in zip(plans, value, strict=True))
    found = fit(law, final_rows(Table(runs), "val_loss"))
    far = Design([(run(40000, 16000), np.array([40000]))])
    assert found.predict(far) == pytest.approx(law.terms(theta, far) @ np.array(coefficients), abs=1e-3)


def test_a_law_says_where_it_sits_on_a_bound() -> None:
    law = fsl.LAW
    data = trajectory_rows(planted(law, np.array([0.5, 0.1, 200.0]), GRID), "val_loss")
    found: Fit = fit(law, data)
    assert any("beta sits on its bound 20" in warning for warning in found.warnings)
