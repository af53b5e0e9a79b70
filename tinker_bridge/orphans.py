"""What a crash left with the trainer that no record speaks of: adapters, and versions that are held."""

from collections.abc import Iterable

import structlog

from ..bus.ids import LOCAL_TENANT, AdapterId, TenantId
from ..bus.messages import (
    AdapterList,
    DeleteAdapter,
    DeleteVersion,
    GetVersions,
    ListAdapters,
    ListTenants,
    TenantList,
    VersionTable,
)
from .bridge import Bridge
from .founding.names import is_ours
from .records import CheckpointRecord, RunRecord, SamplerRecord, SessionRecord

log = structlog.get_logger()

# Whose it is, the adapter, and one of its versions; 0 is the adapter itself.
_Left = tuple[TenantId, AdapterId, int]


class Orphans:
    """Looked for after a start. What is being made or saved looks the same until it is answered, so what is
    found is deleted only if nothing speaks of it grace_s later either. The last look is for what the dead
    bridge had asked for and the trainer made after the first.
    """

    def __init__(self, bridge: Bridge, *, grace_s: float) -> None:
        self._bridge = bridge
        self._grace_s = grace_s
        self._found: set[_Left] = set()
        self._looks_left = 3
        self._due_at = 0.0

    async def look(self, now: float) -> None:
        """Raises LoractlError: the next call does it."""
        if not self._looks_left or now < self._due_at:
            return
        await self._bridge.base.details()  # before a trainer is ready, the broker knows of no versions
        unknown = await self._unknown()
        for left in self._found & unknown:
            await self._delete(*left)
        self._found = unknown
        self._looks_left -= 1
        self._due_at = now + self._grace_s

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
        tenants |= await self._tenants_of_adapters()
        held = {left for tenant in tenants for left in await self._held_versions(tenant)}
        ours = {left for tenant in tenants for left in await self._adapters_of_ours(tenant)}
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

    async def _tenants_of_adapters(self) -> set[TenantId]:
        """One whose first adapter a crash cut short has no record at all."""
        listed = await self._bridge.bus.request(ListTenants(), tenant=LOCAL_TENANT)
        assert isinstance(listed, TenantList)
        return {each.tenant for each in listed.tenants}

    async def _adapters_of_ours(self, tenant: TenantId) -> Iterable[_Left]:
        """Those whose names only we give."""
        listed = await self._bridge.bus.request(ListAdapters(), tenant=tenant)
        assert isinstance(listed, AdapterList)
        return [(tenant, each.adapter, 0) for each in listed.adapters if self._named(tenant, each.name)]

    def _named(self, tenant: TenantId, name: str) -> bool:
        """`<session>:train:<n>`, `<session>:sample:<n>`, or as `add_lora` names them."""
        store = self._bridge.store
        session, kind, _ = (*name.split(":"), "", "")[:3]
        if kind in ("train", "sample") and store.owned(SessionRecord, tenant, session):
            return True
        return is_ours(store.secret, tenant, name)
