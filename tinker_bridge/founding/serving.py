"""Keeps samples up to date: an adapter is published when it was trained since it was published last.

An adapter is published when it is made, so that it can be sampled from at once; later when a sample
asks for it, so that training alone costs nothing.
"""

import asyncio
from dataclasses import dataclass

import structlog

from ...bus.errors import Aborted, AdapterNotFound
from ..health_check import HealthCheck
from ..records import RunRecord
from ..training import Training

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Publication:
    """changes: those of the adapter that its version holds at least."""

    changes: int
    task: "asyncio.Task[None]"

    @property
    def failed(self) -> bool:
        return self.task.done() and (self.task.cancelled() or self.task.exception() is not None)


class Serving:
    """look_s: how often whoever waits looks whether there still is a trainer to wait for."""

    def __init__(self, training: Training, health: HealthCheck, *, look_s: float = 1.0) -> None:
        self._training = training
        self._health = health
        self._look_s = look_s
        self._newest: dict[str, _Publication] = {}

    async def up_to_date(self, run: RunRecord) -> None:
        """Wait until the newest version holds every change that was answered before.

        Raises:
            ActorUnavailable: the trainer was given up. The publication stays, as durable as its neighbours.
            LoractlError: the adapter could not be published.
        """
        publication = self.begin(run)
        # Never cancelled: others may wait for the same publication.
        while not (await asyncio.wait({publication}, timeout=self._look_s))[0]:
            await self._health.check_trainer()
        await publication

    def begin(self, run: RunRecord) -> "asyncio.Task[None]":
        """Start what `up_to_date` waits for, unless it was started, or done, before."""
        changes = self._training.changes(run.id)
        newest = self._newest.get(run.id)
        if newest is None or newest.failed or newest.changes < changes:
            task = asyncio.create_task(self._training.publish(run))
            task.add_done_callback(lambda done: _tell(run, done))
            newest = self._newest[run.id] = _Publication(changes, task)
        return newest.task

    def forget(self, run: str) -> None:
        self._newest.pop(run, None)


def _tell(run: RunRecord, done: "asyncio.Task[None]") -> None:
    """Nobody may be waiting for it: the next sample tries again."""
    if done.cancelled() or (error := done.exception()) is None:
        return
    if not isinstance(error, AdapterNotFound | Aborted):  # it was removed in the meantime
        log.info("adapter.not_published", run=run.id, tenant=run.tenant, reason=str(error))
