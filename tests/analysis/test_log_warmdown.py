"""The warmdown of a log: stated, worked out of the log's own times, or unknown; never guessed."""

from pathlib import Path

import numpy as np
import pytest

from analysis.logs.importing import read_runs
from analysis.runs.schedule import rate_at
from tests.log_lines import HEADER, curve, log, stopped


def row(tmp_path: Path, text: str, given: int | None = None) -> dict[str, object]:
    path = tmp_path / "a.log"
    path.write_text(text)
    (record,) = read_runs(path, given)
    return record.row


def stated(*settings: str, seed: str = "seed:42") -> str:
    return log().replace(seed, "\n".join([seed, *settings]))


SLOWER = 1.5
"""From half of the steps on, as where layers are looped; times of a step before are 100 ms."""


def seconds(step: float, last: int = 5000) -> float:
    return 0.1 * (step + (SLOWER - 1) * max(step - last / 2, 0))


def test_a_pause_after_a_multiplier_was_printed(tmp_path: Path) -> None:
    """5 s of compilation at the end: (605 - 570) s left at step 5,700 are 0.1 of a warmdown of 350 s."""
    line = "late_qat:enabled step:5700 scale:0.1000"
    paused = (
        log()
        .replace("step:6000/", line + "\nstep:6000/", 1)
        .replace("train_time:600000", "train_time:605000")
    )
    assert row(tmp_path, paused)["warmdown_steps"] == pytest.approx(6000 - 2550, abs=30)


def test_a_fraction_of_the_time_is_placed_by_the_logs_own_times(tmp_path: Path) -> None:
    """Steps slow down on the way; times of step lines are whole tenths of minutes, throughput is exact."""
    last, fraction = 5000, 0.6
    cap = seconds(last)
    lines = [
        f"Hyperparameters:\n  warmdown_frac: {fraction}\n  min_lr: 0.1\n  max_wallclock_seconds: 600.0",
        "  iterations: 20000\n  train_batch_tokens: 786432\nmodel_params:1000000",
        f"gptq:reserving 0s, effective={1000 * cap:.0f}ms",
        "0/20000 val_loss: 9.0 val_bpb: 3.4",
    ]
    for step in range(250, last + 1, 250):
        rate = step * 786432 / seconds(step)
        lines.append(f"{step}/20000 train_loss: 3.3 train_time: {seconds(step) / 60:.1f}m tok/s: {rate:.0f}")
    lines += [
        f"{last}/20000 val_loss: 2.8 val_bpb: 1.0895",
        f"stopping_early: wallclock_cap train_time: {1000 * cap:.0f}ms step: {last}/20000",
    ]
    found = row(tmp_path, "\n".join(lines))
    assert (found["warmdown_fraction"], found["warmdown_of"]) == (0.6, "the time")
    assert (found["schedule"], found["final_lr_fraction"]) == ("linear-floor", 0.1)
    peak = next(step for step in range(last) if seconds(step) / cap > 1 - fraction)
    assert found["peak_steps"] == pytest.approx(peak, abs=3)
    assert "reconstructed from the log's times" in str(found["notes"])


def test_rounded_times_say_how_far_off(tmp_path: Path) -> None:
    text = "warmdown_frac: 0.5\nmax_wallclock_seconds: 600.0\n" + "\n".join(
        [f"{s}/9000 val_loss: 2.9 val_bpb: 1.2 train_time: {s / 600:.1f}m" for s in range(1000, 6001, 1000)]
    )
    found = row(tmp_path, f"{text}\n{stopped(6000, 9000)}\n")
    assert found["warmdown_steps"] == pytest.approx(3000, abs=30) and "+-30 steps" in str(found["notes"])


def test_iterations_of_a_stopped_run_end_at_the_stop(tmp_path: Path) -> None:
    found = row(tmp_path, stated("warmdown_iters:1500"))
    assert found["warmdown_steps"] == pytest.approx(1500, abs=2) and found["schedule"] == "linear"
    assert found["warmdown_fraction"] is None and found["warmdown_of"] == "the time"


@pytest.mark.parametrize(
    ("setting", "steps"),
    [
        ("warmdown_iters=4000", 4000),
        ("WARMDOWN_FRAC=0.25", 5000),
        ("warmdown_steps: 0", 0),
        ("warmdown_iters:4000 warmdown_frac:-1.000", 4000),
        ("D: layers=11 warmdown=4000 lr=0.02", 4000),
    ],
)
def test_without_a_cap_a_warmdown_goes_by_steps(tmp_path: Path, setting: str, steps: int) -> None:
    text = log(last=20000, cap=0).replace("seed:42", f"seed:42\n{setting}")
    found = row(tmp_path, text)
    assert (found["warmdown_steps"], found["peak_steps"]) == (steps, 20000 - steps)
    assert found["schedule"] == ("linear" if steps else "constant")


def test_a_run_that_was_over_before_its_cap_ends_at_a_higher_rate(tmp_path: Path) -> None:
    """6,000 steps in 600 s of 1,000: half of them are warmdown, which would have gone on for 400 s."""
    text = log(last=6000, of=6000, cap=1000).replace("seed:42", "seed:42\nwarmdown_frac: 0.7")
    found = row(tmp_path, text)
    assert found["warmdown_steps"] == pytest.approx(3000, abs=1)
    assert found["final_lr_fraction"] == pytest.approx(0.4 / 0.7, abs=1e-3)
    early = row(tmp_path, text.replace("0.7", "0.3"))
    assert (early["warmdown_steps"], early["schedule"]) == (0, "constant")


def test_a_multiplier_on_the_way_tells_a_linear_warmdown(tmp_path: Path) -> None:
    line = "late_qat:enabled step:4500 scale:0.5000"
    found = row(tmp_path, log().replace("step:5000/", line + "\nstep:5000/", 1))
    assert found["warmdown_steps"] == 3000 and "0.5 at step 4,500, as linear" in str(found["notes"])
    scales = {1000: 0.5, 2000: 1.0, 4000: 0.6667, 5000: 0.3333}  # with a warm-up at the beginning
    lines = log()
    for step, scale in scales.items():
        lines = lines.replace(
            f"step:{step}/20000 train_loss", f"step:{step}/20000 lr_scale:{scale} train_loss"
        )
    assert row(tmp_path, lines)["warmdown_steps"] == 3000
    bent = "\n".join([line, "late_qat:enabled step:5000 scale:0.1000", "step:5000/"])
    assert row(tmp_path, log().replace("step:5000/", bent, 1))["warmdown_steps"] is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (log(), "the log does not state it"),
        (stated("warmdown_iters:100", "warmdown_frac:0.5"), "a fraction, 0.5, and iterations, 100"),
        (stated("warmdown_iters:100", "lr_schedule: exponential"), "of the shape 'exponential'"),
        (
            stated("warmdown_iters:8000").replace(f"train_time:{100_000}ms", f"train_time:{400_000}ms"),
            "rises before it falls",
        ),
        (
            stated("qat:True warmdown:cosine").replace(
                "step:5000/", "qat:on step:4500 scale:0.5\nstep:5000/", 1
            ),
            "the log does not state it",
        ),
        (
            "warmdown_frac:0.5 max_wallclock_seconds:600\n"
            + "\n".join([f"{s}/9000 val_loss: 2.9 val_bpb: 1.2" for s in (1000, 2000)])
            + "\nstopping_early: wallclock_cap",
            "does not print",
        ),
    ],
)
def test_an_unknown_warmdown_is_said_to_be_unknown(tmp_path: Path, text: str, why: str) -> None:
    found = row(tmp_path, text)
    assert found["warmdown_steps"] is None and found["schedule"] is None
    assert "warmdown unknown" in str(found["notes"]) and why in str(found["notes"])


def test_a_warmdown_given_goes_before_the_logs(tmp_path: Path) -> None:
    found = row(tmp_path, stated("warmdown_iters:1500"), given=2000)
    assert (found["warmdown_steps"], found["peak_steps"], found["schedule"]) == (2000, 4000, "linear")
    assert row(tmp_path, log(), given=0)["schedule"] == "constant"


def test_a_floor_holds_a_linear_warmdown_up() -> None:
    lr = rate_at(np.arange(101), 100, 50, "linear-floor", 0.2)
    assert lr[:51] == pytest.approx(1.0) and lr[60] == pytest.approx(0.8)
    assert lr[90:] == pytest.approx(0.2) and np.all(np.diff(lr) <= 0)


def test_times_count_from_the_first_step(tmp_path: Path) -> None:
    """Two validations are enough to place a warmdown in a run of even pace."""
    head = HEADER.format(of=20000, seed=1, params=1000000, cap=600) + "\nwarmdown_frac:0.3\n"
    found = row(tmp_path, head + "\n".join([*curve([0, 6000]), stopped(6000)]))
    assert found["warmdown_steps"] == 1800
