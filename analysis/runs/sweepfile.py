"""What a results folder says of itself in sweep.json. An analysis can do without any of it."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SweepFile:
    """The sweep's name, the command that made it, its commit, and compressors on the same text."""

    name: str | None = None
    command: str | None = None
    commit: str | None = None
    compressor_bpb: tuple[tuple[str, float], ...] = ()  # (compressor, bits per byte of the validation text)


def read_sweep_file(folder: Path | None) -> SweepFile:
    """Empty where there is no readable sweep.json."""
    try:
        content = json.loads((folder / "sweep.json").read_text(encoding="utf-8")) if folder else {}
    except (OSError, ValueError):
        content = {}
    if not isinstance(content, dict):
        return SweepFile()
    argv = content.get("argv")
    command = shlex.join(["python", *map(str, argv)]) if isinstance(argv, list) and argv else None
    name, commit = content.get("name"), content.get("commit")
    return SweepFile(
        name=name if isinstance(name, str) else None,
        command=command,
        commit=commit if isinstance(commit, str) else None,
        compressor_bpb=_compressors(content),
    )


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
