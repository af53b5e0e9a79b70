"""What every route needs: the bridge, whose request it is, and its body, checked."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader
from pydantic import ValidationError

from ...bus.errors import InvalidRequest
from ...bus.ids import TenantId
from ..access import tenant_of
from ..body_fields import Body
from ..bridge import Bridge
from ..future import Future
from ..future_rows import Asked

BodyT = TypeVar("BodyT", bound=Body)

# What may be half of a surrogate pair, escaped or in bytes.
_HALF_PAIR = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")


async def _bridge(request: Request) -> Bridge:
    bridge = request.app.state.bridge
    assert isinstance(bridge, Bridge)
    return bridge


# As a security scheme, so that the pages of /docs ask for the key and send it.
_KEY = APIKeyHeader(name="X-API-Key", auto_error=False, description="As `loractl env` prints it.")


async def _tenant(request: Request, key: Annotated[str | None, Depends(_KEY)]) -> TenantId:
    return tenant_of((await _bridge(request)).keys, key)


BridgeIn = Annotated[Bridge, Depends(_bridge)]
TenantIn = Annotated[TenantId, Depends(_tenant)]
# For routes that need a key, whoever's it is.
KEYED = [Depends(_tenant)]


def path_of(request: Request) -> str:
    """Without the query, whose bytes need not be text: a URL that holds them cannot be put together."""
    path: str = request.scope["path"]
    return path


async def asked_of(request: Request, tenant: TenantId) -> Asked:
    """The request, so that it can be started again: now or after a restart."""
    return Asked(
        tenant,
        path_of(request),
        # As `request.body()`, which puts it together once more behind an empty part.
        b"".join([part async for part in request.stream() if part]),
        request.headers.get("content-type", ""),
        request.headers.get("content-encoding"),
    )


def asked_for(request: Request, tenant: TenantId, body: Body) -> Asked:
    """The same of a body that is read already."""
    return Asked(tenant, path_of(request), body.model_dump_json().encode())


@dataclass(frozen=True, slots=True)
class Begun:
    """What a request started. fields: told beside the future's id."""

    future: Future
    fields: Mapping[str, Any] = field(default_factory=dict)


async def told(bridge: Bridge, begun: Begun) -> dict[str, Any]:
    """The answer to a request that started something, once that is durable. Raises StorageFailed."""
    await bridge.futures.durable(begun.future)
    await bridge.pace.turn()  # one commit makes many durable
    return {"request_id": begun.future.id, **begun.fields}


def json_object(body: bytes) -> dict[str, Any]:
    """Raises InvalidRequest: it is no JSON object."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise InvalidRequest("the body must be a JSON object")
    if _HALF_PAIR.search(body):
        _check_text(found)
    return found


def _check_text(found: object) -> None:
    """Raises InvalidRequest: a string in it cannot be written as text."""
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            "the body holds a string that is not Unicode text: half a surrogate pair"
        ) from error


def checked(kind: type[BodyT], fields: dict[str, Any]) -> BodyT:
    """Raises InvalidRequest, naming the first field that is wrong."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidRequest(f"{where}: {first['msg']}") from error


def numbered(fields: dict[str, Any]) -> tuple[str, int | None]:
    """model_id and seq_id of an operation, readable whatever else is wrong with it.

    Raises:
        InvalidRequest: they are not.
    """
    model, seq = fields.get("model_id"), fields.get("seq_id")
    if not isinstance(model, str) or isinstance(seq, bool) or not isinstance(seq, int | None):
        raise InvalidRequest("an operation needs model_id, a string, and seq_id, a number")
    return model, seq


def described(*bodies: type[Body], media_type: str = "application/json") -> dict[str, Any]:
    """OpenAPI's description of a body that a route reads by itself."""
    schemas = [_without_references(body.model_json_schema()) for body in bodies]
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema}}}}


def _without_references(schema: Any, parts: Mapping[str, Any] | None = None) -> Any:
    """A schema whose parts stand where they are used: the document has them nowhere else."""
    if isinstance(schema, list):
        return [_without_references(each, parts) for each in schema]
    if not isinstance(schema, dict):
        return schema
    parts = schema.get("$defs", {}) if parts is None else parts
    if "$ref" in schema:
        return _without_references(parts[schema["$ref"].rpartition("/")[2]], parts)
    return {key: _without_references(each, parts) for key, each in schema.items() if key != "$defs"}
