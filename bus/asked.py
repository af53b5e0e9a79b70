"""One request of a client that is under way: what was sent, what came of it, when to ask after it."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from .arrays import Buffer
from .errors import LoractlError
from .ids import RequestId, TenantId
from .messages import Message, WaitCause

# When a request is asked after for the first time; each time takes twice as long, up to a bound.
RECALL_AFTER_S = 2.0
_RECALL_EVERY_S = 32.0


class Asked:
    """The parts of its answer that have come, then its end.

    waits_for: why it is not being served yet, in words; empty when nothing was said. cause: the same for
    programs. frames: what was sent, kept until the end. recall_at: when to ask after it; pause_s: how long
    it was until then. delivered: a part of the answer was taken. refused_at: when it was first told to come again later;
    losses: how often an actor died with it.
    """

    __slots__ = (
        "__weakref__",
        "cause",
        "delivered",
        "final",
        "frames",
        "losses",
        "parts",
        "pause_s",
        "recall_at",
        "refused_at",
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
        self.delivered = False
        self.refused_at: float | None = None
        self.losses = 0
        self.final: Message | LoractlError | None = None
        # Called once each at the next change, for clients that sleep until then.
        self.wakers: list[Callable[[], None]] = []

    def add_part(self, part: Message) -> None:
        self.parts.append(part)
        self._wake()

    def take_parts(self) -> Iterator[Message]:
        """What has come, to be handed on."""
        while self.parts:
            self.delivered = True
            yield self.parts.popleft()

    def finish(self, final: Message | LoractlError) -> None:
        self.final = final
        self.frames = ()
        self._wake()

    def recalled(self, now: float) -> None:
        """The daemon is being asked after it."""
        self.pause_s = min(2 * self.pause_s, _RECALL_EVERY_S)
        self.recall_at = now + self.pause_s

    def begin_again(self, now: float, after_s: float = 0.0) -> None:
        """As if it were sent at this moment; after_s: when to ask whether it has to be."""
        assert not self.delivered, "nobody gets a part twice"
        self.parts.clear()
        self.sent_at, self.recall_at, self.pause_s = now, now + after_s, RECALL_AFTER_S / 2

    def _wake(self) -> None:
        wakers, self.wakers = self.wakers, []
        for waker in wakers:
            waker()
