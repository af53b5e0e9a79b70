"""The published versions: which exist, which one a sample gets, which go, and the numbered events.

A version is live, then closing (retired for newcomers, but a request or a receipt still needs it),
then retired (the event is out, samplers let go of it), then its files are dropped. Only when no
admitted request needs a version does its event go out, so a sampler never sees a request for a
version that it was told to remove. Disk is the truth: the trainer brings what it holds whenever it
starts, and event numbers go on.

What makes a version close: newer ones, the deletion of its adapter, or its own. A held one closes
for the latter two alone.
"""

import math
from collections import Counter
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ..bus.errors import VersionNotFound
from ..bus.ids import ActorId, AdapterId, TenantId
from ..bus.messages import (
    AdapterDeleted,
    AdapterPublished,
    VersionRecord,
    VersionRetired,
    VersionTable,
)
from .decisions import Event


class VersionKey(NamedTuple):
    adapter: AdapterId
    number: int


@dataclass(frozen=True, slots=True)
class Drop:
    """No sampler holds this version any more: its directory may go."""

    version: VersionKey


Change = Event | Drop


@dataclass(slots=True)
class _Version:
    """pins: admitted requests and open receipts. awaiting: samplers that may still hold it."""

    record: VersionRecord
    phase: Literal["live", "closing", "retired"] = "live"
    pins: int = 0
    awaiting: set[ActorId] = field(default_factory=set)


class Versions:
    """keep: newest versions of an adapter that stay, those that are held not counted. last_event: the number
    after which events go on."""

    def __init__(self, *, keep: int, last_event: int = 0) -> None:
        self._keep = keep
        self._adapters: dict[AdapterId, dict[int, _Version]] = {}
        self._deleting: set[AdapterId] = set()
        # What was retired, so that a directory that turns up again is known to be left over: numbers
        # up to here, but held ones only where the adapter was deleted (infinity), and these by name.
        self._floor: dict[AdapterId, float] = {}
        self._deleted: set[tuple[TenantId, VersionKey]] = set()
        # Pins of versions that vanished under them: they count again should the files come back.
        self._astray: Counter[VersionKey] = Counter()
        self._knows_disk = False
        self._holders: set[ActorId] = set()
        self._last_event = last_event

    @property
    def last_event(self) -> int:
        return self._last_event

    def __len__(self) -> int:
        """How many can be sampled from."""
        return sum(v.phase == "live" for numbers in self._adapters.values() for v in numbers.values())

    def table(self, tenant: TenantId | None = None) -> VersionTable:
        """What samplers must serve; for one tenant, what it can still ask for."""
        versions = [version for numbers in self._adapters.values() for version in numbers.values()]
        if tenant is None:
            shown = [v.record for v in versions if v.phase != "retired"]
        else:
            shown = [v.record for v in versions if v.phase == "live" and v.record.tenant == tenant]
        return VersionTable(last_event=self._last_event, records=tuple(shown))

    def newest(self, adapter: AdapterId) -> int:
        """Number of the version that "latest" means now; 0 when none can be sampled from."""
        return max((n for n, v in self._adapters.get(adapter, {}).items() if v.phase == "live"), default=0)

    def admit(self, tenant: TenantId, adapter: AdapterId, number: int | None) -> VersionKey:
        """Decide which version a sample gets; None is the newest, held or not. It stays until `unpin`.

        tenant: whose adapter it must be.

        Raises:
            VersionNotFound: the tenant has no such version. Another tenant's adapter answers
                exactly as one that does not exist.
        """
        live = {
            n: version
            for n, version in self._adapters.get(adapter, {}).items()
            if version.phase == "live" and version.record.tenant == tenant
        }
        if not live:
            raise VersionNotFound(
                f"no version of adapter {adapter!r} is published: check its id, or publish it first"
            )
        if number is not None and number not in live:
            there = ", ".join(map(str, sorted(live)))
            name = live[max(live)].record.name
            raise VersionNotFound(f"adapter {name!r} has no version {number}; there is {there}")
        key = VersionKey(adapter, max(live) if number is None else number)
        live[key.number].pins += 1
        return key

    def pin(self, key: VersionKey) -> None:
        self._adapters[key.adapter][key.number].pins += 1

    def unpin(self, key: VersionKey) -> list[Change]:
        version = self._find(key)
        if version is None:  # its files vanished under it, see `rebuild`
            self._astray -= Counter([key])
            return []
        version.pins -= 1
        assert version.pins >= 0
        return self._close(key.adapter)

    def written(self, record: VersionRecord) -> list[Change]:
        """A new version lies on disk: announce it, and retire what is too old.

        One that is known was told of again, because its publish was asked for again: nothing changed.
        """
        if self._find(VersionKey(record.adapter, record.number)) is not None:
            return []
        added = self._add(record)
        return [*added, *self._retire_old(record.adapter)]

    def deleted(self, adapter: AdapterId) -> list[Change]:
        """The adapter is gone: no new request gets any of its versions."""
        self._deleting.add(adapter)
        self._floor[adapter] = math.inf
        for version in self._adapters.get(adapter, {}).values():
            if version.phase == "live":
                version.phase = "closing"
        return self._close(adapter)

    def may_delete(self, tenant: TenantId, key: VersionKey) -> bool:
        """Whether there is, or may be, something for `delete` to do."""
        version = self._find(key)
        return not self._knows_disk if version is None else version.record.tenant == tenant

    def delete(self, tenant: TenantId, key: VersionKey) -> list[Change]:
        """Retire one version of the tenant, held or not. One that it does not have is left alone.

        Before a trainer has said what the disk holds, the wish is kept until it does.
        """
        version = self._find(key)
        if version is None:
            if not self._knows_disk:
                self._deleted.add((tenant, key))
            return []
        if version.record.tenant != tenant:
            return []
        self._deleted.add((tenant, key))
        if version.phase == "live":
            version.phase = "closing"
        return self._close(key.adapter)

    def rebuild(
        self, records: Iterable[VersionRecord], is_awaited: Callable[[VersionRecord], bool] = lambda _: False
    ) -> list[Change]:
        """A trainer started and brought what lies on disk: take that for the truth. is_awaited: whether the
        publish that made a version is under way, and will ask for it."""
        found = {VersionKey(record.adapter, record.number): record for record in records}
        self._knows_disk = True
        changes: list[Change] = []
        for key in [*self._keys()]:
            if key not in found:
                changes += self._vanished(key)
        for key in sorted(found):
            if self._find(key) is not None:
                changes += self._drop_if_free(key)
            elif self._is_left_over(found[key]):
                changes.append(Drop(key))
            else:
                changes += self._add(found[key])
        on_disk = {key.adapter for key in found}
        self._floor = {adapter: floor for adapter, floor in self._floor.items() if adapter in on_disk}
        self._deleted = {(tenant, key) for tenant, key in self._deleted if key in found}
        awaited = {key for key, record in found.items() if is_awaited(record)}
        for adapter in sorted(on_disk):
            changes += self._retire_old(adapter, awaited)
        for adapter in [*self._deleting]:
            changes += self._close(adapter)
        return changes

    def table_sent(self, sampler: ActorId) -> list[Change]:
        """From now on this sampler may hold any version that is not retired, and holds no other.

        A sampler that never had a table holds nothing. One that asks again lets go of whatever the
        new table lacks, and of some versions it may never hear: no event tells of what a table has
        told already. Nobody's request runs on a retired version, so its files may go at once.
        """
        self._holders.add(sampler)
        return [change for key in [*self._keys()] for change in self.released(sampler, key)]

    def released(self, sampler: ActorId, key: VersionKey) -> list[Change]:
        version = self._find(key)
        if version is None:
            return []
        version.awaiting.discard(sampler)
        return self._drop_if_free(key)

    def sampler_lost(self, sampler: ActorId) -> list[Change]:
        """A dead sampler holds nothing."""
        self._holders.discard(sampler)
        return [change for key in [*self._keys()] for change in self.released(sampler, key)]

    def _find(self, key: VersionKey) -> _Version | None:
        return self._adapters.get(key.adapter, {}).get(key.number)

    def _keys(self) -> Iterable[VersionKey]:
        return (VersionKey(adapter, n) for adapter, numbers in self._adapters.items() for n in numbers)

    def _next_event(self) -> int:
        self._last_event += 1
        return self._last_event

    def _add(self, record: VersionRecord) -> list[Change]:
        pins = self._astray.pop(VersionKey(record.adapter, record.number), 0)
        self._adapters.setdefault(record.adapter, {})[record.number] = _Version(record, pins=pins)
        return [AdapterPublished(number=self._next_event(), record=record)]

    def _retire_old(self, adapter: AdapterId, awaited: Container[VersionKey] = ()) -> list[Change]:
        numbers = self._adapters.get(adapter, {})
        passing = sorted(n for n, v in numbers.items() if v.phase == "live" and not v.record.held)
        for number in passing[: -self._keep]:
            if VersionKey(adapter, number) not in awaited:
                numbers[number].phase = "closing"
        return self._close(adapter)

    def _close(self, adapter: AdapterId) -> list[Change]:
        """Retire what is closing and needed by nobody; a deleted adapter goes as a whole."""
        numbers = self._adapters.get(adapter, {})
        if adapter in self._deleting:
            if any(version.pins for version in numbers.values()):
                return []
            self._deleting.discard(adapter)
            event = AdapterDeleted(number=self._next_event(), adapter=adapter)
            return [event, *(c for n in [*numbers] for c in self._let_go(VersionKey(adapter, n)))]
        closing = [n for n, version in numbers.items() if version.phase == "closing" and not version.pins]
        changes: list[Change] = []
        for number in closing:
            changes.append(VersionRetired(number=self._next_event(), adapter=adapter, version=number))
            changes += self._let_go(VersionKey(adapter, number))
        return changes

    def _let_go(self, key: VersionKey) -> list[Change]:
        version = self._adapters[key.adapter][key.number]
        if version.phase != "retired":
            version.phase, version.awaiting = "retired", set(self._holders)
            if (version.record.tenant, key) not in self._deleted:
                self._floor[key.adapter] = max(self._floor.get(key.adapter, 0), key.number)
        return self._drop_if_free(key)

    def _drop_if_free(self, key: VersionKey) -> list[Change]:
        version = self._adapters[key.adapter][key.number]
        if version.phase != "retired" or version.awaiting:
            return []
        self._forget(key)
        return [Drop(key)]

    def _is_left_over(self, record: VersionRecord) -> bool:
        """Whether this version, which the table lacks, was retired and only its files are still there."""
        if (record.tenant, VersionKey(record.adapter, record.number)) in self._deleted:
            return True
        floor = self._floor.get(record.adapter, 0)
        return record.number <= floor and (not record.held or floor == math.inf)

    def _vanished(self, key: VersionKey) -> list[Change]:
        """Its files are gone from disk: samplers are told, nothing is left to drop."""
        version = self._adapters[key.adapter][key.number]
        self._forget(key)
        if version.phase == "retired":
            return []
        self._astray += Counter({key: version.pins})
        return [VersionRetired(number=self._next_event(), adapter=key.adapter, version=key.number)]

    def _forget(self, key: VersionKey) -> None:
        numbers = self._adapters[key.adapter]
        del numbers[key.number]
        if not numbers:
            del self._adapters[key.adapter]
