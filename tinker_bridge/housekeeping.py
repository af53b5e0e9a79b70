"""What happens by itself: sessions expire, checkpoints run out, old results are let go of.

Every round looks at what is there and finishes what an earlier one could not, so a round that fails, or
that a crash cut short, costs nothing but time.
"""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace

import structlog

from ..bus.errors import AdapterNotFound, LoractlError
from ..bus.ids import TenantId
from ..bus.messages import DeleteAdapter, DeleteVersion, GetVersions, VersionTable
from .bridge import Bridge
from .records import CheckpointRecord, RunRecord, SamplerRecord, SessionRecord

log = structlog.get_logger()

_ROUND_S = 5.0


async def keep_house(bridge: Bridge) -> None:
    """Runs until it is cancelled."""
    swept = False
    while True:
        try:
            if not swept:
                await delete_orphans(bridge)
                swept = True
            await one_round(bridge)
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
    """Mark a session as ended and stop its work; `free_ended` does the rest."""
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


async def delete_orphans(bridge: Bridge) -> None:
    """Delete held versions that no record speaks of: their save was cut short before it was answered."""
    await bridge.base.details()  # before a trainer is ready, the broker knows of no versions
    runs = bridge.store.all(RunRecord)
    adapters = {run.adapter for run in runs}
    known = {(each.adapter, each.version) for each in _versions(bridge)}
    tenants: set[TenantId] = {run.tenant for run in runs}
    for tenant in tenants:
        table = await bridge.bus.request(GetVersions(), tenant=tenant)
        assert isinstance(table, VersionTable)
        for record in table.records:
            if record.held and record.adapter in adapters and (record.adapter, record.number) not in known:
                log.info("version.orphan_deleted", adapter=record.adapter, version=record.number)
                await bridge.bus.request(
                    DeleteVersion(adapter=record.adapter, version=record.number), tenant=tenant
                )


def _versions(bridge: Bridge) -> Iterable[CheckpointRecord | SamplerRecord]:
    return [*bridge.store.all(CheckpointRecord), *bridge.store.all(SamplerRecord)]
