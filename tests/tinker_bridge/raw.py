"""The API without the SDK: requests as they lie on the wire, for what no well-behaved client sends.

Bodies of forward_backward are JSON here, which the service reads as well as protobuf.
"""

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any, Self

import httpx
from loractl.tests.tinker_bridge.served import MODEL, Served

Fields = dict[str, Any]
_models = count()

LESSON = [5, 6, 7, 8, 9]


def datum(ids: Sequence[int] = LESSON, weight: float = 1.0) -> Fields:
    return {
        "model_input": {"chunks": [{"type": "encoded_text", "tokens": [*ids[:-1]]}]},
        "loss_fn_inputs": {
            "target_tokens": ints(ids[1:]),
            "weights": floats([weight] * (len(ids) - 1)),
        },
    }


def ints(values: Sequence[int]) -> Fields:
    return {"data": [*values], "dtype": "int64", "shape": [len(values)]}


def floats(values: Sequence[float]) -> Fields:
    return {"data": [*values], "dtype": "float32", "shape": [len(values)]}


def forward_backward(model: str, seq: int, *data: Fields, loss: str = "cross_entropy", **more: Any) -> Fields:
    asked = {"data": [*data] or [datum()], "loss_fn": loss}
    return {"model_id": model, "seq_id": seq, "forward_backward_input": asked, **more}


def forward(model: str, seq: int, *data: Fields) -> Fields:
    return forward_backward(model, seq, *data, forward_only=True)


def optim_step(model: str, seq: int, rate: float = 1e-2) -> Fields:
    return {"model_id": model, "seq_id": seq, "adam_params": {"learning_rate": rate}}


def sample(session: str, seq: int, ids: Sequence[int] = LESSON, count: int = 1, **params: Any) -> Fields:
    return {
        "sampling_session_id": session,
        "seq_id": seq,
        "num_samples": count,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": [*ids]}]},
        "sampling_params": {"max_tokens": 2, **params},
    }


class Raw:
    """One tenant's requests. Paths are those behind /api/v1."""

    def __init__(self, served: Served, key: str | None = None) -> None:
        self.key = served.key if key is None else key
        self.http = httpx.Client(
            base_url=f"{served.url}/api/v1",
            headers={"X-API-Key": self.key},
            timeout=60,
        )

        self._sessions: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the sessions, so that what was made in them is freed."""
        for session in self._sessions:
            self.post(f"/sessions/{session}/finish")
        self.http.close()

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        return self.http.post(path, json=body or {})

    def ok(self, path: str, body: Mapping[str, Any] | None = None) -> Fields:
        """The answer's fields, which must not be a refusal."""
        answer = self.post(path, body)
        assert answer.status_code == 200, (path, answer.status_code, answer.text)
        fields: Fields = answer.json()
        return fields

    def start(self, path: str, body: Mapping[str, Any]) -> str:
        """The id of the work's result."""
        request_id: str = self.ok(path, body)["request_id"]
        return request_id

    def result(self, request_id: str) -> Fields:
        """What the work came to, failure or not."""
        while (found := self.ok("/retrieve_future", {"request_id": request_id})).get("type") == "try_again":
            pass
        return found

    def do(self, path: str, body: Mapping[str, Any]) -> Fields:
        return self.result(self.start(path, body))

    def session(self) -> str:
        session: str = self.ok("/create_session", {"sdk_version": "0.38.0"})["session_id"]
        self._sessions.append(session)
        return session

    def model(self, session: str | None = None, number: int | None = None, **lora: Any) -> str:
        """A fresh model, in a session of its own unless one is given."""
        body = {
            "session_id": session or self.session(),
            "model_seq_id": next(_models) if number is None else number,
            "base_model": MODEL,
            "lora_config": {"rank": 4, "seed": 1, **lora},
        }
        model: str = self.do("/create_model", body)["model_id"]
        return model

    def sampler(self, session: str | None = None, number: int = 0, **source: str) -> str:
        body = {"session_id": session or self.session(), "sampling_session_seq_id": number}
        made = self.ok("/create_sampling_session", {**body, **(source or {"base_model": MODEL})})
        sampler: str = made["sampling_session_id"]
        return sampler

    def logprobs(self, model: str, seq: int) -> list[float]:
        """What the model says of LESSON now; uses up a number."""
        (found,) = self.do("/forward_backward", forward(model, seq))["loss_fn_outputs"]
        logprobs: list[float] = found["logprobs"]["data"]
        return logprobs
