"""The broker with its journal: hostile requests, hostile answers and reports, and what a restart reads of them.

No sockets: what the loop would hand to it. Whatever is wrong with a message ends as our error, and the next
ping is answered.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
from loractl.bus.codec import encode, peek
from loractl.bus.config import Config
from loractl.bus.errors import BadFrame, LoractlError
from loractl.bus.ids import ActorId, AdapterId, LaneId, RequestId
from loractl.bus.messages import AdapterCreated, CreateAdapter, Envelope, Message, Ping, Pong
from loractl.daemon.decisions import ClientId, Decision, Forward, Reply
from loractl.daemon.routing import DESTINATION_BY_KIND
from loractl.tests.bus.one_of_each import corpus
from loractl.tests.daemon.journalled_office import JournalledOffice
from loractl.tests.daemon.office import ALICE, ANN, BOB, LORA, SAMPLER, TRAINER, details_of
from loractl.tests.fuzz.bus_frames import Frames, hostile
from loractl.tests.fuzz.checks import check_told
from loractl.tests.fuzz.source import Source
from loractl.tests.fuzz.subject import Play, Subject

_LIMITS = Config().limits
_ADAPTER, _LANE = AdapterId("ad-" + "a" * 32), LaneId("ln-" + "a" * 32)
_RESTARTS_ONE_IN = 40
_EPISODE = 200


@contextmanager
def _open(directory: Path) -> Iterator[Play]:
    stage = _Stage(directory / "journal.sqlite")
    yield stage.play
    stage.office.store.close()


BROKER = Subject(name="broker", share=100, open=_open, episode=_EPISODE)


@dataclass
class _Stage:
    """requests: valid ones; others: what actors say."""

    file: Path
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        messages = corpus()
        kinds = [peek(frames[0], _LIMITS).kind for frames in messages]
        self.requests = [f for f, kind in zip(messages, kinds, strict=True) if kind in DESTINATION_BY_KIND]
        self.others = [f for f, kind in zip(messages, kinds, strict=True) if kind not in DESTINATION_BY_KIND]
        self.office = JournalledOffice(file=self.file)
        self.office.all_ready()
        self._create()

    def _create(self) -> None:
        """An adapter for requests to name."""
        made = CreateAdapter(name="pirate", lora=LORA, adapter=_ADAPTER, lane=_LANE)
        self._settle(self.office.ask(made, request="create"))
        answer = AdapterCreated(details=details_of(_ADAPTER), lane=_LANE)
        self._settle(self.office.answer(TRAINER, answer, request="create"))

    def play(self, source: Source) -> None:
        self.office.now += source.choice((0.0, 0.1, 5.0, 400.0))
        for _ in range(source.randint(1, 4)):
            if source.one_in(5):
                self._say(
                    source,
                    source.choice((TRAINER, SAMPLER, ActorId("nobody"))),
                    self._named(source, self.others),
                )
            else:
                self._ask(source)
        self._settle(self.office.broker.tick(self.office.now))
        if source.one_in(_RESTARTS_ONE_IN):
            self.office = self.office.restarted()
            self.office.all_ready()
        self._ping()

    def _ask(self, source: Source) -> None:
        frames = self._named(source, self.requests)
        client = ClientId(source.choice((b"ann", b"ben", b"\x00\xff")))
        try:
            header = peek(frames[0] if frames else b"", _LIMITS)
        except BadFrame as error:
            check_told(error)
            return
        ledger = self.office.broker._dispatch.ledger
        known = ledger.find((header.tenant, header.request))
        try:
            decisions = self.office.broker.request(client, header, frames, self.office.now)
        except LoractlError as error:
            check_told(error)
            assert ledger.find((header.tenant, header.request)) is known, "refused, and kept all the same"
            return
        for told in self._settle(decisions):
            if isinstance(told, Forward) and not source.one_in(3):
                self._say(source, told.actor, self._answer(source, told))

    def _say(self, source: Source, actor: ActorId, frames: Frames) -> None:
        try:
            header = peek(frames[0] if frames else b"", _LIMITS)
            self._settle(self.office.broker.heard(actor, header, frames, self.office.now))
        except LoractlError as error:
            check_told(error)

    def _answer(self, source: Source, told: Forward) -> Frames:
        """To this request, whole or damaged, of whichever kind."""
        header = peek(bytes(told.frames[0]), _LIMITS)
        frames = [*source.choice(self.others)]
        frames[0] = _with(frames[0], {"r": header.request, "t": header.tenant})
        return hostile(source, [frames]) if source.one_in(2) else frames

    def _named(self, source: Source, messages: list[Frames]) -> Frames:
        """A message about what exists, with something wrong in it more often than not."""
        frames = [*source.choice(messages)]
        request = (
            f"r{next(self.numbers)}" if not source.one_in(5) else source.choice(("create", "r1", "r2", ""))
        )
        tenant = source.choice((ALICE, ALICE, BOB, "local", "\N{BULLET}"))
        frames[0] = _with(frames[0], {"r": request, "t": tenant})
        if not source.one_in(3):
            seq = source.choice((1, 2, 3, source.randrange(-2, 50), 2**63 - 1))
            frames[0] = _with_fields(frames[0], {"adapter": _ADAPTER, "lane": _LANE, "seq": seq})
        return hostile(source, [frames]) if not source.one_in(4) else frames

    def _ping(self) -> None:
        asked = encode(Envelope(request=RequestId("ping"), tenant=ALICE, body=Ping()))
        told = self.office.broker.request(ANN, peek(asked[0], _LIMITS), asked, self.office.now)
        assert isinstance(told[0], Reply)
        answer: Message = told[0].envelope.body
        assert isinstance(answer, Pong)

    def _settle(self, decisions: list[Decision]) -> list[Decision]:
        return self.office.settled(decisions)


def _with(header: bytes, changes: dict[str, Any]) -> bytes:
    packed: bytes = msgpack.packb({**msgpack.unpackb(header), **changes})
    return packed


def _with_fields(header: bytes, changes: dict[str, Any]) -> bytes:
    """Those fields that the message has."""
    fields = msgpack.unpackb(header)["f"]
    return _with(header, {"f": {name: changes.get(name, value) for name, value in fields.items()}})
