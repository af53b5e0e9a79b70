"""One operation on its way to the trainer, for as long as it takes. What has grown is held only while there is
room for it, here and with the daemon."""

import asyncio

from ..bus.errors import QuotaExceeded
from ..bus.messages import Message
from .array_room import ArrayRoom, Turn
from .asking import ask
from .base import Bus
from .calls import Call, Large, Operation, Place, operation_of
from .progress import Pause, Progress
from .records import RunRecord

# Making arrays again costs more than sending them again.
_LONGEST_PAUSES = 16


class Sending:
    """held_bytes: of one tenant's arrays; 0 is no bound. again_s: how long to wait before the daemon is asked
    again to take what it had no room for."""

    def __init__(self, bus: Bus, *, held_bytes: int, again_s: float) -> None:
        self._bus = bus
        self._arrays = ArrayRoom(held_bytes)
        self._again_s = again_s

    async def answer(self, record: RunRecord, place: Place, call: Call, progress: Progress) -> Message:
        """What the trainer answers. Raises LoractlError: it failed, or the trainer cannot be had any more."""
        turn, pause_s = Turn(record.tenant, place.lane, place.seq), self._again_s
        try:
            while True:
                operation = await operation_of(record, place, call, progress)
                if not isinstance(call, Large) or not call.grown_bytes:
                    return await self._asked(record, operation, progress)
                if self._arrays.enter(turn, call.grown_bytes):
                    try:
                        return await self._asked(record, operation, progress, when_full=False)
                    except QuotaExceeded as error:
                        progress.waiting = Pause(error.message, "quota")
                    self._arrays.leave(turn)
                    waiting = asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, _LONGEST_PAUSES * self._again_s)
                else:
                    progress.made.set()
                    progress.waiting = Pause("arrays of your other operations take all the room", "quota")
                    waiting = self._arrays.wait(turn)
                del operation
                call.fold()
                await waiting
        finally:
            self._arrays.leave(turn)

    async def _asked(
        self, record: RunRecord, operation: Operation, progress: Progress, *, when_full: bool = True
    ) -> Message:
        """Its number is taken, so what the daemon has no room for is sent until it has."""
        return await ask(
            self._bus,
            operation,
            tenant=record.tenant,
            progress=progress,
            step="run",
            when_full=when_full,
            again_s=self._again_s,
        )
