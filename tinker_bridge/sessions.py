"""Sessions: who is there, when they were last heard of, and when they end.

Heartbeats are kept in memory and written now and then; what a session's end means for its training
runs and samplers is `housekeeping`'s.
"""

import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from ..bus.errors import QuotaExceeded, SessionEnded, SessionNotFound
from ..bus.ids import TenantId
from .records import Json, SessionRecord
from .store import Store

# Less than this is a busy machine, not one that slept.
_SLEEP_S = 60.0


class Sessions:
    """clock: seconds since the epoch. most_live: of one tenant; 0 is no bound."""

    def __init__(
        self, store: Store, *, expiry_s: float, clock: Callable[[], float], most_live: int = 0
    ) -> None:
        self._store = store
        self._expiry_s = expiry_s
        self._most_live = most_live
        self._clock = clock
        self._live: dict[str, SessionRecord] = {}
        self._seen: dict[str, float] = {}
        self._counts: Counter[TenantId] = Counter()
        self._looked_at = clock()
        # A bridge that was down heard nobody: everyone gets the whole time to come back.
        for record in store.all(SessionRecord):
            if record.status == "active":
                self._begin(record, clock())

    def create(
        self,
        tenant: TenantId,
        *,
        tags: Sequence[str],
        user_metadata: Mapping[str, Json],
        display_name: str | None,
        project: str | None,
        sdk_version: str,
        id_: str = "",
    ) -> SessionRecord:
        """id_: of one that its maker would find again; empty draws one.

        Raises:
            QuotaExceeded: the tenant has too many.
        """
        if id_ and (known := self._store.owned(SessionRecord, tenant, id_)) is not None:
            return known
        if self._most_live and self._counts[tenant] >= self._most_live:
            raise QuotaExceeded(
                f"you have {self._counts[tenant]} sessions, and {self._most_live} may be (quotas.sessions): finish "
                f"some; one that sends no heartbeat ends after {self._expiry_s:.0f} seconds"
            )
        now = self._clock()
        record = SessionRecord(
            id=id_ or str(uuid.uuid4()),
            tenant=tenant,
            created_unix_s=now,
            last_seen_unix_s=now,
            tags=tuple(tags),
            user_metadata=dict(user_metadata),
            display_name=display_name,
            project=project,
            sdk_version=sdk_version,
        )
        self._store.put(record)
        self._begin(record, now)
        return record

    def _begin(self, record: SessionRecord, now: float) -> None:
        self._live[record.id] = record
        self._seen[record.id] = now
        self._counts[record.tenant] += 1

    def active(self, tenant: TenantId, session: str) -> SessionRecord:
        """The session, which has just been heard of.

        Raises:
            SessionNotFound: the tenant has none with this id.
            SessionEnded: it was finished, or expired.
        """
        record = self._live.get(session)
        if record is not None and record.tenant == tenant:
            self._seen[session] = self._clock()
            return record
        ended = self._store.owned(SessionRecord, tenant, session)
        if ended is None:
            raise SessionNotFound(f"there is no session {session!r}: create one first")
        how = "was finished" if ended.status == "finished" else "was not heard of for too long and expired"
        raise SessionEnded(f"session {session} {how}: create a new client; checkpoints are still there")

    def owned(self, tenant: TenantId, session: str) -> SessionRecord:
        """The session, ended or not. Raises SessionNotFound."""
        record = self._store.owned(SessionRecord, tenant, session)
        if record is None:
            raise SessionNotFound(f"there is no session {session!r}")
        return record

    def change(self, record: SessionRecord) -> None:
        """Keep new facts about a session."""
        self._store.put(record)
        if record.id in self._live:
            self._live[record.id] = record

    def end(self, record: SessionRecord, *, finished: bool, reason: str = "", detail: str = "") -> bool:
        """Mark a session as ended; False when it was already: the first word stands.

        Raises:
            StorageFailed: it goes on.
        """
        if record.id not in self._live:
            return False
        last_seen_unix_s = self._seen[record.id]
        status: Literal["finished", "expired"] = "finished" if finished else "expired"
        self._store.put(
            replace(record, status=status, reason=reason, detail=detail, last_seen_unix_s=last_seen_unix_s)
        )
        del self._live[record.id], self._seen[record.id]
        self._counts -= Counter([record.tenant])
        return True

    def live(self) -> list[str]:
        return [*self._live]

    def is_live(self, session: str) -> bool:
        """What belongs to no session (an empty id) stays until it is removed."""
        return not session or session in self._live

    def expired(self) -> list[SessionRecord]:
        """Live sessions that were not heard of for too long. To be asked often.

        Where nobody asked for long, we were stopped or suspended, or the clock was set: everyone then gets
        the whole time again, as after a restart.
        """
        now = self._clock()
        if now - self._looked_at > max(self._expiry_s / 2, _SLEEP_S):
            self._seen = dict.fromkeys(self._seen, now)
        self._looked_at = now
        since = now - self._expiry_s
        return [record for session, record in self._live.items() if self._seen[session] < since]

    def flush(self, *, late_s: float = 0.0) -> None:
        """Write when each was last heard of, where what is written is more than late_s behind."""
        late = [
            replace(record, last_seen_unix_s=self._seen[session])
            for session, record in self._live.items()
            if self._seen[session] > record.last_seen_unix_s + late_s
        ]
        self._store.put(*late)
        self._live.update((record.id, record) for record in late)
