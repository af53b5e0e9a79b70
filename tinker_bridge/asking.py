"""Asking the daemon for something on a future's behalf, for as long as it takes.

Every step of a piece of work has its own request id, which is the same when the work runs again: what the
daemon did already, it answers again. While a part of it is away, or full, the future waits and says why.
"""

import asyncio

from ..bus.errors import (
    ActorRestarting,
    ActorStopping,
    ActorUnavailable,
    DaemonGone,
    DaemonNotRunning,
    LoractlError,
    QuotaExceeded,
)
from ..bus.ids import TenantId
from ..bus.messages import Message
from .base import Bus
from .progress import Pause, Progress

_AGAIN_S = 1.0


async def ask(
    bus: Bus,
    body: Message,
    *,
    tenant: TenantId,
    progress: Progress,
    step: str,
    when_full: bool = False,
    again_s: float = _AGAIN_S,
) -> Message:
    """The daemon's answer to one step of some work.

    step: which one it is. when_full: also ask again while the daemon has no room for the tenant's requests.

    Raises:
        LoractlError: what stands in the way for good. An actor that was given up does not, where the work is
            patient: the daemon is started again some day.
    """
    request = progress.origin.request(step)
    while True:
        progress.waiting = pending = bus.submit(body, tenant=tenant, request=request)
        progress.made.set()
        try:
            return await pending.result()
        except (ActorRestarting, ActorStopping, ActorUnavailable) as error:
            if isinstance(error, ActorUnavailable) and not progress.patient:
                raise
            progress.waiting = Pause(error.message)
        except QuotaExceeded as error:
            if not when_full:
                raise
            progress.waiting = Pause(error.message, "quota")
        await asyncio.sleep(again_s)


def is_final(error: LoractlError) -> bool:
    """Whether this is an answer, and not the end of who was to give it."""
    return not isinstance(error, DaemonGone | DaemonNotRunning)
