"""Requests that wait in no lane: they are answered as they come, between two turns.

Owns what they mean for adapters and lanes. What runs in lanes is left to `operations`.
"""

from dataclasses import dataclass
from typing import assert_never

from ..bus.errors import Aborted
from ..bus.failures import failed
from ..bus.ids import TenantId, new_lane_id
from ..bus.messages import (
    AdapterCreated,
    AdapterList,
    CreateAdapter,
    DeleteAdapter,
    DeleteCheckpoint,
    DescribeModel,
    Done,
    Echo,
    Echoed,
    LaneOpened,
    ListAdapters,
    Message,
    ModelDescribed,
    ModelDetails,
    OpenLane,
    UnloadAdapter,
)
from .adapters import Adapter, Adapters
from .lanes import Answer, Lanes

Request = (
    CreateAdapter
    | OpenLane
    | DeleteAdapter
    | UnloadAdapter
    | DeleteCheckpoint
    | ListAdapters
    | DescribeModel
    | Echo
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """others: what those read whose operations a request put an end to."""

    answer: Message
    others: list[Answer]


class Desk:
    def __init__(self, model: ModelDetails, adapters: Adapters, lanes: Lanes) -> None:
        self._model = model
        self._adapters = adapters
        self._lanes = lanes

    def answer(self, tenant: TenantId, request: Request) -> Outcome:
        """Carry out a request at once.

        Raises:
            LoractlError: it changed nothing.
        """
        match request:
            case DeleteAdapter(adapter=wanted):
                adapter = self._adapters.owned(tenant, wanted)
                self._adapters.delete(adapter)
                return self._closed(adapter, "the adapter was deleted")
            case UnloadAdapter(adapter=wanted):
                adapter = self._adapters.owned(tenant, wanted)
                self._adapters.unload(adapter)
                return self._closed(adapter, "the adapter was unloaded: open a new lane to take it up again")
            case _:
                return Outcome(self._told(tenant, request), [])

    def _told(
        self,
        tenant: TenantId,
        request: CreateAdapter | OpenLane | DeleteCheckpoint | ListAdapters | DescribeModel | Echo,
    ) -> Message:
        match request:
            case CreateAdapter(name=name, lora=lora):
                opened = self._open_lane(self._adapters.create(tenant, name, lora))
                return AdapterCreated(details=opened.details, lane=opened.lane)
            case OpenLane(adapter=wanted):
                adapter = self._adapters.owned(tenant, wanted)
                self._adapters.take_up(adapter)
                return self._open_lane(adapter)
            case DeleteCheckpoint(adapter=wanted, name=name):
                self._adapters.delete_checkpoint(self._adapters.owned(tenant, wanted), name)
                return Done()
            case ListAdapters(name=wanted_name):
                found = self._adapters.of(tenant, wanted_name)
                return AdapterList(adapters=tuple(self._adapters.details(each) for each in found))
            case DescribeModel():
                return ModelDescribed(model=self._model)
            case Echo(payload=payload):
                return Echoed(payload=payload)
            case _:
                assert_never(request)

    def _open_lane(self, adapter: Adapter) -> LaneOpened:
        lane = new_lane_id()
        self._lanes.open(adapter.id, lane)
        return LaneOpened(lane=lane, details=self._adapters.details(adapter))

    def _closed(self, adapter: Adapter, why: str) -> Outcome:
        return Outcome(Done(), self._lanes.close(adapter.id, failed(Aborted(why))))
