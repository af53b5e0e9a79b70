"""Sends the operations of training runs to the trainer and keeps the futures of their answers.

The trainer's lane puts operations in order by their numbers, so everything is sent as it comes. A
number is used up whatever becomes of its operation: one that is found to be wrong here goes to the
trainer as a refusal, to be answered when its turn comes. What each operation is stands in `operations`.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ..bus.errors import ActorRestarting, InvalidRequest, LaneLost, LoractlError, QuotaExceeded
from ..bus.ids import AdapterId, LaneId, TenantId
from ..bus.messages import (
    ExportWeights,
    ForwardBackward,
    LoadCheckpoint,
    LoadVersion,
    Message,
    OptimStep,
    PublishAdapter,
    RefuseOperation,
    SaveCheckpoint,
    StateLoaded,
    StepResult,
    WaitCause,
)
from .base import Bus
from .futures import Future, Futures, Progress, Result, Work
from .records import RunRecord
from .runs import Runs, lost_text
from .sessions import Sessions

Operation = (
    ForwardBackward
    | OptimStep
    | SaveCheckpoint
    | LoadCheckpoint
    | LoadVersion
    | PublishAdapter
    | ExportWeights
    | RefuseOperation
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an operation goes: what every operation of a lane has."""

    adapter: AdapterId
    lane: LaneId
    seq: int


class Call(Protocol):
    """One operation as a client asked for it."""

    def build(self, run: RunRecord, place: Place, /) -> Operation:
        """The message for the trainer. What it raises is the call's answer, when its turn comes."""

    async def finish(self, answer: Message, /) -> Result:
        """The trainer's answer as the client reads it."""

    def close(self) -> None:
        """Called once in the end, however it ended."""


class Training:
    """held_bytes: of one tenant's operations under way, as their clients sent them; 0 is no bound.
    again_s: how long to wait before the daemon is asked again to take what it had no room for."""

    def __init__(
        self,
        bus: Bus,
        sessions: Sessions,
        runs: Runs,
        futures: Futures,
        *,
        held_bytes: int = 0,
        again_s: float = 1.0,
    ) -> None:
        self._bus = bus
        self._sessions = sessions
        self._runs = runs
        self._futures = futures
        self._unnumbered: dict[str, _Unnumbered] = {}
        self._lanes = 0  # opened so far, which tells their operations apart
        self._changes: Counter[str] = Counter()
        self._again_s = again_s
        self._held_bytes = held_bytes
        self._held: Counter[TenantId] = Counter()  # bytes of their operations under way

    def submit(self, tenant: TenantId, run: str, seq: int | None, content: bytes, call: Call) -> Future:
        """Start an operation, or join the one that came under its number before.

        seq: its number in the run; None runs it behind all that came without a number before.
        content: what makes two operations the same.

        An operation of a run that the trainer lost fails as those did that it was lost with: an HTTP
        error that is worth another try would be tried again for minutes.

        Raises:
            QuotaExceeded: too much of the tenant's is under way; the number is not used up.
            LoractlError: there is no such run, it takes no operations, or the number was used for
                something else.
        """
        if seq is not None and not 1 <= seq < 2**63:
            raise InvalidRequest(
                f"seq_id is {seq}: the operations of a model are numbered from 1 to 2**63 - 1"
            )
        # A finished operation is answered again even when its run takes no more.
        digest = hashlib.blake2b(content, digest_size=16).digest()
        record = self._runs.owned(tenant, run)
        if seq is not None and (known := self._futures.known(tenant, _key(run, seq), digest)) is not None:
            return known
        try:
            record = self._runs.live(tenant, run)
        except LaneLost as error:
            if seq is None:
                raise
            return self._futures.start(tenant, _key(run, seq), digest, _failing(error))
        if record.parent:
            self._sessions.active(tenant, record.parent)
        self._check_room(tenant, len(content))
        lane, number, key = self._placed(record, seq)
        self._held[tenant] += len(content)
        size_bytes = len(content)

        async def work(progress: Progress) -> Result:
            try:
                place = Place(record.adapter, await lane, number)
                answer = await self._answer(record, _built(record, place, call), progress)
                return await call.finish(answer)
            finally:
                call.close()
                self._let_go(tenant, size_bytes)

        return self._futures.start(tenant, key, digest, work)

    async def request(self, run: RunRecord, made: Callable[[Place], Operation]) -> Message:
        """An operation of the bridge's own, behind those that came without a number.

        Raises:
            LoractlError: it failed.
        """
        lane, number, _ = self._placed(run, None)
        return await self._answer(run, made(Place(run.adapter, await lane, number)), Progress())

    def changes(self, run: str) -> int:
        """How often its weights were changed, as far as the trainer has answered."""
        return self._changes[run]

    def forget(self, run: str) -> None:
        """The run takes no more operations."""
        self._unnumbered.pop(run, None)
        self._changes.pop(run, None)

    def _placed(
        self, record: RunRecord, seq: int | None
    ) -> "tuple[asyncio.Future[LaneId], int, tuple[str, ...]]":
        """Lane, number in it, and the future's key."""
        if seq is not None:
            lane: asyncio.Future[LaneId] = asyncio.get_running_loop().create_future()
            lane.set_result(record.lane)
            return lane, seq, _key(record.id, seq)
        unnumbered = self._unnumbered.get(record.id)
        if unnumbered is None or unnumbered.lost:
            self._lanes += 1
            opening = asyncio.ensure_future(self._runs.open_lane(record))
            unnumbered = self._unnumbered[record.id] = _Unnumbered(opening, self._lanes)
        unnumbered.last += 1
        # Shielded: a cancelled operation must not take the lane of all the others with it.
        lane = asyncio.shield(unnumbered.lane)
        return lane, unnumbered.last, ("unnumbered", record.id, str(unnumbered.opened), str(unnumbered.last))

    def _check_room(self, tenant: TenantId, size_bytes: int) -> None:
        """One that is larger than the bound is taken when it is the only one."""
        held = self._held[tenant]
        if self._held_bytes and held and held + size_bytes > self._held_bytes:
            raise QuotaExceeded(
                f"{held:,} bytes of operations are under way for you, and this one has {size_bytes:,}: "
                f"{self._held_bytes:,} may be (quotas.held_bytes); send it again in a moment"
            )

    def _let_go(self, tenant: TenantId, size_bytes: int) -> None:
        self._held[tenant] -= size_bytes
        if not self._held[tenant]:
            del self._held[tenant]

    async def _answer(self, record: RunRecord, operation: Operation, progress: Progress) -> Message:
        try:
            answer = await self._asked(record.tenant, operation, progress)
        except (LaneLost, ActorRestarting) as error:
            raise self._lost(record, operation.lane) from error
        if isinstance(answer, StateLoaded) or (isinstance(answer, StepResult) and answer.applied):
            self._changes[record.id] += 1
        return answer

    async def _asked(self, tenant: TenantId, operation: Operation, progress: Progress) -> Message:
        """Its number is taken, so what the daemon has no room for is sent until it has."""
        while True:
            progress.waiting = pending = self._bus.submit(operation, tenant=tenant)
            try:
                return await pending.result()
            except QuotaExceeded as error:
                progress.waiting = _NoRoom(error.message)
                await asyncio.sleep(self._again_s)

    def _lost(self, record: RunRecord, lane: LaneId) -> LaneLost:
        """The trainer restarted. A run of no session goes on from its last save, on another lane."""
        self._changes[record.id] += 1
        if record.parent:
            self._runs.lose(record.id)
            return LaneLost(lost_text(record.id))
        unnumbered = self._unnumbered.get(record.id)
        if unnumbered is not None and unnumbered.is_on(lane):
            self._unnumbered.pop(record.id)
        return LaneLost(
            f"the trainer restarted, and what model {record.id} had not saved is gone: it goes on from "
            "where it was saved last, or from its beginning"
        )


@dataclass(frozen=True, slots=True)
class _NoRoom:
    """An operation that waits here, for the daemon has as much of its tenant's as it takes."""

    waits_for: str
    cause: WaitCause = "quota"


@dataclass(slots=True)
class _Unnumbered:
    """The lane of a run's operations that come without a number, and how many there were.

    opened: which one of all such lanes it is.
    """

    lane: "asyncio.Future[LaneId]"
    opened: int
    last: int = 0

    @property
    def lost(self) -> bool:
        """Whether it could not be opened: another may."""
        return self.lane.done() and (self.lane.cancelled() or self.lane.exception() is not None)

    def is_on(self, lane: LaneId) -> bool:
        return self.lane.done() and not self.lost and self.lane.result() == lane


def _key(run: str, seq: int) -> tuple[str, ...]:
    return ("seq_id", str(seq), "of", run)


def _failing(error: LoractlError) -> Work:
    async def work(_progress: Progress) -> Result:
        raise error

    return work


def _built(record: RunRecord, place: Place, call: Call) -> Operation:
    try:
        return call.build(record, place)
    except LoractlError as error:
        return RefuseOperation(
            adapter=place.adapter, lane=place.lane, seq=place.seq, code=error.code, message=error.message
        )
