"""How long storage is waited for, what the one who waits is told, and what is said in the end."""

import contextlib
import errno
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from gepa_core.errors import UserError
from sweeps.store.redact import redacted

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 20.0
_SILENCE = 5.0
"""Seconds of waiting before a line is said about it."""
FIRST_PATIENCE = 45.0
"""For a store that has never answered: it is more likely misspelt than away."""
_FULL = {errno.ENOSPC, errno.EDQUOT}
_FAULTS = {*_FULL, errno.EROFS, errno.EIO, errno.ESTALE}
# Of a disk: a network's file system that is away. Waiting does not mend anything else.
_PASSING = {
    errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ETIMEDOUT, errno.EREMOTEIO,
    errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ENOTCONN, errno.ECONNRESET,
    errno.ECONNREFUSED, errno.ECONNABORTED, errno.EPIPE, errno.EMFILE, errno.ENFILE, errno.ENOBUFS,
}  # fmt: skip
_PERMANENT_TEXT = (
    "ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "Forbidden",
    "When resolving region for bucket", "NoSuchBucket", "INVALID_SIGNATURE",
)  # fmt: skip
T = TypeVar("T")


class StorageError(UserError):
    """The store cannot be read or written."""


def patiently(attempt: Callable[[], T], what: str, patience: float, *, is_remote: bool) -> T:
    """attempt(), again after growing pauses while waiting may help, for up to `patience` seconds.

    `what`: verb and place, as in "read s3://b/x". Raises StorageError in the end.
    """
    started, pause = time.monotonic(), _FIRST_PAUSE
    with _said_after_a_while(f"cannot {what} yet", patience, is_remote=is_remote) as told:
        while True:
            try:
                return attempt()
            except OSError as error:
                permanent = _is_permanent(error, is_remote=is_remote)
                if permanent or time.monotonic() - started + pause > patience:
                    raise StorageError(_explain(error, what, permanent)) from error
                told(_first_line(error))
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


def _is_permanent(error: OSError, *, is_remote: bool) -> bool:
    if not is_remote or error.errno in _FULL:
        return error.errno not in _PASSING
    return isinstance(error, PermissionError) or any(text in str(error) for text in _PERMANENT_TEXT)


@contextlib.contextmanager
def _said_after_a_while(what: str, patience: float, *, is_remote: bool) -> Iterator[Callable[[str], None]]:
    """Says one line on standard error once waiting takes _SILENCE seconds, even within one blocked call.

    Yields a function to be told why. On a disk only what is waited for between calls is said.
    """
    started, lock = time.monotonic(), threading.Lock()
    why, said = "no answer", False

    def say() -> None:
        nonlocal said
        with lock:
            if said:
                return
            said = True
        left = max(0.0, patience - (time.monotonic() - started))
        print(f"{what}: {why}; waiting for up to {left:.0f} s more", file=sys.stderr, flush=True)

    def told(reason: str) -> None:
        nonlocal why
        why = reason
        if time.monotonic() - started > _SILENCE:
            say()

    timer = threading.Timer(_SILENCE, say) if is_remote else None
    if timer:
        timer.daemon = True
        timer.start()
    try:
        yield told
    finally:
        if timer:
            timer.cancel()


def is_storage_fault(error: BaseException) -> bool:
    """Whether an exception says that a disk is full or failing, and not that a file is missing.

    Libraries in Rust (safetensors) have exceptions of their own, with the number of the error in the text.
    """
    cause = error.__cause__
    return _number_of(error) in _FAULTS or (cause is not None and is_storage_fault(cause))


def is_full(error: BaseException) -> bool:
    """Whether an exception says that a disk, or one's share of it, is full."""
    return _number_of(error) in _FULL or (error.__cause__ is not None and is_full(error.__cause__))


def _number_of(error: BaseException) -> int | None:
    told = re.search(r"\(os error (\d+)\)", str(error))
    return error.errno if isinstance(error, OSError) else int(told[1]) if told else None


def _explain(error: OSError, what: str, permanent: bool) -> str:
    if error.errno in _FULL:
        return f"disk full: cannot {what}; free some space, then give the same command again"
    hint = _HINTS.get(error.errno or 0, "check the path and your rights")
    if not permanent:
        hint = "the store stayed away; try again when it is back"
    return f"cannot {what}: {_first_line(error)}; {hint}"


_HINTS = {
    errno.EEXIST: "a file stands where a folder is needed; move it away, or give another --output",
    errno.ENOTDIR: "a file stands where a folder is needed; move it away, or give another --output",
    errno.ENAMETOOLONG: "shorten it",
    errno.EROFS: "give another --output",
    errno.ENOENT: "no folder can be made there; give another --output",
}


def _first_line(error: OSError) -> str:
    text = error.strerror or (str(error).splitlines() or [type(error).__name__])[0]
    told = re.search(r"(curlCode: \d+, [^;]*)", str(error))
    return redacted(f"{text.split(' during ')[0]} ({told[1].strip()})" if told else text)[:300]
