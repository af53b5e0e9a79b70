"""What the journal holds, as the broker reads it (`records.Past`)."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ...bus.errors import StorageFailed
from ...bus.ids import AdapterId, LaneId, RequestId, TenantId
from ...bus.messages import CreateAdapter, LanePosition, UnloadAdapter
from ..decisions import Frames, Key
from .known_ids import KnownIds, id_of
from .records import Logged, Snapshot, VersionDeleted
from .retention import Needed, needed_from
from .tables import Tables

# A frame as it is, or the digest of one that lies apart.
Packed = list[tuple[bool, bytes]]
decode_packed = msgspec.msgpack.Decoder(Packed).decode
_decode_frames = msgspec.msgpack.Decoder(list[bytes]).decode
_decode_positions = msgspec.msgpack.Decoder(tuple[tuple[str, int], ...]).decode

_LOGGED = (
    "SELECT r.number, r.tenant, r.request, r.kind, r.digest, r.adapter, r.lane, r.seq, o.ord, o.failed, o.again,"
    " c.weight, r.came, r.size, r.frames IS NOT NULL"
    " FROM requests r LEFT JOIN outcomes o USING (number) LEFT JOIN crashes c USING (number)"
)
# Of all requests those that say what became of an adapter.
_PAST = f"(r.seq > 0 OR r.kind = '{UnloadAdapter.kind}')"


class Reader:
    """known: which ids may be there; None: look for each."""

    def __init__(self, tables: Tables, known: KnownIds | None = None) -> None:
        self.tables = tables
        self._known = known

    def close(self) -> None:
        self.tables.close()

    def last_number(self) -> int:
        return int(self._one("SELECT last FROM counter"))

    def find(self, key: Key) -> Logged | None:
        one = id_of(key)
        if self._known is not None and one not in self._known:
            return None
        found = self._logged("r.id = ? AND r.tenant = ? AND r.request = ?", one, *key)
        return found[0] if found else None

    def unfinished(self) -> Sequence[Logged]:
        return self._logged("r.number IN (SELECT number FROM unfinished) ORDER BY r.number")

    def adapters(self) -> Sequence[AdapterId]:
        named = self.tables.rows(
            "SELECT adapter FROM requests INDEXED BY requests_that_open WHERE seq = 0 AND adapter != ''"
            " AND adapter NOT IN (SELECT adapter FROM gone) UNION SELECT adapter FROM snapshots"
        )
        return [AdapterId(adapter) for (adapter,) in named if self.after(AdapterId(adapter))]

    def snapshot(self, adapter: AdapterId) -> Snapshot | None:
        newest = self.snapshots(adapter, 1)
        return newest[0] if newest else None

    def snapshots(self, adapter: AdapterId, count: int) -> list[Snapshot]:
        """The newest of those that count, the newest first."""
        sql = "SELECT ord, name, step, digest, positions FROM snapshots WHERE adapter = ? ORDER BY ord DESC LIMIT ?"
        return [_snapshot(adapter, row) for row in self.tables.rows(sql, adapter, count)]

    def begins(self, adapter: AdapterId) -> bool:
        created = (
            "SELECT 1 FROM requests r JOIN outcomes USING (number) WHERE r.adapter = ? AND seq = 0 AND kind = ?"
            " AND NOT failed AND r.adapter NOT IN (SELECT adapter FROM gone)"
            " AND r.adapter NOT IN (SELECT adapter FROM clipped)"
        )
        return bool(self.tables.rows(created, adapter, CreateAdapter.kind))

    def lanes(self, adapter: AdapterId) -> Sequence[LanePosition]:
        needed = self._needed(adapter).lanes
        return [LanePosition(lane=lane, next_seq=max(1, number)) for lane, number in needed.items()]

    def opened(self, adapter: AdapterId) -> Sequence[tuple[LaneId, int]]:
        sql = (
            "SELECT lane, ord FROM requests r JOIN outcomes USING (number) WHERE r.adapter = ? AND seq = 0"
            " AND lane != '' AND NOT failed AND r.adapter NOT IN (SELECT adapter FROM gone) ORDER BY number"
        )
        return [(LaneId(lane), order) for lane, order in self.tables.rows(sql, adapter)]

    def after(self, adapter: AdapterId) -> Sequence[Logged]:
        needed = self._needed(adapter)
        where = "r.adapter = ? AND r.lane = ? AND r.seq >= ?"
        found = [
            logged
            for lane, number in needed.lanes.items()
            for logged in self._logged(where, adapter, lane, max(1, number))
        ]
        if needed.lanes:
            unloads = f"r.adapter = ? AND r.lane = '' AND r.seq = 0 AND r.kind = '{UnloadAdapter.kind}'"
            ended = "(o.ord IS NULL OR (o.ord > ? AND NOT o.failed))"
            found += self._logged(f"{unloads} AND {ended}", adapter, needed.unloads)
        return sorted(found, key=_by_end)

    def harmed(self) -> Mapping[AdapterId, int]:
        return {AdapterId(each): weight for each, weight in self.tables.rows("SELECT * FROM harmed")}

    def owner(self, adapter: AdapterId) -> TenantId | None:
        # Anybody may name an adapter; that a request succeeded says whose it is.
        sql = "SELECT tenant FROM outcomes o JOIN requests USING (number) WHERE o.adapter = ? AND NOT failed LIMIT 1"
        rows = self.tables.rows(sql, adapter) if adapter else []
        return TenantId(rows[0][0]) if rows else None

    def numbered(self, number: int) -> Logged | None:
        return next(iter(self._logged("r.number = ?", number)), None)

    def history(self, adapter: AdapterId, after: int, limit: int) -> Sequence[Logged]:
        ended = self._logged(
            f"o.adapter = ? AND o.ord > ? AND {_PAST} ORDER BY o.ord LIMIT ?", adapter, after, limit
        )
        # The plus keeps SQLite from looking through all of the adapter's requests for the few unfinished ones.
        waits = "r.number IN (SELECT number FROM unfinished) AND +r.adapter = ? AND r.seq > 0 ORDER BY r.number LIMIT ?"
        return [*ended, *self._logged(waits, adapter, limit - len(ended))]

    def request(self, number: int) -> Frames:
        packed = self._one("SELECT frames FROM requests WHERE number = ?", number)
        if packed is None:
            raise StorageFailed(f"the journal has let go of the frames of request {number}")
        packed = decode_packed(packed)
        return [self._payload(data) if apart else data for apart, data in packed]

    def outcome(self, number: int) -> Frames:
        return _decode_frames(self._one("SELECT frames FROM outcomes WHERE number = ?", number))

    def last_event(self) -> int:
        return int(self._one("SELECT last FROM events"))

    def deleted_versions(self) -> Sequence[VersionDeleted]:
        rows = self.tables.rows("SELECT tenant, adapter, version FROM deleted_versions")
        return [
            VersionDeleted(tenant=TenantId(tenant), adapter=AdapterId(adapter), version=version)
            for tenant, adapter, version in rows
        ]

    def _needed(self, adapter: AdapterId) -> Needed:
        return needed_from(self.snapshot(adapter), self.opened(adapter))

    def _payload(self, digest: bytes) -> bytes:
        found: bytes = self._one(
            "SELECT bytes FROM payloads JOIN payload_bytes USING (place) WHERE digest = ?", digest
        )
        return found

    def _one(self, sql: str, *values: object) -> Any:
        rows = self.tables.rows(sql, *values)
        if not rows:
            raise StorageFailed("the journal lacks a row: its file is damaged")
        return rows[0][0]

    def _logged(self, where: str, *values: object) -> list[Logged]:
        return [_logged(row) for row in self.tables.rows(f"{_LOGGED} WHERE {where}", *values)]


def _by_end(logged: Logged) -> tuple[bool, int]:
    """Those with an outcome in the order of their outcomes, then the others in order of arrival."""
    return (True, logged.number) if logged.order is None else (False, logged.order)


def _snapshot(adapter: AdapterId, row: Any) -> Snapshot:
    order, name, step, digest, positions = row
    held = tuple(LanePosition(lane=LaneId(lane), next_seq=seq) for lane, seq in _decode_positions(positions))
    return Snapshot(order=order, adapter=adapter, name=name, step=step, digest=digest, positions=held)


def _logged(row: Any) -> Logged:
    (
        number,
        tenant,
        request,
        kind,
        digest,
        adapter,
        lane,
        seq,
        order,
        failed,
        again,
        crashes,
        came,
        size,
        whole,
    ) = row
    return Logged(
        number=number,
        key=(TenantId(tenant), RequestId(request)),
        kind=kind,
        digest=digest,
        adapter=AdapterId(adapter),
        lane=LaneId(lane),
        seq=seq,
        order=order,
        failed=bool(failed),
        again=bool(again),
        crashes=crashes or 0,
        came_unix_s=came,
        size_bytes=size,
        whole=bool(whole),
    )
