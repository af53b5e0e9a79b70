"""Requests that the broker answers itself, at once."""

from dataclasses import replace

from ..bus.config import Config
from ..bus.errors import AccessDenied
from ..bus.ids import LOCAL_TENANT
from ..bus.messages import (
    DaemonStatus,
    Done,
    Envelope,
    GetHistory,
    GetStatus,
    GetVersions,
    Message,
    Ping,
    ReadOperation,
    Recall,
    Shutdown,
)
from .decisions import ClientId, Decision, Reply, StopDaemon
from .dispatch import Dispatch
from .history import Histories
from .journal.records import Past
from .publishing import Publishing
from .recalls import Recalls
from .status import Identity, daemon_status


class Questions:
    """Questions change nothing: the ledger need not know them."""

    def __init__(
        self,
        config: Config,
        identity: Identity,
        dispatch: Dispatch,
        publishing: Publishing,
        past: Past | None = None,
    ) -> None:
        self._config = config
        self._identity = identity
        self._dispatch = dispatch
        self._recalls = Recalls(dispatch, past)
        self._publishing = publishing
        self._histories = Histories(past, config.limits)

    def status(self, now: float) -> DaemonStatus:
        return daemon_status(self._identity, self._config, self._dispatch, self._publishing, now)

    def answer(self, client: ClientId, envelope: Envelope, now: float) -> list[Decision]:
        """Raises AccessDenied (the daemon's owner alone may ask for this), AdapterNotFound, InvalidRequest."""
        answer: Message
        match envelope.body:
            case Ping():
                answer = self._identity.pong(now)
            case GetStatus():
                answer = self.status(now)
            case GetVersions():
                answer = self._publishing.versions.table(envelope.tenant)
            case Recall(requests=requests):
                return self._recalls.answer(client, envelope, requests)
            case GetHistory() as asked:
                answer = self._histories.page(envelope.tenant, asked)
            case ReadOperation() as asked:
                return self._histories.operation(client, envelope, asked)
            case Shutdown():
                if envelope.tenant != LOCAL_TENANT:
                    raise AccessDenied("only the daemon's owner may stop it, on its machine")
                answer = Done()
            case other:
                raise AssertionError(f"{other.kind} is routed to the broker, which does not know it")
        reply = _reply(client, envelope, answer)
        return [reply, StopDaemon()] if isinstance(envelope.body, Shutdown) else [reply]


def _reply(client: ClientId, asked: Envelope, answer: Message) -> Reply:
    return Reply(client, replace(asked, body=answer))
