"""Requests that the broker must understand, or change, before they go on their way.

All others pass as they came. Who gets a request is left to `dispatch`, which versions there are to
`publishing`. Pure, as all of the broker.
"""

from contextlib import suppress

from ..bus.codec import with_fields
from ..bus.errors import Aborted, InvalidRequest, NotSupported, VersionNotFound
from ..bus.failures import failed
from ..bus.messages import Abort, DeleteAdapter, Done, LoadVersion, Message, Sample
from .decisions import Decision
from .dispatch import Dispatch
from .ledger import Ticket
from .publishing import Publishing

UNDERSTOOD = frozenset(request.kind for request in (Sample, Abort, DeleteAdapter, LoadVersion))


class Admissions:
    def __init__(self, dispatch: Dispatch, publishing: Publishing) -> None:
        self._dispatch = dispatch
        self._publishing = publishing

    def admit(self, ticket: Ticket, body: Message, now: float) -> list[Decision]:
        """Send a request of a kind in `UNDERSTOOD` on its way.

        Raises:
            LoractlError: it is refused; the ticket is still open.
        """
        match body:
            case Sample():
                return self._sample(ticket, body, now)
            case Abort():
                return self._abort(ticket, body, now)
            case DeleteAdapter(adapter=adapter):
                ticket.deletes = adapter
                return self._dispatch.place(ticket, now)
            case LoadVersion():
                return self._load_version(ticket, body, now)
            case other:
                raise AssertionError(f"{other.kind} needs no admission")

    def _sample(self, ticket: Ticket, body: Sample, now: float) -> list[Decision]:
        """Bind the sample to a version, once and for all."""
        if body.adapter is None and body.version:
            raise InvalidRequest(
                f"the base model has no version {body.version}: name an adapter, or no version"
            )
        if body.adapter is not None:
            owner = body.owner or ticket.key[0]
            try:
                ticket.pin = self._publishing.versions.admit(owner, body.adapter, body.version)
            except VersionNotFound as error:
                if (elsewhere := self._dispatch.recovery.elsewhere(body.adapter, owner)) is not None:
                    raise elsewhere from error
                raise
            ticket.frames = [with_fields(ticket.frames[0], version=ticket.pin.number), *ticket.frames[1:]]
        return self._dispatch.place(ticket, now)

    def _abort(self, ticket: Ticket, body: Abort, now: float) -> list[Decision]:
        target = self._dispatch.ledger.find((ticket.key[0], body.target))
        if target is None:  # ended already, or never was
            return self._dispatch.end(ticket, Done(), now)
        if target.kind != Sample.kind:
            raise NotSupported(f"only a sample can be aborted; {body.target!r} is a {target.kind}")
        if target.actor is not None:
            return [self._dispatch.follow(ticket, target)]
        aborted = failed(Aborted("aborted by its owner before a sampler took it"))
        return [*self._dispatch.end(target, aborted, now), *self._dispatch.end(ticket, Done(), now)]

    def _load_version(self, ticket: Ticket, body: LoadVersion, now: float) -> list[Decision]:
        """Keep the version's files until it is loaded.

        One that is not there is refused by the trainer: it uses up its number of the lane.
        """
        with suppress(VersionNotFound):
            owner = body.source_owner or ticket.key[0]
            ticket.pin = self._publishing.versions.admit(owner, body.source, body.version)
        return self._dispatch.place(ticket, now)
