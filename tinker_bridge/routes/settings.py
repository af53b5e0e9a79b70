"""What clients ask before anything else: settings, capabilities, who they are."""

from fastapi import APIRouter

from ..base import BaseModel
from ..bodies import ConfigBody
from ..body_fields import Body
from .reading import KEYED, BridgeIn

router = APIRouter(prefix="/api/v1", tags=["settings"], dependencies=KEYED)


class ClientSettings(Body):
    """What the SDK lets a server decide; everything else keeps the SDK's defaults."""

    pjwt_auth_enabled: bool = False
    credential_default_source: str = "api_key"
    parallel_fwdbwd_chunks: bool = True
    proto_compress_fwdbwd: bool = False
    custom_loss_server_side: bool = False
    sample_use_retrieve_futures: bool = False
    sample_join_sampling_session: bool = True


class DynamicSettings(Body):
    refresh_interval_sec: int = 300
    sample_cancel_enabled: bool = True
    sample_cancel_max_batch_size: int = 64


@router.post("/client/config")
async def client_config(_body: ConfigBody) -> ClientSettings:
    return ClientSettings()


@router.post("/client/dynamic_config")
async def client_dynamic_config() -> DynamicSettings:
    return DynamicSettings()


class SupportedModel(Body):
    model_name: str
    max_context_length: int
    trainable: bool = True
    sampleable: bool


class Capabilities(Body):
    supported_models: list[SupportedModel]


@router.get("/get_server_capabilities")
@router.get("/capabilities", include_in_schema=False)
async def get_server_capabilities(bridge: BridgeIn) -> Capabilities:
    return await capabilities(bridge.base, sampleable=bridge.config.sampler.count > 0)


async def capabilities(base: BaseModel, *, sampleable: bool) -> Capabilities:
    details = await base.details()
    model = SupportedModel(
        model_name=base.name, max_context_length=details.max_sequence_tokens, sampleable=sampleable
    )
    return Capabilities(supported_models=[model])


@router.post("/telemetry", status_code=202)
async def telemetry() -> dict[str, str]:
    """Taken and not kept: this server collects nothing about its users."""
    return {"status": "accepted"}
