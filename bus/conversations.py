"""What a client has asked and not been told yet, and whether the daemon is still there. No sockets.

While anything is unanswered the daemon is pinged every `PING_EVERY_S`. Three things say that it has gone: nobody
listens on the socket any more; nothing at all was heard for `GONE_AFTER_S`; a pong comes from a daemon that is
younger than the request, which therefore went to one that died. They end the waits, which would otherwise last
for ever; with patience, they do once it is over. When a daemon is there again, it is asked after what is unanswered.

Since an answer may also get lost on its way (a network, `--chaos`), the daemon is asked after requests that are long
without one; what it never heard of is sent again. All times are `time.monotonic()`.
"""

from collections.abc import Callable, Iterator, Sequence
from weakref import WeakValueDictionary

from .arrays import Buffer
from .asked import Asked
from .errors import Aborted, ActorStopping, DaemonGone, LoractlError
from .failures import error_of
from .ids import LOCAL_TENANT, RequestId, TenantId, new_request_id
from .messages import Envelope, Failed, Pong, Recall, Recalled, Waiting
from .patience import Patience

PING_EVERY_S = 0.5
GONE_AFTER_S = 20.0
_RECALLED_AT_ONCE = 256
# Of many requests those that are late are found a little later.
_LOOKED_AT_PER_S, _LATEST_LOOK_S = 2000, 5.0
# When to ask again after what the daemon would not take just now.
_AGAIN_S = 1.0

OnWaiting = Callable[[str], None]


class Conversations:
    def __init__(self, *, daemon: str, on_waiting: OnWaiting | None = None, patience_s: float = 0.0) -> None:
        """daemon: its name in errors, such as the state directory. patience_s: see `Client`."""
        self._daemon = daemon
        self._on_waiting = on_waiting
        self._patience = Patience(patience_s)
        self._said = ""
        # Weak: an answer that nobody waits for any more is dropped when it comes.
        self._asked: WeakValueDictionary[RequestId, Asked] = WeakValueDictionary()
        self._pings: dict[RequestId, float] = {}
        # All that is unanswered was sent after this.
        self._none_before = float("inf")
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
            self._none_before = min(self._none_before, now)
            self._asked[request] = asked
        return asked

    def hear(self, envelope: Envelope, now: float) -> None:
        """Take in a message from the daemon."""
        self._heard_at = now
        if self._patience.heard():
            self._say_back()
        if envelope.request in self._pings and isinstance(envelope.body, Pong):
            self._hear_pong(envelope.request, envelope.body, now)
            return
        if isinstance(envelope.body, Recalled):
            self._hear_recalled(envelope.tenant, envelope.body)
            return
        asked = self._asked.get(envelope.request)
        if asked is None or asked.final is not None or envelope.tenant != asked.tenant:
            return
        match envelope.body:
            case Failed() as failure:
                self._hear_failure(asked, error_of(failure), now)
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
        # One after the other, for the first one will mostly do.
        if not any(
            asked.final is None and asked.sent_at <= now - PING_EVERY_S for asked in self._asked.values()
        ):
            return None
        ping = new_request_id()
        self._pings[ping] = now
        return ping

    def recalls_due(self, now: float) -> list[Envelope]:
        """What to ask after now, if it is time for that."""
        if now < self._recall_at:
            return []
        self._recall_at = now + min(max(PING_EVERY_S, len(self._asked) / _LOOKED_AT_PER_S), _LATEST_LOOK_S)
        late: dict[TenantId, list[RequestId]] = {}
        for asked in self._all():
            if asked.final is None and asked.recall_at <= now:
                asked.recalled(now)
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

    def away(self, now: float) -> bool:
        """The daemon does not answer. True: there is no patience left, and every wait was ended."""
        if self._patience.ends(now):
            self._pings.clear()
            for asked in self._all():
                self._end(asked, waited=True)
            return True
        self._say_away()
        for asked in self._all():
            if asked.delivered:  # half an answer, of which the other half is lost
                self._end(asked)
        return False

    def close(self) -> None:
        """The client is going away: end every wait."""
        for asked in self._all():
            if asked.final is None:
                asked.finish(Aborted("the client was closed before the answer came"))

    def _hear_recalled(self, tenant: TenantId, recalled: Recalled) -> None:
        for request in recalled.unknown:
            asked = self._asked.get(request)
            if asked is None or asked.final is not None or asked.tenant != tenant:
                continue
            if asked.delivered:
                text = f"the rest of an answer of the daemon on {self._daemon} was lost on its way: ask once more"
                asked.finish(DaemonGone(text))
            else:
                asked.parts.clear()  # of a run that nobody knows of any more
                self._unheard.append(asked)

    def _hear_failure(self, asked: Asked, error: LoractlError, now: float) -> None:
        if not self._patience.bears(asked, error, now):
            asked.finish(error)
            return
        asked.begin_again(now, after_s=_AGAIN_S)
        if isinstance(error, ActorStopping):
            self._say_away()
        else:
            self._say(
                "an actor of the daemon was lost and is started again: what it had in hand runs once more"
            )

    def _hear_pong(self, ping: RequestId, pong: Pong, now: float) -> None:
        sent_at = self._pings.pop(ping)
        # An answer overtakes none: pings before this one went to a daemon that has died.
        self._pings = {other: at for other, at in self._pings.items() if at > sent_at}
        born_at = sent_at - pong.uptime_s  # never later than the true birth, however slow the pong
        if born_at <= self._none_before:
            return
        self._none_before = born_at
        for asked in self._all():
            if asked.sent_at < born_at and asked.final is None:
                self._lose(asked, now)

    def _lose(self, asked: Asked, now: float) -> None:
        """The daemon that had this is dead, and there is another one."""
        if not self._patience or asked.delivered:
            self._end(asked)
            return
        asked.begin_again(now)
        asked.refused_at = None
        self._recall_at = now
        self._say_back()

    def _end(self, asked: Asked, *, waited: bool = False) -> None:
        if asked.final is None:
            back = f" and was not back after {self._patience.for_s:g} s" if waited and self._patience else ""
            asked.finish(
                DaemonGone(
                    f"the daemon on {self._daemon} stopped while a request was under way{back}: look at "
                    "`loractl daemon logs`, start it, and try again"
                )
            )

    def _all(self) -> list[Asked]:
        return list(self._asked.values())

    # --- what a person may be told ---------------------------------------------------------------

    def _say_away(self) -> None:
        self._say(
            f"the daemon on {self._daemon} is away: what is under way goes on when it is back, "
            f"within {self._patience.for_s:g} s"
        )

    def _say_back(self) -> None:
        self._say(f"the daemon on {self._daemon} is back, and takes up what was under way")

    def _say(self, text: str) -> None:
        if text != self._said and self._on_waiting is not None:
            self._on_waiting(text)
        self._said = text


def _parts(requests: list[RequestId]) -> Iterator[tuple[RequestId, ...]]:
    for first in range(0, len(requests), _RECALLED_AT_ONCE):
        yield tuple(requests[first : first + _RECALLED_AT_ONCE])
