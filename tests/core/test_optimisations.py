"""What benchmarks switch off, and what earlier versions recorded of it."""

from contextlib import ExitStack

import pytest

from benchmarks.without import OPTIMISATIONS, without
from gepa_core.config import ExecConfig


def test_every_switch_goes_on_and_off() -> None:
    with ExitStack() as off:
        for switch in OPTIMISATIONS.values():
            off.enter_context(switch())
    calls: list[str] = []
    for name in OPTIMISATIONS:
        without(name, lambda name=name: calls.append(name))()  # type: ignore[misc]
    assert calls == list(OPTIMISATIONS)


def test_records_of_earlier_versions_are_read_and_files_of_users_are_not() -> None:
    recorded = {"device": "cpu", "prefetch": True, "foreach_ema": False}
    assert ExecConfig.without_retired(recorded) == {"device": "cpu"}
    with pytest.raises(ValueError, match="prefetch"):
        ExecConfig.model_validate(recorded)
