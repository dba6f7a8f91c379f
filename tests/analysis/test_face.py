"""`from analysis import load_study`: what a notebook sees, from a folder, a CSV and an object store."""

import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import launch
from analysis import AnalysisError, load_study
from analysis.__main__ import main
from analysis.reach.remote import upload
from sweeps.commands.ending import report
from sweeps.store.store import Store
from tests.synthetic_results import true_bpb, write_sweep

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("face") / "store" / "small"
    return write_sweep(folder, steps=(1500, 2000, 3000, 4500), ratios=(0.4,), pending=1)


def test_runs_curves_and_the_best(folder: Path) -> None:
    study = load_study(folder.parent)  # the only sweep of a store
    assert len(study.runs) == 4 and len(study.table.runs) == 3
    assert study.runs.loc[study.best["run_id"], "ttt_bpb"] == study.runs["ttt_bpb"].min()
    curve = study.curve("3000")
    assert curve.index.is_monotonic_increasing and curve.index[-1] == 3000
    assert curve.loc[1800, "lr_scale"] == 1.0 and curve.loc[3000, "lr_scale"] == 0.0
    late = curve["val_bpb"].dropna().loc[1900:]
    assert np.abs(late - true_bpb(late.index.to_numpy(), 3000, 1200)).max() < 0.003
    for wrong in ("", "4500", "9999"):
        with pytest.raises(AnalysisError, match="runs are meant"):
            study.curve(wrong)


def test_predictions_fits_tables_and_figures(folder: Path) -> None:
    study = load_study(folder)
    prediction = study.predict(steps=6000, warmdown=2400, metric="val_bpb")
    assert prediction.value == pytest.approx(float(true_bpb(np.array(6000), 6000, 2400)), abs=0.02)
    assert study.fits["final_metric"] == study.metric == "ttt_bpb"
    assert len(study.tables["runs"]) == 3
    assert study.answer.headline and dict(study.answer.facts)["Best run"].startswith(study.best["run_id"])
    assert "scaling" in study.figures
    figure = study.figure("scaling")
    assert isinstance(figure, Figure) and len(figure.axes[0].lines) > 0
    assert "value" in study.figure_data("scaling")
    with pytest.raises(AnalysisError, match="no figure 'scalign'; there are"):
        study.figure("scalign")


def test_anyones_csv(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"run_id": ["a", "b"], "steps": [10, 20], "warmdown_steps": [5, 10], "val_bpb": [2.0, 1.9]}
    )
    frame.to_csv(tmp_path / "runs.csv", index=False)
    study = load_study(tmp_path / "runs.csv")
    assert study.best["run_id"] == "b"
    with pytest.raises(AnalysisError, match="has no curve"):
        study.curve("a")


def test_an_object_store(
    tmp_path: Path, s3: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Read where it lies; the report of a launch into it is written back."""
    store = s3("store")
    url = f"{store}/small"
    upload(write_sweep(tmp_path / "small", steps=(1000,), ratios=(0.4,)), url)
    assert len(load_study(url).curve("1000")) == 11
    launched = SimpleNamespace(sweep="small", executed=3)
    asked = Namespace(output=f"{store}?scheme=http", write_report=launch.write_report)
    page = report(asked, launched)  # type: ignore[arg-type]
    assert page == f"{url}/report/report.html"
    assert "verdict: " in capsys.readouterr().err
    written = Store(store).files.read("small/report/report.html")
    assert written and b"</html>" in written
    assert main([url.rpartition("/")[0]]) == 2
    assert "has no runs.parquet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "heavy"), [("analysis", "pandas numpy matplotlib"), ("gepa_core", "torch numpy pydantic")]
)
def test_importing_a_package_loads_nothing_heavy(package: str, heavy: str) -> None:
    code = f"import sys, {package}; dir({package}); print(*{{m.partition('.')[0] for m in sys.modules}})"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not set(heavy.split()) & set(loaded.stdout.split())
