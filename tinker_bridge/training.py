"""Sends the operations of training runs to the trainer and keeps the futures of their answers.

The trainer's lane puts operations in order by their numbers, so everything is sent as it comes. A
number is used up whatever becomes of its operation: one that is found to be wrong here goes to the
trainer as a refusal, to be answered when its turn comes. What each operation is stands in `operations`,
how one is sent in `sending`.
"""

import asyncio
import hashlib
import secrets
from collections import Counter

from ..bus.errors import (
    ActorStopping,
    AdapterNotFound,
    InvalidRequest,
    LaneLost,
    LoractlError,
    QuotaExceeded,
    RecoveryFailed,
)
from ..bus.ids import LaneId, TenantId
from ..bus.messages import (
    Message,
    PublishAdapter,
    StateLoaded,
    StepResult,
)
from .base import Bus
from .calls import Call, Operation, Place, Refused
from .future import Future
from .future_ids import Key
from .future_rows import Asked
from .futures import Futures
from .held import Held
from .progress import Progress, Work
from .records import RunRecord
from .results import Result, error_of
from .runs import Runs, lost_text
from .sending import Sending
from .sessions import Sessions
from .unnumbered import Unnumbered


class Training:
    """held_bytes: of one tenant's operations under way, without compression, and of their arrays; 0 is no bound.
    again_s: as `Sending` has it."""

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
        self._sessions = sessions
        self._runs = runs
        self._futures = futures
        self._unnumbered: dict[str, Unnumbered] = {}
        self._changes: Counter[str] = Counter()
        self._held_bytes = held_bytes
        self._sending = Sending(bus, held_bytes=held_bytes, again_s=again_s)
        self._held = Held()

    def submit(
        self,
        asked: Asked,
        run: str,
        seq: int | None,
        call: Call,
        digest: bytes,
        *,
        size_bytes: int = 0,
    ) -> Future:
        """Start an operation, or join the one that came under its number before.

        seq: its number in the run; None runs it behind all that came without a number before.
        digest: `digest_of` what makes two operations the same. size_bytes: what it takes, where that is more
        than its request.

        An operation of a run that was lost fails as those did that it was lost with: an HTTP
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
        size_bytes = max(size_bytes, len(asked.route) + len(asked.body))
        tenant = asked.tenant
        record = self._runs.owned(tenant, run)
        key = _key(run, seq) if seq is not None else asked.key
        known = self._futures.known(tenant, key, digest) if key else None
        if known is not None and known.started:
            return known
        try:
            record = self._runs.live(tenant, run)
        except LaneLost as error:
            if not key:
                raise
            return self._futures.start(asked, key, digest, _failing(error), session=record.parent)
        if record.parent:
            self._sessions.active(tenant, record.parent)
        if known is None or known.expired:
            self._check_room(tenant, run, seq, size_bytes)
        if not key:
            key = self._unnumbered_of(record).next_key()
        work = self._work(record, key, call, size_bytes)
        return self._futures.start(asked, key, digest, work, session=record.parent)

    async def publish(self, run: RunRecord) -> None:
        """Publish what a run has come to, behind what came without a number. As durable as its neighbours:
        their lane must not have a hole.

        Raises:
            LoractlError: it failed.
        """
        future = self.submit_publication(Asked(run.tenant, PUBLICATION, run.id.encode()))
        await future.done.wait()
        if future.result is None:
            raise ActorStopping("the server is stopping: ask again when it runs")
        if future.result.failed:
            raise error_of(future.result)

    def submit_publication(self, asked: Asked) -> Future:
        """Raises as `submit`."""
        return self.submit(asked, asked.body.decode(), None, _Publication(), digest_of(asked.body))

    def refuse(self, asked: Asked, digest: bytes, error: LoractlError) -> None:
        """End an operation of an earlier process with an error, without a look at its body.

        Raises:
            LoractlError: there is no such run any more, or it was no operation.
        """
        run, seq = _of_key(asked.key)
        self.submit(asked, run, seq, Refused(error), digest)

    def changes(self, run: str) -> int:
        """How often its weights were changed, as far as the trainer has answered."""
        return self._changes[run]

    def forget(self, run: str) -> None:
        """The run takes no more operations."""
        self._unnumbered.pop(run, None)
        self._changes.pop(run, None)

    # --- one operation ---------------------------------------------------------------------------

    def _work(self, record: RunRecord, key: Key, call: Call, size_bytes: int) -> Work:
        lane, number = self._placed(record, key)
        seq = number if key[0] == _NUMBERED else None
        self._held.add(record.tenant, record.id, seq, size_bytes)

        async def work(progress: Progress) -> Result:
            try:
                place = Place(record.adapter, await lane, number)
                answer = await self._answered(record, place, call, progress)
                return await call.finish(answer, progress.origin.token("made by"))
            finally:
                call.close()
                self._held.remove(record.tenant, record.id, seq, size_bytes)

        return work

    def _placed(self, record: RunRecord, key: Key) -> "tuple[asyncio.Future[LaneId], int]":
        """Lane, and number in it."""
        if key[0] == _NUMBERED:
            lane: asyncio.Future[LaneId] = asyncio.get_running_loop().create_future()
            lane.set_result(record.lane)
            return lane, int(key[1])
        # Shielded: a cancelled operation must not take the lane of all the others with it.
        return asyncio.shield(self._unnumbered_of(record).lane(key)), Unnumbered.number(key)

    def _unnumbered_of(self, record: RunRecord) -> Unnumbered:
        found = self._unnumbered.get(record.id)
        if found is None:
            origin = self._futures.origin("lane of", record.id)
            found = self._unnumbered[record.id] = Unnumbered(
                record.id,
                lambda name: self._runs.open_lane(
                    record.tenant, record.adapter, Progress(origin=origin.inside(name))
                ),
                name=lambda: secrets.token_hex(8),
            )
        return found

    def _check_room(self, tenant: TenantId, run: str, seq: int | None, size_bytes: int) -> None:
        """One that is larger than the bound is taken when it is the only one, or the one that others wait for."""
        held = self._held.of_tenant(tenant)
        if self._held_bytes and held and held + size_bytes > self._held_bytes:
            if seq is not None and self._held.below_all(run, seq) and self._is_next(tenant, run, seq):
                return
            raise QuotaExceeded(
                f"{held:,} bytes of operations are under way for you, and this one has {size_bytes:,}: "
                f"{self._held_bytes:,} may be (quotas.held_bytes); send it again in a moment"
            )

    def _is_next(self, tenant: TenantId, run: str, seq: int) -> bool:
        """Not only lower than the others: numbers could come in falling order without an end."""
        return seq == 1 or self._futures.has_ended(tenant, _key(run, seq - 1))

    async def _answered(self, record: RunRecord, place: Place, call: Call, progress: Progress) -> Message:
        try:
            answer = await self._sending.answer(record, place, call, progress)
        except (LaneLost, RecoveryFailed) as error:
            raise self._lost(record, place.lane) from error
        if isinstance(answer, StateLoaded) or (isinstance(answer, StepResult) and answer.applied):
            self._changes[record.id] += 1
        return answer

    def _lost(self, record: RunRecord, lane: LaneId) -> LaneLost:
        """The state is not what it was. A run of no session goes on from its last save, on another lane."""
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


PUBLICATION = "publication"
_NUMBERED = "seq_id"


class _Publication:
    """Publishes what is there, for samples of a run of no session."""

    def build(self, _run: RunRecord, place: Place) -> Operation:
        return PublishAdapter(adapter=place.adapter, lane=place.lane, seq=place.seq)

    async def finish(self, _answer: Message, _made_by: str) -> Result:
        return Result(b"")

    def close(self) -> None:
        pass


def digest_of(*parts: bytes) -> bytes:
    """Of what they are end to end, which need not be made."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.digest()


def _key(run: str, seq: int) -> Key:
    return (_NUMBERED, str(seq), "of", run)


def _of_key(key: Key) -> tuple[str, int | None]:
    """The run of an operation's key, and its number if it has one. Raises AdapterNotFound: it is no such key."""
    match key:
        case (kind, seq, "of", run) if kind == _NUMBERED:
            return run, int(seq)
        case ("unnumbered", run, *_):
            return run, None
        case _:
            raise AdapterNotFound("this is no operation of a model")


def _failing(error: LoractlError) -> Work:
    async def work(_progress: Progress) -> Result:
        raise error

    return work
