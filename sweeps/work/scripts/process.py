"""A script as one process group under a guard: started, listened to, and ended as a whole."""

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gepa_core.errors import UserError
from sweeps.work.policy import Observed
from sweeps.work.scripts.log import Curve, KeptLog, Lines

_GUARD = Path(__file__).with_name("guard.py")
_POLL_SECONDS = 0.2
_DRAIN_SECONDS = 2.0
_TAIL_LINES = 400  # a launcher of many processes says a lot after the script's own last words
INHERITED = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TERM", "TMPDIR", "HOSTNAME",
    "LD_LIBRARY_PATH", "LIBRARY_PATH", "CPATH", "CUDA_HOME", "CUDA_PATH", "CUDA_VISIBLE_DEVICES",
    "VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV", "HF_HOME", "HF_HUB_CACHE", "TORCH_HOME",
    "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE",
)  # fmt: skip
"""What a script's environment takes over from its worker's, with LC_*, XDG_*, NCCL_* and NVIDIA_*; nothing
else, so that neither a shell's leftovers nor Ray's own variables change what a run does."""
_INHERITED_PREFIXES = ("LC_", "XDG_", "NCCL_", "NVIDIA_")


@dataclass(frozen=True)
class Ended:
    """How a script's process group came to its end."""

    code: int
    """Exit code; negative for a signal."""
    why: Observed | None
    """Why it was ended from here; None where it ended by itself."""
    error: str | None
    """What is to be said of that."""
    tail: tuple[str, ...]
    """The last lines it printed."""
    left: int
    """Processes that it left behind, and that were ended."""
    seconds: float


def base_environment() -> dict[str, str]:
    """What a script inherits, with the worker's own Python first on its path."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in INHERITED or name.startswith(_INHERITED_PREFIXES)
    }
    here = str(Path(sys.executable).parent)
    path = [here, *kept.get("PATH", os.defpath).split(os.pathsep)]
    return kept | {"PATH": os.pathsep.join(dict.fromkeys(path)), "PYTHONUNBUFFERED": "1"}


def run_group(
    argv: Sequence[str],
    cwd: Path,
    env: Mapping[str, str],
    *,
    log: KeptLog,
    curve: Curve,
    silence_seconds: float,
    grace_seconds: float,
    should_stop: Callable[[], Observed | None],
    log_pattern: str | None = None,
) -> Ended:
    """Starts the script and stays with it until all of it is gone.

    Ended from here: where `should_stop` says so, where it has diverged, where it prints nothing for
    `silence_seconds`. `log_pattern`: files below `cwd` whose lines count as printed. Raises UserError where
    the system cannot start it.
    """
    group = _Group(argv, cwd, env, grace_seconds)
    listening = _Listening(group, log, curve, _Followed(cwd, log_pattern) if log_pattern else None)
    begun = time.monotonic()
    why, error = None, None
    try:
        while group.code is None:
            listening.hear(_POLL_SECONDS)
            if why is None:
                why, error = _reason_to_end(should_stop, curve, listening.silent_seconds, silence_seconds)
                if why is not None:
                    group.end()
        listening.drain()
    finally:
        group.close()
        log.flush()
    seconds = time.monotonic() - begun
    return Ended(group.code, why, error, tuple(listening.tail), group.left, seconds)


def _reason_to_end(
    should_stop: Callable[[], Observed | None], curve: Curve, silent: float, limit: float
) -> tuple[Observed | None, str | None]:
    if (wish := should_stop()) is not None:
        return wish, None
    if curve.diverged is not None:
        return Observed.DIVERGED, f"not finite: {curve.diverged[:200]}"
    if silent > limit:
        return Observed.HUNG, f"it printed nothing for {limit / 60:g} minutes, and was ended"
    return None, None


class _Group:
    """The guard and the script below it."""

    def __init__(self, argv: Sequence[str], cwd: Path, env: Mapping[str, str], grace: float) -> None:
        self.output, write = os.pipe()
        self._status, status = os.pipe()
        os.set_blocking(self.output, False)
        os.set_blocking(self._status, False)
        self._said = b""
        self.code: int | None = None
        self.left = 0
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_GUARD)],
            stdin=subprocess.PIPE,
            stdout=write,
            stderr=write,
            pass_fds=(status,),
            start_new_session=True,
        )
        os.close(write)
        os.close(status)
        spec = {"argv": list(argv), "cwd": str(cwd), "env": dict(env), "grace": grace, "status": status}
        assert self._guard.stdin is not None
        self._life_line = self._guard.stdin
        self._life_line.write(json.dumps(spec).encode() + b"\n")
        self._life_line.flush()

    def listen(self) -> None:
        """Takes in what the guard says. Raises UserError where the script could not be started."""
        with contextlib.suppress(BlockingIOError):
            self._said += os.read(self._status, 65_536)
        *lines, self._said = self._said.split(b"\n")
        for line in lines:
            facts = json.loads(line)
            if "refused" in facts:
                raise UserError(f"the command cannot be started: {facts['refused']}")
            if "code" in facts:
                self.code, self.left = facts["code"], facts["left"]
        if self.code is None and self._guard.poll() is not None:
            with contextlib.suppress(BlockingIOError):
                if more := os.read(self._status, 65_536):
                    self._said += more
                    return
            self.code = -9  # somebody killed the guard; the script died with it

    def end(self) -> None:
        """Asks for the script's end; `code` follows."""
        with contextlib.suppress(OSError):
            self._life_line.write(b"end\n")
            self._life_line.flush()

    def close(self) -> None:
        """The end of whatever is still there."""
        with contextlib.suppress(OSError):
            self._life_line.close()
        try:
            self._guard.wait(timeout=60)
        except subprocess.TimeoutExpired:  # stuck in the kernel
            self._guard.kill()
        for descriptor in (self.output, self._status):
            os.close(descriptor)


class _Followed:
    """Files with the log, as they grow."""

    def __init__(self, folder: Path, pattern: str) -> None:
        self._folder, self._pattern = folder, pattern
        self._read: dict[Path, int] = {}
        self._lines: dict[Path, Lines] = {}

    def more(self) -> list[str]:
        found: list[str] = []
        for path in sorted(self._folder.glob(self._pattern)):
            if path.is_file():
                with path.open("rb") as file:
                    file.seek(self._read.get(path, 0))
                    data = file.read()
                self._read[path] = self._read.get(path, 0) + len(data)
                found += self._lines.setdefault(path, Lines()).feed(data)
        return found

    def end(self) -> list[str]:
        return [*self.more(), *(line for lines in self._lines.values() for line in lines.end())]


class _Listening:
    """What a group prints: to the log, to the curve, and its last lines at hand."""

    def __init__(self, group: _Group, log: KeptLog, curve: Curve, followed: _Followed | None) -> None:
        self._group, self._log, self._curve, self._followed = group, log, curve, followed
        self._lines = Lines()
        self._heard = time.monotonic()
        self.tail: list[str] = []

    @property
    def silent_seconds(self) -> float:
        return time.monotonic() - self._heard

    def hear(self, timeout: float) -> bool:
        """Waits for output or news of the group; whether there was output."""
        ready, _, _ = select.select([self._group.output, self._group._status], [], [], timeout)
        data = b""
        if self._group.output in ready:
            with contextlib.suppress(BlockingIOError):
                data = os.read(self._group.output, 1 << 20)
            if not data:
                time.sleep(0.01)  # closed by the script, which is still at work
        more = self._followed.more() if self._followed else []
        if data or more:
            self._heard = time.monotonic()
            self._take([*self._lines.feed(data), *more])
        self._group.listen()
        return bool(data)

    def drain(self) -> None:
        """What is still in the pipe once the script has ended."""
        until = time.monotonic() + _DRAIN_SECONDS
        while time.monotonic() < until and self.hear(0.05):
            pass
        self._take([*self._lines.end(), *(self._followed.end() if self._followed else [])])

    def _take(self, lines: list[str]) -> None:
        for line in lines:
            seen = len(self._curve.reports), len(self._curve.finals)
            self._curve.read(line)
            self._log.write(line, kept=seen != (len(self._curve.reports), len(self._curve.finals)))
        self.tail = [*self.tail, *filter(str.strip, lines)][-_TAIL_LINES:]
        self._log.flush()
