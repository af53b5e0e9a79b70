"""Which request goes where, by kind. A test holds this table against every message there is."""

from collections.abc import Mapping
from enum import Enum

from ..bus.messages import (
    Abort,
    ActorRole,
    CreateAdapter,
    DeleteAdapter,
    DeleteCheckpoint,
    DeleteVersion,
    DescribeModel,
    DigestState,
    Echo,
    ExportWeights,
    ForwardBackward,
    GetHistory,
    GetStatus,
    GetVersions,
    ImportWeights,
    ListAdapters,
    ListTenants,
    LoadCheckpoint,
    LoadVersion,
    Message,
    OpenLane,
    OptimStep,
    Ping,
    PublishAdapter,
    ReadOperation,
    Recall,
    RefuseOperation,
    Sample,
    SaveCheckpoint,
    Shutdown,
    UnloadAdapter,
)
from ..bus.schemas import schema_of


class Destination(Enum):
    """BROKER answers at once; TARGET is whoever holds the request that this one names."""

    BROKER = "the broker"
    TRAINER = "the trainer"
    SAMPLER = "a sampler"
    ANY = "any actor"
    TARGET = "the holder of its target"


_ROUTES: Mapping[Destination, tuple[type[Message], ...]] = {
    Destination.BROKER: (
        Ping,
        GetStatus,
        GetVersions,
        GetHistory,
        ReadOperation,
        Recall,
        DeleteVersion,
        Shutdown,
    ),
    Destination.TRAINER: (
        CreateAdapter,
        OpenLane,
        ForwardBackward,
        OptimStep,
        SaveCheckpoint,
        LoadCheckpoint,
        LoadVersion,
        ImportWeights,
        ExportWeights,
        DigestState,
        PublishAdapter,
        RefuseOperation,
        DeleteAdapter,
        UnloadAdapter,
        DeleteCheckpoint,
        ListAdapters,
        ListTenants,
        DescribeModel,
    ),
    Destination.SAMPLER: (Sample,),
    Destination.ANY: (Echo,),
    Destination.TARGET: (Abort,),
}

DESTINATION_BY_KIND: Mapping[str, Destination] = {
    message.kind: destination for destination, messages in _ROUTES.items() for message in messages
}

# Operations in an order of their own, by number.
ON_A_LANE = frozenset(
    message.kind
    for message in _ROUTES[Destination.TRAINER]
    if {"adapter", "lane", "seq"} <= {*schema_of(message.kind).names}
)

# Roles that can serve a destination, the preferred one first.
ROLES: Mapping[Destination, tuple[ActorRole, ...]] = {
    Destination.TRAINER: ("trainer",),
    Destination.SAMPLER: ("sampler",),
    Destination.ANY: ("trainer", "sampler"),
}
