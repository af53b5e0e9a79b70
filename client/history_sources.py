"""What an adapter's history begins with, where that is a checkpoint or version: whether it is still the one
that was loaded, and a copy for a trainer that runs the history alone. And the newest checkpoint, from which an
adapter can be had whose history is cut.
"""

import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ..bus.client import Client
from ..bus.config import Config
from ..bus.errors import AdapterNotFound, InvalidRequest, StorageFailed
from ..bus.ids import AdapterId, TenantId
from ..bus.layout import StateLayout
from ..bus.messages import (
    AdapterDetails,
    HistoryEntry,
    LoadCheckpoint,
    LoadVersion,
    SaveCheckpoint,
)
from .history import (
    KEPT_SO_LONG,
    LOADS,
    Operation,
    changes,
    done_of,
    read_history,
    read_operation,
    read_save,
    without_load,
)


class Kept(msgspec.Struct):
    """Of a checkpoint's description. sequence: the newest of a name counts, and of an adapter."""

    name: str
    step: int
    sequence: int
    digest: str


@dataclass(frozen=True, slots=True)
class _Save:
    entry: HistoryEntry
    digest: str


@dataclass(frozen=True, slots=True)
class Source:
    """Where a history begins. surely: the files are those that were loaded, as the journal says; else it says
    nothing of them."""

    operation: Operation
    surely: bool


def made_it(
    client: Client,
    config: Config,
    details: AdapterDetails,
    tenant: TenantId,
    past: tuple[Sequence[HistoryEntry], bool],
    at_step: int | None,
    *,
    instead: str,
    with_saves: bool = False,
) -> tuple[list[HistoryEntry], Source | None]:
    """What made an adapter what it was at a step, and what that begins with. past: as `read_history` has it. at_step,
    with_saves: as of `changes`.

    A checkpoint of its own that it went back to, and that is not kept as it was, is done without: the journal has
    what led to it.

    Raises:
        InvalidRequest: the journal does not tell, or what it was loaded from is no longer kept.
    """
    entries, whole = past
    made = changes(entries, at_step=at_step, whole=whole, with_saves=with_saves)
    if not (whole or _begins_with_a_load(made)):
        raise InvalidRequest(
            f"the journal does not go back to this adapter's beginning any more: {KEPT_SO_LONG}; {instead}"
        )
    while made:
        operation, _ = read_operation(client, details.adapter, made[0], tenant)
        load = operation if isinstance(operation, LoadCheckpoint) else None
        own = load is not None and load.source == details.adapter
        save = _saved(client, load, made[0], tenant, entries if own else None) if load is not None else None
        try:
            return made, _source_of(operation, save, StateLayout(Path(config.state_dir)))
        except InvalidRequest:
            if load is None or save is None or not own or not load.with_optimizer:
                raise
            so_far = [each for each in done_of(entries) if each.order <= made[-1].order]
            entries = without_load(so_far, made[0], save.entry)
            made = changes(entries, at_step=None, whole=whole, with_saves=with_saves)
            if not (whole or _begins_with_a_load(made)):
                raise
    return made, None


def _begins_with_a_load(made: Sequence[HistoryEntry]) -> bool:
    return bool(made) and made[0].operation in LOADS


def _source_of(operation: Operation, save: _Save | None, layout: StateLayout) -> Source:
    """What an operation loads, if it does. save: the one that it loads, where the journal tells.

    Raises:
        InvalidRequest: that is not there any more, or is another by now.
    """
    match operation:
        case LoadVersion(source=adapter, version=version):
            if not layout.version(adapter, version).is_dir():
                raise _gone(f"version {version}")
        case LoadCheckpoint(name=name):
            kept = _kept(layout, operation)
            if save is not None and save.digest != kept.digest:
                raise InvalidRequest(
                    f"checkpoint {name!r}, which it was loaded from, was saved anew under its name since: "
                    "what it was is no longer kept"
                )
            return Source(operation, surely=save is not None)
    return Source(operation, surely=True)


def copy_source(source: Source, here: StateLayout, there: StateLayout) -> None:
    """Put the files that the first operation loads, if it does, where a fresh trainer finds them.

    Raises:
        InvalidRequest: they went just now.
        StorageFailed: they cannot be copied.
    """
    match source.operation:
        case LoadCheckpoint(source=adapter, name=name):
            what = f"checkpoint {name!r}"
            _copy(here.checkpoint(adapter, name), there.checkpoint(adapter, name), what)
        case LoadVersion(source=adapter, version=version):
            what = f"version {version}"
            _copy(here.version(adapter, version), there.version(adapter, version), what)
        case _:
            return
    _copy(here.adapter(adapter) / "adapter.json", there.adapter(adapter) / "adapter.json", what)


def _copy(here: Path, there: Path, what: str) -> None:
    there.parent.mkdir(parents=True, exist_ok=True)
    try:
        if here.is_dir():
            shutil.copytree(here, there)
        else:
            shutil.copy2(here, there)
    except FileNotFoundError as error:
        raise _gone(what) from error
    except OSError as error:  # of a tree: whatever went wrong with each of its files
        if not any(here.rglob("*.json")):
            raise _gone(what) from error
        raise StorageFailed(f"cannot copy {what}: {error.strerror or error}") from error


def newest_checkpoint(layout: StateLayout, adapter: AdapterId) -> Kept | None:
    return _newest((layout.adapter(adapter) / "checkpoints").glob("*/*/checkpoint.json"))


def _kept(layout: StateLayout, operation: LoadCheckpoint) -> Kept:
    """The newest checkpoint of that name. Raises InvalidRequest: there is none."""
    found = _newest(layout.checkpoint(operation.source, operation.name).glob("*/checkpoint.json"))
    if found is None:
        raise _gone(f"checkpoint {operation.name!r}")
    return found


def _newest(files: Iterable[Path]) -> Kept | None:
    found: list[Kept] = []
    for file in files:
        with suppress(OSError, msgspec.DecodeError):  # it went just now, or is nobody's
            found.append(msgspec.json.decode(file.read_bytes(), type=Kept))
    return max(found, key=lambda each: each.sequence, default=None)


def _saved(
    client: Client,
    load: LoadCheckpoint,
    at: HistoryEntry,
    tenant: TenantId,
    entries: Sequence[HistoryEntry] | None,
) -> _Save | None:
    """The save of what had that name when it was loaded; None where the journal does not tell any more.
    entries: of the adapter that saved it, where they are known."""
    owner = load.source_owner or tenant
    try:
        if entries is None:
            entries, _ = read_history(client, load.source, owner)
        saves = [each for each in done_of(entries) if each.operation == SaveCheckpoint.kind]
        for entry in reversed([each for each in saves if each.order < at.order]):
            operation, outcome = read_save(client, load.source, entry, owner)
            if operation.name == load.name:
                # Another step: it was saved once more where the journal does not tell.
                loaded = at.step if load.with_optimizer else entry.step
                return _Save(entry, outcome.digest) if entry.step == loaded else None
    except (AdapterNotFound, InvalidRequest):
        return None
    return None


def _gone(what: str) -> InvalidRequest:
    return InvalidRequest(f"{what}, which it was loaded from, is no longer kept")
