"""What a step reads, and in what parts."""

from pathlib import Path

import numpy as np
import pytest
import torch

from gepa_core.config import DataPaths
from gepa_core.data.shards import TokenStream, open_shards, write_shard
from gepa_core.errors import ConfigError, DataError
from gepa_core.sections import BatchConfig
from gepa_core.training.batches import StepBatches, micro_batch_seqs, widened
from tests import tiny
from tests.training import (
    RUN,
    assert_close,
    assert_same_gradients,
    make_data,
    train,
)

CPU = torch.device("cpu")


def test_a_step_reads_its_spans_whoever_asks(paths: DataPaths) -> None:
    stream = TokenStream(open_shards(paths.train))
    batch = BatchConfig(seq_len=8, seqs_per_span=6, spans=8)
    text = np.concatenate([stream.span(0, stream.total)] * 5)
    for world in (1, 2, 4, 8):
        for step in (0, 5, 13):  # the last one reads past the end of the data
            ids, targets = [], []
            for rank in range(world):
                micro = 3 if world == 2 else 6
                part = StepBatches(stream, batch, tiny.VOCAB, micro, CPU, rank, world)
                batches = part.read(step)
                assert len(batches) == part.micro_batches
                ids += [x for x, _ in batches]
                targets += [y for _, y in batches]
            expected_ids, expected_targets = [], []
            for j in range(8):
                start = (step * 8 + j) * 49
                expected_ids.append(text[start : start + 48].reshape(6, 8))
                expected_targets.append(text[start + 1 : start + 49].reshape(6, 8))
            assert np.array_equal(torch.cat(ids), np.concatenate(expected_ids))
            assert np.array_equal(torch.cat(targets), np.concatenate(expected_targets))


def test_ranks_must_divide_the_spans(paths: DataPaths) -> None:
    stream = TokenStream(open_shards(paths.train))
    with pytest.raises(ConfigError, match=r"batch\.spans 4 is not divisible by 3 ranks"):
        StepBatches(stream, RUN.batch, tiny.VOCAB, 2, CPU, 0, 3)


def test_tokens_past_the_vocabulary_are_refused(tmp_path: Path) -> None:
    paths = make_data(tmp_path / "data")
    write_shard(tmp_path / "data" / "train_000001.bin", np.full(1500, tiny.VOCAB, dtype=np.uint16))
    with pytest.raises(DataError, match=r"token id 64 .* outside the vocabulary of 64"):
        train(paths, tmp_path / "run")


@pytest.mark.parametrize(
    ("seqs", "wanted", "device", "chosen"),
    [
        (48, None, "cuda", 48),
        (48, 24, "cuda", 24),
        (48, 20, "cuda", 16),
        (6, 100, "cpu", 6),
        (7, 3, "cpu", 1),
        (6, None, "cpu", 1),
    ],
)
def test_micro_batches_divide_a_span(seqs: int, wanted: int | None, device: str, chosen: int) -> None:
    batch = BatchConfig(seq_len=2048, seqs_per_span=seqs)
    assert micro_batch_seqs(batch, 64, wanted, torch.device(device)) == chosen


def test_tokens_are_widened_without_a_sign() -> None:
    tokens = np.array([0, 1, 1023, 32767, 32768, 65535], dtype=np.uint16)
    assert widened(torch.from_numpy(tokens.view(np.int16))).tolist() == tokens.tolist()


def test_micro_batches_change_nothing_but_rounding(
    paths: DataPaths, whole: Path, first_step: Path, tmp_path: Path
) -> None:
    segment, _ = train(paths, tmp_path / "one", until=1, micro_batch_seqs=1)
    assert segment.micro_batch_seqs == 1
    assert_same_gradients(segment.path, first_step)
    segment, _ = train(paths, tmp_path / "all", micro_batch_seqs=1)
    assert_close(segment.path, whole, 3e-2)  # twelve steps of Newton-Schulz and bf16 on top
