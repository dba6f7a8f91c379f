"""Spellings of what others call a validation's values, as the one that the readers of lines know."""

from __future__ import annotations

import re
from collections.abc import Callable

_N = r"[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?"
_VALIDATION = r"(?:valid(?:ation)?|val|held[-_]?out|eval|dev)"
_MEASURE = r"(?:loss|nll|xent|cross_entropy|ce|loss_per_token)"


def _measured(match: re.Match[str]) -> str:
    part = "train" if match["part"].lower().startswith("train") else "val"
    return f"{part}_{'bpb' if match['name'].lower().startswith('b') else 'loss'}"


_SPELLINGS: tuple[tuple[str, re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    ("round", re.compile(r"\bround[- ]trip\b", re.IGNORECASE), "roundtrip"),
    ("bpb", re.compile(rf"(?<![a-z]){_VALIDATION}[_ /.](?=bpb(?![a-z]))", re.IGNORECASE), "val_"),
    ("per", re.compile(rf"(?<![a-z]){_VALIDATION}[_/.]bits_per_byte(?![a-z])", re.IGNORECASE), "val_bpb"),
    ("vbpb", re.compile(r"(?<!\w)vbpb(?=[\s:=])", re.IGNORECASE), "val_bpb"),
    ("vl", re.compile(r"(?<!\w)vl(?=[\s:=]+\d)", re.IGNORECASE), "val_loss"),
    ("(", re.compile(
        rf"(?<!\w)(?P<name>{_MEASURE}|bpb|bits_per_byte)\s*\((?P<part>{_VALIDATION}|train(?:ing)?)\)",
        re.IGNORECASE,
    ), _measured),
    ("raw", re.compile(rf"val_bpb\s*:?\s*raw[=: ]\s*({_N}),?\s*ema[=: ]\s*({_N})", re.IGNORECASE),
     r"val_bpb \1 ema_val_bpb \2"),
    (")", re.compile(
        rf"(?<![a-z])(val_loss\s*[:=]?\s*{_N})\s*\(\s*({_N})\s*(?:bpb|bits per byte)\s*\)", re.IGNORECASE
    ), r"\1 val_bpb \2"),
    ("...", re.compile(r"(\.{3,}\s*\d+)\.{3,}[a-z]+\s*$"), r"\1"),
    ("nats", re.compile(
        rf"(?<![a-z]){_VALIDATION}\s+({_N})\s+nats\W+({_N})\s+(?:bpb|bits/byte)", re.IGNORECASE
    ),
     r"val_loss \1 val_bpb \2"),
    ("bits/token", re.compile(
        rf"(?<![a-z]){_VALIDATION}[_ ]loss\s*[:=]?\s*{_N}\s*bits/token\s*\(({_N})\s*bits/byte\)",
        re.IGNORECASE,
    ), r"val_bpb \1"),
    ("/", re.compile(rf"(\]\s+train)\s+(?={_N}\s*$)"), r"\1_loss "),
    ("s ", re.compile(r"^\s*s\s+(?=\d+\s+val_)"), "step "),
)  # fmt: skip
"""A text without which the spelling is not there, the spelling, and what it becomes."""


def usual(text: str) -> str:
    lowered = text.lower()
    for hint, spelling, said in _SPELLINGS:
        if hint in lowered:
            text = spelling.sub(said, text)
    return text
