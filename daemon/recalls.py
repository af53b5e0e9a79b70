"""Clients that ask after requests to which no answer came. A pipe on one machine loses nothing; a network,
a daemon with `--chaos`, or a client's own socket may."""

from collections.abc import Sequence
from dataclasses import replace

from ..bus.ids import RequestId
from ..bus.messages import Envelope, Recalled
from .decisions import ClientId, Decision, Frames, Key, Relay, Reply
from .dispatch import Dispatch
from .journal.records import Past

# Of outcomes, in the answer to one message. Who gets fewer than asked for asks again.
_BYTES_AT_ONCE = 64 * 2**20


class Recalls:
    """past: what the journal holds; None: outcomes are those that the ledger still has."""

    def __init__(self, dispatch: Dispatch, past: Past | None) -> None:
        self._dispatch = dispatch
        self._past = past

    def answer(self, client: ClientId, asked: Envelope, requests: Sequence[RequestId]) -> list[Decision]:
        """Answer again what has ended, note who waits for the rest, and say which ones are unknown."""
        decisions: list[Decision] = []
        unknown: list[RequestId] = []
        size_bytes = 0
        for request in dict.fromkeys(requests):
            key = (asked.tenant, request)
            if size_bytes >= _BYTES_AT_ONCE:
                break
            known = self._dispatch.ledger.recall(key)
            if known is not None:
                told = self._dispatch.again(known, key, client)
                size_bytes += _relayed_bytes(told)
                decisions += told
            elif (outcome := self._written(key)) is not None:
                decisions.append(Relay(client, outcome))
                size_bytes += _relayed_bytes(decisions[-1:])
            else:
                unknown.append(request)
        return [*decisions, Reply(client, replace(asked, body=Recalled(unknown=tuple(unknown))))]

    def _written(self, key: Key) -> Frames | None:
        """The outcome that the journal has, unless another try may have another one."""
        logged = self._past.find(key) if self._past is not None else None
        if logged is None or logged.order is None or logged.again:
            return None
        assert self._past is not None
        return self._past.outcome(logged.number)


def _relayed_bytes(decisions: Sequence[Decision]) -> int:
    return sum(len(frame) for each in decisions if isinstance(each, Relay) for frame in each.frames)
