"""Which versions this sampler knows, has loaded, uses and must let go of. Pure: decisions are data.

The actor performs a decision and comes back with `loaded`, `load_failed` or `removed`. Per version
there is never more than one Load or Remove under way, so the actor needs no locks.

    known ──Load──► loading ──loaded──► loaded ──Remove──► removing ──removed──► known
                        └──load_failed──► known

A retired version that nobody uses leaves the table with a Release. News comes in the order in which it
happened: what is told of after its retirement is there again, such as files that a trainer could not read
for once.
"""

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
    """pins: requests that hold the version, also while they wait. needs: sequences that run on it."""

    record: VersionRecord
    phase: Phase = "known"
    pins: int = 0
    needs: int = 0
    retired: bool = False


class LoadedVersions:
    """The table. max_loaded bounds what is loaded, except that versions needed now always stay.

    A request pins its version as soon as it comes, so that its files stay; it needs the version only
    when its turn has come. However many wait, what is loaded is bounded by the turns.
    """

    def __init__(self, max_loaded: int) -> None:
        self._max_loaded = max_loaded
        # Least recently used first: an entry moves to the end whenever it is needed.
        self._entries: dict[VersionKey, _Entry] = {}

    # --- what others say about versions ----------------------------------------------------------

    def learn(self, records: Iterable[VersionRecord]) -> list[VersionRecord]:
        """Take note of versions, and return those that were new. Loads nothing."""
        new: list[VersionRecord] = []
        for record in records:
            entry = self._entries.setdefault(key_of(record), _Entry(record, retired=True))
            if entry.retired:
                entry.retired = False
                new.append(record)
        return new

    def reconcile(self, records: Iterable[VersionRecord]) -> tuple[list[VersionRecord], list[Decision]]:
        """Take `records` as the whole truth: whatever is not among them has been retired."""
        truth = {key_of(record): record for record in records}
        missing = [key for key in self._entries if key not in truth]
        decisions = [decision for key in missing for decision in self.retire(key)]
        return self.learn(truth.values()), decisions

    def retire(self, key: VersionKey) -> list[Decision]:
        """The version takes no new requests, and goes when nobody uses it."""
        if key not in self._entries:
            return [Release(key)]
        self._entries[key].retired = True
        return self._settled(key)

    def delete(self, adapter: AdapterId) -> list[Decision]:
        """Retire every version of the adapter."""
        keys = [key for key in self._entries if key.adapter == adapter]
        return [decision for key in keys for decision in self.retire(key)]

    # --- what requests do with them --------------------------------------------------------------

    def knows(self, key: VersionKey) -> bool:
        """Whether it can be pinned."""
        entry = self._entries.get(key)
        return entry is not None and not entry.retired

    def record(self, key: VersionKey) -> VersionRecord:
        return self._entries[key].record

    def pin(self, key: VersionKey) -> None:
        """Hold the version, loaded or not, until `unpin`.

        Raises:
            VersionNotFound: unknown here, or retired.
        """
        if not self.knows(key):
            raise VersionNotFound(f"version {key.number} of this adapter does not exist or was retired")
        self._entries[key].pins += 1

    def unpin(self, key: VersionKey) -> list[Decision]:
        entry = self._entries[key]
        assert entry.pins > 0, f"{key} was unpinned more often than pinned"
        entry.pins -= 1
        assert entry.pins or not entry.needs, f"{key} was unpinned while it was needed"
        return self._settled(key)

    def need(self, key: VersionKey) -> list[Decision]:
        """Have a pinned version loaded, and keep it loaded until `done`. Once for each sequence."""
        entry = self._entries[key]
        assert entry.pins > 0, f"{key} is needed without being pinned"
        entry.needs += 1
        self._touch(key)
        loads = [self._load(key)] if entry.phase == "known" else []
        return [*loads, *self._evictions()]

    def done(self, key: VersionKey) -> list[Decision]:
        entry = self._entries[key]
        assert entry.needs > 0, f"{key} was needed less often than done with"
        entry.needs -= 1
        self._touch(key)
        return self._evictions()

    # --- what became of decisions ----------------------------------------------------------------

    def loaded(self, key: VersionKey) -> list[Decision]:
        self._move(key, "loading", "loaded")
        return [*self._settled(key), *self._evictions()]

    def load_failed(self, key: VersionKey) -> list[Decision]:
        """Whoever needed it has been told; the next need tries again."""
        self._move(key, "loading", "known")
        return self._settled(key)

    def removed(self, key: VersionKey) -> list[Decision]:
        """It may be needed again by now."""
        self._move(key, "removing", "known")
        return [self._load(key)] if self._entries[key].needs else self._settled(key)

    def engine_lost(self, keys: Iterable[VersionKey]) -> list[Decision]:
        """An engine died with these loaded: load them again. What is under way reports by itself."""
        lost = [key for key in self._entries if key in set(keys) and self.phase(key) == "loaded"]
        decisions: list[Decision] = []
        for key in lost:
            self._move(key, "loaded", "known")
            entry = self._entries[key]
            again = entry.needs or not entry.retired
            decisions += [self._load(key)] if again else self._settled(key)
        return decisions

    # --- looking in ------------------------------------------------------------------------------

    def phase(self, key: VersionKey) -> Phase | None:
        entry = self._entries.get(key)
        return entry.phase if entry else None

    def in_memory(self) -> list[VersionKey]:
        """What an engine holds or is about to hold, least recently used first."""
        return [key for key, entry in self._entries.items() if entry.phase in ("loading", "loaded")]

    # --- deciding --------------------------------------------------------------------------------

    def _settled(self, key: VersionKey) -> list[Decision]:
        """The next step towards the end of a retired version that nobody holds any more."""
        entry = self._entries[key]
        if not entry.retired or entry.pins:
            return []
        match entry.phase:
            case "known":
                del self._entries[key]
                return [Release(key)]
            case "loaded":
                return [self._remove(key)]
            case "loading" | "removing":
                return []

    def _evictions(self) -> list[Decision]:
        held = self.in_memory()
        idle = [k for k in held if self._entries[k].phase == "loaded" and not self._entries[k].needs]
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
        self._entries[key] = self._entries.pop(key)
