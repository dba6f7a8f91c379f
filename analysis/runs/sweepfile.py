"""What a results folder says of itself in sweep.json. An analysis can do without any of it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from analysis.runs import strictjson
from analysis.runs.errors import AnalysisError


@dataclass(frozen=True)
class SweepFile:
    """The sweep's name, the command that made it, its machine, versions and commit, its price of a GPU-hour,
    and compressors on the same text."""

    name: str | None = None
    argv: tuple[str, ...] = ()
    commit: str | None = None
    machine: str | None = None
    versions: tuple[tuple[str, str], ...] = ()
    price_per_gpu_hour: float | None = None
    grid: tuple[str, ...] = ()  # names of its axes
    points: tuple[Mapping[str, object], ...] = ()  # single runs that the sweep file asks for
    compressor_bpb: tuple[tuple[str, float], ...] = ()  # (compressor, bits per byte of the validation text)

    @property
    def command(self) -> str | None:
        """What was typed."""
        return shlex.join(["python", *self.argv]) if self.argv else None


def read_sweep_file(folder: Path | None) -> SweepFile:
    """Empty where there is no readable sweep.json."""
    try:
        content = strictjson.read(folder / "sweep.json") if folder else {}
    except AnalysisError:
        content = {}
    if not isinstance(content, dict):
        return SweepFile()
    argv, document = content.get("argv"), _mapping(content.get("document"))
    points = document.get("points")
    price = _mapping(content.get("resources")).get("price_per_gpu_hour")
    versions = _mapping(content.get("versions"))
    return SweepFile(
        name=_text(content.get("name")),
        argv=tuple(map(str, argv)) if isinstance(argv, list) else (),
        commit=_text(content.get("commit")),
        machine=_machine(content),
        versions=tuple((name, value) for name, value in versions.items() if isinstance(value, str)),
        price_per_gpu_hour=float(price) if isinstance(price, int | float) and price > 0 else None,
        grid=tuple(_mapping(document.get("grid"))),
        points=tuple(p for p in points if isinstance(p, dict)) if isinstance(points, list) else (),
        compressor_bpb=_compressors(content),
    )


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _machine(content: Mapping[str, object]) -> str | None:
    """'AMD EPYC, x86_64; cpu': processor, architecture and the kind of device that ran."""
    hardware, how = _mapping(content.get("hardware")), _mapping(content.get("exec"))
    parts = [text for key in ("processor", "machine") if (text := _text(hardware.get(key)))]
    device = _text(how.get("device"))
    return "; ".join(part for part in (", ".join(parts), device) if part) or None


def _compressors(content: object) -> tuple[tuple[str, float], ...]:
    """8 x compressed / plain bytes, from the first object that holds the sizes of the validation text."""
    if isinstance(content, list):
        return next((found for item in content if (found := _compressors(item))), ())
    if not isinstance(content, dict):
        return ()
    text = content.get("text_bytes")
    if isinstance(text, int) and text > 0:
        sizes = (("zstd -22", content.get("zstd_22_bytes")), ("xz -9e", content.get("xz_9e_bytes")))
        found = tuple((name, 8 * size / text) for name, size in sizes if isinstance(size, int))
        if found:
            return found
    return _compressors(list(content.values()))
