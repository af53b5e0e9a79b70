"""The digest of an adapter's present state, and the operations that made just this, whatever it does meanwhile.

Asking for it is an operation, too: what the journal has of the adapter before it is what its answer tells of.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..bus.client import Client
from ..bus.errors import DaemonGone, DaemonNotRunning, LoractlError
from ..bus.ids import AdapterId, LaneId, RequestId, TenantId, new_request_id
from ..bus.messages import DigestState, HistoryEntry, LaneOpened, OpenLane, StateDigest
from .futures import checked
from .history import read_history

# Lanes of one adapter are few, and the longest unused goes when there are too many: ours are used again.
_LANES = 4


@dataclass(frozen=True, slots=True)
class Standing:
    """A state, what ended before it was looked at, and whether that is all there ever was."""

    state: StateDigest
    entries: list[HistoryEntry]
    whole: bool


def standing(client: Client, adapter: AdapterId, tenant: TenantId) -> Standing:
    """Raises LoractlError: the state cannot be looked at, or there is no history."""
    failure: LoractlError | None = None
    for request in _requests(adapter):
        try:
            opened = client.submit(OpenLane(adapter=adapter), tenant=tenant, request=request).result()
            return _standing(client, adapter, tenant, checked(opened, LaneOpened).lane)
        except (DaemonGone, DaemonNotRunning):
            raise
        except LoractlError as error:  # that lane was closed, or somebody else uses it just now
            failure = error
    assert failure is not None
    raise failure


def state_digest(client: Client, adapter: AdapterId, tenant: TenantId, lane: LaneId, seq: int) -> StateDigest:
    body = DigestState(adapter=adapter, lane=lane, seq=seq)
    return checked(client.submit(body, tenant=tenant).result(), StateDigest)


def without_window(state: StateDigest) -> StateDigest:
    """As it was when the window began that is open, if one is."""
    kept = {piece: digest for piece, digest in state.pieces.items() if piece != "gradients"}
    return replace(state, tokens=0, pieces=kept)


def _standing(client: Client, adapter: AdapterId, tenant: TenantId, lane: LaneId) -> Standing:
    before, _ = read_history(client, adapter, tenant)
    seq = 1 + max((each.seq for each in before if each.lane == lane), default=0)
    state = state_digest(client, adapter, tenant, lane, seq)
    before = [each for each in before if each.order]
    # What was under way, and what came since.
    since, whole = read_history(client, adapter, tenant, after=max((e.order for e in before), default=0))
    [end] = [each.order for each in since if (each.lane, each.seq, each.state) == (lane, seq, "done")]
    return Standing(state, [*before, *(each for each in since if 0 < each.order < end)], whole)


def _requests(adapter: AdapterId) -> Iterator[RequestId]:
    """The ids under which lanes are opened: the same id opens the same lane. The last is a new one."""
    yield from (RequestId(f"verify-{number}-{adapter}") for number in range(_LANES))
    yield new_request_id()
