"""Hands what came to the broker, and has done what that decides: the boundary of one message.

Reads headers only. A message that cannot be read, or that hits a bug of ours, is answered if it can be, and
costs nobody else anything.
"""

import time
from collections.abc import Callable, Iterable

import structlog

from ..bus.codec import Header, peek
from ..bus.config import LimitsConfig
from ..bus.errors import BadFrame, Internal, LoractlError
from ..bus.identities import read_identity
from ..bus.sockets import Frames
from .answers import turned_away
from .broker import Broker
from .decisions import ClientId, Decision
from .inbox import Arrived
from .now_and_then import NowAndThen

log = structlog.get_logger()


class Reception:
    def __init__(
        self, broker: Broker, limits: LimitsConfig, perform: Callable[[Iterable[Decision]], None]
    ) -> None:
        self._broker = broker
        self._limits = limits
        self._perform = perform
        self._unreadable = NowAndThen()

    def from_client(self, arrived: Arrived) -> None:
        frames, refusal = arrived
        client, header = ClientId(bytes(frames[0])), None
        try:
            header = self._header(frames)
            if refusal is not None:
                raise refusal
            self._perform(self._broker.request(client, header, frames[1:], time.monotonic()))
        except LoractlError as error:
            if header is None:  # nobody knows which request this was
                self._note_unreadable(error)
            else:
                self._perform([turned_away(client, header, error)])
        except Exception:  # the boundary: a bug costs one request, never the daemon
            log.exception("request.hit_a_bug", kind=header.kind if header else None)
            self._give_up(header)

    def from_actor(self, frames: Frames) -> None:
        header = None
        try:
            actor = read_identity(bytes(frames[0]))
            header = self._header(frames)
            self._perform(self._broker.heard(actor, header, frames[1:], time.monotonic()))
        except LoractlError as error:
            self._note_unreadable(error)
        except Exception:  # as above
            log.exception("answer.hit_a_bug", kind=header.kind if header else None)
            self._give_up(header)

    def _header(self, frames: Frames) -> Header:
        if len(frames) < 2:
            raise BadFrame("no header")
        return peek(frames[1], self._limits)

    def _note_unreadable(self, error: LoractlError) -> None:
        if times := self._unreadable.happened(time.monotonic()):
            log.warning("frame.refused", error=error.message, times=times)

    def _give_up(self, header: Header | None) -> None:
        if header is not None:
            error = Internal("loractl has a bug here; the daemon's log has the details")
            self._perform(self._broker.abandon((header.tenant, header.request), error, time.monotonic()))
