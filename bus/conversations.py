"""What a client has asked and not been told yet, and whether the daemon is still there. No sockets.

While anything is unanswered the daemon is pinged every `PING_EVERY_S`. Three things end a wait that
would otherwise last for ever: nobody listens on the socket any more; nothing at all was heard for
`GONE_AFTER_S`; a pong comes from a daemon that is younger than the request, which therefore went
to one that died. And since an answer may get lost on its way (a network, `--chaos`), the daemon is asked
after requests that are long without one; what it never heard of is sent again. All times are `time.monotonic()`, which the processes of one machine share.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from weakref import WeakValueDictionary

from .arrays import Buffer
from .errors import Aborted, DaemonGone, LoractlError
from .failures import error_of
from .ids import LOCAL_TENANT, RequestId, TenantId, new_request_id
from .messages import Envelope, Failed, Message, Pong, Recall, Recalled, WaitCause, Waiting

PING_EVERY_S = 0.5
GONE_AFTER_S = 20.0
# When a request is asked after for the first time; each time takes twice as long, up to a bound.
RECALL_AFTER_S = 2.0
_RECALL_EVERY_S = 32.0
_RECALLED_AT_ONCE = 256

OnWaiting = Callable[[str], None]


class Asked:
    """One request that is under way: the parts of its answer that have come, then its end.

    waits_for: why it is not being served yet, in words; empty when nothing was said. cause: the same for
    programs. frames: what was sent, kept until the end. recall_at: when to ask after it; pause_s: how long
    it was until then.
    """

    __slots__ = (
        "__weakref__",
        "cause",
        "final",
        "frames",
        "parts",
        "pause_s",
        "recall_at",
        "request",
        "sent_at",
        "tenant",
        "waits_for",
        "wakers",
    )

    def __init__(
        self, request: RequestId, tenant: TenantId, sent_at: float, frames: Sequence[Buffer] = ()
    ) -> None:
        self.request = request
        self.frames = frames
        self.pause_s = RECALL_AFTER_S
        self.recall_at = sent_at + RECALL_AFTER_S
        self.tenant = tenant
        self.waits_for = ""
        self.cause: WaitCause = "others"
        self.sent_at = sent_at
        self.parts: deque[Message] = deque()
        self.final: Message | LoractlError | None = None
        # Called once each at the next change, for clients that sleep until then.
        self.wakers: list[Callable[[], None]] = []

    def add_part(self, part: Message) -> None:
        self.parts.append(part)
        self._wake()

    def finish(self, final: Message | LoractlError) -> None:
        self.final = final
        self.frames = ()
        self._wake()

    def _wake(self) -> None:
        wakers, self.wakers = self.wakers, []
        for waker in wakers:
            waker()


class Conversations:
    def __init__(self, *, daemon: str, on_waiting: OnWaiting | None = None) -> None:
        """daemon: its name in errors, such as the state directory."""
        self._daemon = daemon
        self._on_waiting = on_waiting
        # Weak: an answer that nobody waits for any more is dropped when it comes.
        self._asked: WeakValueDictionary[RequestId, Asked] = WeakValueDictionary()
        self._pings: dict[RequestId, float] = {}
        self._heard_at = float("-inf")
        self._look_at = float("-inf")
        self._recall_at = float("-inf")
        self._unheard: list[Asked] = []

    def ask(
        self,
        request: RequestId,
        now: float,
        tenant: TenantId = LOCAL_TENANT,
        frames: Sequence[Buffer] = (),
    ) -> Asked:
        """Note a request that is being sent; the same id again joins the wait for its one answer."""
        asked = self._asked.get(request)
        if asked is None or asked.final is not None:
            asked = Asked(request, tenant, now, frames)
            self._asked[request] = asked
        return asked

    def hear(self, envelope: Envelope, now: float) -> None:
        """Take in a message from the daemon."""
        self._heard_at = now
        if envelope.request in self._pings and isinstance(envelope.body, Pong):
            self._hear_pong(envelope.request, envelope.body)
            return
        if isinstance(envelope.body, Recalled):
            self._hear_recalled(envelope.tenant, envelope.body)
            return
        asked = self._asked.get(envelope.request)
        if asked is None or asked.final is not None or envelope.tenant != asked.tenant:
            return
        match envelope.body:
            case Failed() as failure:
                asked.finish(error_of(failure))
            case Waiting(reason=reason, routine=routine, cause=cause):
                known = asked.waits_for == reason
                asked.waits_for, asked.cause = reason, cause
                if self._on_waiting is not None and not routine and not known:
                    self._on_waiting(reason)
            case body if envelope.last:
                asked.finish(body)
            case body:
                asked.add_part(body)

    def ping_due(self, now: float) -> RequestId | None:
        """The id of a ping to send now, if it is time for one."""
        if now < self._look_at:
            return None
        self._look_at = now + PING_EVERY_S
        if not any(asked.final is None and asked.sent_at <= now - PING_EVERY_S for asked in self._all()):
            return None
        ping = new_request_id()
        self._pings[ping] = now
        return ping

    def recalls_due(self, now: float) -> list[Envelope]:
        """What to ask after now, if it is time for that."""
        if now < self._recall_at:
            return []
        self._recall_at = now + PING_EVERY_S
        late: dict[TenantId, list[RequestId]] = {}
        for asked in self._all():
            if asked.final is None and asked.recall_at <= now:
                asked.pause_s = min(2 * asked.pause_s, _RECALL_EVERY_S)
                asked.recall_at = now + asked.pause_s
                late.setdefault(asked.tenant, []).append(asked.request)
        return [
            Envelope(request=new_request_id(), tenant=tenant, body=Recall(requests=part))
            for tenant, requests in late.items()
            for part in _parts(requests)
        ]

    def take_unheard(self) -> list[Sequence[Buffer]]:
        """The frames of requests that the daemon never heard of: to be sent once more."""
        unheard, self._unheard = self._unheard, []
        return [asked.frames for asked in unheard if asked.frames]

    def silent_s(self, now: float) -> float:
        """For how long the daemon has owed us a word: since a ping after which nothing was heard."""
        unanswered = [sent_at for sent_at in self._pings.values() if sent_at >= self._heard_at]
        return now - min(unanswered, default=now)

    def give_up(self) -> None:
        """The daemon is gone: end every wait."""
        self._pings.clear()
        for asked in self._all():
            self._lose(asked)

    def close(self) -> None:
        """The client is going away: end every wait."""
        for asked in self._all():
            if asked.final is None:
                asked.finish(Aborted("the client was closed before the answer came"))

    def _hear_recalled(self, tenant: TenantId, recalled: Recalled) -> None:
        for request in recalled.unknown:
            asked = self._asked.get(request)
            if asked is not None and asked.final is None and asked.tenant == tenant:
                self._unheard.append(asked)

    def _hear_pong(self, ping: RequestId, pong: Pong) -> None:
        sent_at = self._pings.pop(ping)
        # An answer overtakes none: pings before this one went to a daemon that has died.
        self._pings = {other: at for other, at in self._pings.items() if at > sent_at}
        born_at = sent_at - pong.uptime_s  # never later than the true birth, however slow the pong
        for asked in self._all():
            if asked.sent_at < born_at:
                self._lose(asked)

    def _all(self) -> list[Asked]:
        return list(self._asked.values())

    def _lose(self, asked: Asked) -> None:
        if asked.final is None:
            asked.finish(
                DaemonGone(
                    f"the daemon on {self._daemon} stopped while a request was under way: look at "
                    "`loractl daemon logs`, start it, and try again"
                )
            )


def _parts(requests: list[RequestId]) -> Iterator[tuple[RequestId, ...]]:
    for first in range(0, len(requests), _RECALLED_AT_ONCE):
        yield tuple(requests[first : first + _RECALLED_AT_ONCE])
