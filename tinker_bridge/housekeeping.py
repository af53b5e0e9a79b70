"""What happens by itself: sessions expire, checkpoints run out, old results and records are let go of.

Every round looks at what is there and finishes what an earlier one could not, so a round that fails, or
that a crash cut short, costs nothing but time.
"""

import asyncio
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import replace
from typing import Any

import structlog

from ..bus.errors import AdapterNotFound, LoractlError
from ..bus.messages import DeleteAdapter
from .bridge import Bridge
from .orphans import Orphans
from .past_records import past_records
from .records import CheckpointRecord, RunRecord, SessionRecord

log = structlog.get_logger()

_ROUND_S = 5.0
# Records that nobody has a use for any more are looked for as often, and go so many at a time.
_RECORDS_S = 3600.0
_AT_A_TIME = 200
# When a session was last heard of, and a run last used, is written no more often.
_LATE_S = 60.0
# Beyond the longest that a publish waits for a sampler.
_GRACE_S = 60.0


async def keep_house(bridge: Bridge) -> None:
    """Runs until it is cancelled. The first round waits: what is being taken up again after a restart has
    to claim first what it needs."""
    orphans = Orphans(bridge, grace_s=bridge.config.publish.receipt_timeout_s + _GRACE_S)
    # Often enough that no round takes the pause since the one before for a machine that slept.
    round_s = min(_ROUND_S, bridge.config.bridge.session_expiry_s / 8)
    records_at = time.monotonic()
    looked_at = ""
    while True:
        await asyncio.sleep(round_s)
        if bridge.store.settling.failure:
            raise OSError(bridge.store.settling.failure)  # only another process can tell what is on the disk
        try:
            await one_round(bridge)
            looked_at = await bridge.checkpoints.look_for_files(looked_at, limit=_AT_A_TIME)
            # What runs again may be about to write down what nobody speaks of yet.
            if not bridge.futures.running_again:
                await orphans.look(time.monotonic())
                if time.monotonic() >= records_at:
                    await forget_past(bridge, time.time())
                    records_at = time.monotonic() + _RECORDS_S
        except LoractlError as error:
            # The daemon or the disk, and it may pass.
            log.warning("housekeeping.put_off", reason=error.message)


async def one_round(bridge: Bridge) -> None:
    """Raises LoractlError: the rest is left to the next round."""
    await _later_if_it_fails(_write_down(bridge))
    # It makes room on the disk: what else cannot be written must not keep it from that.
    await _later_if_it_fails(bridge.futures.forget_old(bridge.sessions.live()))
    for session in bridge.sessions.expired():
        await _later_if_it_fails(_expire(bridge, session))
    await free_ended(bridge)
    for checkpoint in bridge.checkpoints.expired():
        log.info("checkpoint.expired", path=checkpoint.id, tenant=checkpoint.tenant)
        await _later_if_it_fails(delete_checkpoint(bridge, checkpoint))
    bridge.exports.delete_orphans()


async def _write_down(bridge: Bridge) -> None:
    bridge.sessions.flush(late_s=_LATE_S)
    bridge.runs.flush(late_s=_LATE_S)


async def _expire(bridge: Bridge, session: SessionRecord) -> None:
    end_session(bridge, session, finished=False)
    log.info("session.expired", session=session.id, tenant=session.tenant)


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
    await bridge.settled()  # whose session is there after all would miss it
    for run in bridge.runs.not_let_go():
        if not bridge.sessions.is_live(run.parent):
            bridge.training.forget(run.id)
            bridge.serving.forget(run.id)
            await _later_if_it_fails(bridge.runs.let_go(run))
    for sampler in bridge.samplers.not_let_go():
        if not bridge.sessions.is_live(sampler.parent):
            await _later_if_it_fails(bridge.samplers.let_go(sampler))


async def forget_past(bridge: Bridge, now_unix_s: float) -> None:
    """Let go of the records of sessions that ended long ago, see `past_records`. Raises StorageFailed."""
    if not bridge.config.bridge.record_s:
        return
    before = now_unix_s - bridge.config.bridge.record_s
    held = [each.id for each in bridge.samplers.not_let_go()]
    while found := await asyncio.to_thread(past_records, bridge.store, before, held, most=_AT_A_TIME):
        bridge.store.delete(*found)
        log.info("records.forgotten", count=len(found))


async def _later_if_it_fails(work: Coroutine[Any, Any, None]) -> None:
    """One thing that cannot be done now keeps nothing else from being done: the next round tries again."""
    try:
        await work
    except LoractlError as error:
        log.warning("housekeeping.put_off", reason=error.message)
