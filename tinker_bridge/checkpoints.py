"""Checkpoints as Tinker names them: tinker://<run>/<segment>/<name>, of three kinds, that may expire.

Owns their records and rules. The states themselves lie with the trainer (training checkpoints and
published versions) or in `<state>/exports` (external ones), and go when their record goes.
"""

import asyncio
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from ..bus.errors import (
    AdapterNotFound,
    CheckpointExists,
    CheckpointNotFound,
    InvalidRequest,
    StorageFailed,
)
from ..bus.ids import TenantId, checked_name
from ..bus.layout import StateLayout
from ..bus.messages import DeleteCheckpoint, DeleteVersion
from .base import Bus
from .records import CheckpointKind, CheckpointRecord, RunRecord, parsed_path, tinker_path
from .store import Store, listed
from .whole import is_whole

# What the API documents: an hour to ten years.
_LEAST_TTL_S = 3600
_MOST_TTL_S = 10 * 366 * 86400


class Checkpoints:
    """clock: seconds since the epoch."""

    def __init__(self, store: Store, bus: Bus, layout: StateLayout, *, clock: Callable[[], float]) -> None:
        self._store = store
        self._bus = bus
        self._layout = layout
        self._clock = clock
        # How many saves of a name are under way: several in a row may ask for the same one.
        self._reserved: Counter[str] = Counter()

    def check_free(self, run: RunRecord, kind: CheckpointKind, name: str, *, overwrite: bool = False) -> None:
        """Raises InvalidName, CheckpointExists: the name may not be reserved."""
        path = tinker_path(run.id, kind, checked_name(name, what="a checkpoint"))
        if not overwrite and (path in self._reserved or self._live(path) is not None):
            raise CheckpointExists(f"{path} exists already: choose another name{_OVERWRITE[kind]}")

    def reserve(self, run: RunRecord, kind: CheckpointKind, name: str) -> str:
        """Claim a name until `release`; returns its tinker path."""
        path = tinker_path(run.id, kind, name)
        self._reserved[path] += 1
        return path

    def release(self, path: str) -> None:
        self._reserved[path] -= 1
        self._reserved += Counter()  # drops what is at zero

    def saving(self, run: str) -> bool:
        """Whether a save of this run is under way."""
        return any(path.startswith(f"tinker://{run}/") for path in self._reserved)

    def made(self, run: RunRecord, kind: CheckpointKind, name: str, made_by: str) -> CheckpointRecord | None:
        """What the same work recorded before, if it did."""
        known = self._store.find(CheckpointRecord, tinker_path(run.id, kind, name))
        return known if known is not None and made_by and known.made_by == made_by else None

    def add(
        self,
        run: RunRecord,
        kind: CheckpointKind,
        name: str,
        *,
        ttl_s: int | None,
        user_metadata: Mapping[str, str],
        version: int = 0,
        token: str = "",
        size_bytes: int = 0,
        made_by: str = "",
    ) -> CheckpointRecord:
        """Record a checkpoint that was just made; one that the same work recorded before stays.

        Raises:
            StorageFailed
        """
        if (known := self.made(run, kind, name, made_by)) is not None:
            return known
        now = self._clock()
        record = CheckpointRecord(
            id=tinker_path(run.id, kind, name),
            tenant=run.tenant,
            parent=run.id,
            created_unix_s=now,
            kind=kind,
            name=name,
            adapter=run.adapter,
            base_model=run.base_model,
            lora=run.lora,
            version=version,
            token=token,
            size_bytes=size_bytes,
            expires_unix_s=None if ttl_s is None else now + ttl_s,
            user_metadata=dict(user_metadata),
            made_by=made_by,
        )
        self._set_aside(record.id)
        self._store.put(record)
        return record

    def _set_aside(self, path: str) -> None:
        """An expired sampler checkpoint whose name is used again before it was swept: its version has to go
        all the same, so its record stays under an id that nobody can ask for."""
        old = self._store.find(CheckpointRecord, path)
        if old is not None and old.kind == "sampler":
            self._store.put(replace(old, id=f"{path}#{old.version}"))

    def find(self, tenant: TenantId, path: str) -> CheckpointRecord:
        """A checkpoint that this tenant may read: its own, or one that was made public.

        Raises:
            InvalidRequest: that is no tinker path.
            CheckpointNotFound: there is none, it expired, its files are gone, or it is another tenant's.
        """
        record = self.recorded(tenant, path)
        if not is_whole(self._layout, record):
            raise CheckpointNotFound(
                f"there is no checkpoint {path} any more: its files are gone from the server's disk or damaged; "
                "load another (and delete this one, or overwrite it, to use its name again)"
            )
        return record

    def recorded(self, tenant: TenantId, path: str) -> CheckpointRecord:
        """As `find`, whether or not its files are there."""
        if parsed_path(path) is None:
            raise InvalidRequest(
                f"{path[:200]!r} is no checkpoint path: write tinker://<run>/<weights|sampler_weights>/<name>"
            )
        record = self._live(path)
        if record is None or (record.tenant != tenant and not record.public):
            raise CheckpointNotFound(f"there is no checkpoint {path}: it never was, was deleted, or expired")
        return record

    def owned(self, tenant: TenantId, path: str) -> CheckpointRecord:
        """The tenant's own checkpoint. Raises as `find`."""
        self.deletable(tenant, path)
        return self.find(tenant, path)

    def deletable(self, tenant: TenantId, path: str) -> CheckpointRecord:
        """As `owned`, whether or not its files are there."""
        record = self.recorded(tenant, path)
        if record.tenant != tenant:
            raise CheckpointNotFound(f"there is no checkpoint {path}")
        return record

    def of_run(self, run: str) -> list[CheckpointRecord]:
        """Oldest first, without those that expired."""
        return [each for each in self._store.of_parent(CheckpointRecord, run) if not self._over(each)]

    def listed_of_run(self, run: str) -> list[CheckpointRecord]:
        """The same without those whose files are gone."""
        return [each for each in self.of_run(run) if not each.gone]

    def page(self, tenant: TenantId, *, limit: int, offset: int) -> tuple[list[CheckpointRecord], int]:
        """A page of the tenant's checkpoints that are listed, newest first, and how many there are."""
        only = listed(self._clock())
        page = self._store.page(CheckpointRecord, tenant, only, limit=limit, offset=offset)
        return page, self._store.count(CheckpointRecord, tenant, only)

    async def by_project(self, tenant: TenantId) -> list[tuple[str | None, int, int]]:
        """See `Store.checkpoints_by_project`."""
        return await asyncio.to_thread(self._store.checkpoints_by_project, tenant, self._clock())

    async def look_for_files(self, after: str, *, limit: int) -> str:
        """Note of the next records behind one whether their files are there. Returns the last of them, or ""
        where there are no more. Raises StorageFailed."""
        records = self._store.after(CheckpointRecord, after, limit=limit)
        whole = await asyncio.to_thread(lambda: [is_whole(self._layout, each) for each in records])
        for record, there in zip(records, whole, strict=True):
            # Saved anew meanwhile, or changed, it has another look with the next round.
            if record.gone == there and self._store.find(CheckpointRecord, record.id) == record:
                self._store.put(replace(record, gone=not there))
        return records[-1].id if len(records) == limit else ""

    def check_public(self, record: CheckpointRecord, *, public: bool) -> None:
        """Raises CheckpointExists: it is not public, or not private, but the other already."""
        if record.public != public:
            raise CheckpointExists(f"{record.id} is {'private' if public else 'public'} already")

    def set_public(self, record: CheckpointRecord, *, public: bool) -> None:
        """Raises CheckpointExists: it is that already, as the API documents."""
        self.check_public(record, public=not public)
        self._store.put(replace(record, public=public))

    def set_ttl(self, record: CheckpointRecord, ttl_s: int | None) -> None:
        """Let it expire in ttl_s from now, or never. Raises InvalidRequest."""
        expires = None if (ttl := checked_ttl(ttl_s)) is None else self._clock() + ttl
        self._store.put(replace(record, expires_unix_s=expires))

    def expired(self) -> list[CheckpointRecord]:
        return self._store.expired(CheckpointRecord, self._clock())

    async def delete(self, record: CheckpointRecord) -> None:
        """Delete what lies behind a record, then the record: one that is cut short can be repeated.

        Raises:
            LoractlError: the record is there, and so may be some of what lies behind it.
        """
        match record.kind:
            case "training":
                await self._forgiving(DeleteCheckpoint(adapter=record.adapter, name=record.name), record)
            case "sampler":
                await self._forgiving(DeleteVersion(adapter=record.adapter, version=record.version), record)
            case "external":
                assert record.token
                # In a thread: the files may be many gigabytes.
                await asyncio.to_thread(_remove_files, self._layout.exports / record.token)
        # Whoever saved under the same name in the meantime has another record, which stays.
        if (now := self._store.find(CheckpointRecord, record.id)) is not None and (
            now.created_unix_s == record.created_unix_s
        ):
            self._store.delete(record)

    async def _forgiving(self, request: DeleteCheckpoint | DeleteVersion, record: CheckpointRecord) -> None:
        try:
            await self._bus.request(request, tenant=record.tenant)
        except (CheckpointNotFound, AdapterNotFound):
            return  # gone already: an earlier deletion was cut short

    def _live(self, path: str) -> CheckpointRecord | None:
        record = self._store.find(CheckpointRecord, path)
        return None if record is None or self._over(record) else record

    def _over(self, record: CheckpointRecord) -> bool:
        return record.expires_unix_s is not None and record.expires_unix_s <= self._clock()


def _remove_files(directory: Path) -> None:
    try:
        shutil.rmtree(directory)
    except FileNotFoundError:
        return  # gone already: an earlier deletion was cut short
    except OSError as error:
        raise StorageFailed(f"cannot delete the export: {error.strerror or error}") from error


def checked_ttl(ttl_s: int | None) -> int | None:
    """Raises InvalidRequest: outside of an hour to ten years."""
    if ttl_s is not None and not _LEAST_TTL_S <= ttl_s <= _MOST_TTL_S:
        raise InvalidRequest(f"ttl_seconds is {ttl_s}: it can be 3600 (an hour) to ten years, or none at all")
    return ttl_s


_OVERWRITE: Mapping[CheckpointKind, str] = {
    "training": ", or overwrite it",
    "sampler": "",
    "external": "",
}
