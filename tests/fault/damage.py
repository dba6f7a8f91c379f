"""A file as damage leaves it, in its bytes or in its structure."""

import contextlib
import csv
import io
import json
import random
from collections.abc import Callable
from typing import Any

HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, -5, 1, 2**31, 2**63, 10**18, 10**30, 0.5, -0.0, 1e308, 1e-308, float("nan"),
    float("inf"), "", "x", "../../../../etc", "/", ".", "a/b", "\0", "é" * 300, "9" * 5000, "=1+1",
    "<script>", "nan", "1e999", "s3://k:s@b", [], [[]], [None], {}, {"": None}, {"a": {"b": []}}, ["x"] * 300,
    json.loads("[" * 200 + "]" * 200),
)  # fmt: skip


def mutated(data: bytes, form: str, rng: random.Random) -> bytes:
    """Damaged data. `form`: json, lines (of JSON), csv, text or binary; the structured ones by halves."""
    if form in ("json", "lines", "csv", "yaml") and rng.random() < 0.6:
        with contextlib.suppress(ValueError, IndexError):
            return _STRUCTURES[form](data, rng)
    return _bytes(data, rng)


def _bytes(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(8):
            case 0 if out:
                out[min(at, len(out) - 1)] ^= 1 << rng.randrange(8)
            case 1:
                out = out[:at]
            case 2:
                out[at : at + rng.randrange(1, 64)] = b""
            case 3:
                out[at:at] = rng.randbytes(rng.randrange(1, 16))
            case 4:
                out[at:at] = out[at : at + rng.randrange(1, 256)]
            case 5:
                value = rng.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1))
                out[at : at + 8] = value.to_bytes(8, "little")
            case 6:
                out[at : at + 1] = rng.choice(
                    (b"\0", b"\xff", b"\n", b'"', b"{", b"[" * 2000, b"9" * 5000, b"-")
                )
            case 7:
                out = bytearray(
                    rng.choice(
                        (b"", b"null", b"[]", b"{}", b"3", b'"x"', data.decode("latin-1").encode("utf-16"))
                    )
                )
    return bytes(out)


def _damage(value: Any, rng: random.Random) -> Any:
    """A JSON value with one part of it replaced, dropped or added."""
    if isinstance(value, dict | list) and value and rng.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = rng.choice(keys)
        changed = value.copy()
        match rng.randrange(8):
            case 0:
                del changed[key]
            case 1 if isinstance(changed, dict):
                changed[rng.choice(("", "x", "../x", str(key) * 60))] = changed.pop(key)
            case 2 if isinstance(changed, list):
                changed.append(rng.choice(HOSTILE))
            case _:
                changed[key] = _damage(value[key], rng)
        return changed
    return rng.choice(HOSTILE)


def _json(data: bytes, rng: random.Random) -> bytes:
    return json.dumps(_damage(json.loads(data), rng)).encode("utf-8", "surrogatepass")


def _lines(data: bytes, rng: random.Random) -> bytes:
    lines = data.splitlines()
    at = rng.randrange(len(lines))
    lines[at] = _json(lines[at], rng)
    return b"\n".join(lines) + b"\n"


def _csv(data: bytes, rng: random.Random) -> bytes:
    rows = list(csv.reader(io.StringIO(data.decode())))
    for _ in range(rng.choice((1, 1, 3))):
        row = rng.choice(rows)
        row[rng.randrange(len(row))] = str(rng.choice(HOSTILE))[:6000]
    if rng.random() < 0.2:
        rows.insert(rng.randrange(len(rows)), rng.choice(rows)[: rng.randrange(1, 5)])
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue().encode("utf-8", "surrogatepass")


def _yaml(data: bytes, rng: random.Random) -> bytes:
    import yaml

    if rng.random() < 0.1:
        bomb = "".join(
            f"k{i}: &k{i} [{', '.join([f'*k{i - 1}'] * 9 if i else ['x'] * 9)}]\n" for i in range(9)
        )
        return data + bomb.encode()
    text = yaml.safe_dump(_damage(yaml.safe_load(data), rng), sort_keys=False, allow_unicode=True)
    return text.encode("utf-8", "surrogatepass")


_STRUCTURES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "json": _json,
    "lines": _lines,
    "csv": _csv,
    "yaml": _yaml,
}
