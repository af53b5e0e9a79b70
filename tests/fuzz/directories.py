"""The trainer's directories after accidents: nothing but our errors, nothing foreign listed, no path outside."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
import torch
from loractl.bus.errors import LoractlError
from loractl.bus.ids import AdapterId
from loractl.bus.layout import StateLayout
from loractl.tests.fuzz.checks import check_told
from loractl.tests.fuzz.source import Source
from loractl.tests.fuzz.state_trees import ADAPTERS, BASE, LORA, TENANT, Accidents, draft, grow, tensors
from loractl.tests.fuzz.subject import Play, Subject
from loractl.tests.fuzz.watched_files import watching
from loractl.trainer_actor.adapters import on_disk
from loractl.trainer_actor.bank import HostState
from loractl.trainer_actor.checkpoints import Checkpoints
from loractl.trainer_actor.publishing import Versions
from loractl.trainer_actor.registry import Registry, open_registry
from loractl.trainer_actor.snapshots import Snapshots
from loractl.trainer_actor.spill import SpillStore

T = TypeVar("T")
_WRITES_ONE_IN = 4


@contextmanager
def _open(directory: Path) -> Iterator[Play]:
    torch.set_num_threads(1)
    whole, outside = directory / "whole", directory / "outside"
    grow(whole)
    grow(outside)
    (outside / "endless").symlink_to("/dev/zero")
    there = _content(outside)

    def play(source: Source) -> None:
        root = directory / "state"
        shutil.copytree(whole, root)
        try:
            Accidents(source, root, outside).befall()
            with watching(outside, Path("/dev/zero")) as reached:
                _live(source, StateLayout(root))
            assert not reached, reached
            assert _content(outside) == there
        finally:
            shutil.rmtree(root)

    yield play


DIRECTORIES = Subject(name="directories", share=100, open=_open)


def _live(source: Source, layout: StateLayout) -> None:
    """What a trainer does with its directory: at its start, and later."""
    registry = _told(lambda: open_registry(layout, BASE))
    if registry is None:
        return
    known = [record.adapter for record in registry.all()]
    versions, checkpoints, snapshots = Versions(layout), Checkpoints(layout), Snapshots(layout)
    _told(lambda: versions.scan(known, on_disk(layout)))
    for adapter in known:
        _told(lambda adapter=adapter: checkpoints.sweep(adapter))
        _told(lambda adapter=adapter: snapshots.sweep(adapter))
    _check_registry(registry, layout)
    for record in versions.all():
        assert (layout.version(record.adapter, record.number) / "version.json").is_file()
        msgspec.msgpack.encode(record)
        _told(lambda record=record: versions.files(record))
    _spill(source, layout)
    for adapter in known:
        _read_states(layout, checkpoints, snapshots, adapter)
        if source.one_in(_WRITES_ONE_IN):
            _write(registry, checkpoints, snapshots, versions, adapter)


def _check_registry(registry: Registry, layout: StateLayout) -> None:
    for record in registry.all():
        assert record.base == BASE
        assert (layout.adapter(record.adapter) / "adapter.json").is_file()
        assert record.lora.rank > 0
        msgspec.msgpack.encode(record)
        if record.tenant == TENANT and record.name:
            assert registry.of(TENANT, record.name)


def _read_states(
    layout: StateLayout, checkpoints: Checkpoints, snapshots: Snapshots, adapter: AdapterId
) -> None:
    for record in _told(lambda: checkpoints.all(adapter)) or []:
        assert record.adapter == adapter
        found = layout.checkpoint(adapter, record.name) / str(record.sequence)
        msgspec.msgpack.encode(record)
        assert found.is_dir()
        assert not found.is_symlink()
        _told(lambda record=record: checkpoints.find(adapter, record.name))
        _told(lambda record=record: checkpoints.load(record))
    for snapshot in _told(lambda: snapshots.all(adapter)) or []:
        assert snapshot.adapter == adapter
        assert (layout.snapshots(adapter) / snapshot.name).is_dir()
        _told(lambda snapshot=snapshot: snapshots.check(snapshot, LORA, BASE))
        _told(lambda snapshot=snapshot: snapshots.load(snapshot))
    for name in ("1", "0", "", "..", "\u0663", "9" * 300):
        _told(lambda name=name: snapshots.find(adapter, name))


def _write(
    registry: Registry, checkpoints: Checkpoints, snapshots: Snapshots, versions: Versions, adapter: AdapterId
) -> None:
    """What is written into the same directories is there afterwards, or was refused."""
    saved = _told(
        lambda: checkpoints.save(adapter, "first", tensors(7), {"step": "7"}, step=7, lora=LORA, base=BASE)
    )
    if saved is not None:
        assert checkpoints.find(adapter, "first") == saved
        checkpoints.load(saved)
    taken = _told(lambda: snapshots.write(draft(adapter, 7)))
    if taken is not None:
        assert snapshots.newest(adapter) == taken
        snapshots.keep(adapter, taken.name)
    _told(lambda: checkpoints.delete(adapter, "second"))
    _told(lambda: registry.begin_version(adapter))
    _told(lambda: versions.drop(adapter, 1))
    if adapter == ADAPTERS[0]:
        _told(lambda: registry.remove(adapter))


def _spill(source: Source, layout: StateLayout) -> None:
    """States that were set aside, damaged while they lay there."""
    store = _told(lambda: SpillStore(layout.spill))
    if store is None:
        return
    written = HostState(
        lora=LORA,
        step=1,
        tokens=1,
        main=torch.ones(4),
        gradients=torch.ones(4),
        exp_avg=None,
        exp_avg_sq=None,
    )
    store.write(ADAPTERS[0], written)
    file = layout.spill / f"{ADAPTERS[0]}.safetensors"
    match source.randrange(4):
        case 0:
            file.write_bytes(source.damaged(file.read_bytes()))
        case 1:
            os.truncate(file, source.choice((0, 9, 2**40)))
        case 2:
            file.unlink()
            os.mkfifo(file)
    read = _told(lambda: store.read(ADAPTERS[0], torch.empty))
    if read is not None:
        assert torch.equal(read.main, written.main)
    store.drop(ADAPTERS[0])


def _told(action: Callable[[], T]) -> T | None:
    try:
        return action()
    except LoractlError as error:
        check_told(error)
        return None


def _content(root: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        name = os.fspath(path)
        found[name] = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None
    return found
