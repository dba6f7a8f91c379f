"""Bits per byte: parity, the exact byte rule, every token scored once, fast ways against the plain one."""

import io
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import sentencepiece as spm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gepa_core.config import ExecConfig
from gepa_core.data.text import Text
from gepa_core.data.tokenizer import ByteTable, byte_table
from gepa_core.errors import ConfigError, DataError, DivergedError
from gepa_core.evaluation.scoring import account
from gepa_core.evaluation.windows import plain_windows, sliding_windows
from gepa_core.sections import EvalConfig
from tests import tiny
from tests.tiny import CPU, EVAL

# Compiling takes minutes on a busy CPU, and torch's compiler imports what torch deprecates.
COMPILES = (pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"))

PARITY_EVAL = EvalConfig(seq_len=128, stride=16, counting="reference")


def test_plain_parity(shared: Path) -> None:
    model, tokens, figures = tiny.parity(shared)
    table = byte_table(shared / "data/tokenizers/fineweb_1024_bpe.model", 1024)
    result, expected = tiny.plain(model, tokens, table, PARITY_EVAL, CPU), figures["eval_plain"]
    assert (result.tokens, result.bytes) == (expected["tokens"], expected["bytes"])
    assert result.bpb == pytest.approx(expected["val_bpb"], rel=1e-5)
    assert result.loss == pytest.approx(expected["val_loss"], rel=1e-5)


def test_sliding_parity_with_published_counting(shared: Path) -> None:
    model, tokens, figures = tiny.parity(shared)
    table = byte_table(shared / "data/tokenizers/fineweb_1024_bpe.model", 1024)
    result = tiny.sliding(model, tokens, table, PARITY_EVAL, CPU)
    assert result.bpb == pytest.approx(figures["eval_sliding_reference"]["val_bpb"], rel=1e-5)
    assert result.loss == pytest.approx(figures["eval_sliding_reference"]["val_loss"], rel=1e-5)


@given(st.integers(1, 300), st.integers(2, 40), st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_each_target_is_scored_once_with_context(extra: int, seq_len: int, stride: int) -> None:
    stride = min(stride, seq_len)
    num_targets = seq_len + extra
    windows = sliding_windows(num_targets, seq_len, stride, "once")
    assert np.array_equal(windows.targets(0, windows.num_scores), np.arange(num_targets))
    assert (windows.start >= 0).all() and (windows.start + windows.length <= num_targets).all()
    assert (windows.scored[1:] <= stride).all()  # so that a context is never under seq_len - stride


@given(st.integers(0, 300), st.integers(2, 40), st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_reference_windows_are_the_published_ones(extra: int, seq_len: int, stride: int) -> None:
    stride = min(stride, seq_len)
    num_targets = seq_len + extra
    expected = []
    for start in range(0, num_targets, stride):  # the published rule, a window at a time
        end = min(start + seq_len, num_targets)
        if end - start >= stride or start == 0:
            expected += list(range(start if start == 0 else end - stride, end))
    windows = sliding_windows(num_targets, seq_len, stride, "reference")
    assert windows.targets(0, windows.num_scores).tolist() == expected


def test_published_counts_at_the_reference_size() -> None:
    num_targets = 62_021_632
    windows = sliding_windows(num_targets, 2048, 64, "reference")
    assert len(windows.start) == 969_088
    assert windows.scored.sum() - num_targets == 1_984
    assert sliding_windows(num_targets, 2048, 64, "once").scored.sum() == num_targets
    assert plain_windows(num_targets, 2048).scored.sum() == num_targets


@pytest.mark.parametrize("counting", ["once", "reference"])
def test_sliding_is_what_a_window_at_a_time_gives(counting: str) -> None:
    model, tokens, table = tiny.tiny_model(), tiny.text(118), tiny.byte_table()
    cfg = EVAL.model_copy(update={"counting": counting})
    result = tiny.sliding(model, tokens, table, cfg, CPU)
    windows = sliding_windows(117, EVAL.seq_len, EVAL.stride, counting)
    nll, num_bytes, scores = 0.0, 0, []
    for start, length, scored in zip(windows.start, windows.length, windows.scored, strict=True):
        row = torch.from_numpy(tokens[start : start + length + 1].astype(np.int64))
        with torch.no_grad():
            losses = F.cross_entropy(model(row[None, :-1])[0], row[1:], reduction="none")
        for i in range(length - scored, length):
            scores.append(losses[i].item())
            nll += scores[-1]
            previous, current = row[i], row[i + 1]
            num_bytes += int(table.base_bytes[current])
            num_bytes += bool(table.leading_space[current]) and not bool(table.boundary[previous])
    assert result.bytes == num_bytes
    assert result.tokens == len(scores)
    assert np.allclose(result.scores, scores, rtol=1e-5)
    assert result.bpb == pytest.approx(nll / math.log(2) / num_bytes, rel=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        "trimmed last block",
        "windows gathered on the device",
        {"eval_batch_seqs": 1},
        {"eval_batch_seqs": 7},
        {"attention": "math"},
        pytest.param({"compile": True}, marks=COMPILES),
    ],
    ids=str,
)
def test_each_optimisation_alone_changes_rounding_only(change: dict | str) -> None:
    model, tokens, table = tiny.tiny_model(), tiny.text(403), tiny.byte_table()
    exec_cfg, switch = tiny.ablated(change)
    for evaluate in (tiny.plain, tiny.sliding):
        fast = evaluate(model, tokens, table, EVAL, CPU)
        with switch:
            other = evaluate(model, tokens, table, EVAL, exec_cfg)
        assert abs(fast.bpb - other.bpb) < 1e-5
        assert np.allclose(fast.scores, other.scores, atol=1e-4)


def test_blocks_partition_the_total() -> None:
    model, tokens, table = tiny.tiny_model(), tiny.text(118), tiny.byte_table()
    for evaluate in (tiny.plain, tiny.sliding):
        result = evaluate(model, tokens, table, EVAL, CPU)
        assert result.blocks.tokens.tolist()[:2] == [50, 50]
        assert result.blocks.tokens.sum() == result.tokens
        assert result.blocks.bytes.sum() == result.bytes
        assert result.blocks.nll.sum() == result.nll
        assert result.blocks.nll[0] == pytest.approx(result.scores[:50].astype(np.float64).sum(), rel=1e-12)


def test_evaluation_leaves_the_model_as_it_was_and_repeats_to_the_bit() -> None:
    model, tokens, table = tiny.tiny_model(), tiny.text(200), tiny.byte_table()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    first, second = (tiny.sliding(model, tokens, table, EVAL, CPU) for _ in range(2))
    assert np.array_equal(first.scores, second.scores) and first.nll == second.nll
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


TEXTS = [
    "The naïve café in 東京 sold ½ a piroshki: пирожок! 🎉🎉",
    " leading and  double spaces,\ttabs\nand lines \n\n",
    "ΑΒΓ αβγ ﬁ ① é e\u0301",
    "plain words again and again and again",
]


def train_tokenizer(**options: object) -> spm.SentencePieceProcessor:
    written = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 3),
        model_writer=written,
        model_type="bpe",
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        **options,
    )
    return spm.SentencePieceProcessor(model_proto=written.getvalue())


def count(sp: spm.SentencePieceProcessor, table: ByteTable, documents: list[str]) -> int:
    """Bytes that an evaluation accounts to documents, each after a BOS."""
    ids = [token for document in documents for token in (sp.bos_id(), *sp.encode(document))]
    tokens = np.array(ids, dtype=np.uint16)
    windows = plain_windows(len(tokens) - 1, 1)
    return account(np.ones(windows.num_scores, np.float32), windows, Text(tokens, table), 16).bytes


def test_bytes_are_those_of_the_original_text(tmp_path: Path) -> None:
    # Bytes as fallback: nothing is unknown, so every byte of every script is accounted for.
    sp = train_tokenizer(vocab_size=340, byte_fallback=True)
    (tmp_path / "t.model").write_bytes(sp.serialized_model_proto())
    table = byte_table(tmp_path / "t.model")
    documents = [*TEXTS, "unseen scripts too: हिन्दी ไทย 한국어 ☃"]
    kinds = Counter(sp.is_byte(i) for document in documents for i in sp.encode(document))
    assert kinds[True] > 20 and kinds[False] > 20
    for document in documents:
        assert count(sp, table, [document]) == len(document.encode())
    assert count(sp, table, documents) == sum(len(document.encode()) for document in documents)


def test_unknown_pieces_stand_for_no_bytes_and_swallow_a_space(tmp_path: Path) -> None:
    sp = train_tokenizer(vocab_size=100)
    (tmp_path / "t.model").write_bytes(sp.serialized_model_proto())
    table = byte_table(tmp_path / "t.model")
    assert count(sp, table, ["ee"]) == 2
    assert count(sp, table, ["e☃e"]) == 2
    assert count(sp, table, ["e e"]) == 3
    assert count(sp, table, ["e☃ e"]) == 2


def test_validation_shorter_than_a_window() -> None:
    model, table = tiny.tiny_model(), tiny.byte_table()
    for evaluate in (tiny.plain, tiny.sliding):
        with pytest.raises(DataError, match=r"16 tokens.*needs 17.*eval\.seq_len"):
            evaluate(model, tiny.text(16), table, EVAL, CPU)
        assert evaluate(model, tiny.text(17), table, EVAL, CPU).tokens == 16


def test_ids_past_the_vocabulary() -> None:
    tokens = tiny.text(40)
    tokens[7] = tiny.VOCAB
    with pytest.raises(DataError, match="id 64 is past the model's vocabulary of 64"):
        tiny.plain(tiny.tiny_model(), tokens, tiny.byte_table(), EVAL, CPU)


def test_byte_table_of_another_tokenizer() -> None:
    with pytest.raises(DataError, match=r"32 pieces.*vocabulary of 64"):
        tiny.plain(tiny.tiny_model(), tiny.text(40), tiny.byte_table(32), EVAL, CPU)


def test_text_of_control_tokens_only() -> None:
    tokens = np.zeros(40, dtype=np.uint16)
    with pytest.raises(DataError, match="no text"):
        tiny.plain(tiny.tiny_model(), tokens, tiny.byte_table(), EVAL, CPU)


def test_weights_that_are_not_finite() -> None:
    model = tiny.tiny_model()
    with torch.no_grad():
        model.blocks[1].mlp.bias[3] = math.nan
    for evaluate in (tiny.plain, tiny.sliding):
        with pytest.raises(DivergedError, match="validation loss is not finite"):
            evaluate(model, tiny.text(60), tiny.byte_table(), EVAL, CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_cuda_where_there_is_none() -> None:
    with pytest.raises(ConfigError, match="cuda"):
        tiny.plain(tiny.tiny_model(), tiny.text(60), tiny.byte_table(), EVAL, ExecConfig(device="cuda"))
