"""`--notify COMMAND`: a user's shell command, run when a sweep ends and when one of its runs fails."""

import os
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sweeps.drive.progress import View

_SECONDS = 60.0
"""A command that takes longer is left to itself."""


@dataclass(frozen=True)
class Notifier:
    """Tells `command` what happened by variables of its environment: GEPA_EVENT and others."""

    command: str
    say: Callable[[str], None]

    def __call__(self, event: str, *, wait: bool = False, **facts: Any) -> None:
        """event: `run_failed` or `finished`. Facts become GEPA_<NAME>. Never raises."""
        told = {f"GEPA_{name.upper()}": str(value) for name, value in facts.items() if value is not None}
        environment = {**os.environ, "GEPA_EVENT": event, **told}
        try:
            process = subprocess.Popen(
                self.command, shell=True, env=environment, stdin=subprocess.DEVNULL, start_new_session=True
            )
            if not wait:  # its end is waited for beside, so that it leaves no zombie
                threading.Thread(target=process.wait, daemon=True).start()
            elif code := process.wait(_SECONDS):
                self.say(f"--notify: the command ended with exit code {code}")
        except subprocess.TimeoutExpired:
            self.say(f"--notify: the command still runs after {_SECONDS:.0f} s; it is left to itself")
        except OSError as error:
            self.say(f"--notify: cannot be run ({error.strerror})")


@dataclass(frozen=True)
class NotifyingView:
    """A view that also notifies of runs that fail."""

    view: View
    notify: Notifier
    sweep: str

    def show(self, what: str, node: str, **facts: Any) -> None:
        self.view.show(what, node, **facts)
        if what in ("fail", "diverge"):
            self.notify("run_failed", sweep=self.sweep, node=node, error=facts.get("error"))

    def refresh(self) -> None:
        self.view.refresh()

    def close(self) -> None:
        self.view.close()
