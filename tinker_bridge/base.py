"""The base model as the bridge tells of it, asked for once and kept."""

import asyncio
from typing import Protocol

from ..bus.config import ModelConfig
from ..bus.errors import ActorRestarting, ActorStopping, ActorUnavailable, InvalidRequest
from ..bus.ids import RequestId, TenantId
from ..bus.messages import (
    DaemonStatus,
    DescribeModel,
    GetStatus,
    Message,
    ModelDescribed,
    ModelDetails,
    WaitCause,
)

_AGAIN_S = 1.0


class Pending(Protocol):
    """What is used of `AsyncPending`."""

    @property
    def request(self) -> RequestId: ...

    @property
    def waits_for(self) -> str: ...

    @property
    def cause(self) -> WaitCause: ...

    async def result(self, timeout_s: float | None = None) -> Message: ...


class Bus(Protocol):
    """What is used of `AsyncClient`."""

    async def request(
        self, body: Message, *, timeout_s: float | None = None, tenant: TenantId | None = None
    ) -> Message: ...

    def submit(
        self, body: Message, *, request: RequestId | None = None, tenant: TenantId | None = None
    ) -> Pending: ...


class BaseModel:
    """The one model that this service trains and samples."""

    def __init__(self, config: ModelConfig, bus: Bus) -> None:
        self._config = config
        self._bus = bus
        self._details: ModelDetails | None = None
        self._path = ""
        self._asking = asyncio.Lock()
        self._pending: Pending | None = None
        self._has_versions = False

    @property
    def name(self) -> str:
        """As clients call it; known before the trainer is ready."""
        return self._config.name or self._config.path

    @property
    def most_tokens(self) -> int:
        """Of a prompt and its answer together; the model itself may hold fewer."""
        return self._config.max_sequence_tokens

    @property
    def waits_for(self) -> str:
        """Why there are no details yet, in words."""
        return self._pending.waits_for if self._pending is not None else ""

    @property
    def cause(self) -> WaitCause:
        return self._pending.cause if self._pending is not None else "others"

    async def details(self) -> ModelDetails:
        """Waits until the trainer is ready. Raises LoractlError when it never will be."""
        async with self._asking:
            while self._details is None:
                try:
                    self._pending = self._bus.submit(DescribeModel())
                    described = await self._pending.result()
                except (ActorRestarting, ActorStopping):
                    await asyncio.sleep(_AGAIN_S)
                    continue
                assert isinstance(described, ModelDescribed)
                self._details, self._pending = described.model, None
        return self._details

    async def path(self) -> str:
        """Where its files lie on this machine. The broker says so: it needs no trainer."""
        if not self._path:
            self._path = (await self._status()).model_path
        return self._path

    async def wait_for_versions(self) -> None:
        """Before a trainer was ready, the broker knows of no versions. Raises ActorUnavailable: it never will."""
        if self._has_versions:
            return
        try:
            await self.details()
        except ActorUnavailable:
            if not (await self._status()).versions:
                raise
        self._has_versions = True

    async def _status(self) -> DaemonStatus:
        status = await self._bus.request(GetStatus())
        assert isinstance(status, DaemonStatus)
        return status

    def check(self, wanted: str | None) -> None:
        """Refuse another base model than the one served. Raises InvalidRequest."""
        if wanted is not None and wanted != self.name:
            raise InvalidRequest(f"this server serves {self.name!r}, and not {wanted!r}")
