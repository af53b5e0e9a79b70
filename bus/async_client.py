"""The client for asyncio: the same verbs as `Client`, for the bridge and other servers.

    async with AsyncClient(config) as client:
        details = await client.request(ListAdapters())

Made and used in one event loop. A task that is cancelled while it waits for a Sample aborts it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Self

from .asked import Asked
from .client import check_daemon, daemon_is_gone, encode_request, outcome, place_of
from .codec import encode
from .config import Config
from .conversations import PING_EVERY_S, Conversations
from .ids import LOCAL_TENANT, RequestId, TenantId, new_request_id
from .layout import StateLayout
from .loop_socket import LoopSocket
from .mail import BadMail, read_mail
from .messages import Abort, Envelope, Message, Ping, Sample, WaitCause
from .sockets import Frames, close, connect_dealer, new_context


class AsyncPending:
    """A request under way. `request` is its id."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self.request = asked.request
        self.tenant = asked.tenant

    @property
    def ended(self) -> bool:
        return self._asked.final is not None

    @property
    def waits_for(self) -> str:
        """Why the request is not being served yet, in words; empty when nothing was said."""
        return self._asked.waits_for

    @property
    def cause(self) -> WaitCause:
        """What kind of reason that is."""
        return self._asked.cause

    async def result(self, timeout_s: float | None = None) -> Message:
        """Wait for the answer; parts of a streamed one are left out.

        Raises:
            LoractlError: what the daemon answered, or DaemonGone.
            TimeoutError: no answer yet. The request goes on; ask again.
        """
        async with asyncio.timeout(timeout_s):
            while self._asked.final is None:
                self._asked.parts.clear()
                await self._change()
        return outcome(self._asked.final)

    async def stream(self, timeout_s: float | None = None) -> AsyncIterator[Message]:
        """Each part as it comes, then the answer. timeout_s counts from one to the next.

        Raises:
            LoractlError, TimeoutError: as `result`.
        """
        while True:
            async with asyncio.timeout(timeout_s):
                while not self._asked.parts and self._asked.final is None:
                    await self._change()
            for part in self._asked.take_parts():
                yield part
            if self._asked.final is not None:
                yield outcome(self._asked.final)
                return

    async def _change(self) -> None:
        changed = asyncio.Event()
        self._asked.wakers.append(changed.set)
        await changed.wait()


class AsyncClient:
    def __init__(
        self,
        where: Config | StateLayout,
        tenant: TenantId = LOCAL_TENANT,
        *,
        on_waiting: Callable[[str], None] | None = None,
    ) -> None:
        """Connect to the daemon of a state directory; call it inside the running loop.

        Raises:
            DaemonNotRunning: nobody listens there.
        """
        self._layout, self._limits = place_of(where)
        self._tenant = tenant
        self._conversations = Conversations(daemon=str(self._layout.root), on_waiting=on_waiting)
        check_daemon(self._layout)
        self._gone = False
        self._context = new_context()
        dealer = connect_dealer(self._context, self._layout.client_socket, self._limits)
        self._socket = LoopSocket(dealer, self._hear)
        self._loop = asyncio.get_running_loop()
        self._ticking: asyncio.Handle = self._loop.call_later(PING_EVERY_S, self._tick)

    async def request(
        self,
        body: Message,
        *,
        timeout_s: float | None = None,
        request: RequestId | None = None,
        tenant: TenantId | None = None,
    ) -> Message:
        """Send a request and wait for its answer; raises as `submit` and `AsyncPending.result` do."""
        pending = self.submit(body, request=request, tenant=tenant)
        try:
            return await pending.result(timeout_s)
        except asyncio.CancelledError:
            self._abort(pending, body)
            raise

    def submit(
        self, body: Message, *, request: RequestId | None = None, tenant: TenantId | None = None
    ) -> AsyncPending:
        """Send a request without waiting. Its arrays are lent: leave them as they are until it is
        answered, and for good where the wait ends otherwise, for it may still be on its way.

        request: its id, to send one again. tenant: whose it is, for a server that speaks for many.

        Raises:
            InvalidData: an array of the wrong dtype, or more data than one message may carry.
            DaemonNotRunning: it went away earlier and has not come back.
        """
        if self._gone:
            check_daemon(self._layout)
            self._gone = False
        request = request or new_request_id()
        tenant = tenant or self._tenant
        frames = encode_request(Envelope(request=request, tenant=tenant, body=body), self._limits)
        asked = self._conversations.ask(request, time.monotonic(), tenant, frames)
        self._socket.send(frames)
        return AsyncPending(asked)

    def stream(
        self, body: Message, *, timeout_s: float | None = None, request: RequestId | None = None
    ) -> AsyncIterator[Message]:
        """Send a request; yield the parts of its answer as they come, then its end.

        A Sample whose stream is closed before its end is aborted.
        """
        return self._streamed(self.submit(body, request=request), body, timeout_s)

    def close(self) -> None:
        """Let go of the socket. Waits that are under way end with Aborted."""
        self._ticking.cancel()
        self._conversations.close()
        close(self._context, self._socket.detach())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def _streamed(
        self, pending: AsyncPending, body: Message, timeout_s: float | None
    ) -> AsyncIterator[Message]:
        try:
            async for part in pending.stream(timeout_s):
                yield part
        finally:
            self._abort(pending, body)

    def _abort(self, pending: AsyncPending, body: Message) -> None:
        if isinstance(body, Sample) and not pending.ended:
            self.submit(Abort(target=pending.request), tenant=pending.tenant)

    def _tick(self) -> None:
        """Ping while anything waits, and end the waits when the daemon is gone."""
        now = time.monotonic()
        if ping := self._conversations.ping_due(now):
            self._socket.send(encode(Envelope(request=ping, tenant=self._tenant, body=Ping())))
        for recall in self._conversations.recalls_due(now):
            self._socket.send(encode(recall))
        if daemon_is_gone(self._layout, self._conversations.silent_s(now)) and self._conversations.away(now):
            self._gone = True
        self._ticking = self._loop.call_later(PING_EVERY_S, self._tick)

    def _hear(self, frames: Frames) -> None:
        mail = read_mail(frames, self._limits)
        envelope = mail.answer if isinstance(mail, BadMail) else mail
        if envelope is not None:
            self._conversations.hear(envelope, time.monotonic())
            for unheard in self._conversations.take_unheard():
                self._socket.send([*unheard])
