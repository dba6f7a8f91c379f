"""What every test relies on: one thread a process, a home of its own, and the reference figures."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports torch or numpy, and inherited by every subprocess: tests run beside one another.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_variable] = "1"

SHARED = Path(__file__).parents[1].parent / "shared"


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home directory that is thrown away: no test reads or leaves anything in the user's."""
    path = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR", "HF_HOME"):
            patch.setenv(variable, str(path))
        yield path


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference figures and text; tests that need it are skipped where it is not."""
    if not (SHARED / "reference").is_dir():
        pytest.skip(f"reference figures are not at hand ({SHARED} is missing)")
    return SHARED
