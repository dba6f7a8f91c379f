"""Training logs of the challenge become CSV files that the analysis reads."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.__main__ import main
from analysis.runs.errors import AnalysisError
from analysis.runs.load import load
from analysis.runs.trainlog import import_logs, read_log
from tests.synthetic_results import true_bpb

HEAD = """import os
seed: int = int(os.environ.get("SEED", 1337))  # seed:E, and other code
log(f"step:{step}/{steps} val_loss:{loss:.4f} model_params:{params}")
val_loader:shards pattern=./data/fineweb_val_*.bin tokens:62021632
model_params:27030107
train_batch_tokens:786432 train_seq_len:2048 iterations:2000 warmup_steps:20
seed:42
warmup_step:1/20
"""
TAIL = """peak memory allocated: 19710 MiB reserved: 19930 MiB
DIAGNOSTIC post_ema val_loss:1.89280000 val_bpb:1.12000000 eval_time:2227ms
Serialized model: 105783807 bytes
Code size: 68212 bytes
Serialized model int6+zstd: 14418655 bytes
final_int6_roundtrip val_loss:1.9 val_bpb:1.13 eval_time:1812ms
final_int6_roundtrip_exact val_loss:1.90000000 val_bpb:1.13000000
final_int6_sliding_window_exact val_loss:1.88000000 val_bpb:1.11000000
legal_ttt_exact val_loss:1.84785000 val_bpb:1.09440207
"""


def _log(steps: int, down: int, every: int = 100, planned: int | None = None) -> str:
    at = np.arange(0, steps + 1, every)
    bpb = true_bpb(np.maximum(at, 5), steps, down)
    lines = []
    for step, value in zip(at, bpb, strict=True):
        lines.append(f"step:{step}/{planned or steps} train_loss:{1.7 * value:.4f} train_time:{80 * step}ms")
        lines.append(
            f"step:{step}/{planned or steps} val_loss:{1.69 * value:.4f} val_bpb:{value:.4f} "
            f"train_time:{80 * step}ms step_avg:80.00ms"
        )
    return HEAD + "\n".join(lines) + "\n" + TAIL


def test_every_figure_of_a_log(tmp_path: Path) -> None:
    path = tmp_path / "run-a.log"
    path.write_text(_log(2000, 800))
    log = read_log(path, 800)
    assert log.run == {
        "run_id": "run-a",
        "steps": 2000,
        "peak_steps": 1200,
        "warmdown_steps": 800,
        "schedule": "linear",
        "params": 27030107,
        "train_tokens": 2000 * 786432,
        "float_bpb": pytest.approx(true_bpb(np.array([2000.0]), 2000, 800)[0], abs=1e-4),
        "ema_bpb": 1.12,
        "int6_bpb": 1.13,
        "int6_sliding_bpb": 1.11,
        "ttt_bpb": 1.09440207,
        "artifact_bytes": 14418655,
        "code_bytes": 68212,
        "train_seconds": 160.0,
        "seed": 42,
    }
    assert list(log.trajectory.columns) == ["step", "val_bpb", "val_loss", "train_loss", "train_time_ms"]
    assert len(log.trajectory) == 21


def test_imported_logs_load_as_a_table(tmp_path: Path) -> None:
    for steps in (1000, 2000, 3000):
        (tmp_path / f"r{steps}").mkdir()
        (tmp_path / f"r{steps}" / "train.log").write_text(_log(steps, steps // 2))
    out = tmp_path / "curves.csv"
    logs = sorted(tmp_path.glob("*/train.log"))
    arguments = ["import", *map(str, logs), "--out", str(out), "--warmdown", "500", "1000", "1500"]
    assert main(arguments) == 0
    table = load(tmp_path / "curves_runs.csv", out)
    assert [run.run_id for run in table.runs] == ["r1000", "r2000", "r3000"]
    assert all(run.warmdown_ratio == 0.5 for run in table.runs)
    assert table.runs[0].final("val_bpb") == pytest.approx(
        true_bpb(np.array([1000.0]), 1000, 500)[0], abs=1e-4
    )


def test_a_run_stopped_early_counts_the_steps_it_made(tmp_path: Path) -> None:
    path = tmp_path / "early.txt"
    path.write_text(_log(700, 300, planned=9000))
    assert read_log(path).run["steps"] == 700
    assert read_log(path).run["warmdown_steps"] is None


def test_stages_measured_after_adapting_on_the_validation_text_are_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "adapted.log"
    path.write_text(_log(1000, 300).replace("Code size", "ttt:start lr=0.002\nCode size"))
    run = read_log(path).run
    assert run["int6_bpb"] is None and run["ttt_bpb"] is None and run["artifact_bytes"] == 14418655


@pytest.mark.parametrize(
    ("announced", "column"),
    [
        ("final_eval_mode:standard", "int6_bpb"),
        ("final_eval_mode:sliding_window stride:64 batch_seqs:64", "int6_sliding_bpb"),
        ("final_eval_mode:sliding_window_ttt stride:64 chunk_tokens:32768", "ttt_bpb"),
        ("ttt_sliding:start chunks=1893 chunk_tokens=32768", "ttt_bpb"),
        ("final_eval_mode:something_new", None),
    ],
)
def test_a_round_trip_is_what_its_mode_says(tmp_path: Path, announced: str, column: str | None) -> None:
    """Older scripts print one final line, whatever they measured by it."""
    text = _log(2000, 800).partition("final_int6")[0]
    final = "final_int6_roundtrip_exact val_loss:1.93257718 val_bpb:1.14458409\n"
    (tmp_path / "old.log").write_text(f"{text}{announced}\n{final}")
    run = read_log(tmp_path / "old.log").run
    for name in ("int6_bpb", "int6_sliding_bpb", "ttt_bpb"):
        assert run[name] == (1.14458409 if name == column else None)


def test_of_a_resumed_log_the_later_line_counts(tmp_path: Path) -> None:
    path = tmp_path / "resumed.log"
    path.write_text(_log(1000, 300) + "step:900/1000 val_loss:2.0 val_bpb:1.5 train_time:1ms\n")
    frame = read_log(path).trajectory
    assert frame.loc[frame["step"] == 900, "val_bpb"].item() == 1.5


@pytest.mark.parametrize(
    ("text", "warmdown", "said"),
    [
        ("nothing of the kind\n", None, "is it a training log"),
        (_log(1000, 300).replace("val_bpb:", "val_bpb:nan #", 1), None, "not finite"),
        (_log(1000, 300), 1001, "does not fit its 1000 steps"),
        (_log(1000, 300), -1, "does not fit its 1000 steps"),
    ],
)
def test_bad_logs_are_one_clear_error(tmp_path: Path, text: str, warmdown: int | None, said: str) -> None:
    path = tmp_path / "bad.log"
    path.write_text(text)
    with pytest.raises(AnalysisError, match=said):
        read_log(path, warmdown)


def test_bad_arguments_leave_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.csv"
    assert main(["import", str(tmp_path / "missing.log"), "--out", str(out)]) == 2
    assert "no such file" in capsys.readouterr().err
    (tmp_path / "binary.log").write_bytes(bytes([255, 254, 0, 128]))
    assert main(["import", str(tmp_path / "binary.log"), "--out", str(out)]) == 2
    assert "not a text file" in capsys.readouterr().err
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same.log").write_text(_log(500, 100))
    pair = [tmp_path / "a" / "same.log", tmp_path / "b" / "same.log"]
    with pytest.raises(AnalysisError, match="two logs give the run_id 'same'"):
        import_logs(pair, out)
    with pytest.raises(AnalysisError, match="3 warmdowns for 2 logs"):
        import_logs(pair, out, [1, 2, 3])
    assert not out.exists()


def test_written_csv_keeps_whole_numbers_and_unknown_cells_empty(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    path.write_text(_log(500, 100).replace("seed:42\n", ""))
    runs, curves = import_logs([path], tmp_path / "c.csv")
    frame = pd.read_csv(runs, dtype=str)
    assert frame["params"].item() == "27030107"
    assert frame["seed"].isna().item() and frame["warmdown_steps"].isna().item()
    assert pd.read_csv(curves)["step"].is_monotonic_increasing
