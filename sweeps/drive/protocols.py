"""What a driver needs: a Cluster that executes nodes and tells how they ended, a Recorder that keeps it."""

from dataclasses import dataclass
from typing import Any, Protocol

from gepa_core.errors import UserError
from sweeps.store.store import Outcome


@dataclass(frozen=True)
class LeaseReady:
    """The workers of a lease are up."""

    lease: str


@dataclass(frozen=True)
class LeaseGone:
    """A lease without work could not be had or was lost."""

    lease: str
    error: str


@dataclass(frozen=True)
class Ended:
    """A node ended; `outcome` is None where its worker was lost, and the lease with it."""

    lease: str
    outcome: Outcome | None
    error: str = ""


Event = LeaseReady | LeaseGone | Ended


class Cluster(Protocol):
    """Where work is executed."""

    def room(self) -> int:
        """Leases that may be asked for now."""

    def open(self) -> str:
        """Ask for a lease; LeaseReady or LeaseGone follows."""

    def start(self, lease: str, job: Any) -> None:
        """Execute on a ready lease; Ended follows."""

    def stop(self, lease: str) -> None:
        """Have what runs there write a checkpoint and end; Ended follows."""

    def close(self, lease: str) -> None:
        """End a lease and whatever runs on it at once; no event follows."""

    def poll(self, timeout: float) -> list[Event]:
        """Events so far, or the first within `timeout` seconds."""


class Recorder(Protocol):
    """What is kept of a sweep."""

    def job(self, node: str, micro_batch_seqs: int | None) -> Any:
        """A new attempt at a node, for Cluster.start."""

    def commit(self, outcome: Outcome) -> None:
        """Make a finished attempt the result."""

    def progress_step(self, node: str) -> int | None:
        """Steps done at the furthest checkpoint of an unfinished segment."""

    def give_up(self, node: str, status: str, error: str) -> None:
        """The runs through this node are `failed` or `diverged`."""

    def set_aside(self, node: str, told: str) -> str | None:
        """Look whether what this node starts from still is what was committed, and if not, count it as not
        done; what is wrong with it. `told`: what the worker found."""

    def note(self, what: str, node: str, **facts: Any) -> None:
        """Something worth showing: started, finished, retried, ..."""

    def tick(self) -> None:
        """Called a few times a second."""

    def asked_to_stop(self) -> list[str]:
        """Runs that a user wants ended, each once; they are given up already."""


class ClusterError(UserError):
    """Workers cannot be had."""
