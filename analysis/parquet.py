"""Parquet files as frames.

Read by Arrow alone and in this thread. Given a file that Python has opened, as pandas does by default, or
threads of its own, Arrow may let go of Python's objects late, and abort a process that is ending
(apache/arrow#34314, #50482).
"""

from pathlib import Path
from typing import Any

import pandas as pd
from pyarrow.fs import LocalFileSystem


def read_parquet(file: Path) -> pd.DataFrame:
    """Raises what pandas raises where the file is damaged: many types."""
    alone: dict[str, Any] = {"use_threads": False, "pre_buffer": False, "partitioning": None}
    return pd.read_parquet(str(file.resolve()), filesystem=LocalFileSystem(), **alone)
