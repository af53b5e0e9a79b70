"""What an operation of a training run is, from what a client asked for to the trainer's message.

What goes to the trainer under a number must be the same when the work runs again after a restart. Most of it
follows from the request alone; what else it depends on is written down first (`Deciding`).
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ..bus.codec import decode, encode
from ..bus.config import LimitsConfig
from ..bus.errors import LoractlError
from ..bus.ids import AdapterId, LaneId, RequestId
from ..bus.messages import (
    Envelope,
    ExportWeights,
    ForwardBackward,
    LoadCheckpoint,
    LoadVersion,
    Message,
    OptimStep,
    PublishAdapter,
    RefuseOperation,
    SaveCheckpoint,
)
from .progress import Progress
from .records import RunRecord
from .results import Result

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

    async def finish(self, answer: Message, made_by: str, /) -> Result:
        """The trainer's answer as the client reads it. made_by: names the work, also when it runs again;
        what it made the first time is found then, and not made twice."""

    def close(self) -> None:
        """Called once in the end, however it ended."""


@runtime_checkable
class Deciding(Protocol):
    """A call whose message depends on more than its body: on which names are taken, or what there is to
    load. What it was the first time stands when the work runs again."""

    def take_up(self, run: RunRecord, place: Place, /) -> None:
        """As `build`, which was done before, and went well."""


@runtime_checkable
class Large(Protocol):
    """A call whose message takes a while to make, and may be much larger than what was sent."""

    grown_bytes: int
    """Of its arrays, where they are much more than what was sent; else 0. Known once it is prepared."""

    async def prepare(self) -> None:
        """Wait until there is time for it, and do what takes long. Raises LoractlError as `build`."""

    def fold(self) -> None:
        """Let go of what was prepared; only where it has grown."""


class Refused:
    """An operation whose body is wrong."""

    def __init__(self, error: LoractlError) -> None:
        self._error = error

    def build(self, _run: RunRecord, _place: Place) -> Operation:
        raise self._error

    async def finish(self, _answer: Message, _made_by: str) -> Result:
        raise AssertionError("a refused operation is answered with its failure")

    def close(self) -> None:
        pass


async def operation_of(record: RunRecord, place: Place, call: Call, progress: Progress) -> Operation:
    """What goes to the trainer; the same when the work runs again."""
    if isinstance(call, Large):
        try:
            await call.prepare()
        except LoractlError as error:
            return _refusal(place, error)
    if not isinstance(call, Deciding):
        return _built(record, place, call)
    if not progress.decided:
        operation = _built(record, place, call)
        frame, *_ = encode(Envelope(request=RequestId(""), tenant=record.tenant, body=operation))
        await progress.keep(bytes(frame))
        return operation
    decided = decode([progress.decided], LimitsConfig()).body
    assert isinstance(decided, Operation)
    if not isinstance(decided, RefuseOperation):
        call.take_up(record, place)
    return decided


def _built(record: RunRecord, place: Place, call: Call) -> Operation:
    try:
        return call.build(record, place)
    except LoractlError as error:
        return _refusal(place, error)


def _refusal(place: Place, error: LoractlError) -> RefuseOperation:
    return RefuseOperation(
        adapter=place.adapter, lane=place.lane, seq=place.seq, code=error.code, message=error.message
    )
