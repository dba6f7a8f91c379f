"""What a script's end says of it: pure functions of its exit code, its last lines and its curve."""

import re

from sweeps.work.policy import Observed
from sweeps.work.scripts.log import Curve
from sweeps.work.scripts.process import Ended

_MEMORY = re.compile(
    r"OutOfMemoryError|CUDA out of memory|CUDA error: out of memory|MemoryError|Cannot allocate memory"
    r"|std::bad_alloc|oom-kill"
)
_USELESS_TO_REPEAT = re.compile(
    r"^(?:ModuleNotFoundError|ImportError|SyntaxError|IndentationError|NameError|FileNotFoundError|KeyError"
    r"|AttributeError|TypeError)\b|error: (?:unrecognized|the following arguments|argument |invalid )"
    r"|can't open file|command not found|No such file or directory"
)
_SIGNALS = {1: "HUP", 2: "INT", 4: "ILL", 6: "ABRT", 7: "BUS", 8: "FPE", 9: "KILL", 11: "SEGV", 15: "TERM"}


def verdict(
    ended: Ended, curve: Curve, stop: int, missing: list[str], is_trunk: bool
) -> tuple[Observed, str | None] | None:
    """Status and reason of an attempt that came to nothing; None where it is complete."""
    if ended.why is not None:
        return ended.why, ended.error
    if curve.diverged or (curve.ends_broken and not is_trunk):
        return Observed.DIVERGED, f"not finite: {(curve.diverged or 'its last losses')[:200]}"
    last = last_line(ended)
    if ended.code == 0:
        if not missing:
            return None
        return Observed.BAD_INPUT, f"it ended with exit code 0 and did not leave {', '.join(missing)}; {last}"
    measured = bool(curve.finals) and curve.last_step >= stop
    if not missing and (is_trunk or measured):
        return None  # complete: what went wrong did so while it ended
    return failure(ended, last)


def failure(ended: Ended, last: str) -> tuple[Observed, str]:
    """What an exit code and the last lines say."""
    text = "\n".join(ended.tail)
    number = -ended.code if ended.code < 0 else ended.code - 128 if 128 < ended.code < 160 else 0
    if _MEMORY.search(text):
        return Observed.OUT_OF_MEMORY, f"out of memory: {last}"
    if number:
        name = f"SIG{_SIGNALS[number]}" if number in _SIGNALS else f"signal {number}"
        hint = "; short of memory, the system does that" if number == 9 else ""
        kind = Observed.LOST if number in (1, 2, 9, 15) else Observed.CRASHED
        return kind, f"the script was ended by {name}{hint}; {last}"
    if ended.code in (126, 127) or any(_USELESS_TO_REPEAT.search(line.strip()) for line in ended.tail[-5:]):
        return Observed.BAD_INPUT, f"exit code {ended.code}: {last}"
    return Observed.CRASHED, f"exit code {ended.code}: {last}"


def last_line(ended: Ended) -> str:
    return f"its last line: {ended.tail[-1].strip()[:300]}" if ended.tail else "it printed nothing"
