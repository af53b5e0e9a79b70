"""Clients that ask after requests to which no answer came. A pipe on one machine loses nothing; a network,
a daemon with `--chaos`, or a client's own socket may."""

from collections.abc import Sequence
from dataclasses import replace

from ..bus.ids import RequestId
from ..bus.messages import Envelope, Recalled
from .decisions import ClientId, Decision, Frames, Key, Relay, Reply
from .dispatch import Dispatch
from .journal.records import Past


class Recalls:
    """past: what the journal holds; None: outcomes are those that the ledger still has."""

    def __init__(self, dispatch: Dispatch, past: Past | None) -> None:
        self._dispatch = dispatch
        self._past = past

    def answer(self, client: ClientId, asked: Envelope, requests: Sequence[RequestId]) -> list[Decision]:
        """Answer again what has ended, note who waits for the rest, and say which ones are unknown."""
        decisions: list[Decision] = []
        unknown: list[RequestId] = []
        for request in requests:
            key = (asked.tenant, request)
            known = self._dispatch.ledger.recall(key)
            if known is not None:
                decisions += self._dispatch.again(known, key, client)
            elif (outcome := self._written(key)) is not None:
                decisions.append(Relay(client, outcome))
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
