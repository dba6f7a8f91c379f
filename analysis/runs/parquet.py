"""Parquet files as frames.

Read by Arrow alone and in this thread. Given a file that Python has opened, as pandas does by default, or
threads of its own, Arrow may let go of Python's objects late, and abort a process that is ending
(apache/arrow#34314, #50482).
"""

from pathlib import Path
from typing import Any

import pandas as pd
from pyarrow.fs import LocalFileSystem

from analysis.runs.errors import AnalysisError


def read_parquet(file: Path) -> pd.DataFrame:
    """Raises AnalysisError where the file is not readable."""
    alone: dict[str, Any] = {"use_threads": False, "pre_buffer": False, "partitioning": None}
    try:
        return pd.read_parquet(str(file.resolve()), filesystem=LocalFileSystem(), **alone)
    except Exception as error:  # pyarrow raises many types for a damaged file
        told = (str(error).splitlines() or [type(error).__name__])[0]
        raise AnalysisError(f"{file}: not readable ({told}); resuming the sweep writes it anew") from None
