"""A small client of loractl's own HTTP API. Needs nothing but Python: copy it where you want it.

    client = Client(url, key)                       # as `loractl env` prints them
    model = client.add_lora(rank=8, alpha=16)
    loss = client.train_step(model, chats, learning_rate=1e-3)
    print(client.sample(["Hello"], model)[0])

Run as a program it shows the way of a request, and how errors look.
"""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

Chat = list[dict[str, str]]
Json = dict[str, Any]

_BUSY = (429, 503)  # not now: the same request is welcome a moment later
_LOST = "lane_lost"  # the trainer restarted: its user should hear what that cost before going on


class ServiceError(Exception):
    """A request was refused. status: as HTTP has it, 0 when nobody answered."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class WorkFailed(Exception):
    """A request was taken and its work failed. category: "user" when its sender can mend it."""

    def __init__(self, message: str, category: str) -> None:
        super().__init__(message)
        self.category = category


class Client:
    """patience_s: how long to try again while the service is busy, and to wait for one result."""

    def __init__(self, url: str, key: str, *, patience_s: float = 300.0) -> None:
        self._url = url.rstrip("/")
        self._key = key
        self._patience_s = patience_s

    def add_lora(
        self, *, rank: int = 8, alpha: float = 16.0, name: str = "lora", seed: int | None = None
    ) -> str:
        """Make an adapter, ready to be trained and sampled from; returns its id, which begins with name."""
        return str(self._post("/add_lora", rank=rank, alpha=alpha, name=name, seed=seed)["model_id"])

    def remove_lora(self, model_id: str) -> None:
        self._post("/remove_lora", model_id=model_id)

    def adapters(self) -> list[Json]:
        return list(self._ask("GET", "/adapters", None)["adapters"])

    def fwdbwd(self, model_id: str, data: Sequence[Any], loss_fn: str = "cross_entropy") -> str:
        """Start a forward-backward pass; returns its request id at once."""
        answer = self._post("/fwdbwd", model_id=model_id, data=list(data), loss_fn=loss_fn)
        return str(answer["request_id"])

    def optim_step(self, model_id: str, learning_rate: float) -> str:
        """Start an optimizer step; returns its request id at once."""
        adam = {"learning_rate": learning_rate}
        return str(self._post("/optim_step", model_id=model_id, adam_params=adam)["request_id"])

    def result(self, request_id: str) -> Json:
        """Poll until the work is done. Raises WorkFailed, ServiceError; TimeoutError after patience_s."""
        give_up_at = time.monotonic() + self._patience_s
        while time.monotonic() < give_up_at:
            # The service holds the answer back for up to `timeout` seconds, so this loop need not sleep.
            answer = self._post("/retrieve_future", request_id=request_id, timeout=10)
            if answer["status"] == "completed":
                return dict(answer["result"])
            if answer["status"] == "failed":
                raise WorkFailed(answer["error"], answer["category"])
        raise TimeoutError(f"no result within {self._patience_s:g} s")

    def train_step(self, model_id: str, data: Sequence[Any], learning_rate: float) -> float:
        """One whole step. Both requests are sent before either is waited for; returns the mean loss."""
        passed = self.fwdbwd(model_id, data)
        stepped = self.optim_step(model_id, learning_rate)
        loss = float(self.result(passed)["loss"])
        self.result(stepped)
        return loss

    def sample(self, prompts: Sequence[str | Chat], model_id: str | None = None, **params: Any) -> list[str]:
        """Texts for prompts, from the base model without a model_id. params: max_tokens, temperature, …"""
        answer = self._post(
            "/api/v1/sample", model_id=model_id, prompts=list(prompts), sampling_params=params
        )
        return list(answer["texts"])

    def _post(self, path: str, **fields: Any) -> Json:
        return self._ask("POST", path, fields)

    def _ask(self, method: str, path: str, fields: Json | None) -> Json:
        give_up_at = time.monotonic() + self._patience_s
        pause_s = 0.1
        while True:
            status, answer = self._send(method, path, fields)
            if status < 400 or answer.get("status") == "failed":
                return answer
            again = status in _BUSY and answer.get("code") != _LOST
            if not again or time.monotonic() + pause_s > give_up_at:
                raise ServiceError(status, str(answer.get("detail", answer)))
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 5.0)

    def _send(self, method: str, path: str, fields: Json | None) -> tuple[int, Json]:
        request = urllib.request.Request(
            self._url + path,
            data=None if fields is None else json.dumps(fields).encode(),
            headers={"Content-Type": "application/json", "X-API-Key": self._key},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=self._patience_s) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, _json_of(error)
        except urllib.error.URLError as error:
            raise ServiceError(0, f"nobody answers at {self._url}: {error.reason}") from error


def _json_of(error: urllib.error.HTTPError) -> Json:
    try:
        found = json.load(error)
    except ValueError:
        return {"detail": f"{error.code} {error.reason}"}
    return found if isinstance(found, dict) else {"detail": found}


def main() -> None:
    from own_service import found_service, parser

    options = parser("Show a small client, and how errors look.").parse_args()
    with found_service(options) as client:
        model = client.add_lora(rank=4, alpha=8, name="first")
        chat = [{"role": "user", "content": "What is the sea?"}, {"role": "assistant", "content": "Water."}]
        print("losses:", *(f"{client.train_step(model, [chat], 5e-3):.3f}" for _ in range(3)))
        print("sample:", client.sample(["What is the sea?"], model, max_tokens=20, temperature=0)[0])
        for data, loss_fn in (
            ([chat], "no_such_loss"),
            ([chat], "ppo"),
            ([[{"role": "user"}]], "cross_entropy"),
        ):
            try:
                client.fwdbwd(model, data, loss_fn)
            except ServiceError as error:
                print(f"refused ({error.status}): {error}")
        try:
            client.result(client.optim_step(model, learning_rate=-1.0))
        except WorkFailed as error:
            print(f"failed ({error.category}): {error}")
        client.remove_lora(model)


if __name__ == "__main__":
    # Under its own name, as the other examples import it: its errors are then the same classes.
    import http_client

    http_client.main()
