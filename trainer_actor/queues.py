"""What may run now: per tenant, the queues of its adapters' operations, each in order.

Owns who of a tenant's adapters comes first. Which tenant does is `fairness`; what the operations wait
for before they get here is `lanes`. Pure.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..bus.ids import AdapterId, TenantId
from ..bus.messages import (
    DigestState,
    Envelope,
    ExportWeights,
    ForwardBackward,
    ImportWeights,
    Ints,
    LoadCheckpoint,
    LoadVersion,
    OptimStep,
    PublishAdapter,
    RefuseOperation,
    SaveCheckpoint,
    SkipOperation,
)
from .compositions import PassShape, Seat, seats

Operation = (
    ForwardBackward
    | OptimStep
    | SaveCheckpoint
    | LoadCheckpoint
    | LoadVersion
    | ImportWeights
    | ExportWeights
    | DigestState
    | PublishAdapter
    | RefuseOperation
    | SkipOperation
)


@dataclass(slots=True, eq=False)
class Queued:
    """An operation that waits or runs, and all who asked for it: a resend joins the first.

    pieces: positions of each part in which a forward_backward runs, of which `ran` have run. seats: where in
    which passes they run again, if they do. alone: nothing else may run with it.
    """

    operation: Operation
    fingerprint: bytes
    askers: list[Envelope]
    pieces: tuple[int, ...] = ()
    seats: tuple[Seat, ...] = ()
    ran: int = 0
    alone: bool = False

    @property
    def tenant(self) -> TenantId:
        return self.askers[0].tenant

    @property
    def left(self) -> tuple[int, ...]:
        return self.pieces[self.ran :]

    @property
    def shape(self) -> PassShape | None:
        """The pass in which its next piece runs again, if it does."""
        return self.seats[self.ran].shape if self.seats else None


class Queues:
    """pass_tokens: positions that run through the model at one time. tokens: of all that waits or runs."""

    def __init__(self, *, pass_tokens: int) -> None:
        self.tokens = 0
        self.pass_tokens = pass_tokens
        # Adapters of a tenant in the order of their turns.
        self._ready: dict[TenantId, dict[AdapterId, deque[Queued]]] = {}
        self._tenants: dict[AdapterId, TenantId] = {}
        self._woken: list[TenantId] = []
        self._aside: dict[AdapterId, deque[Queued]] = {}

    def __contains__(self, adapter: AdapterId) -> bool:
        return adapter in self._tenants

    @property
    def adapters(self) -> int:
        """How many adapters have something to run."""
        return len(self._tenants)

    def of_tenant(self, tenant: TenantId) -> Mapping[AdapterId, Sequence[Queued]]:
        """Per adapter of a tenant, what may run; adapters in the order of their turns."""
        return self._ready.get(tenant, {})

    def of(self, adapter: AdapterId) -> Sequence[Queued]:
        """What may run of one adapter; the first of it may be running."""
        tenant = self._tenants.get(adapter)
        return self._ready[tenant][adapter] if tenant is not None else ()

    def aside(self, adapter: AdapterId) -> Sequence[Queued]:
        """The operation of an adapter that runs elsewhere, and what waits behind it; empty if none does."""
        return self._aside.get(adapter, ())

    def woken(self) -> list[TenantId]:
        """Tenants that came to have something to run since this was asked last."""
        woken, self._woken = self._woken, []
        return woken

    def put(self, queued: Queued) -> None:
        operation = queued.operation
        if isinstance(operation, ForwardBackward):
            queued.seats = seats(operation.composition)
            noted = tuple(seat.mine.positions for seat in queued.seats)
            queued.pieces = noted or pieces(operation.lengths, self.pass_tokens)
            self.tokens += sum(queued.pieces)
        if (aside := self._aside.get(operation.adapter)) is not None:
            aside.append(queued)
        else:
            self._queue(operation.adapter, queued.tenant).append(queued)

    def set_aside(self, adapter: AdapterId) -> None:
        """Its first operation runs elsewhere: until `restore`, nothing of the adapter may run."""
        tenant = self._tenants.pop(adapter)
        self._aside[adapter] = self._ready[tenant].pop(adapter)
        self._tidy(tenant)

    def hold(self, adapter: AdapterId) -> None:
        """Until `restore`, nothing of the adapter may run, whether anything waits or comes."""
        if adapter in self._tenants:
            self.set_aside(adapter)
        else:
            self._aside.setdefault(adapter, deque())

    def restore(self, adapter: AdapterId) -> None:
        """Unless it was closed in between."""
        if aside := self._aside.pop(adapter, None):
            self._queue(adapter, aside[0].tenant).extend(aside)

    def _queue(self, adapter: AdapterId, tenant: TenantId) -> deque[Queued]:
        self._tenants.setdefault(adapter, tenant)
        if tenant not in self._ready:
            self._ready[tenant] = {}
            self._woken.append(tenant)
        return self._ready[tenant].setdefault(adapter, deque())

    def remove(self, queued: Queued) -> None:
        """The first operation of an adapter has ended."""
        adapter = queued.operation.adapter
        queue = self._ready[self._tenants[adapter]][adapter]
        assert queue[0] is queued, "operations of an adapter end in their order"
        queue.popleft()
        self.tokens -= sum(queued.pieces)
        if not queue:
            self.close(adapter)

    def rotate(self, adapter: AdapterId) -> None:
        """The adapter had a turn: others of its tenant come first now."""
        if (tenant := self._tenants.get(adapter)) is not None:
            ready = self._ready[tenant]
            ready[adapter] = ready.pop(adapter)

    def close(self, adapter: AdapterId) -> None:
        """Forget what waits of an adapter."""
        queue = self._aside.pop(adapter, None)
        if (tenant := self._tenants.pop(adapter, None)) is not None:
            queue = self._ready[tenant].pop(adapter)
            self._tidy(tenant)
        self.tokens -= sum(sum(queued.pieces) for queued in queue or ())

    def _tidy(self, tenant: TenantId) -> None:
        if not self._ready[tenant]:
            del self._ready[tenant]


def pieces(lengths: Ints, budget: int) -> tuple[int, ...]:
    """Positions of each run of whole datums that together have at most `budget`; a longer datum is alone.

    The same for an operation whatever runs beside it. What is no list of lengths is one piece, which
    fails where data is checked.
    """
    if lengths.ndim != 1 or not len(lengths) or int(lengths.min()) < 1:
        return (0,)
    sums: list[int] = []
    for length in lengths.tolist():
        if sums and sums[-1] + length <= budget:
            sums[-1] += length
        else:
            sums.append(length)
    return tuple(sums)
