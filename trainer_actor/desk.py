"""Requests that wait in no lane: they are answered as they come, between two turns.

Owns what they mean for adapters and lanes, and the creations that wait for room in their tenant's
quota. What runs in lanes is left to `operations`.
"""

from collections import Counter
from collections.abc import Callable
from typing import assert_never

from ..bus.config import Config
from ..bus.errors import Aborted, AccessDenied, LoractlError, QuotaExceeded
from ..bus.failures import failed
from ..bus.ids import LOCAL_TENANT, AdapterId, LaneId, TenantId, new_lane_id
from ..bus.messages import (
    AdapterCreated,
    AdapterDetails,
    AdapterList,
    CreateAdapter,
    DeleteAdapter,
    DeleteCheckpoint,
    DescribeModel,
    Done,
    Echo,
    Echoed,
    Envelope,
    LaneOpened,
    ListAdapters,
    ListTenants,
    Message,
    ModelDescribed,
    ModelDetails,
    OpenLane,
    TenantList,
    TenantUsage,
    Waiting,
)
from .accounts import Accounts
from .adapter import Adapter
from .adapters import Adapters
from .creations import Belongings, Creations
from .lanes import Answer, Lanes

_Question = OpenLane | DeleteCheckpoint | ListAdapters | ListTenants | DescribeModel | Echo
Request = CreateAdapter | DeleteAdapter | _Question


class Desk:
    """waits_for: why an adapter's next operation does not run yet, in words."""

    def __init__(
        self,
        model: ModelDetails,
        adapters: Adapters,
        lanes: Lanes,
        *,
        config: Config,
        accounts: Accounts,
        waits_for: Callable[[AdapterId], str],
    ) -> None:
        self._model = model
        self._adapters = adapters
        self._lanes = lanes
        self._accounts = accounts
        self._waits_for = waits_for
        self._creations = Creations(config.quotas)

    def answer(self, asked: Envelope, now: float) -> list[Answer]:
        """Carry out a request at once, or let it wait: every reply that is due now, to whomever.

        Raises:
            LoractlError: the request changed nothing.
        """
        tenant, request = asked.tenant, asked.body
        assert isinstance(request, Request)
        match request:
            case CreateAdapter():
                return [self._create(asked, request, now)]
            case DeleteAdapter(adapter=wanted):
                return self._delete(asked, self._adapters.owned(tenant, wanted))
            case _:
                return [Answer(asked, self._told(tenant, request))]

    def due(self, now: float) -> list[Answer]:
        """Refuse the creations that waited for long enough."""
        return [
            Answer(held.asker, failed(QuotaExceeded(held.refusal))) for held in self._creations.expired(now)
        ]

    def next_due(self) -> float | None:
        """When `due` is worth calling next, on the clock of `now`; None while nothing waits."""
        return self._creations.next_due()

    def close(self, outcome: Message) -> list[Answer]:
        """Answer whatever waits."""
        return [Answer(held.asker, outcome) for held in self._creations.take_all()]

    # --- adapters come and go ------------------------------------------------------------------

    def _create(self, asked: Envelope, request: CreateAdapter, now: float) -> Answer:
        """At once where there is room and nobody of the tenant waits for it; else when there is."""
        if (made := self._made_before(asked.tenant, request)) is not None:
            return Answer(asked, made)
        state_bytes = self._adapters.check(asked.tenant, request.name, request.lora)
        shortage = self._creations.shortage(self._belongings(asked.tenant), state_bytes)
        if not shortage and not self._creations.waiting(asked.tenant):
            return Answer(asked, self._created(asked.tenant, request))
        held = self._creations.hold(asked, shortage, now)
        return Answer(asked, Waiting(reason=held.reason, cause="quota"), last=False)

    def _delete(self, asked: Envelope, adapter: Adapter) -> list[Answer]:
        self._adapters.delete(adapter)
        self._accounts.forget(adapter.id)
        others = self._lanes.close(adapter.id, failed(Aborted("the adapter was deleted")))
        return [*others, Answer(asked, Done()), *self._go_on(asked.tenant)]

    def _go_on(self, tenant: TenantId) -> list[Answer]:
        """A tenant has room again: its creations go on in their order, as far as there is."""
        answers: list[Answer] = []
        has, full = self._belongings(tenant), False
        for held in self._creations.waiting(tenant):
            request = held.asker.body
            assert isinstance(request, CreateAdapter)
            try:
                state_bytes = self._adapters.check(tenant, request.name, request.lora)
                full = bool(self._creations.shortage(has, state_bytes)) or full
                if full:
                    continue
                outcome: Message = self._created(tenant, request)
                has = Belongings(has.adapters + 1, has.state_bytes + state_bytes)
            except LoractlError as error:  # such as a name that one before it took
                outcome = failed(error)
            self._creations.remove(held)
            answers.append(Answer(held.asker, outcome))
        return answers

    def _belongings(self, tenant: TenantId) -> Belongings:
        mine = self._adapters.of(tenant, None)
        return Belongings(len(mine), sum(self._adapters.state_bytes(each.lora) for each in mine))

    def _made_before(self, tenant: TenantId, request: CreateAdapter) -> AdapterCreated | None:
        """The answer to a creation that was carried out by a trainer which died before it could say so."""
        adapter = self._adapters.find(request.adapter)
        if adapter is None or adapter.record.tenant != tenant:
            return None
        opened = self._open_lane(adapter, request.lane)
        return AdapterCreated(details=opened.details, lane=opened.lane)

    def _created(self, tenant: TenantId, request: CreateAdapter) -> AdapterCreated:
        adapter = self._adapters.create(tenant, request.name, request.lora, request.adapter)
        opened = self._open_lane(adapter, request.lane)
        return AdapterCreated(details=opened.details, lane=opened.lane)

    # --- the rest ------------------------------------------------------------------------------

    def _told(self, tenant: TenantId, request: _Question) -> Message:
        match request:
            case OpenLane(adapter=wanted, lane=lane):
                adapter = self._adapters.owned(tenant, wanted)
                self._adapters.take_up(adapter)
                return self._open_lane(adapter, lane)
            case DeleteCheckpoint(adapter=wanted, name=name):
                self._adapters.delete_checkpoint(self._adapters.owned(tenant, wanted), name)
                return Done()
            case ListAdapters(name=wanted_name):
                found = tuple(map(self._described, self._adapters.of(tenant, wanted_name)))
                elsewhere = () if wanted_name else tuple(sorted(self._adapters.elsewhere().get(tenant, ())))
                usage = self._accounts.of_tenant(tenant)
                return AdapterList(adapters=found, elsewhere=elsewhere, usage=usage)
            case ListTenants():
                if tenant != LOCAL_TENANT:
                    raise AccessDenied(f"only {LOCAL_TENANT} is told what all tenants took")
                return TenantList(tenants=self._tenants())
            case DescribeModel():
                return ModelDescribed(model=self._model)
            case Echo(payload=payload):
                return Echoed(payload=payload)
            case _:
                assert_never(request)

    def _tenants(self) -> tuple[TenantUsage, ...]:
        counts = Counter(each.record.tenant for each in self._adapters.all())
        names = sorted({*counts, *self._accounts.tenants(), *self._adapters.elsewhere()})
        return tuple(
            TenantUsage(tenant=name, adapters=counts[name], usage=self._accounts.of_tenant(name))
            for name in names
        )

    def _open_lane(self, adapter: Adapter, wanted: LaneId) -> LaneOpened:
        """wanted: the id that the broker gave it, unless nothing is journalled. One that is open stays so."""
        lane = wanted or new_lane_id()
        if not self._lanes.is_open(adapter.id, lane):
            self._lanes.open(adapter.id, lane)
        return LaneOpened(lane=lane, details=self._described(adapter))

    def _described(self, adapter: Adapter) -> AdapterDetails:
        queued = self._lanes.queued(adapter.id)
        return self._adapters.details(
            adapter,
            queued=queued,
            waits_for=self._waits_for(adapter.id) if queued else "",
            usage=self._accounts.of(adapter.id),
        )
