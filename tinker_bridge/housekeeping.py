"""What happens by itself: sessions expire, checkpoints run out, old results are let go of.

Every round looks at what is there and finishes what an earlier one could not, so a round that fails, or
that a crash cut short, costs nothing but time.
"""

import asyncio
import time
from contextlib import suppress
from dataclasses import replace

import structlog

from ..bus.errors import AdapterNotFound, LoractlError
from ..bus.ids import AdapterId, TenantId
from ..bus.messages import DeleteAdapter, DeleteVersion, GetVersions, VersionTable
from .bridge import Bridge
from .records import CheckpointRecord, RunRecord, SamplerRecord, SessionRecord

log = structlog.get_logger()

_ROUND_S = 5.0
# Beyond the longest that a publish waits for a sampler.
_GRACE_S = 60.0

_Version = tuple[TenantId, AdapterId, int]


async def keep_house(bridge: Bridge) -> None:
    """Runs until it is cancelled."""
    orphans = Orphans(bridge, grace_s=bridge.config.publish.receipt_timeout_s + _GRACE_S)
    while True:
        try:
            await one_round(bridge)
            await orphans.look(time.monotonic())
        except LoractlError as error:
            # The daemon or the disk, and it may pass.
            log.warning("housekeeping.put_off", reason=error.message)
        await asyncio.sleep(_ROUND_S)


async def one_round(bridge: Bridge) -> None:
    """Raises LoractlError: the rest is left to the next round."""
    bridge.sessions.flush()
    bridge.runs.flush()
    bridge.futures.forget_old()
    for session in bridge.sessions.expired():
        log.info("session.expired", session=session.id, tenant=session.tenant)
        end_session(bridge, session, finished=False)
    await free_ended(bridge)
    for checkpoint in bridge.checkpoints.expired():
        log.info("checkpoint.expired", path=checkpoint.id, tenant=checkpoint.tenant)
        await delete_checkpoint(bridge, checkpoint)
    bridge.exports.delete_orphans()


async def delete_checkpoint(bridge: Bridge, checkpoint: CheckpointRecord) -> None:
    """With the last checkpoint of an ended run goes its adapter. Raises LoractlError."""
    await bridge.checkpoints.delete(checkpoint)
    run = bridge.store.find(RunRecord, checkpoint.parent)
    left = [
        each
        for each in bridge.store.of_parent(CheckpointRecord, checkpoint.parent)
        if each.kind != "external"
    ]
    if run is not None and run.state == "unloaded" and not left:
        with suppress(AdapterNotFound):  # gone already: an earlier deletion was cut short
            await bridge.bus.request(DeleteAdapter(adapter=run.adapter), tenant=run.tenant)
        bridge.store.put(replace(run, state="deleted"))


def end_session(
    bridge: Bridge, session: SessionRecord, *, finished: bool, reason: str = "", detail: str = ""
) -> None:
    """Mark a session as ended and stop its samples; its operations end when `free_ended` frees their runs."""
    if bridge.sessions.end(session, finished=finished, reason=reason, detail=detail):
        bridge.futures.cancel_scope(session.id)


async def free_ended(bridge: Bridge) -> None:
    """Free the adapters and snapshots of sessions that have ended; named checkpoints stay."""
    for run in bridge.runs.not_let_go():
        if not bridge.sessions.is_live(run.parent):
            bridge.training.forget(run.id)
            await bridge.runs.let_go(run)
    for sampler in bridge.samplers.not_let_go():
        if not bridge.sessions.is_live(sampler.parent):
            await bridge.samplers.let_go(sampler)


class Orphans:
    """Held versions that no record speaks of, because the save that made them was cut short by a crash.

    Looked for once after a start. A save that is under way looks the same until it is answered, so what
    is found is deleted only if nothing speaks of it grace_s later either.
    """

    def __init__(self, bridge: Bridge, *, grace_s: float) -> None:
        self._bridge = bridge
        self._grace_s = grace_s
        self._found: set[_Version] | None = None
        self._due_at = 0.0
        self._done = False

    async def look(self, now: float) -> None:
        """Raises LoractlError: the next call does it."""
        if self._found is None:
            await self._bridge.base.details()  # before a trainer is ready, the broker knows of no versions
            self._found = await self._unknown()
            self._due_at = now + self._grace_s
        elif not self._done and now >= self._due_at:
            for tenant, adapter, version in self._found & await self._unknown():
                log.info("version.orphan_deleted", adapter=adapter, version=version)
                await self._bridge.bus.request(DeleteVersion(adapter=adapter, version=version), tenant=tenant)
            self._done = True

    async def _unknown(self) -> set[_Version]:
        store = self._bridge.store
        runs = {run.adapter: run.tenant for run in store.all(RunRecord)}
        held: set[_Version] = set()
        for tenant in set(runs.values()):
            table = await self._bridge.bus.request(GetVersions(), tenant=tenant)
            assert isinstance(table, VersionTable)
            held |= {(tenant, each.adapter, each.number) for each in table.records if each.held}
        known = {(each.adapter, each.version) for each in store.all(CheckpointRecord)}
        known |= {(each.adapter, each.version) for each in store.all(SamplerRecord) if each.adapter}
        return {each for each in held if each[1] in runs and each[1:] not in known}
