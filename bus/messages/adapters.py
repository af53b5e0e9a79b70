"""Requests about adapters as a whole, outside of their lanes, and their answers."""

from dataclasses import dataclass, field
from typing import ClassVar

from ..ids import NO_ADAPTER, NO_LANE, AdapterId, LaneId
from .base import Message
from .descriptions import AdapterDetails, LoraSpec, ModelDetails, TenantUsage, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateAdapter(Message):
    """Register a fresh adapter under a name that this tenant does not use yet.

    adapter, lane: left empty by clients; the broker fills in the ids that the adapter and its first lane will
    have, so that running the request again gives the same.
    """

    kind: ClassVar[str] = "create_adapter"
    name: str
    lora: LoraSpec
    adapter: AdapterId = NO_ADAPTER
    lane: LaneId = NO_LANE


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenLane(Message):
    """Open an ordered stream of operations on an adapter. Its first operation has seq 1.

    lane: as in `CreateAdapter`.
    """

    kind: ClassVar[str] = "open_lane"
    adapter: AdapterId
    lane: LaneId = NO_LANE


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteAdapter(Message):
    kind: ClassVar[str] = "delete_adapter"
    adapter: AdapterId


@dataclass(frozen=True, slots=True, kw_only=True)
class UnloadAdapter(Message):
    """Let go of the adapter's training state in memory; its checkpoints and versions stay.

    Its lanes are closed, and what waits in them is answered with Aborted. Opening a lane takes it
    up again as it was, but for gradients that no step had taken.
    """

    kind: ClassVar[str] = "unload_adapter"
    adapter: AdapterId


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteCheckpoint(Message):
    """Delete one checkpoint by its name."""

    kind: ClassVar[str] = "delete_checkpoint"
    adapter: AdapterId
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteVersion(Message):
    """Retire a published version for good. One that is gone already is no error.

    Requests under way on it end first; its files go when no sampler holds it.
    """

    kind: ClassVar[str] = "delete_version"
    adapter: AdapterId
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ListAdapters(Message):
    """All adapters of the tenant, or the one with this name."""

    kind: ClassVar[str] = "list_adapters"
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListTenants(Message):
    """All tenants that have adapters or took something of the trainer. For `local` only, whose daemon it is."""

    kind: ClassVar[str] = "list_tenants"


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribeModel(Message):
    kind: ClassVar[str] = "describe_model"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterCreated(Message):
    kind: ClassVar[str] = "adapter_created"
    details: AdapterDetails
    lane: LaneId


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneOpened(Message):
    kind: ClassVar[str] = "lane_opened"
    lane: LaneId
    details: AdapterDetails


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterList(Message):
    """elsewhere: names of those that lie on disk and wait for the base model that they had, which is another; none
    where one adapter was asked for. usage: of the tenant as a whole, with adapters that are deleted by now."""

    kind: ClassVar[str] = "adapter_list"
    adapters: tuple[AdapterDetails, ...]
    elsewhere: tuple[str, ...] = ()
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantList(Message):
    """By name."""

    kind: ClassVar[str] = "tenant_list"
    tenants: tuple[TenantUsage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDescribed(Message):
    kind: ClassVar[str] = "model_described"
    model: ModelDetails
