"""Which versions this sampler knows, has loaded, uses and must let go of. Pure: decisions are data.

The actor performs a decision and comes back with `loaded`, `load_failed` or `removed`. Per version
there is never more than one Load or Remove under way, so the actor needs no locks.

    known ──Load──► loading ──loaded──► loaded ──Remove──► removing ──removed──► known
                        └──load_failed──► known

A retired version that nobody uses leaves the table with a Release, and never comes back.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ..bus.errors import VersionNotFound
from ..bus.ids import AdapterId
from ..bus.messages import VersionRecord
from .engine import VersionKey, key_of

Phase = Literal["known", "loading", "loaded", "removing"]


@dataclass(frozen=True, slots=True)
class Load:
    """Add the version to its engine; answer with `loaded` or `load_failed`."""

    record: VersionRecord


@dataclass(frozen=True, slots=True)
class Remove:
    """Take the version out of its engine; answer with `removed`."""

    key: VersionKey


@dataclass(frozen=True, slots=True)
class Release:
    """Tell the broker that this sampler holds the retired version no more."""

    key: VersionKey


Decision = Load | Remove | Release


@dataclass(slots=True)
class _Entry:
    record: VersionRecord
    phase: Phase = "known"
    users: int = 0
    retired: bool = False


class LoadedVersions:
    """The table. max_loaded bounds what is loaded, except that versions in use always stay."""

    def __init__(self, max_loaded: int) -> None:
        self._max_loaded = max_loaded
        # Least recently used first: an entry moves to the end whenever it is pinned or unpinned.
        self._entries: dict[VersionKey, _Entry] = {}
        # Versions of an adapter retire oldest first, so one number says which must not come back.
        self._retired_up_to: dict[AdapterId, float] = {}

    # --- what others say about versions ----------------------------------------------------------

    def learn(self, records: Iterable[VersionRecord]) -> list[VersionRecord]:
        """Take note of versions, and return those that were new. Loads nothing."""
        new = [r for r in records if key_of(r) not in self._entries and not self._is_gone(key_of(r))]
        for record in new:
            self._entries[key_of(record)] = _Entry(record)
        return new

    def reconcile(self, records: Iterable[VersionRecord]) -> tuple[list[VersionRecord], list[Decision]]:
        """Take `records` as the whole truth: whatever is not among them has been retired."""
        truth = {key_of(record): record for record in records}
        missing = [key for key in self._entries if key not in truth]
        decisions = [decision for key in missing for decision in self.retire(key)]
        return self.learn(truth.values()), decisions

    def retire(self, key: VersionKey) -> list[Decision]:
        """The version takes no new requests, and goes when nobody uses it."""
        self._retired_up_to[key.adapter] = max(self._retired_up_to.get(key.adapter, 0), key.number)
        if key not in self._entries:
            return [Release(key)]
        self._entries[key].retired = True
        return self._settled(key)

    def delete(self, adapter: AdapterId) -> list[Decision]:
        """Retire every version of the adapter, for ever."""
        keys = [key for key in self._entries if key.adapter == adapter]
        decisions = [decision for key in keys for decision in self.retire(key)]
        self._retired_up_to[adapter] = math.inf
        return decisions

    # --- what requests do with them --------------------------------------------------------------

    def knows(self, key: VersionKey) -> bool:
        return key in self._entries

    def record(self, key: VersionKey) -> VersionRecord:
        return self._entries[key].record

    def pin(self, key: VersionKey) -> list[Decision]:
        """Hold the version until `unpin`; it is or becomes loaded.

        Raises:
            VersionNotFound: unknown here, or retired.
        """
        entry = self._entries.get(key)
        if entry is None or entry.retired:
            raise VersionNotFound(f"version {key.number} of this adapter does not exist or was retired")
        entry.users += 1
        self._touch(key)
        return [*self._settled(key), *self._evictions()]

    def unpin(self, key: VersionKey) -> list[Decision]:
        entry = self._entries[key]
        assert entry.users > 0, f"{key} was unpinned more often than pinned"
        entry.users -= 1
        self._touch(key)
        return [*self._settled(key, may_load=False), *self._evictions()]

    # --- what became of decisions ----------------------------------------------------------------

    def loaded(self, key: VersionKey) -> list[Decision]:
        self._move(key, "loading", "loaded")
        return [*self._settled(key), *self._evictions()]

    def load_failed(self, key: VersionKey) -> list[Decision]:
        """Whoever pinned it has been told, and unpins; the next pin tries again."""
        self._move(key, "loading", "known")
        return self._settled(key, may_load=False)

    def removed(self, key: VersionKey) -> list[Decision]:
        self._move(key, "removing", "known")
        return self._settled(key)

    def engine_lost(self, keys: Iterable[VersionKey]) -> list[Decision]:
        """An engine died with these loaded: load them again. What is under way reports by itself."""
        lost = [key for key in self._entries if key in set(keys) and self.phase(key) == "loaded"]
        decisions: list[Decision] = []
        for key in lost:
            self._move(key, "loaded", "known")
            if not self._entries[key].retired:
                decisions.append(self._load(key))
            else:
                decisions += self._settled(key)
        return decisions

    # --- looking in ------------------------------------------------------------------------------

    def phase(self, key: VersionKey) -> Phase | None:
        entry = self._entries.get(key)
        return entry.phase if entry else None

    def in_memory(self) -> list[VersionKey]:
        """What an engine holds or is about to hold, least recently used first."""
        return [key for key, entry in self._entries.items() if entry.phase in ("loading", "loaded")]

    # --- deciding --------------------------------------------------------------------------------

    def _settled(self, key: VersionKey, *, may_load: bool = True) -> list[Decision]:
        """The next step of one version, if it has one to take now."""
        entry = self._entries[key]
        match entry.phase:
            case "known" if entry.users and may_load:
                return [self._load(key)]
            case "known" if entry.retired and not entry.users:
                del self._entries[key]
                return [Release(key)]
            case "loaded" if entry.retired and not entry.users:
                return [self._remove(key)]
            case _:
                return []

    def _evictions(self) -> list[Decision]:
        held = self.in_memory()
        idle = [k for k in held if self._entries[k].phase == "loaded" and not self._entries[k].users]
        excess = max(0, len(held) - self._max_loaded)
        return [self._remove(key) for key in idle[:excess]]

    def _load(self, key: VersionKey) -> Load:
        self._move(key, "known", "loading")
        return Load(self._entries[key].record)

    def _remove(self, key: VersionKey) -> Remove:
        self._move(key, "loaded", "removing")
        return Remove(key)

    def _move(self, key: VersionKey, before: Phase, after: Phase) -> None:
        entry = self._entries[key]
        assert entry.phase == before, f"{key} is {entry.phase}, not {before}"
        entry.phase = after

    def _touch(self, key: VersionKey) -> None:
        if key in self._entries:
            self._entries[key] = self._entries.pop(key)

    def _is_gone(self, key: VersionKey) -> bool:
        return key.number <= self._retired_up_to.get(key.adapter, 0)
