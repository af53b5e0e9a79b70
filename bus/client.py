"""The plain client: for scripts, the command line, threads. One client belongs to one thread.

    with Client(config) as client:
        details = client.request(ListAdapters())

No wait lasts for ever: while one waits for an answer the daemon is pinged, and when it is gone the
wait ends with `DaemonGone`. A request that ended so may be sent again under its id (`request=`):
it runs once, and the first outcome is the answer. A client with patience does that by itself.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from .arrays import Buffer
from .asked import Asked
from .codec import check_sizes, encode
from .config import Config, LimitsConfig
from .conversations import GONE_AFTER_S, PING_EVERY_S, Conversations
from .errors import BadFrame, DaemonNotRunning, InvalidData, LoractlError
from .ids import LOCAL_TENANT, RequestId, TenantId, new_request_id
from .layout import StateLayout
from .mail import BadMail, read_mail
from .messages import Abort, Envelope, Message, Ping, Sample
from .remote_daemon import RemoteDaemon
from .sockets import (
    PlainContext,
    PlainSocket,
    close,
    connect_dealer,
    new_context,
    receive_waiting,
    send,
    someone_listens,
)


class Pending:
    """A request under way. `request` is its id."""

    def __init__(self, client: "Client", asked: Asked) -> None:
        self._client = client
        self._asked = asked
        self.request = asked.request

    @property
    def ended(self) -> bool:
        return self._asked.final is not None

    def result(self, timeout_s: float | None = None) -> Message:
        """Wait for the answer; parts of a streamed one are left out.

        Raises:
            LoractlError: what the daemon answered, or DaemonGone.
            TimeoutError: no answer yet. The request goes on; ask again.
        """
        deadline = _deadline(timeout_s)
        while self._asked.final is None:
            self._asked.parts.clear()
            self._client.wait(deadline, self._asked)
        return outcome(self._asked.final)

    def whole(self) -> list[Message]:
        """The parts of the answer and its end, once that is there. When messages were lost or came twice on their
        way, a part may be there twice, or missing.

        Raises:
            LoractlError: as `result`.
        """
        while self._asked.final is None:
            self._client.wait(math.inf, self._asked)
        return [*self._asked.take_parts(), outcome(self._asked.final)]

    def stream(self, timeout_s: float | None = None) -> Iterator[Message]:
        """Each part as it comes, then the answer. timeout_s counts from one to the next.

        Raises:
            LoractlError, TimeoutError: as `result`.
        """
        while True:
            deadline = _deadline(timeout_s)
            while not self._asked.parts and self._asked.final is None:
                self._client.wait(deadline, self._asked)
            yield from self._asked.take_parts()
            if self._asked.final is not None:
                yield outcome(self._asked.final)
                return


class Client:
    def __init__(
        self,
        where: Config | StateLayout | RemoteDaemon,
        tenant: TenantId | None = None,
        *,
        on_waiting: Callable[[str], None] | None = None,
        patience_s: float = 0.0,
    ) -> None:
        """Connect to the daemon of a state directory, or to one on another machine.

        tenant: None is the local user; on another machine whom the key belongs to.
        on_waiting: told why a request waits: when the daemon says so, or is away.
        patience_s: how long requests under way outlive a daemon that is away. When one is back, they
        go on under their ids: what had ended gets its first outcome, and what never ran runs. Only a
        stream that has given parts ends at once.

        Raises:
            DaemonNotRunning: nobody listens there.
            AccessDenied: the daemon of another machine does not take the key.
        """
        self._daemon = where if isinstance(where, RemoteDaemon) else LocalDaemon(*place_of(where))
        self._limits = self._daemon.limits
        self._tenant = tenant or self._daemon.tenant
        self._conversations = Conversations(
            daemon=self._daemon.name, on_waiting=on_waiting, patience_s=patience_s
        )
        self._daemon.check()
        self._gone = False
        self._context = new_context()
        try:
            self._socket = self._daemon.connect(self._context)
        except BaseException:
            self._context.term()
            raise

    @property
    def tenant(self) -> TenantId:
        """Whose requests these are, unless one names another."""
        return self._tenant

    def request(
        self, body: Message, *, timeout_s: float | None = None, request: RequestId | None = None
    ) -> Message:
        """Send a request and wait for its answer; raises as `submit` and `Pending.result` do."""
        return self.submit(body, request=request).result(timeout_s)

    def submit(
        self, body: Message, *, request: RequestId | None = None, tenant: TenantId | None = None
    ) -> Pending:
        """Send a request without waiting. request: its id, to send one again. tenant: for whom, if another.

        Raises:
            InvalidData: an array of the wrong dtype, or more data than one message may carry.
            DaemonNotRunning: it went away earlier and has not come back.
        """
        if self._gone:
            self._daemon.check()
            self._gone = False
        request = request or new_request_id()
        tenant = tenant or self._tenant
        frames = encode_request(Envelope(request=request, tenant=tenant, body=body), self._limits)
        asked = self._conversations.ask(request, time.monotonic(), tenant, frames)
        send(self._socket, frames)
        return Pending(self, asked)

    def stream(
        self, body: Message, *, timeout_s: float | None = None, request: RequestId | None = None
    ) -> Iterator[Message]:
        """Send a request; yield the parts of its answer as they come, then its end.

        A Sample whose stream is left before its end is aborted.
        """
        pending = self.submit(body, request=request)
        return self._streamed(pending, body, timeout_s)

    def wait(self, deadline: float, asked: Asked) -> None:
        """Let messages come in, for a part of a second at most or until one for `asked` has come.

        Raises:
            TimeoutError: the deadline (of `time.monotonic()`) has passed.
        """
        now = time.monotonic()
        if ping := self._conversations.ping_due(now):
            send(self._socket, encode(Envelope(request=ping, tenant=self._tenant, body=Ping())))
        for recall in self._conversations.recalls_due(now):
            send(self._socket, encode(recall))
        self._socket.poll(int(1000 * max(0.0, min(PING_EVERY_S, deadline - now))) + 1)
        for frames in receive_waiting(self._socket):
            self._hear(frames)
        for unheard in self._conversations.take_unheard():
            send(self._socket, unheard)
        now = time.monotonic()
        if self._daemon.is_gone(self._conversations.silent_s(now)) and self._conversations.away(now):
            self._gone = True
        if now >= deadline and asked.final is None and not asked.parts:
            raise TimeoutError(f"no answer to request {asked.request} yet")

    def close(self) -> None:
        """Let go of the socket. Waits that are under way end with Aborted."""
        self._conversations.close()
        close(self._context, self._socket)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _streamed(self, pending: Pending, body: Message, timeout_s: float | None) -> Iterator[Message]:
        try:
            yield from pending.stream(timeout_s)
        finally:
            if not pending.ended and isinstance(body, Sample):
                self.submit(Abort(target=pending.request))

    def _hear(self, frames: list[Buffer]) -> None:
        mail = read_mail(frames, self._limits)
        envelope = mail.answer if isinstance(mail, BadMail) else mail
        if envelope is not None:
            self._conversations.hear(envelope, time.monotonic())


@dataclass(frozen=True, slots=True)
class LocalDaemon:
    """The daemon of a state directory of this machine. Whoever reaches its socket may speak for everybody."""

    layout: StateLayout
    limits: LimitsConfig

    @property
    def name(self) -> str:
        return str(self.layout.root)

    @property
    def tenant(self) -> TenantId:
        return LOCAL_TENANT

    def check(self) -> None:
        """Raises DaemonNotRunning."""
        check_daemon(self.layout)

    def connect(self, context: PlainContext) -> PlainSocket:
        return connect_dealer(context, self.layout.client_socket, self.limits)

    def is_gone(self, silent_s: float) -> bool:
        """Whether it will not answer any more, after so long a silence."""
        return daemon_is_gone(self.layout, silent_s)


def place_of(where: Config | StateLayout) -> tuple[StateLayout, LimitsConfig]:
    if isinstance(where, StateLayout):
        return where, LimitsConfig()
    return StateLayout(Path(where.state_dir)), where.limits


def check_daemon(layout: StateLayout) -> None:
    """Raises:
    DaemonNotRunning: nobody listens on the clients' socket.
    """
    if not someone_listens(layout.client_socket):
        raise DaemonNotRunning(f"no daemon runs on {layout.root}: start one with `loractl daemon start`")


def daemon_is_gone(layout: StateLayout, silent_s: float) -> bool:
    """Whether a daemon that has been silent for so long will not answer any more."""
    if silent_s < PING_EVERY_S:
        return False
    return silent_s >= GONE_AFTER_S or not someone_listens(layout.client_socket)


def encode_request(envelope: Envelope, limits: LimitsConfig) -> list[Buffer]:
    """Encode what the daemon is sure to accept.

    Raises:
        InvalidData: the message is larger than the limits allow.
    """
    frames = encode(envelope)
    try:
        check_sizes(frames, limits)
    except BadFrame as error:
        raise InvalidData(f"{envelope.body.kind}: {error.message}; send less at one time") from error
    return frames


def _deadline(timeout_s: float | None) -> float:
    return float("inf") if timeout_s is None else time.monotonic() + timeout_s


def outcome(final: Message | LoractlError) -> Message:
    """Return an answer, or raise it."""
    if isinstance(final, LoractlError):
        raise final
    return final
