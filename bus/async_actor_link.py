"""An actor's end of the bus for asyncio (sampler, bridge), and the events that samplers follow.

Made and used in one event loop. `reply` and `report` never wait.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Self

import structlog

from .codec import encode
from .config import Config
from .follower import EventFollower, News, TableQuestions
from .heartbeat import HeartbeatThread, end_own_group
from .identities import NO_TENANT, unsolicited, work_identity
from .ids import RequestId
from .layout import StateLayout
from .loop_socket import LoopSocket
from .mail import BadMail, listening_actor_socket, read_mail, ready_message
from .messages import ActorRole, Envelope, GetVersions, Message, VersionRecord, VersionTable
from .pulse import Pulse, Strand
from .sockets import Frames, close, connect_dealer, connect_subscriber, new_context

# How often the loop's turning is noted, so that a loop that is blocked shows in the heartbeat.
_TICK_S = 0.25
# A subscription begins some time after it was asked for, and an event before that is lost without
# any later one to show the gap. So the table is asked for again: soon at first, then ever less often.
_FIRST_RECHECK_S = 0.25
_SLOWEST_RECHECK_S = 30.0

log = structlog.get_logger()


class AsyncActorLink:
    def __init__(
        self,
        config: Config,
        actor: str,
        role: ActorRole,
        *,
        on_orphaned: Callable[[], None] = end_own_group,
    ) -> None:
        """As `ActorLink`; call it inside the running loop.

        Raises:
            DaemonNotRunning: nobody listens on the actors' socket.
        """
        self._config, self._actor, self._role = config, actor, role
        address = listening_actor_socket(config)
        self._context = new_context()
        dealer = connect_dealer(self._context, address, config.limits, identity=work_identity(actor))
        self._socket = LoopSocket(dealer, self._deliver)
        self._subscription: LoopSocket | None = None
        self._inbox: asyncio.Queue[Envelope] = asyncio.Queue()
        self._tables: asyncio.Queue[Message] = asyncio.Queue()
        self._questions = TableQuestions()
        self._loop = asyncio.get_running_loop()
        self._pulse = Pulse()
        self._ticking: asyncio.Handle = self._loop.call_soon(self._tick)
        self._heartbeat = HeartbeatThread(self._context, config, actor, self._pulse, on_orphaned)
        self._heartbeat.start()

    def ready(self, details: str, versions: Sequence[VersionRecord] = (), adapters: int = 0) -> None:
        """Say that everything is loaded and requests may come."""
        self.report(ready_message(self._actor, self._role, details, versions, adapters))

    async def receive(self, timeout_s: float) -> list[Envelope]:
        """Everything that waits; waits up to `timeout_s` when nothing does.

        Requests, DropVersion and Drain. What cannot be read is answered or dropped by the link.
        """
        try:
            async with asyncio.timeout(timeout_s):
                received = [await self._inbox.get()]
        except TimeoutError:
            return []
        while not self._inbox.empty():
            received.append(self._inbox.get_nowait())
        return received

    async def events(self) -> AsyncIterator[News]:
        """The version table, then every change after it, in order and without a gap, for ever.

        A table in between is the whole truth again: it takes the place of all that came before.
        One iteration at a time.
        """
        news = self._tables = asyncio.Queue()
        address = StateLayout(Path(self._config.state_dir)).event_socket
        subscriber = connect_subscriber(self._context, address, self._config.limits)
        self._subscription = LoopSocket(subscriber, lambda frames: self._deliver_event(news, frames))
        try:
            async for item in self._followed(news):
                yield item
        finally:
            self._subscription.detach().close()

    async def _followed(self, arriving: "asyncio.Queue[Message]") -> AsyncIterator[News]:
        follower = EventFollower()
        recheck_s, ask_at = _FIRST_RECHECK_S, self._loop.time()
        while True:
            try:
                async with asyncio.timeout_at(ask_at):
                    message = await arriving.get()
            except TimeoutError:
                self.ask_for_table()
                ask_at = self._loop.time() + recheck_s
                recheck_s = min(2 * recheck_s, _SLOWEST_RECHECK_S)
                continue
            was_behind = follower.behind
            for item in follower.hear(message):
                yield item
            if follower.behind and not was_behind:
                recheck_s, ask_at = _FIRST_RECHECK_S, self._loop.time()

    def reply(self, to: Envelope, body: Message, last: bool = True) -> None:
        """Answer a request; `last` False for a part of a streamed answer. Its arrays are lent: leave them as they
        are."""
        self._send(Envelope(request=to.request, tenant=to.tenant, body=body, last=last))

    def report(self, body: Message) -> None:
        """Tell the broker something that answers no request."""
        self._send(unsolicited(body))

    def strand(self) -> Strand:
        """For work beside the loop. The loop's own turning the link notes by itself."""
        return self._pulse.strand()

    def close(self) -> None:
        """Send what has been said, then let go. Blocks, for about two seconds at most."""
        self._ticking.cancel()
        self._heartbeat.stop()
        if self._subscription is not None:
            self._subscription.detach().close()
        close(self._context, self._socket.detach())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def _tick(self) -> None:
        self._pulse.loop.turn()
        self._ticking = self._loop.call_later(_TICK_S, self._tick)

    def _deliver(self, frames: Frames) -> None:
        mail = read_mail(frames, self._config.limits)
        if isinstance(mail, BadMail):
            log.warning("message.refused", error=mail.error.message)
            if mail.answer is not None:
                self._send(mail.answer)
        elif isinstance(mail.body, VersionTable) or mail.request == self._questions.under_way:
            self._tables.put_nowait(mail.body)
            self._send_question(self._questions.answered(mail.request, self._loop.time()))
        else:
            self._inbox.put_nowait(mail)

    def _deliver_event(self, news: "asyncio.Queue[Message]", frames: Frames) -> None:
        mail = read_mail(frames, self._config.limits)
        if isinstance(mail, BadMail):
            log.warning("event.refused", error=mail.error.message)
        else:
            news.put_nowait(mail.body)

    def ask_for_table(self) -> None:
        """Ask soon: a request names what no event has told of. `events` says what the answer brings."""
        self._send_question(self._questions.ask(self._loop.time()))

    def _send_question(self, request: RequestId | None) -> None:
        if request is not None:
            self._send(Envelope(request=request, tenant=NO_TENANT, body=GetVersions()))

    def _send(self, envelope: Envelope) -> None:
        self._socket.send(encode(envelope))
