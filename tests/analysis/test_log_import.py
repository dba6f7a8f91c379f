"""Many logs at once: what is written, what is refused, and what the analysis makes of it."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis.__main__ import main
from analysis.effects.compare import compare
from analysis.logs.importing import import_logs, read_log, read_runs
from analysis.runs.errors import AnalysisError
from analysis.runs.load import load
from analysis.runs.units import STAGES
from tests.log_lines import FINALS, SOURCE, curve, log

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT.parent / "shared" / "reference" / "logs"


def write(folder: Path, texts: dict[str, str]) -> list[Path]:
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return [folder / name for name in texts]


def test_a_folder_becomes_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs = {f"r{n}/train.log": log(*FINALS, last=n, of=n, cap=0, seed=n) for n in (1000, 2000, 3000)}
    write(tmp_path / "logs", logs | {"README.txt": "no log", "r1000/notes.md": "not looked at"})
    out = tmp_path / "out" / "curves.csv"
    assert main(["import", str(tmp_path / "logs"), "--out", str(out), "--warmdown", "500"]) == 0
    said = capsys.readouterr()
    assert "refused" in said.err and "README.txt" in said.err and said.err.count("\n") == 1
    assert "4 files, 1 refused: 3 runs; warmdown known of 3" in said.out
    table = load(out.with_name("curves_runs.csv"), out)
    assert [run.run_id for run in table.runs] == ["r1000", "r2000", "r3000"]
    assert [run.peak_steps for run in table.runs] == [500, 1500, 2500]
    assert all(run.final(stage) is not None for run in table.runs for stage in STAGES)
    assert table.runs[2].curve("val_bpb") is not None


def test_one_bad_log_stops_no_other_and_all_bad_ones_are_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, {"a.log": log(), "b.log": "nothing", "c.log": log(seed=7).replace("6000", "400")})
    out = tmp_path / "out.csv"
    done = import_logs([tmp_path / "a.log", tmp_path / "b.log", tmp_path / "none.log"], out)
    assert [log.path.name for log in done.read] == ["a.log"]
    assert ["no line like" in log.refused or "no such file" in log.refused for log in done.refused] == [
        True
    ] * 2
    out.unlink()
    assert main(["import", str(tmp_path / "b.log"), str(tmp_path / "none.log"), "--out", str(out)]) == 2
    assert "none of 2 logs could be read; the first: " in capsys.readouterr().err
    for arguments, why in (
        (["none.log"], "no such file"),
        (["b.log"], "is it a training log"),
        ([""], "folder"),
    ):
        wrong = (
            [str(tmp_path / name) for name in arguments] if arguments != [""] else [str(tmp_path / "empty")]
        )
        (tmp_path / "empty").mkdir(exist_ok=True)
        assert main(["import", *wrong, "--out", str(out)]) == 2
        assert (why in (said := capsys.readouterr().err)) or "below it" in said
    assert not out.exists()


def test_equal_names_get_their_folders(tmp_path: Path) -> None:
    names = ("x/a/train.log", "y/a/train.log", "x/b/same.log", "x/c/same.txt", "x/c/other.log", "x/d/two.log")
    paths = write(tmp_path, {name: log(seed=i) for i, name in enumerate(names)})
    paths[-1].write_text(log(seed=1) + log(seed=2))
    runs = pd.read_csv(import_logs([tmp_path], tmp_path / "out.csv", pattern="*").runs)
    assert sorted(runs["run_id"]) == [
        "b/same",
        "c/same",
        "other",
        "two-seed1",
        "two-seed2",
        "x/a",
        "y/a",
    ]
    assert runs["source"].str.contains(r"\.(?:log|txt):\d+-\d+$").all()
    with pytest.raises(AnalysisError, match="2 runs in one log"):
        read_log(paths[-1])
    paths[-1].write_text(log(seed=1) + log(seed=1).replace("train_time:100000", "train_time:99999"))
    assert [record.row["seed"] for record in read_runs(paths[-1])] == [1, 1]
    again = import_logs([paths[-1]], tmp_path / "again.csv")
    assert pd.read_csv(again.runs)["run_id"].tolist() == ["two-run1", "two-run2"]


def test_patterns_choose_files(tmp_path: Path) -> None:
    write(tmp_path, {"a/seed1.log": log(seed=1), "a/seed2.out": log(seed=2), "b/seed3.out": log(seed=3)})
    chosen = import_logs([tmp_path], tmp_path / "o.csv", pattern="*.out").read
    assert [item.path.name for item in chosen] == ["seed2.out", "seed3.out"]
    assert [i.path.name for i in import_logs([tmp_path / "a" / "*.out"], tmp_path / "o.csv").read] == [
        "seed2.out"
    ]
    with pytest.raises(AnalysisError, match="3 warmdowns for 2 logs"):
        import_logs([tmp_path], tmp_path / "o.csv", [1, 2, 3], "*.out")


def test_csv_and_json_keep_whole_numbers_and_reasons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = write(tmp_path, {"run.log": log("DIAGNOSTIC post_swa val_bpb:1.2").replace("seed:42\n", "")})
    assert main(["import", str(path), "--out", str(tmp_path / "c.csv"), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "c_import.json").read_text())[0]
    (run,) = found["runs"]
    assert found["refused"] is None and run["run"]["params"] == 26993756 and run["run"]["seed"] is None
    assert set(run["empty_because"]) == {"ema_bpb", "int6_bpb", "int6_sliding_bpb", "ttt_bpb"}
    assert "post_swa" in run["figures_not_filed"][0]
    frame = pd.read_csv(tmp_path / "c_runs.csv", dtype=str)
    assert frame["params"].item() == "26993756" and frame["steps"].item() == "6000"
    assert frame["seed"].isna().item() and frame["warmdown_steps"].isna().item()
    assert "warmdown unknown" in frame["notes"].item()


def test_runs_of_unknown_warmdown_and_unfinished_ones_are_left_out_of_laws(tmp_path: Path) -> None:
    known = log(*FINALS).replace("seed:42", "seed:42\nwarmdown_iters:1500")
    killed = log(last=20000, cap=0).partition("step:5000/")[0]
    logs = write(tmp_path, {"known.log": known, "dark.log": log(*FINALS), "killed.log": killed})
    done = import_logs(logs, tmp_path / "c.csv")
    table = load(done.runs, done.trajectories)
    assert [run.run_id for run in table.runs] == ["known"]
    assert any("1 run left out as unfinished: killed" in note for note in table.notes)
    assert any("of unknown warmdown: dark" in note for note in table.notes)
    assert {run.run_id for run in load(done.runs, schedules=False).runs} == {"known", "dark"}


def test_compare_pairs_runs_that_a_clock_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two entries with one cap and three seeds: steps, and so warmdowns, differ by a few."""
    for entry, gain, params in (("ours", 0.0, 26993756), ("theirs", 0.004, 27000000)):
        for seed, last in ((42, 5455), (999, 5451), (1337, 5460)):
            text = log(
                f"final_int6_roundtrip val_bpb:{1.1528 - gain + seed / 1e6:.6f}",
                seed=seed,
                last=last + int(1000 * gain),
                params=params,
            )
            write(tmp_path, {f"{entry}/seed{seed}.log": text})
        import_logs([tmp_path / entry], tmp_path / f"{entry}.csv")
    paths = [str(tmp_path / f"{entry}_runs.csv") for entry in ("ours", "theirs")]
    assert main(["compare", *paths, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (int6,) = [d for d in found["summary"] if d["metric"] == "int6_bpb"]
    assert (int6["pairs"], int6["difference"], int6["low"]) == (
        3,
        pytest.approx(-0.004),
        pytest.approx(-0.004),
    )
    assert "3 pairs share a cap of wall-clock time, with steps up to 0.073 % apart" in found["notes"][0]
    other = write(tmp_path, {"one/seed42.log": log(*FINALS, last=900, seed=42)})
    import_logs(other, tmp_path / "one.csv")
    with pytest.raises(AnalysisError, match=r"no run of .* has the plan"):
        compare(load(paths[0], schedules=False), load(tmp_path / "one_runs.csv", schedules=False))


LOG = log(*FINALS)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mangled_log_is_read_or_refused_and_invents_nothing(tmp_path: Path, data: st.DataObject) -> None:
    """Cut, with lines lost, doubled or moved, with bytes changed: no traceback, no figure from nowhere."""
    lines = LOG.splitlines(keepends=True)
    for _ in range(data.draw(st.integers(0, 4))):
        i, j = data.draw(st.integers(0, len(lines) - 1)), data.draw(st.integers(0, len(lines) - 1))
        lines = (
            data.draw(
                st.sampled_from(
                    [
                        lines[: i + 1],
                        lines[:i] + lines[i + 1 :],
                        lines + lines[i:j],
                        [*lines, lines[i]],
                        lines[i:] + lines[:i],
                    ]
                )
            )
            or lines
        )
    source = f"{SOURCE}\n".splitlines(keepends=True)
    lines = source[data.draw(st.sampled_from([0, *range(4, len(source) + 1)])) :] + lines
    content = bytearray("".join(lines).encode())
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=5)):
        content[at] = data.draw(st.integers(0, 255))
    path = tmp_path / "mangled.log"
    path.write_bytes(bytes(content))
    changed = bytes(content) != "".join(lines).encode()
    try:
        records = read_runs(path)
    except AnalysisError:
        return
    printed = {1.124, 1.13, 1.13000001, 1.11, 1.11000002, 1.09440207}
    for record in records:
        finals = [value for name, value in record.row.items() if name in STAGES[1:] and value is not None]
        assert changed or set(finals) <= printed
        assert all(np.isfinite(value) for point in record.curve for value in point.values())
        assert record.row["status"] == "done" or not finals


@given(st.binary(max_size=400))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_refused_or_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any.txt"
    path.write_bytes(content)
    try:
        assert read_runs(path)
    except AnalysisError as error:
        assert "\n" not in str(error)


@pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the reference logs lie beside the project, and not here")
def test_reference_examples() -> None:
    expected = json.loads((EXAMPLES / "expected.json").read_text())
    for path in sorted(EXAMPLES.glob("*.log")):
        records, wanted = read_runs(path), expected[path.name]
        assert len(records) == max(wanted["rows"], 1)
        for i, record in enumerate(records):
            for name in set(wanted) & set(record.row):
                value = wanted[name][i] if isinstance(wanted[name], list) else wanted[name]
                assert record.row[name] == value, (path.name, name)
        for point in wanted.get("curve", []):
            assert point in [[row["step"], row["val_bpb"]] for row in records[0].curve]


def test_a_bare_curve_is_enough(tmp_path: Path) -> None:
    (path,) = write(tmp_path, {"bare.txt": "\n".join(curve([1000, 2000], 2000))})
    found = read_log(path, warmdown_steps=400)
    assert (found.run["run_id"], found.run["peak_steps"]) == ("bare", 1600)
    assert list(found.trajectory.columns) == ["step", "val_bpb", "val_loss", "train_loss", "train_time_ms"]
