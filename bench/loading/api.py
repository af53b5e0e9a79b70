"""The service's HTTP API for load: few words, one connection for each request that is under way."""

from typing import Any

import aiohttp

# What the SDK sends with its polls, and how long it waits for an answer.
READ_TIMEOUT_S = 45.0
POLL_HEADERS = {
    "accept": "application/x-protobuf, application/json",
    "x-stainless-read-timeout": f"{READ_TIMEOUT_S}",
}


class Api:
    def __init__(self, http: aiohttp.ClientSession) -> None:
        self._http = http

    async def post(self, path: str, /, **body: Any) -> dict[str, Any]:
        async with self._http.post(f"/api/v1/{path}", json=body) as answer:
            answer.raise_for_status()
            return await answer.json()

    async def delete(self, path: str) -> None:
        async with self._http.delete(f"/api/v1/{path}") as answer:
            answer.raise_for_status()

    async def send_pass(self, body: bytes) -> dict[str, Any]:
        """A forward_backward in protobuf."""
        headers = {"content-type": "application/x-protobuf"}
        async with self._http.post("/api/v1/forward_backward", data=body, headers=headers) as answer:
            answer.raise_for_status()
            return await answer.json()

    async def done(self, started: dict[str, Any]) -> dict[str, Any]:
        """The result, polled for as the SDK does; empty for one in protobuf.

        Raises:
            RuntimeError: the work failed.
        """
        while True:
            body = {"request_id": started["request_id"], "allow_metadata_only": False}
            async with self._http.post("/api/v1/retrieve_future", json=body, headers=POLL_HEADERS) as answer:
                answer.raise_for_status()
                if answer.content_type == "application/x-protobuf":
                    await answer.read()
                    return {}
                found = await answer.json()
            if "error" in found:
                raise RuntimeError(found["error"])
            if found.get("type") != "try_again":
                return found


def connected(url: str, key: str) -> aiohttp.ClientSession:
    """No bound on connections, and patience for everything but an answer that never comes."""
    return aiohttp.ClientSession(
        url,
        connector=aiohttp.TCPConnector(limit=0),
        headers={"X-API-Key": key},
        timeout=aiohttp.ClientTimeout(total=600),
    )


async def new_session(api: Api) -> str:
    body = {"tags": [], "user_metadata": {}, "sdk_version": "bench"}
    return (await api.post("create_session", **body))["session_id"]


async def models(api: Api, base: str, count: int) -> str:
    """A session with training runs of rank 1, numbered from 0."""
    session = await new_session(api)
    for number in range(count):
        lora = {"rank": 1, "seed": number}
        await api.done(
            await api.post(
                "create_model", session_id=session, model_seq_id=number, base_model=base, lora_config=lora
            )
        )
    return session
