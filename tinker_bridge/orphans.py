"""What a crash left with the trainer that no record speaks of: adapters, and versions that are held."""

from collections.abc import Iterable

import structlog

from ..bus.ids import AdapterId, TenantId
from ..bus.messages import (
    AdapterList,
    DeleteAdapter,
    DeleteVersion,
    GetVersions,
    ListAdapters,
    VersionTable,
)
from .bridge import Bridge
from .records import CheckpointRecord, RunRecord, SamplerRecord, SessionRecord

log = structlog.get_logger()

# Whose it is, the adapter, and one of its versions; 0 is the adapter itself.
_Left = tuple[TenantId, AdapterId, int]


class Orphans:
    """Looked for once after a start. What is being made or saved looks the same until it is answered, so
    what is found is deleted only if nothing speaks of it grace_s later either.
    """

    def __init__(self, bridge: Bridge, *, grace_s: float) -> None:
        self._bridge = bridge
        self._grace_s = grace_s
        self._found: set[_Left] | None = None
        self._due_at = 0.0
        self._done = False

    async def look(self, now: float) -> None:
        """Raises LoractlError: the next call does it."""
        if self._found is None:
            await self._bridge.base.details()  # before a trainer is ready, the broker knows of no versions
            self._found = await self._unknown()
            self._due_at = now + self._grace_s
        elif not self._done and now >= self._due_at:
            for left in self._found & await self._unknown():
                await self._delete(*left)
            self._done = True

    async def _delete(self, tenant: TenantId, adapter: AdapterId, version: int) -> None:
        log.info("orphan.deleted", adapter=adapter, version=version)
        request = (
            DeleteVersion(adapter=adapter, version=version) if version else DeleteAdapter(adapter=adapter)
        )
        await self._bridge.bus.request(request, tenant=tenant)

    async def _unknown(self) -> set[_Left]:
        """Records are read last: what is written down while the trainer is asked is known then."""
        tenants = {session.tenant for session in self._bridge.store.all(SessionRecord)}
        tenants |= {run.tenant for run in self._bridge.store.all(RunRecord)}
        held = {left for tenant in tenants for left in await self._held_versions(tenant)}
        ours = {left for tenant in tenants for left in await self._adapters_of_sessions(tenant)}
        store = self._bridge.store
        runs = {run.adapter for run in store.all(RunRecord)}
        samplers = store.all(SamplerRecord)
        known = {(each.adapter, each.version) for each in store.all(CheckpointRecord)}
        known |= {(each.adapter, each.version) for each in samplers if each.adapter}
        adapters = runs | {each.adapter for each in samplers}
        return {each for each in held if each[1] in runs and each[1:] not in known} | {
            each for each in ours if each[1] not in adapters
        }

    async def _held_versions(self, tenant: TenantId) -> Iterable[_Left]:
        table = await self._bridge.bus.request(GetVersions(), tenant=tenant)
        assert isinstance(table, VersionTable)
        return [(tenant, each.adapter, each.number) for each in table.records if each.held]

    async def _adapters_of_sessions(self, tenant: TenantId) -> Iterable[_Left]:
        """Those whose names only we give: `<session>:train:<n>` and `<session>:sample:<n>`."""
        listed = await self._bridge.bus.request(ListAdapters(), tenant=tenant)
        assert isinstance(listed, AdapterList)
        found: list[_Left] = []
        for each in listed.adapters:
            session, kind, _ = (*each.name.split(":"), "", "")[:3]
            if kind in ("train", "sample") and self._bridge.store.owned(SessionRecord, tenant, session):
                found.append((tenant, each.adapter, 0))
        return found
