"""The adapters that exist: whose they are, what they are called, what they are made of.

One small file each, `<state>/adapters/<id>/adapter.json`, replaced atomically; the directory is an
adapter exactly as long as that file lies in it. Training state is left to `checkpoints`, versions
to `publishing`.
"""

import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import structlog

from ..bus.errors import AdapterExists, AdapterNotFound, AnotherBase, InvalidRequest
from ..bus.ids import NO_ADAPTER, AdapterId, TenantId, checked_name, new_adapter_id
from ..bus.layout import StateLayout
from ..bus.messages import LoraSpec
from .base_identity import base_difference
from .checks import check_lora
from .durable_files import (
    own_directories,
    read_description,
    remove_directory,
    storage_errors,
    sweep,
    write_file,
)

log = structlog.get_logger()

_FILE = "adapter.json"
# Of an adapter that anybody ever made; what is allowed now is the settings' to say.
_HIGHEST_RANK = 2**20
_OUR_DIRECTORY = re.compile(r"ad-[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRecord:
    """One adapter for as long as it lives. base: signature of the base model it belongs to.

    last_version: the highest version number ever begun; it only grows, so none is used twice.
    """

    adapter: AdapterId
    tenant: TenantId
    name: str
    lora: LoraSpec
    base: str
    created_unix_s: float
    last_version: int = 0


@dataclass(frozen=True, slots=True)
class Apart:
    """An adapter on disk that is none of ours, and why. tenant and name: None where nobody can read them."""

    tenant: TenantId | None
    name: str | None
    why: str


class Registry:
    """Adapters of one base model. Those that belong to another stay on disk, untouched: they are `apart`."""

    def __init__(
        self,
        layout: StateLayout,
        base: str,
        records: Iterable[AdapterRecord] = (),
        apart: Mapping[AdapterId, Apart] | None = None,
    ) -> None:
        self._layout = layout
        self._base = base
        self._apart = {**(apart or {})}
        self._records: dict[AdapterId, AdapterRecord] = {}
        # Per tenant, by name: thousands of adapters are looked up one by one.
        self._named: dict[TenantId, dict[str, AdapterId]] = {}
        for record in records:
            self._keep(record)

    def __len__(self) -> int:
        return len(self._records)

    def all(self) -> list[AdapterRecord]:
        return list(self._records.values())

    def draft(
        self,
        tenant: TenantId,
        name: str,
        lora: LoraSpec,
        *,
        now_unix_s: float,
        adapter: AdapterId = NO_ADAPTER,
    ) -> AdapterRecord:
        """Make up a fresh adapter, under an id if one was given it; it exists once it is added.

        Raises:
            AdapterExists, InvalidName
            AnotherBase: the id is that of an adapter apart.
        """
        self.check_apart(adapter, tenant)
        checked_name(name, what="an adapter")
        if name in self._named.get(tenant, ()):
            raise AdapterExists(f"you have an adapter named {name!r} already; choose another name")
        return AdapterRecord(
            adapter=adapter or new_adapter_id(),
            tenant=tenant,
            name=name,
            lora=lora,
            base=self._base,
            created_unix_s=now_unix_s,
        )

    def add(self, record: AdapterRecord) -> None:
        """Raises StorageFailed: the adapter does not exist then."""
        assert record.adapter not in self._records
        self._store(record)

    def owned(self, tenant: TenantId, adapter: AdapterId) -> AdapterRecord:
        """Raises AdapterNotFound, the same for an adapter of another tenant as for none; AnotherBase."""
        self.check_apart(adapter, tenant)
        record = self._records.get(adapter)
        if record is None or record.tenant != tenant:
            raise AdapterNotFound(f"there is no adapter {adapter!r}; `loractl adapters list` shows yours")
        return record

    def check_apart(self, adapter: AdapterId, tenant: TenantId | None = None) -> None:
        """Raises AnotherBase: the adapter lies on disk, and not for us. tenant: who asks, if anybody does."""
        apart = self._apart.get(adapter)
        if apart is not None and (tenant is None or apart.tenant in (None, tenant)):
            raise AnotherBase(f"adapter {adapter!r} is on disk, but {apart.why}")

    def of(self, tenant: TenantId, name: str | None = None) -> list[AdapterRecord]:
        """The tenant's adapters, oldest first, or the one with this name.

        Raises:
            AdapterNotFound: a name was given, and the tenant has no such adapter.
            AnotherBase: the tenant has it on disk, and it is apart.
        """
        mine = self._named.get(tenant, {})
        if name is None:
            records = (self._records[adapter] for adapter in mine.values())
            return sorted(records, key=lambda record: record.created_unix_s)
        if name in mine:
            return [self._records[mine[name]]]
        for apart in self._apart.values():
            if (apart.tenant, apart.name) == (tenant, name):
                raise AnotherBase(f"adapter {name!r} is on disk, but {apart.why}")
        raise AdapterNotFound(f"you have no adapter named {name!r}; `loractl adapters list` shows yours")

    def elsewhere(self) -> dict[TenantId, list[str]]:
        """The names of each tenant's adapters of other base models."""
        names: dict[TenantId, list[str]] = {}
        for each in self._apart.values():
            if each.tenant is not None and each.name is not None:
                names.setdefault(each.tenant, []).append(each.name)
        return names

    def begin_version(self, adapter: AdapterId) -> int:
        """Use up the next version number, on disk before anyone sees it."""
        record = self._records[adapter]
        self._store(replace(record, last_version=record.last_version + 1))
        return record.last_version + 1

    def remove(self, adapter: AdapterId) -> None:
        """From the moment that adapter.json is gone the adapter is, checkpoints and all."""
        with storage_errors("delete the adapter"):
            (self._layout.adapter(adapter) / _FILE).unlink()
        self._drop(self._records.pop(adapter))
        try:
            remove_directory(self._layout.adapter(adapter))
        except OSError as error:
            # The adapter is gone either way; the next start removes what is left of it.
            log.warning("registry.files_not_removed", adapter=adapter, reason=str(error))

    def _store(self, record: AdapterRecord) -> None:
        with storage_errors(f"write adapter {record.name!r} to disk"):
            write_file(self._layout.adapter(record.adapter) / _FILE, msgspec.json.encode(record))
        self._keep(record)

    def _keep(self, record: AdapterRecord) -> None:
        self._records[record.adapter] = record
        self._named.setdefault(record.tenant, {})[record.name] = record.adapter

    def _drop(self, record: AdapterRecord) -> None:
        named = self._named[record.tenant]
        if named.get(record.name) == record.adapter:
            del named[record.name]
        if not named:
            del self._named[record.tenant]


def open_registry(layout: StateLayout, base: str) -> Registry:
    """Read what the disk holds. Foreign and broken directories are left alone and logged.

    Raises:
        StorageFailed: there is no directory of adapters, and none can be made.
    """
    with storage_errors("open the directory of adapters"):
        layout.adapters.mkdir(parents=True, exist_ok=True)
    sweep(layout.adapters)
    records: list[AdapterRecord] = []
    apart: dict[AdapterId, Apart] = {}
    for directory in sorted(own_directories(layout.adapters, layout.adapters)):
        record = _read(directory)
        difference = "" if record is None else base_difference(record.base, base)
        if record is not None and not difference:
            # Where it did not say which weights, it is bound to these from now on.
            records.append(replace(record, base=base))
        elif record is not None:
            log.info("registry.adapter_of_another_base", adapter=record.adapter, base=record.base)
            apart[record.adapter] = Apart(record.tenant, record.name, _of_another_base(difference))
        elif (directory / _FILE).exists():
            apart[AdapterId(directory.name)] = Apart(
                None, None, f"its {_FILE} cannot be read: the log says why"
            )
        elif _OUR_DIRECTORY.fullmatch(directory.name):
            # A crash in the middle of a creation or a deletion: there is no adapter here.
            shutil.rmtree(directory, ignore_errors=True)
    return Registry(layout, base, records, apart)


def exists_on_disk(layout: StateLayout, adapter: AdapterId) -> bool:
    """Whether a directory is an adapter of any base model."""
    return (layout.adapter(adapter) / _FILE).is_file()


def _of_another_base(difference: str) -> str:
    return f"belongs to another base model: {difference}; start the daemon with the model that it had"


def _read(directory: Path) -> AdapterRecord | None:
    file = directory / _FILE
    if not file.is_file():
        return None
    try:
        record = read_description(file, AdapterRecord)
    except (OSError, msgspec.DecodeError) as error:
        log.warning("registry.unreadable_adapter_ignored", file=str(file), reason=str(error))
        return None
    if record.adapter != directory.name:
        log.warning("registry.misplaced_adapter_ignored", file=str(file), adapter=record.adapter)
        return None
    try:
        checked_name(record.name, what="an adapter")
        check_lora(record.lora, max_rank=_HIGHEST_RANK)
    except InvalidRequest as error:
        log.warning("registry.impossible_adapter_ignored", file=str(file), reason=error.message)
        return None
    return record
