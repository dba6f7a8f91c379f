"""Whether a line says that the weights learn from the text on which they are measured.

Nobody can list how that is said. So a line is taken to say it where a word of learning stands near one for
that text, in the languages researchers write, but for phrases that plainly speak of something else: an empty
cell, with the line that made it so, costs less than a figure that knew its text.
"""

from __future__ import annotations

import re


def _words(*alternatives: str) -> str:
    """One of these, as whole words."""
    return rf"(?<![a-z])(?:{'|'.join(alternatives)})(?![a-z])"


_TEXT = "|".join(
    (
        _words(
            r"val(?:id|idation|idierung\w*|idación|idação|idazione)?", r"held-?\s?out", "test", "dev",
            r"test\w*daten", "benchmark", "graded", "leaderboard",
            r"eval(?:uation)?", "evaluación",
            r"scor(?:ing|ed) (?:text|windows|documents|docs|tokens|data|corpus|set|stream|bytes)",
            r"(?:to be|it is|are|gets?) scored",
        ),
        r"before (?:it is |being )?scor",
        "验证", "驗證", "测试", "検証", "評価", "валидац",
    )
)  # fmt: skip
_LEARNS = "|".join(
    (
        _words(
            r"(?:pre|post|re)?-?train(?:ing|s|er)?", r"(?:pre)?fit(?:s|ting|ted)?", r"fine-?tun\w*", "sgd",
            "adamw?", "muon", r"backprop\w*", r"optimi[sz]\w+", "learn(?:ing|s)?", "updat(?:es?|ing)",
            "passes", "sweeps", "epochs?", r"gradient\w*", "adapters?", "lora", "tent", "burn-in",
            r"warm[- ]start\w*",
            r"minimi[sz]\w+", r"memori[sz]\w*", r"overfit\w*", r"refin\w+", r"polish\w*", "tun(?:es?|ing)",
            r"distil\w+", r"anneal\w*", "appending", "steps (?:on|over|against|with)",
            "rounds", "fast weights", r"(?:nach)?schulung", "durchgänge",
            "epochen", "nachtraining", r"trainier\w*", r"affin\w+", r"entra[iîí]n\w*", "itérations",
            "iteraciones", r"ép?o[cq]\w+", r"ajust\w+",
        ),
        "训练", "訓練", "微调", "学习", "学習", "обуч",
    )
)  # fmt: skip
_LEARNS_IT = re.compile(
    rf"(?:{_LEARNS}).{{0,80}}?(?:{_TEXT})|(?:{_TEXT}).{{0,80}}?(?:{_LEARNS})", re.IGNORECASE
)
_ONLY_MEASURES = re.compile(
    "|".join(
        (
            r"no[ _-](?:grad|train)", r"(?:finished|after|done|completed?|end of) training",
            _words("evaluat(?:ing|ed)", "at steps?", "(?:final|last) steps?"),
            _words(r"every \d+ steps", "best (?:val|step|epoch)"),
            r"training (?:is )?(?:done|complete|finished|over|time|loop)",
            r"training[_ ](?:seconds|steps|took)",
            "trained model", "pre-?trained", "learning.?rate", "optimizer (?:state|memory)",
            r"train_(?:time|loss|loader|batch|seq|files|shards)", r"eval_(?:time|mode|stride|only|seq|batch)",
            "steps? (?:done|made|completed)", r"(?:leak|overlap).*", r"calibrat\w*.{0,30}train\w*",
            r"post-?train\w* quanti[sz]",
        )
    ),
    re.IGNORECASE,
)  # fmt: skip
_TTT = re.compile(
    r"ttt|test[- ]time[- ](?:train|adapt)|dynamic(?:al)? eval\w*"
    r"|(?<![a-z])adapt(?:ing|ation|ed|s)?(?![a-z])"
    r"(?! (?:the )?(?:clip|range|scale|threshold|step|lr|learning|batch))"
    r"|fine-?tun\w*.{0,40}\b(?:val|eval|dev|test)|\bval\w*.{0,20}fine-?tun|epoch\W*\d+\s*/\s*\d+.*\bloss",
    re.IGNORECASE,
)
"""Training after training: on the validation text, or on a text that the line does not name."""
_NO_TTT = re.compile(r"(?:no|without|pre|before)[-_ ]?ttt", re.IGNORECASE)
_ADAPTS = r"(?:adapt|train|updat|fit|learn)\w*"
_PEEKS = re.compile(
    "|".join(
        (
            r"train[_ -]?(?:(?:and )?then|before|first)[_ -]?(?:scor|eval)\w*",
            rf"{_ADAPTS}\W.{{0,60}}?(?:then|before)\W.{{0,10}}?scor", "to be scored",
            rf"scor\w*\W.{{0,30}}?after {_ADAPTS}",
            r"scor\w*\W.{0,30}?(?:afterwards|later|again)", "unscored",
            r"(?:lowest|best|minimum|min|better) of (?:its|the|all|both)",
            _words("oracle", "non-?causal", "look-?ahead", "hindsight", "two-?pass",
                   "second (?:pass|forward|visit|look)", "forward again"),
        )
    ),
    re.IGNORECASE,
)  # fmt: skip
"""Scores of weights that know the text, though they adapt piece by piece."""
_SCORES_FIRST = re.compile(
    rf"score[_ -]first|(?:scor|grad)\w*\W.{{0,30}}(?:then|before)\W.{{0,20}}{_ADAPTS}", re.IGNORECASE
)
_FIRST_SCORED = re.compile(
    rf"score[_ -]first|(?:scor|grad)\w*\W.{{0,30}}?(?:first|then)\W.{{0,25}}{_ADAPTS}", re.IGNORECASE
)
"""The same, of a line without a word for test-time training."""
_NOT = re.compile(
    _words("no", "never", "not", "none", "without", "nothing") + r"[^.;,:]{0,80}", re.IGNORECASE
)
_HINTS = (
    "val",
    "held",
    "test",
    "dev",
    "eval",
    "scor",
    "ttt",
    "adapt",
    "epoch",
    "tun",
    "bench",
    "grad",
    "leader",
)
"""Without one of these no ASCII line has such words: most are told so at once."""


def learning(text: str) -> str | None:
    """'ttt' where a line is of test-time training, 'learns' where weights learn a text before its scores."""
    lowered = text.lower()
    if text.isascii() and not any(hint in lowered for hint in _HINTS):
        return None
    text = _NOT.sub(" ", text)
    if _TTT.search(_NO_TTT.sub("", text)):
        return "learns" if _PEEKS.search(text) and not _SCORES_FIRST.search(text) else "ttt"
    if _LEARNS_IT.search(_ONLY_MEASURES.sub(" ", text)):
        return "ttt" if _FIRST_SCORED.search(text) else "learns"
    return None
