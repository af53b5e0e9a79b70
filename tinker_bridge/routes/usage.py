"""What the caller took of the trainer. Nobody else's is told here: the operator reads all at `loractl usage`."""

from fastapi import APIRouter

from ...bus.ids import TenantId
from ...bus.messages import AdapterList, ListAdapters, Usage
from ..body_fields import Body
from .reading import BridgeIn, TenantIn

router = APIRouter(tags=["account"])


class AdapterUsage(Body):
    """name: the model_id of an adapter that was made over HTTP."""

    name: str
    usage: Usage


class TenantUsage(Body):
    """usage: with adapters that are deleted by now; a pass that several of them shared counts once."""

    tenant: TenantId
    usage: Usage
    adapters: list[AdapterUsage]


@router.get("/usage")
async def usage(bridge: BridgeIn, tenant: TenantIn) -> TenantUsage:
    """What the key's tenant and each of its adapters took since the trainer started."""
    listed = await bridge.bus.request(ListAdapters(), tenant=tenant)
    assert isinstance(listed, AdapterList)
    adapters = [AdapterUsage(name=each.name, usage=each.usage) for each in listed.adapters]
    return TenantUsage(tenant=tenant, usage=listed.usage, adapters=adapters)
