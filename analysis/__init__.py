"""From a table of runs to an answer: laws, predictions, effects, report. Knows neither torch nor Ray.

from analysis import load_study

study = load_study("results/quickstart")
study.runs                                   # a DataFrame, one row a run
study.curve("600-240")                       # one run's whole curve
study.predict(steps=1200, warmdown=600)
study.figure("scaling")                      # a matplotlib Figure
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.face.study import LoadedStudy, load_study
    from analysis.forecast.predict import Prediction
    from analysis.runs.errors import AnalysisError

__all__ = ["AnalysisError", "LoadedStudy", "Prediction", "load_study"]

_HOMES = {
    "load_study": "analysis.face.study",
    "LoadedStudy": "analysis.face.study",
    "Prediction": "analysis.forecast.predict",
    "AnalysisError": "analysis.runs.errors",
}


def __getattr__(name: str) -> Any:
    """Pandas and matplotlib load with the first name that is used, not with the package."""
    if name not in _HOMES:
        raise AttributeError(f"module 'analysis' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
