"""What sets groups of runs apart, in words: the axes besides steps, warmdown, schedule and seed that vary."""

from __future__ import annotations

import re

from analysis.runs.table import Run, Table


def varying_axes(table: Table) -> list[str]:
    """Names of group axes with more than one value."""
    axes = sorted({axis for run in table.runs for axis, _ in run.group})
    return [axis for axis in axes if len({str(dict(run.group).get(axis)) for run in table.runs}) > 1]


def setting(run: Run, axes: list[str]) -> str:
    """'method=per_row, ...' of a run; '' where nothing varies."""
    values = dict(run.group)
    return ", ".join(f"{axis.split('.')[-1]}={values.get(axis)}" for axis in axes)


def by_setting(table: Table) -> dict[str, Table]:
    """Runs of each setting; one entry, '', where nothing varies."""
    axes = varying_axes(table)
    names = dict.fromkeys(setting(run, axes) for run in table.runs)
    return {name: table.where(lambda run, name=name: setting(run, axes) == name) for name in names}  # type: ignore[misc]


_DIGEST = re.compile(r"(?<![0-9a-z])(?:sha256:)?(?=[a-f]*[0-9])(?=[0-9]*[a-f])[0-9a-f]{10,64}(?![0-9a-z])")


def shortened(text: str, digits: int = 4) -> str:
    """The text with its fingerprints cut to their first digits."""
    return _DIGEST.sub(lambda found: found[0].removeprefix("sha256:")[:digits] + "…", text)
