"""A checkpoint is whole or refused; the one before a damaged one is used."""

import json
import logging
import os
from pathlib import Path

import pytest
import torch

from gepa_core.errors import CheckpointError
from gepa_core.training import checkpoint

TENSORS = {
    "model/a": torch.arange(6.0).view(2, 3),
    "model/b": torch.randn(4).bfloat16(),
    "scalar": torch.tensor(0.5),
    "rng/cpu": torch.get_rng_state(),
    "view": torch.arange(8.0)[2:5],
}
META = {"step": 7, "config": {"lr": 0.1}, "note": "é"}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    checkpoint.save(tmp_path / "7", TENSORS, META)
    return tmp_path / "7"


def test_what_is_read_is_what_was_written(saved: Path) -> None:
    state = checkpoint.load(saved)
    assert state.meta == META
    assert state.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert state.tensors[name].dtype == tensor.dtype
        assert torch.equal(state.tensors[name], tensor)


def test_nothing_else_is_left_and_nothing_is_pickled(saved: Path) -> None:
    assert [path.name for path in saved.parent.iterdir()] == ["7"]
    assert sorted(path.name for path in saved.iterdir()) == [checkpoint.META, checkpoint.TENSORS]
    header_bytes = int.from_bytes((saved / checkpoint.TENSORS).read_bytes()[:8], "little")
    header = json.loads((saved / checkpoint.TENSORS).read_bytes()[8 : 8 + header_bytes])
    assert header.keys() - {"__metadata__"} == TENSORS.keys()


def truncate(path: Path) -> None:
    os.truncate(path / checkpoint.TENSORS, (path / checkpoint.TENSORS).stat().st_size - 1)


def flip_a_bit(path: Path) -> None:
    data = bytearray((path / checkpoint.TENSORS).read_bytes())
    data[-5] ^= 1
    (path / checkpoint.TENSORS).write_bytes(data)


def change_the_step(path: Path) -> None:
    text = (path / checkpoint.META).read_text()
    (path / checkpoint.META).write_text(text.replace('"step":7', '"step":8'))


def half_the_record(path: Path) -> None:
    text = (path / checkpoint.META).read_text()
    (path / checkpoint.META).write_text(text[: len(text) // 2])


def other_json(path: Path) -> None:
    (path / checkpoint.META).write_text('["no", "record"]')


def no_tensors(path: Path) -> None:
    (path / checkpoint.TENSORS).unlink()


def no_record(path: Path) -> None:
    (path / checkpoint.META).unlink()


DAMAGES = [truncate, flip_a_bit, change_the_step, half_the_record, other_json, no_tensors, no_record]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found(damage, saved: Path) -> None:
    damage(saved)
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(saved)
    assert str(saved) in str(error.value)


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_one_before_is_used(damage, saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint.save(saved.with_name("10"), TENSORS, META | {"step": 10})
    assert checkpoint.newest(saved.parent)[0] == saved.with_name("10")
    damage_target = saved.with_name("10")
    if damage is change_the_step:
        text = (damage_target / checkpoint.META).read_text()
        (damage_target / checkpoint.META).write_text(text.replace('"step":10', '"step":11'))
    else:
        damage(damage_target)
    with caplog.at_level(logging.WARNING):
        path, state = checkpoint.newest(saved.parent)
    assert path == saved
    assert state.meta["step"] == 7
    assert "damaged" in caplog.text


def test_none_where_there_is_none(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    assert checkpoint.newest(tmp_path / "nowhere") is None
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        checkpoint.load(tmp_path / "nowhere")


def test_what_fails_half_way_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise RuntimeError("power cut")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RuntimeError, match="power cut"):
        checkpoint.save(tmp_path / "3", TENSORS, META)
    assert list(tmp_path.iterdir()) == []


def test_a_leftover_of_a_killed_writer_is_no_checkpoint(saved: Path) -> None:
    leftover = saved.with_name(".8.4242")
    leftover.mkdir()
    (leftover / checkpoint.META).write_text("{}")
    assert checkpoint.in_order(saved.parent) == [saved]


def test_a_damaged_one_is_replaced(saved: Path) -> None:
    truncate(saved)
    checkpoint.save(saved, TENSORS, META)
    assert checkpoint.load(saved).meta == META


def test_a_version_of_tomorrow_is_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "VERSION", 99)
    checkpoint.save(saved.with_name("9"), TENSORS, META)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="version 99"):
        checkpoint.load(saved.with_name("9"))


def test_meta_that_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        checkpoint.save(tmp_path / "1", TENSORS, {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_order_is_by_steps_and_old_ones_go(tmp_path: Path) -> None:
    for step in (9, 100, 20):
        checkpoint.save(tmp_path / str(step), {"a": torch.zeros(1)}, {})
    assert [path.name for path in checkpoint.in_order(tmp_path)] == ["9", "20", "100"]
    checkpoint.prune(tmp_path, keep=2, newest=100)
    assert [path.name for path in checkpoint.in_order(tmp_path)] == ["20", "100"]


def test_what_is_damaged_or_half_written_does_not_outlive_what_is_whole(tmp_path: Path) -> None:
    for step in (10, 20, 30):  # 30 was found damaged, training went on from 20
        checkpoint.save(tmp_path / str(step), {"a": torch.zeros(1)}, {})
    (tmp_path / ".25.4711").mkdir()  # its writer was killed
    checkpoint.save(tmp_path / "21", {"a": torch.zeros(1)}, {})
    checkpoint.prune(tmp_path, keep=2, newest=21)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["20", "21"]


def test_tensors_of_another_model_are_named() -> None:
    have = {"a": torch.zeros(2, 3), "b": torch.zeros(1)}
    checkpoint.require(have, have, "x")
    with pytest.raises(CheckpointError, match=r"x: b is missing"):
        checkpoint.require({"a": have["a"]}, have, "x")
    with pytest.raises(CheckpointError, match=r"b is not part"):
        checkpoint.require(have, {"a": have["a"]}, "x")
    with pytest.raises(CheckpointError, match=r"a is torch.float32 \[2, 3\], this model has .* \[3, 2\]"):
        checkpoint.require(have, have | {"a": torch.zeros(3, 2)}, "x")
    with pytest.raises(CheckpointError, match=r"bfloat16"):
        checkpoint.require(have, have | {"b": torch.zeros(1).bfloat16()}, "x")
