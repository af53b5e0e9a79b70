"""Asks the broker how the trainer is, as often as anybody on the network may ask: rarely."""

import asyncio
from collections.abc import Callable

from ..bus.errors import ActorUnavailable, LoractlError
from ..bus.messages import DaemonStatus, GetStatus
from .base import Bus
from .health import Health, health_of

# A probe that gets no answer in this time is told so; load balancers wait no longer either.
_ANSWER_WITHIN_S = 2.0
_KEPT_S = 0.5


class HealthCheck:
    """clock: of seconds."""

    def __init__(self, bus: Bus, *, clock: Callable[[], float]) -> None:
        self._bus = bus
        self._clock = clock
        self._found = Health()
        self._found_at = float("-inf")
        self._asking = asyncio.Lock()

    async def found(self) -> Health:
        """As it was half a second ago at most; whoever asks meanwhile gets the same answer."""
        async with self._asking:
            if self._clock() - self._found_at >= _KEPT_S:
                self._found = await self._asked()
                self._found_at = self._clock()
        return self._found

    async def check_trainer(self) -> None:
        """For those who wait for the trainer while their client waits for them. Raises ActorUnavailable."""
        if (await self.found()).given_up:
            raise ActorUnavailable(
                "the trainer was given up: see its log (`loractl daemon logs`), mend the cause and run "
                "`loractl daemon restart`"
            )

    async def _asked(self) -> Health:
        """A broker that does not answer is what is missing then. What it says is not for everybody."""
        try:
            status = await self._bus.request(GetStatus(), timeout_s=_ANSWER_WITHIN_S)
        except TimeoutError:
            return Health((f"the daemon did not answer within {_ANSWER_WITHIN_S:g} s",))
        except LoractlError:
            return Health(("the daemon does not answer",))
        assert isinstance(status, DaemonStatus)
        return health_of(status)
