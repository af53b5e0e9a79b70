"""Deletions of published versions: durable before they are answered, so that none comes back. Pure."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from ..bus.errors import StorageFailed
from ..bus.failures import failed
from ..bus.ids import TenantId
from ..bus.messages import DeleteVersion, Done, Envelope, Message
from .decisions import ClientId, Decision, Reply, WriteDown
from .journal.records import Past, VersionDeleted
from .publishing import Publishing
from .versions import VersionKey

# SQLite's integers end there; no version ever has such a number.
_TOO_HIGH = 2**63
# Who asked, and what.
_Asked = tuple[ClientId, Envelope]


class Deletions:
    """past: what the journal holds; None: a deletion is remembered in memory only."""

    def __init__(self, publishing: Publishing, past: Past | None) -> None:
        self._publishing = publishing
        self._durable = past is not None
        self._waiting: defaultdict[VersionDeleted, list[_Asked]] = defaultdict(list)
        for deleted in past.deleted_versions() if past is not None else ():
            publishing.delete_version(deleted.tenant, VersionKey(deleted.adapter, deleted.version))

    def answer(self, client: ClientId, asked: Envelope, body: DeleteVersion) -> list[Decision]:
        key = VersionKey(body.adapter, body.version)
        there_is_none = not 0 < body.version < _TOO_HIGH
        if there_is_none or not self._durable or not self._publishing.versions.may_delete(asked.tenant, key):
            return [*self._delete(asked.tenant, key), _reply(client, asked, Done())]
        deleted = VersionDeleted(tenant=asked.tenant, adapter=body.adapter, version=body.version)
        self._waiting[deleted].append((client, asked))
        return [WriteDown(deleted)]

    def written(self, deleted: VersionDeleted) -> list[Decision]:
        done = self._delete(deleted.tenant, VersionKey(deleted.adapter, deleted.version))
        return [*done, *self._told(deleted, Done())]

    def refused(self, deleted: VersionDeleted, reason: str) -> list[Decision]:
        error = StorageFailed(f"the journal cannot be written: {reason}; nothing was deleted")
        return self._told(deleted, failed(error))

    def _delete(self, tenant: TenantId, key: VersionKey) -> Sequence[Decision]:
        return self._publishing.delete_version(tenant, key)

    def _told(self, deleted: VersionDeleted, answer: Message) -> list[Decision]:
        return [_reply(client, asked, answer) for client, asked in self._waiting.pop(deleted, ())]


def _reply(client: ClientId, asked: Envelope, answer: Message) -> Reply:
    return Reply(client, replace(asked, body=answer))
