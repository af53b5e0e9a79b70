"""Adapters on the bus: what they are made of, how they are made, what is loaded into them."""

from contextlib import suppress

from ..bus.errors import AdapterExists, AdapterNotFound, InvalidRequest, NotSupported
from ..bus.ids import AdapterId, LaneId, TenantId
from ..bus.messages import (
    AdapterCreated,
    AdapterList,
    CreateAdapter,
    DeleteAdapter,
    ListAdapters,
    LoadCheckpoint,
    LoadVersion,
    LoraSpec,
)
from .asking import ask
from .base import Bus
from .future_ids import Origin
from .progress import Progress
from .records import CheckpointRecord

# Tinker's LoraConfig has no alpha: 32 is the service's convention, whatever the rank.
ALPHA = 32.0


async def create_adapter(
    bus: Bus, tenant: TenantId, name: str, lora: LoraSpec, progress: Progress
) -> AdapterCreated:
    """Make an adapter. One of this name that was made by other work is a leftover that nobody wrote down.

    progress: learns what it waits for, such as room in the tenant's quota.

    Raises:
        LoractlError
    """
    create = CreateAdapter(name=name, lora=lora)
    try:
        created = await ask(bus, create, tenant=tenant, progress=progress, step="create")
    except AdapterExists:
        await _delete_leftover(bus, tenant, name, progress)
        created = await ask(bus, create, tenant=tenant, progress=progress, step="create again")
    assert isinstance(created, AdapterCreated)
    return created


async def _delete_leftover(bus: Bus, tenant: TenantId, name: str, progress: Progress) -> None:
    """Which one that is has to be known when the work runs again: by then, the name is the new one's."""
    if not progress.decided:
        found = await bus.request(ListAdapters(name=name), tenant=tenant)
        assert isinstance(found, AdapterList)
        await progress.keep(found.adapters[0].adapter.encode())
    left = DeleteAdapter(adapter=AdapterId(progress.decided.decode()))
    with suppress(AdapterNotFound):
        await ask(bus, left, tenant=tenant, progress=progress, step="delete leftover")


def lora_spec(
    origin: Origin,
    *,
    rank: int,
    seed: int | None,
    train_attn: bool,
    train_mlp: bool,
    train_unembed: bool,
) -> LoraSpec:
    """Tinker's LoraConfig as ours. Without a seed, one is drawn.

    Raises:
        InvalidRequest: nothing would be trained.
    """
    if not (train_attn or train_mlp or train_unembed):
        raise InvalidRequest(
            "train_attn, train_mlp and train_unembed are all false: nothing would be trained"
        )
    return LoraSpec(
        rank=rank,
        alpha=ALPHA,
        seed=origin.number("seed", 2**31) if seed is None else seed,
        train_attn=train_attn,
        train_mlp=train_mlp,
        train_unembed=train_unembed,
    )


def load_operation(
    source: CheckpointRecord,
    tenant: TenantId,
    adapter: AdapterId,
    lane: LaneId,
    seq: int,
    *,
    optimizer: bool,
) -> LoadCheckpoint | LoadVersion:
    """The operation that loads a checkpoint into an adapter.

    Raises:
        InvalidRequest: a sampler checkpoint has no optimizer to restore.
        NotSupported: an external checkpoint is for other programs.
    """
    owner = None if source.tenant == tenant else source.tenant
    match source.kind:
        case "training":
            return LoadCheckpoint(
                adapter=adapter,
                lane=lane,
                seq=seq,
                source=source.adapter,
                name=source.name,
                with_optimizer=optimizer,
                source_owner=owner,
            )
        case "sampler" if optimizer:
            raise InvalidRequest(
                f"{source.id} is a sampler checkpoint and holds no optimizer state: load it without the "
                "optimizer, or load a training checkpoint (tinker://…/weights/…)"
            )
        case "sampler":
            return LoadVersion(
                adapter=adapter,
                lane=lane,
                seq=seq,
                source=source.adapter,
                version=source.version,
                source_owner=owner,
            )
        case "external":
            raise NotSupported(f"{source.id} was exported for other programs: load a training checkpoint")
