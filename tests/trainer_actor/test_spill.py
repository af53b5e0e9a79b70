"""Training states on disk: real safetensors files, whole or absent, that no restart finds again."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from loractl.bus.errors import StorageFailed
from loractl.bus.ids import AdapterId
from loractl.bus.messages import LoraSpec
from loractl.trainer_actor.bank import PIECES, HostState
from loractl.trainer_actor.host_memory import host_piece
from loractl.trainer_actor.spill import SpillStore
from safetensors import safe_open
from torch import Tensor

A = AdapterId("a")
LORA = LoraSpec(rank=4, alpha=8.0, seed=1)


def plain_piece(numel: int) -> Tensor:
    return host_piece(numel, pinned=False)


def state(numel: int = 1000, *, gradients: bool = True, step: int = 3) -> HostState:
    return HostState(
        lora=LORA,
        step=step,
        tokens=17,
        main=torch.randn(numel),
        gradients=torch.randn(numel) if gradients else None,
        exp_avg=torch.randn(numel),
        exp_avg_sq=torch.randn(numel),
    )


def test_what_was_written_is_read_bit_for_bit(tmp_path: Path) -> None:
    store, written = SpillStore(tmp_path / "spill"), state()
    store.write(A, written)

    read = store.read(A, plain_piece)

    assert (read.lora, read.step, read.tokens) == (LORA, 3, 17)
    assert all(torch.equal(getattr(read, name), getattr(written, name)) for name in PIECES)


def test_a_state_larger_than_a_chunk_is_read_whole(tmp_path: Path) -> None:
    store, written = SpillStore(tmp_path / "spill"), state(3_000_001, gradients=False)
    store.write(A, written)

    read = store.read(A, plain_piece)

    assert torch.equal(read.main, written.main)
    assert torch.equal(read.exp_avg_sq, written.exp_avg_sq)
    assert read.gradients is None


def test_the_file_is_safetensors_for_anyone_who_looks(tmp_path: Path) -> None:
    store, written = SpillStore(tmp_path / "spill"), state()
    store.write(A, written)

    with safe_open(tmp_path / "spill" / "a.safetensors", framework="pt") as opened:
        names = set(opened.keys())
        assert names == set(PIECES)
        assert torch.equal(opened.get_tensor("exp_avg"), written.exp_avg)
        assert opened.metadata() == {"step": "3", "tokens": "17"}


def test_a_start_finds_nothing_of_the_last_trainer(tmp_path: Path) -> None:
    SpillStore(tmp_path / "spill").write(A, state())

    SpillStore(tmp_path / "spill")

    assert list((tmp_path / "spill").iterdir()) == []


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    store, old = SpillStore(tmp_path / "spill"), state()
    store.write(A, old)
    (tmp_path / "spill" / "a.aside").mkdir()  # as good as a disk that refuses

    with pytest.raises(StorageFailed, match="cannot set a training state aside on disk"):
        store.write(A, state(step=4))

    assert store.read(A, plain_piece).step == 3


def test_a_disk_without_room_is_refused_with_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SpillStore(tmp_path / "spill")
    usage = namedtuple("usage", ["total", "used", "free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 100, 100))

    with pytest.raises(StorageFailed, match="it takes 16000 bytes and the disk has 100 free"):
        store.write(A, state())

    assert list((tmp_path / "spill").iterdir()) == []


def test_a_dropped_file_is_gone_and_dropping_it_again_is_fine(tmp_path: Path) -> None:
    store = SpillStore(tmp_path / "spill")
    store.write(A, state())

    store.drop(A)
    store.drop(A)

    assert list((tmp_path / "spill").iterdir()) == []


def test_a_directory_that_cannot_be_made_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")

    with pytest.raises(StorageFailed, match="cannot make room for training states on disk"):
        SpillStore(tmp_path / "file" / "spill")


def test_host_memory_has_the_size_that_was_asked_for() -> None:
    piece = host_piece(100_003, pinned=False)

    assert piece.shape == (100_003,)
    assert piece.untyped_storage().nbytes() == 400_012
    assert not piece.any()
