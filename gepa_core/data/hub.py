"""Files of one commit of a Hugging Face dataset repository, every request retried."""

import errno
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars
from huggingface_hub.utils import logging as hub_logging

from gepa_core.data.encode import Say
from gepa_core.errors import DataError

ATTEMPTS = 6
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR}
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_SHA256 = re.compile(r"[0-9a-f]{64}")

Result = TypeVar("Result")


@dataclass(frozen=True)
class Hub:
    """One commit of a dataset repository, and the folder its files are staged in."""

    repo: str
    commit: str
    staging: Path
    endpoint: str | None
    pause_seconds: float
    say: Say
    waits: dict[str, str] = field(default_factory=dict)
    """What is being waited out, by file."""

    def download(self, name: str, *, again: bool = False) -> Path:
        """A file of the repository in the staging folder, whole. Raises DataError."""
        fetched = self._retried(
            name,
            lambda: hf_hub_download(
                self.repo,
                name,
                repo_type="dataset",
                revision=self.commit,
                local_dir=self.staging,
                endpoint=self.endpoint,
                force_download=again,
            ),
        )
        return Path(fetched)

    def sha256(self, name: str) -> str | None:
        """The SHA-256 the hub announces (of large files, as their ETag), if it does."""
        etag = self._metadata(name).etag or ""
        return etag if _SHA256.fullmatch(etag) else None

    def commit_of(self, name: str) -> str:
        """The commit that `commit`, perhaps a branch, stands for, as a file there tells. Raises DataError."""
        return str(self._metadata(name).commit_hash)

    def _metadata(self, name: str) -> Any:
        url = hf_hub_url(self.repo, name, repo_type="dataset", revision=self.commit, endpoint=self.endpoint)
        return self._retried(name, lambda: get_hf_file_metadata(url))

    def _retried(self, name: str, request: Callable[[], Result]) -> Result:
        def on_wait(text: str) -> None:
            self.waits[name] = text
            self.say(f"{name}: {text}")

        try:
            return retried(f"{self.repo}/{name}", request, self.pause_seconds, on_wait)
        finally:
            self.waits.pop(name, None)


def quiet() -> None:
    """Silences the library's own progress bars and warnings: ours say it."""
    disable_progress_bars()
    hub_logging.set_verbosity_error()


def retried(
    what: str, request: Callable[[], Result], pause_seconds: float, on_wait: Callable[[str], None]
) -> Result:
    """request(), again after a growing pause when it fails in a way that may pass (network, 429, 5xx).

    `on_wait` is told before each pause why, and for how long. Raises DataError when it does not pass in
    ATTEMPTS attempts, or at once when it cannot.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return request()
        except OfflineModeIsEnabled as error:
            raise DataError(
                f"{what}: the hub is switched off by HF_HUB_OFFLINE; unset it to fetch"
            ) from error
        except Exception as error:
            # The library lets its HTTP client's exceptions through, and has changed that client twice.
            if not _may_pass(error):
                explained = _explained(what, error)
                if explained is None:
                    raise
                raise explained from error
            if attempt == ATTEMPTS:
                raise DataError(
                    f"{what}: given up after {ATTEMPTS} attempts ({_one_line(error)}); "
                    "what is complete is kept, the same command goes on from there"
                ) from error
            pause = max(min(pause_seconds * 2 ** (attempt - 1), 30.0), _asked_seconds(error))
            on_wait(f"{_one_line(error)}; attempt {attempt + 1} of {ATTEMPTS} in {pause:.0f} s")
            time.sleep(pause)
    raise AssertionError("unreachable")


def _may_pass(error: Exception) -> bool:
    if isinstance(error, LocalEntryNotFoundError):  # its name for "no connection and not cached"
        return True
    if isinstance(error, HfHubHTTPError):
        response = getattr(error, "response", None)
        return response is None or response.status_code in _PASSING
    if isinstance(error, OSError) and error.errno in _DISK:
        return False
    clients = [sys.modules[name].HTTPError for name in ("httpx", "httpx2") if name in sys.modules]
    return isinstance(error, (OSError, *clients))


def _asked_seconds(error: Exception) -> float:
    """What a refusal's Retry-After asks for, within five minutes."""
    asked = getattr(getattr(error, "response", None), "headers", {}).get("Retry-After", "")
    return min(float(asked), 300.0) if asked.isdigit() else 0.0


def _explained(what: str, error: Exception) -> DataError | None:
    if isinstance(error, EntryNotFoundError):
        return DataError(f"{what}: no such file in the repository")
    if isinstance(error, RepositoryNotFoundError):
        return DataError(f"{what}: no such dataset repository, or it needs a token (HF_TOKEN)")
    if isinstance(error, RevisionNotFoundError):
        return DataError(f"{what}: no such revision")
    if isinstance(error, HfHubHTTPError):
        return DataError(f"{what}: refused ({_text(error)})")
    return None


def _one_line(error: Exception) -> str:
    response = getattr(error, "response", None)
    if response is not None:  # its text has the URL, and advice for programmers
        return f"HTTP {response.status_code}"
    return _text(error)


def _text(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
