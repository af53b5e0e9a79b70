"""What a tenant's quotas mean for a request that came: why it waits, or may not even do that. Pure."""

from ..bus.errors import QuotaExceeded
from .ledger import Ticket
from .waitlist import Waitlist


def quota_reason(waitlist: Waitlist, ticket: Ticket) -> str:
    """Why the tenant's own requests keep this one back, in words; empty when they do not."""
    tenant = ticket.key[0]
    if waitlist.full(tenant) and not waitlist.awaited(ticket):
        return f"{waitlist.limit} requests of this tenant are under way, as many as may be"
    if (first := waitlist.ahead(ticket)) is not None:
        return first.waits_for
    if waitlist.fits(ticket):
        return ""
    assert ticket.place is not None, "only passes need room"
    return (
        f"{waitlist.positions.of(tenant):,} of {waitlist.positions.limit:,} queued positions of this tenant "
        f"are taken, and this takes {ticket.place.positions:,}; it goes on as they are done"
    )


def held_too_much(waitlist: Waitlist, ticket: Ticket, parked_bytes: int) -> QuotaExceeded | None:
    """Why a request may not even wait in the broker. parked_bytes: of those that wait for a recovery."""
    held_bytes = waitlist.waiting_bytes(ticket.key[0]) + parked_bytes
    if not waitlist.held_bytes or held_bytes + ticket.size_bytes <= waitlist.held_bytes:
        return None
    return QuotaExceeded(
        f"{held_bytes:,} bytes of this tenant's requests wait already, and this one has "
        f"{ticket.size_bytes:,}: {waitlist.held_bytes:,} may wait (quotas.held_bytes); send it again in a while"
    )
