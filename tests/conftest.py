"""What every test relies on: one thread a process, a home of its own, and the reference figures."""

import atexit
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from gepa_core.config import DataPaths

# Before anything imports torch or numpy, and inherited by every subprocess: tests run beside one another.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_variable] = "1"

# A busy machine is no fault of the code.
settings.register_profile("no clock", deadline=None)
settings.load_profile("no clock")

_status = pytest.StashKey[int]()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[_status] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Ends without tearing the interpreter down. Ray, torch and Arrow have left threads in it, and one that
    asks for the interpreter meanwhile aborts the process (apache/arrow#34314), all results being in."""
    if (status := config.stash.get(_status, None)) is not None:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)


SHARED = Path(__file__).parents[1].parent / "shared"


@pytest.fixture(scope="session", autouse=True)
def rays_root() -> Iterator[Path]:
    """An empty default place of Ray: what Ray left on this machine neither helps a test nor is touched."""
    path = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # short: Ray's sockets may lie in it
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(path))
        yield path
    shutil.rmtree(path, ignore_errors=True)


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


@pytest.fixture(scope="session")
def s3_endpoint(home: Path) -> Iterator[str]:
    """moto's S3 server with a bucket, found by the environment as a real one would be."""
    import logging

    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL": endpoint,
        }.items():
            patch.setenv(name, value)
        boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="bucket")
        yield endpoint
    server.stop()


@pytest.fixture
def s3(s3_endpoint: str) -> Callable[[str], str]:
    """Name -> URL of an empty prefix in an S3 bucket."""
    return lambda name: f"s3://bucket/{uuid.uuid4().hex[:8]}-{name}"


@pytest.fixture(params=["disk", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty store."""
    if request.param == "disk":
        return str(tmp_path / "store")
    s3: Callable[[str], str] = request.getfixturevalue("s3")
    return s3(tmp_path.name)


@pytest.fixture(scope="session")
def paths(tmp_path_factory: pytest.TempPathFactory) -> "DataPaths":
    """A small corpus for the runs of tests/training.py."""
    from tests.training import make_data

    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def whole(paths: "DataPaths", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state at the end of such a run that nothing interrupted."""
    from tests.training import train

    return train(paths, tmp_path_factory.mktemp("whole"))[0].path


@pytest.fixture(scope="session")
def first_step(paths: "DataPaths", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its state after one step."""
    from tests.training import train

    return train(paths, tmp_path_factory.mktemp("first"), until=1, final_step=False)[0].path
