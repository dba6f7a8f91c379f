"""The least standalone script that decodes an artifact and evaluates it: its length is a run's `code_bytes`.

What standalone.main can reach of this package, minified, compressed, and unpacked again by three lines.
"""

import base64
import functools
import lzma
from dataclasses import dataclass
from typing import Any

import python_minifier

from gepa_core.config import ExecConfig, RunConfig
from gepa_core.submission.shake import Definition, Shaken

_ENTRY = ("gepa_core.submission.standalone", "main")
_DECODERS = {"rd": ("gepa_core.quantization.codec", "decode")}
_PUBLISHED_DECODER = ("gepa_core.quantization.artifact", "decode_published")
_LZMA = [{"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}]
_UNPACK = """import base64,lzma,sys,types
for n,s in eval(lzma.decompress(base64.b85decode(%r))):
 m=sys.modules[n]=types.ModuleType(n);exec(s,m.__dict__)
"""


def standalone_source(
    config: RunConfig, exec_cfg: ExecConfig | None = None, *, artifact: str = "model.int6", stage: str = "ttt"
) -> bytes:
    """The script of a run: Python source (ASCII) that needs torch, numpy, sentencepiece and zstandard alone.

    It looks for `artifact` beside itself and runs `stage` (plain, sliding or ttt) unless told otherwise.
    """
    packed = _packed(_DECODERS.get(config.quant.method, _PUBLISHED_DECODER))
    settings = packed.used(_settings(config, exec_cfg or ExecConfig())) | {
        "artifact": artifact,
        "stage": stage,
    }
    start = f"from {packed.entry} import main as f\nfrom {packed.decoder} import {packed.decode} as d\n"
    start += f"raise SystemExit(f({settings!r},d))"
    payload = lzma.compress(repr([*packed.sources, ("m", start)]).encode(), lzma.FORMAT_ALONE, filters=_LZMA)
    return (_UNPACK % base64.b85encode(payload)).encode("ascii")


def code_bytes(config: RunConfig) -> int:
    """Size of the least script that evaluates a run of this configuration;
    milliseconds after the first call.
    """
    return len(standalone_source(config))


@dataclass(frozen=True)
class _Packed:
    """Minified modules in order, under short names, and where to start in them."""

    sources: tuple[tuple[str, str], ...]
    entry: str
    decoder: str
    decode: str
    attributes: frozenset[str]

    def used(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Of the configuration's sections, the keys that the code reads."""
        return {
            name: {key: value for key, value in part.items() if key in self.attributes}
            if isinstance(part, dict)
            else part
            for name, part in settings.items()
        }


@functools.cache
def _packed(decoder: Definition) -> _Packed:
    shaken = Shaken((_ENTRY, decoder))
    renamed = {name: f"g{i}" for i, name in enumerate(sorted(shaken.kept))}
    sources = tuple(
        (name, python_minifier.minify(source, remove_literal_statements=True, remove_asserts=True))
        for name, source in shaken.sources(renamed)
    )
    return _Packed(sources, renamed[_ENTRY[0]], renamed[decoder[0]], decoder[1], frozenset(shaken.attributes))


def _settings(config: RunConfig, exec_cfg: ExecConfig) -> dict[str, Any]:
    return {
        "model": config.model.model_dump() | {"head_dim": config.model.head_dim},
        "eval": config.eval.model_dump(),
        "ttt": config.ttt.model_dump(),
        "exec": exec_cfg.model_dump(),
        "val_tokens": config.data.val_tokens,
    }
