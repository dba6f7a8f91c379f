"""What a user asks of a running driver, through the store: one small file a request."""

import getpass
import json
import platform
import time

from sweeps.store.store import Store


def ask_to_stop(store: Store, sweep: str, run_id: str) -> None:
    """Ask the driver of `sweep` to end a run."""
    record = {"by": f"{_user()}@{platform.node()}", "time": time.time()}
    store.files.put(f"{sweep}/stop/{run_id}.json", json.dumps(record).encode())


def asked_to_stop(store: Store, sweep: str) -> list[str]:
    """Runs that are asked to end."""
    names = [entry.name for entry in store.files.list(f"{sweep}/stop") if not entry.is_dir]
    return [name.removesuffix(".json") for name in names if name.endswith(".json")]


def answer_stop(store: Store, sweep: str, run_id: str) -> None:
    """The request was heard."""
    store.files.delete(f"{sweep}/stop/{run_id}.json")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "someone"
