"""What one line of a log states: pairs of a known name and a number, and a small vocabulary around them.

A line comes in, events go out. No form is tied to a script: a line that begins with a step and holds a loss
is a point of the curve; another line with a `val_bpb` is a figure, whose words before it say of what; the
rest are settings and marks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from analysis.logs.events import Event
from analysis.logs.lines.facts import default, facts
from analysis.logs.lines.figures import figures
from analysis.logs.lines.marks import marks
from analysis.logs.lines.planned import planned
from analysis.logs.lines.steps import loose, step
from analysis.logs.reading.tables import RUN_NAME
from analysis.logs.reading.text import Line

__all__ = ["events"]

_NOT_LOG = re.compile(r"\s*(?:#|//|\"|'|`(?!Trainer)|log0?\(|print\(|f\"|>(?!>|\s*number of))")
_LONGEST = 8_000
"""Characters of a line that are read: some patterns take time in proportion to its square."""
_RELEVANT = re.compile(
    r"val|bpb|loss|ttt|adapt|tun|warm|cool|seed|param|iter|step|wall|effective|batch|serial|code|stop|lr|sched"
    r"|scale|bits|int\d|gram|mix|ppm|backoff|ema|swa|lawa|error|kill|sig|trace|memory|skip|slid|mode|connection|time"
    r"|train|held|test|quant|compress|teach|checkpoint|comparison|pack|cast|bitnet|mini|soup|ensemble|draft|baseline|init|capped|first|knn|k-nn|retriev|datastore|blend|restor|reload|revert|reset|token|epoch|quick|s:\d|it/s|s/it"
    r"|batch=|entropy|prun|spars|switch|swap|fit|scor|learn|lora|updat|epo|passes|sweep|decay|anneal|resum|continu|restart|archive|artifact|weight|binar|codebook|centroid|nf4|fp4|mxfp|budget|minutes|finish|done|export|rng|[^\x00-\x7f]",
    re.IGNORECASE,
)


def events(line: Line) -> Iterator[Event]:
    """What a line states; nothing for most lines."""
    if len(line.text) > _LONGEST:
        line = line._replace(text=line.text[:_LONGEST])
    text = line.text
    if line.source:
        if (stated := default(line)) is not None:
            yield stated
        return
    if not (_RELEVANT.search(text) or text.startswith(RUN_NAME)) or _NOT_LOG.match(text):
        return
    if (point := step(line) or loose(line)) is not None:
        yield point
        return
    if found := list(figures(line)):
        yield from found
        return
    yield from marks(line)
    yield from facts(line)
    yield from planned(line)
