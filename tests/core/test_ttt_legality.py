"""Test-time training is legal: proved by experiment, with checks that each illegal variant fails by name.

A score is legal if it is a function of the tokens up to its own alone, and is never revised. Four checks,
each of a *variant*, a way to score and train: tokens -> scores. The legal variant is the library's; the
others do on purpose what the field has agreed is cheating.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gepa_core.data.text import Text
from gepa_core.evaluation import ttt
from gepa_core.evaluation.scoring import Scorer
from gepa_core.evaluation.windows import sliding_windows
from gepa_core.sections import EvalConfig, TTTConfig
from tests import tiny
from tests.tiny import CPU

EVAL = EvalConfig(seq_len=16, stride=4, block_tokens=64)
CFG = TTTConfig(chunk_tokens=32, epochs=2, lr=0.1, batch_seqs=1, freeze_blocks=1)
NUM_TOKENS = 118  # four chunks, the last one short, and a last window that is not a whole stride
TARGETS = NUM_TOKENS - 1

Scores = NDArray[np.float32]


class Trace(Scorer):
    """A scorer that notes what every target's score was at every moment it might have been revised."""

    history: list[Scores]

    def score(self, first: int, last: int) -> None:
        super().score(first, last)
        self.history.append(self.scores.numpy().copy())


def setup(tokens: NDArray[np.uint16]) -> tuple[Trace, ttt.Adapter, NDArray[np.int64]]:
    windows = sliding_windows(len(tokens) - 1, EVAL.seq_len, EVAL.stride, EVAL.counting)
    bounds = ttt.chunk_bounds(windows.first_scored, len(tokens) - 1, CFG.chunk_tokens)
    model = tiny.tiny_model()
    scorer = Trace(model, Text(tokens, tiny.byte_table()), windows, CPU)
    scorer.history = []
    return scorer, ttt.Adapter(model, CFG, scorer, len(bounds) - 1), bounds


Variant = Callable[[NDArray[np.uint16]], tuple[Scores, list[Scores]]]
"""tokens -> final scores, and the scores after each scoring pass."""


def legal(tokens: NDArray[np.uint16], cfg: EvalConfig = EVAL) -> tuple[Scores, list[Scores]]:
    """The library's own loop, observed."""
    traces: list[Trace] = []

    def observed(*args: Any) -> Trace:
        traces.append(Trace(*args))
        traces[-1].history = []
        return traces[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ttt, "Scorer", observed)
        result = tiny.adapted(tiny.tiny_model(), tokens, tiny.byte_table(), cfg, CFG, CPU)
    return result.scores, traces[0].history


def legal_in_reference_counting(tokens: NDArray[np.uint16]) -> tuple[Scores, list[Scores]]:
    """It scores targets at the end of the text several times; the first TARGETS scores are each target's
    first."""
    return legal(tokens, EVAL.model_copy(update={"counting": "reference"}))


def adapt_then_score(tokens: NDArray[np.uint16]) -> tuple[Scores, list[Scores]]:
    """Trains on a chunk first, then scores it with what it learned there."""
    scorer, adapter, bounds = setup(tokens)
    for chunk in range(len(bounds) - 1):
        adapter.adapt(chunk)
        scorer.score(int(bounds[chunk]), int(bounds[chunk + 1]))
    return scorer.gather(), scorer.history


def last_epoch_scores(tokens: NDArray[np.uint16]) -> tuple[Scores, list[Scores]]:
    """Scores a chunk again after training on it, and lets the last scores count."""
    scorer, adapter, bounds = setup(tokens)
    for chunk in range(len(bounds) - 1):
        for _ in range(2):
            scorer.score(int(bounds[chunk]), int(bounds[chunk + 1]))
            adapter.adapt(chunk)
    return scorer.gather(), scorer.history


def second_pass(tokens: NDArray[np.uint16]) -> tuple[Scores, list[Scores]]:
    """Goes over the whole text twice, legally each time, and reports the second pass."""
    scorer, adapter, bounds = setup(tokens)
    for _ in range(2):
        for chunk in range(len(bounds) - 1):
            scorer.score(int(bounds[chunk]), int(bounds[chunk + 1]))
            adapter.adapt(chunk)
    return scorer.gather(), scorer.history


def adapt_before_scoring(tokens: NDArray[np.uint16]) -> tuple[Scores, list[Scores]]:
    """Trains on the whole text before its scoring starts."""
    scorer, adapter, bounds = setup(tokens)
    for chunk in range(len(bounds) - 1):
        adapter.adapt(chunk)
    for chunk in range(len(bounds) - 1):
        scorer.score(int(bounds[chunk]), int(bounds[chunk + 1]))
    return scorer.gather(), scorer.history


def changed(tokens: NDArray[np.uint16], positions: slice | int) -> NDArray[np.uint16]:
    """Other tokens at `positions`, all different from what was there."""
    other = tokens.copy()
    other[positions] = 4 + (tokens[positions] - 4 + 17) % (tiny.VOCAB - 4)
    return other


def no_score_depends_on_a_later_token(variant: Variant) -> None:
    """Target i is token i + 1: a change of token t may move scores from target t - 1 on, no bit before."""
    tokens = tiny.text(NUM_TOKENS)
    scores, _ = variant(tokens)
    for t in (1, 5, 17, 30, 32, 33, 34, 47, 64, 65, 66, 90, 97, 116, 117):
        moved = np.flatnonzero(variant(changed(tokens, t))[0].view(np.int32) != scores.view(np.int32))
        assert moved.size and moved[0] >= t - 1, f"token {t} moved the score of target {moved[:1]}"


def what_follows_a_chunk_cannot_move_it(variant: Variant) -> None:
    tokens = tiny.text(NUM_TOKENS)
    scores, _ = variant(tokens)
    for end in range(CFG.chunk_tokens, TARGETS, CFG.chunk_tokens):
        other, _ = variant(changed(tokens, slice(end + 1, None)))
        assert np.array_equal(other[:end], scores[:end]), f"text after target {end} moved scores before it"
        assert not np.array_equal(other[end:], scores[end:])


def every_target_is_scored_exactly_once(variant: Variant) -> None:
    """Counted as the scores appear, pass by pass: never missing, never written again."""
    scores, history = variant(tiny.text(NUM_TOKENS))
    writes, before = np.zeros(TARGETS, int), np.full(TARGETS, np.nan, np.float32)
    for after in history:
        writes += after.view(np.int32) != before.view(np.int32)
        before = after
    assert len(scores) == TARGETS
    assert (writes == 1).all(), f"targets {np.flatnonzero(writes != 1)} were not scored exactly once"


def scores_are_final_before_adaptation(variant: Variant) -> None:
    """When training on a chunk begins, its scores exist, and they are those reported in the end."""
    seen: list[tuple[int, Scores]] = []
    adapt = ttt.Adapter.adapt

    def watched(self: ttt.Adapter, chunk: int) -> None:
        seen.append((chunk, self.scorer.scores.numpy().copy()))
        adapt(self, chunk)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ttt.Adapter, "adapt", watched)
        scores, _ = variant(tiny.text(NUM_TOKENS))
    assert seen
    for chunk, then in seen:
        own = slice(chunk * CFG.chunk_tokens, (chunk + 1) * CFG.chunk_tokens)
        assert np.array_equal(then[own], scores[own]), f"chunk {chunk} had no final scores yet"


CHECKS = (
    no_score_depends_on_a_later_token,
    what_follows_a_chunk_cannot_move_it,
    every_target_is_scored_exactly_once,
    scores_are_final_before_adaptation,
)

# Which checks see through which cheat. `adapt_then_score` writes each score once, and never after it looked
# ahead across a chunk: only the other two can know.
CAUGHT_BY = {
    adapt_then_score: (no_score_depends_on_a_later_token, scores_are_final_before_adaptation),
    last_epoch_scores: (
        no_score_depends_on_a_later_token,
        every_target_is_scored_exactly_once,
        scores_are_final_before_adaptation,
    ),
    second_pass: CHECKS,
    adapt_before_scoring: (
        no_score_depends_on_a_later_token,
        what_follows_a_chunk_cannot_move_it,
        scores_are_final_before_adaptation,
    ),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda f: f.__name__)
def test_legal(check: Callable[[Variant], None]) -> None:
    check(legal)


@pytest.mark.parametrize("check", [c for c in CHECKS if c is not every_target_is_scored_exactly_once])
def test_legal_in_reference_counting(check: Callable[[Variant], None]) -> None:
    check(legal_in_reference_counting)


@pytest.mark.parametrize(
    ("variant", "check"),
    [(variant, check) for variant, checks in CAUGHT_BY.items() for check in checks],
    ids=lambda f: f.__name__,
)
def test_illegal_is_caught(variant: Variant, check: Callable[[Variant], None]) -> None:
    with pytest.raises(AssertionError, match=r"moved|not scored exactly once|no final scores"):
        check(variant)


def test_the_checks_have_something_to_see() -> None:
    """Adaptation at this learning rate moves every later score: unmoved bits are no accident."""
    tokens = tiny.text(NUM_TOKENS)
    scores, _ = legal(tokens)
    untrained = tiny.adapted(
        tiny.tiny_model(), tokens, tiny.byte_table(), EVAL, CFG.model_copy(update={"epochs": 0}), CPU
    ).scores
    assert np.array_equal(scores[: CFG.chunk_tokens], untrained[: CFG.chunk_tokens])
    assert (np.abs(scores - untrained)[CFG.chunk_tokens :] > 1e-4).mean() > 0.9


def test_features_do_not_see_targets() -> None:
    """The model alone: logits at a position do not change by a bit with any later token."""
    model = tiny.tiny_model()
    ids = torch.from_numpy(tiny.text(EVAL.seq_len).astype(np.int64))[None]
    with torch.no_grad():
        logits = model(ids)
        for t in range(1, EVAL.seq_len):
            other = ids.clone()
            other[0, t] = 4 + (other[0, t] + 9) % (tiny.VOCAB - 4)
            assert torch.equal(model(other)[:, :t], logits[:, :t])
