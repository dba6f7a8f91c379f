"""What a script's end says of it: pure functions of its exit code, its last lines and its curve."""

import re
import signal
from collections.abc import Sequence

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
_RANK = re.compile(r"^\s*(?:\[(?:rank|default)?\d+\]:?|\d+:)\s*")
_LAUNCHER = re.compile(
    r"torch[./]distributed[./]elastic\S*.*(?:closing signal|failed \(exitcode)"  # torchrun
    r"|^subprocess\.CalledProcessError:|^\s*Primary job\s+terminated|^mpi(?:run|exec) (?:noticed|detected)"
    r"|^(?:srun|slurmstepd)\S*: error:"
)
"""Where a launcher begins to speak of the processes that it started: what they said stands before."""
_CHILD_CODE = re.compile(
    r"failed \(exitcode: (-?\d+)\)|returned non-zero exit status (\d+)|died with <Signals\.(\w+)"
)
_EXCEPTION = re.compile(
    r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Exit)\b(?!.*\bin <module>)"
)
_SECONDARY = re.compile(
    r"ChildFailedError|DistBackendError|ProcessRaisedException|BrokenPipeError|Connection (?:closed|reset)"
    r"|RendezvousConnectionError|SignalException"
)
"""Exceptions of processes whose peer is gone."""
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
    lines, child = own_lines(ended.tail)
    code = ended.code if child is None else child
    text = "\n".join(ended.tail)
    number = -code if code < 0 else code - 128 if 128 < code < 160 else 0
    if _MEMORY.search(text):
        return Observed.OUT_OF_MEMORY, f"out of memory: {last}"
    if number:
        name = f"SIG{_SIGNALS[number]}" if number in _SIGNALS else f"signal {number}"
        hint = "; short of memory, the system does that" if number == 9 else ""
        kind = Observed.LOST if number in (1, 2, 9, 15) else Observed.CRASHED
        return kind, f"the script was ended by {name}{hint}; {last}"
    useless = any(_USELESS_TO_REPEAT.search(_RANK.sub("", line.strip())) for line in lines[-5:])
    if code in (126, 127) or useless:
        return Observed.BAD_INPUT, f"exit code {code}: {last}"
    return Observed.CRASHED, f"exit code {code}: {last}"


def last_line(ended: Ended) -> str:
    """The line that says most of why it ended: its exception, or the last that has a word in it."""
    lines = [_RANK.sub("", line).strip() for line in own_lines(ended.tail)[0]]
    spoken = [line for line in lines if re.search(r"\w{2}", line)]
    if not spoken:
        return f"its last line: {ended.tail[-1].strip()[:300]}" if ended.tail else "it printed nothing"
    if _EXCEPTION.match(spoken[-1]):  # of several processes, the one that was not the victim of another
        raised = [line for line in spoken if _EXCEPTION.match(line) and not _SECONDARY.search(line)]
        return f"its last line: {(raised or spoken)[-1][:300]}"
    return f"its last line: {spoken[-1][:300]}"


def own_lines(tail: Sequence[str]) -> tuple[list[str], int | None]:
    """Its last lines without a launcher's words about them, and the exit code that the launcher tells."""
    lines = list(tail)
    at = next((i for i, line in enumerate(lines) if _LAUNCHER.search(line)), None)
    if at is None:
        return lines, None
    told = next((match for line in lines[at:] if (match := _CHILD_CODE.search(line))), None)
    if lines[at].startswith("subprocess."):  # the end of a traceback
        starts = [i for i in range(at) if lines[i].startswith("Traceback (most recent")]
        at = starts[-1] if starts else at
    if told is None:
        return lines[:at], None
    if told[3]:
        return lines[:at], -int(signal.Signals[told[3]])
    return lines[:at], int(told[1] or told[2])
