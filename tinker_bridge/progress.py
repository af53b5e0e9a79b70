"""What a future's work is given, and what it says about itself while it runs."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from ..bus.messages import WaitCause
from .future_ids import Origin
from .results import Result


class Waited(Protocol):
    """What of a bus request under way is looked at (`AsyncPending`)."""

    @property
    def waits_for(self) -> str: ...

    @property
    def cause(self) -> WaitCause: ...


@dataclass(frozen=True, slots=True)
class Pause:
    """Something waits here, and not with the daemon."""

    waits_for: str
    cause: WaitCause = "others"


async def _nowhere(_decided: bytes) -> None:
    """For work that nobody runs again."""


@dataclass(slots=True)
class Progress:
    """waiting: a bus request it waits on, or a pause. origin: of every id that the work gives out.
    patient: False where a client waits for the work itself, and not for a future: not for what was given up.
    decided: what the work found when it ran before and must find again, or empty; write: makes it durable.
    made: set when what its body grows to has been made, or others are waited for before that.
    """

    waiting: Waited | None = None
    origin: Origin = field(default_factory=Origin.fresh)
    patient: bool = True
    decided: bytes = b""
    write: Callable[[bytes], Awaitable[None]] = _nowhere
    made: asyncio.Event = field(default_factory=asyncio.Event)

    async def keep(self, decided: bytes) -> None:
        """Have it there when the work runs again. Raises StorageFailed."""
        self.decided = decided
        await self.write(decided)

    @property
    def cause(self) -> WaitCause:
        """What kind of reason it has to wait."""
        return self.waiting.cause if self.waiting is not None else "others"

    @property
    def reason(self) -> str:
        """What it waits for, in words; empty when it is being worked on."""
        return self.waiting.waits_for if self.waiting is not None else ""


Work = Callable[[Progress], Awaitable[Result]]
