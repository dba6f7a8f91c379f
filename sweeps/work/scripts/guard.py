"""Stands between a worker and a training script, as a process of its own: nothing of the script outlives it.

Started by path, with nothing but the standard library. Its standard input is first one line of JSON (argv,
cwd, env, grace, status) and then a life line: a byte asks for the script's end, its closing means that the
worker is gone. Either way the script's processes get SIGTERM, and SIGKILL after `grace` seconds; so do
processes that it leaves behind, also those that moved to a session of their own. What happens is told as JSON
lines to the file descriptor `status`: {"pid": n} or {"refused": "why"}, then {"code": n, "left": m}, where m
processes were left behind.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import time

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_LEFT_SECONDS = 3.0  # for processes that the script left behind to end by themselves, once asked to
_POLL_SECONDS = 0.05


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    spec = json.loads(_line())
    with os.fdopen(spec["status"], "w", buffering=1) as status:

        def tell(**facts: object) -> None:
            with contextlib.suppress(OSError):  # nobody listens any more
                status.write(json.dumps(facts) + "\n")

        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        try:
            script = subprocess.Popen(
                spec["argv"],
                cwd=spec["cwd"],
                env=spec["env"],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=_as_child,
            )
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            tell(refused=str(error))
            return
        tell(pid=script.pid)
        code = _watch(script.pid, spec["grace"])
        left = len(_descendants())
        _end_all(script.pid, _LEFT_SECONDS)
        tell(code=code, left=left)


def _line() -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(0, 1)
        if not part:
            raise SystemExit(1)
        line += part
    return line


def _as_child() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):  # Linux only: elsewhere less is caught
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _watch(script: int, grace: float) -> int:
    """Until the script ends, by itself or because it was asked to; its exit code, negative for a signal."""
    asked: float | None = None
    while True:
        if (code := _reaped(script)) is not None:
            return code
        if asked is None:
            if select.select([0], [], [], _POLL_SECONDS)[0]:
                asked = time.monotonic()
                _signal_all(script, signal.SIGTERM)
        else:
            time.sleep(_POLL_SECONDS)
            if time.monotonic() - asked > grace:
                _signal_all(script, signal.SIGKILL)


def _reaped(script: int) -> int | None:
    """Collects ended children; the script's exit code, if it is among them."""
    code = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            if pid == script:
                code = os.waitstatus_to_exitcode(status)
    return code


def _end_all(script: int, grace: float) -> None:
    """Ends what the script left behind."""
    begun = time.monotonic()
    number = signal.SIGTERM
    while _descendants():
        _signal_all(script, number)
        time.sleep(_POLL_SECONDS)
        _reaped(script)
        if time.monotonic() - begun > grace:
            number = signal.SIGKILL
        if time.monotonic() - begun > grace + 5.0:  # stuck in the kernel
            return


def _signal_all(script: int, number: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(script, number)
    for pid in _descendants():
        with contextlib.suppress(OSError):
            os.kill(pid, number)


def _descendants() -> list[int]:
    """Processes below this one; orphans become its children."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():  # noqa: PTH112, PTH208
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
                    fields = file.read().rpartition(")")[2].split()
                if fields[0] != "Z":
                    parents[int(name)] = int(fields[1])
    found: list[int] = []
    waiting = [os.getpid()]
    while waiting:
        above = waiting.pop()
        below = [pid for pid, parent in parents.items() if parent == above]
        found += below
        waiting += below
    return found


if __name__ == "__main__":
    main()
