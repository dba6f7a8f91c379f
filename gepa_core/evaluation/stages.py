"""The one way to a stage's figures: workers, commands, benchmarks and the standalone script all measure here.

A stage is a model's weights, scored in one of three ways (WAYS). The caller loads the weights: raw, averaged,
merged, or decoded from an artifact. The `Text` keeps what every scoring of it needs again.
"""

from typing import Any

from gepa_core.data.text import Text
from gepa_core.evaluation.scoring import Evaluation, check_text, evaluate
from gepa_core.evaluation.ttt import test_time_train
from gepa_core.evaluation.windows import plain_windows, sliding_windows

WAYS = ("plain", "sliding", "ttt")


def measure(way: str, model: Any, text: Text, eval_cfg: Any, ttt_cfg: Any, exec_cfg: Any) -> Evaluation:
    """Scores the text with the model's weights, in one of WAYS.

    `plain` takes non-overlapping sequences of eval_cfg.seq_len tokens; `sliding` takes windows of that length
    every eval_cfg.stride tokens; `ttt` (test-time training) takes the same windows, and trains on each chunk
    once it is scored, which changes the model in place. Raises DataError where the text does not fit the
    model, DivergedError where a score is not finite, ValueError for any other way.
    """
    if way not in WAYS:
        raise ValueError(f"{way!r} is not one of {', '.join(WAYS)}")
    check_text(model, text, eval_cfg.seq_len)
    if way == "plain":
        windows = plain_windows(text.num_targets, eval_cfg.seq_len)
        return evaluate(model, text, windows, eval_cfg, exec_cfg)
    windows = sliding_windows(text.num_targets, eval_cfg.seq_len, eval_cfg.stride, eval_cfg.counting)
    if way == "ttt":
        return test_time_train(model, text, windows, eval_cfg, ttt_cfg, exec_cfg)
    return evaluate(model, text, windows, eval_cfg, exec_cfg)
