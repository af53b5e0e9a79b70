"""The HTTP service in this process, with a bus behind it that answers everything, and real names to ask about."""

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from loractl.bus.config import load_config
from loractl.bus.ids import TenantId
from loractl.bus.keys import Keys
from loractl.bus.layout import StateLayout
from loractl.bus.messages import (
    DescribeModel,
    ForwardBackward,
    Message,
    ModelDescribed,
    OptimStep,
    PassResult,
    Sample,
    SampleResult,
    StepResult,
)
from loractl.client.tiny_model import _tokenizer
from loractl.sampler_actor.facts import ModelFacts
from loractl.sampler_actor.prompt_wishes import wish_of
from loractl.tests.tinker_bridge.bus_in_memory import MODEL, InMemoryBus
from loractl.tinker_bridge.allocator import give_back_large_blocks
from loractl.tinker_bridge.app import create_app
from loractl.tinker_bridge.bridge import Bridge, open_bridge

# Whoever asks for a result that is not there yet waits so long.
_POLL_S = 0.02
_ANSWER_S = 20.0
_MOST_SAMPLED = 4096
_FACTS = ModelFacts(
    path="", vocab_size=MODEL.vocab_size, context_tokens=MODEL.max_sequence_tokens, end_tokens=()
)


class AnsweringBus(InMemoryBus):
    """Trains and samples as well, without a model. path: where its tokenizer lies."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.model_path = str(path)

    def _answer(self, body: Message, tenant: TenantId) -> Message:
        self.asked.clear()  # nobody looks, and it is all that ever came
        match body:
            case DescribeModel():
                return ModelDescribed(model=replace(MODEL, path=self.model_path))
            case ForwardBackward():
                zeros = np.zeros(body.targets.shape, dtype=np.float32)
                return PassResult(logprobs=zeros, loss_terms=zeros, metrics={"loss:sum": 0.0})
            case OptimStep():
                return StepResult(
                    applied=True, step=1, grad_norm=0.0, learning_rate=body.learning_rate, tokens=1
                )
            case Sample():
                return _sampled(body)
        return super()._answer(body, tenant)


def _sampled(body: Sample) -> SampleResult:
    """One token each, and of what else was asked the right shapes. Raises InvalidRequest as a sampler does."""
    wish_of(body, _FACTS, seed=0)
    count = min(body.num_samples, _MOST_SAMPLED)
    positions, rows = body.prompt.size, max(0, body.prompt.size - 1)

    def floats(*shape: int) -> Any:
        return np.zeros(shape, dtype=np.float32)

    def ints(*shape: int) -> Any:
        return np.zeros(shape, dtype=np.int64)

    topk, drawn = body.topk_prompt_logprobs, body.prompt_alt_tokens
    return SampleResult(
        version=0,
        engine="torch",
        lengths=np.ones(count, dtype=np.int64),
        tokens=ints(count),
        logprobs=floats(count),
        texts=("",) * count,
        stop_reasons=("length",) * count,
        prompt_logprobs=floats(positions),
        prompt_topk_tokens=ints(positions, topk),
        prompt_topk_logprobs=floats(positions, topk),
        prompt_target_logprobs=floats(*body.prompt_targets.shape),
        prompt_alt_tokens=ints(rows, drawn),
        prompt_alt_logprobs=floats(rows, drawn),
        sample_topk_tokens=ints(count, min(body.topk_sample_logprobs, 8)),
        sample_topk_logprobs=floats(count, min(body.topk_sample_logprobs, 8)),
    )


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it lies on the wire, but for the parsing of its lines. path: without the query, escaped."""

    method: str
    path: bytes
    query: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""


@dataclass(slots=True)
class Answer:
    status: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""


class Service:
    """broken: what went wrong where nobody was told."""

    def __init__(self, bridge: Bridge, loop: asyncio.Runner) -> None:
        self.bridge = bridge
        self.app = create_app(bridge)
        self.broken: list[str] = []
        self._loop = loop
        loop.get_loop().set_exception_handler(lambda _, context: self.broken.append(repr(context)))

    def ask(self, asked: Asked) -> Answer:
        """Raises whatever the service raises, and TimeoutError."""
        answer: Answer = self._loop.run(asyncio.wait_for(self._asked(asked), _ANSWER_S))
        return answer

    async def _asked(self, asked: Asked) -> Answer:
        answer = Answer()
        sent = [{"type": "http.request", "body": asked.body, "more_body": False}]

        async def receive() -> Any:
            return sent.pop() if sent else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                answer.status, answer.headers = message["status"], dict(message["headers"])
            else:
                answer.body += message.get("body", b"")

        await self.app(_scope(asked), receive, send)
        return answer


def _scope(asked: Asked) -> dict[str, Any]:
    """As uvicorn makes it."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": asked.method,
        "scheme": "http",
        "path": unquote(asked.path.decode("ascii")),
        "raw_path": asked.path,
        "query_string": asked.query,
        "root_path": "",
        "headers": [(b"host", b"bridge.test"), *asked.headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
        "state": {},
    }


@contextmanager
def opened(directory: Path) -> Iterator[tuple[Service, list[str]]]:
    """A service and the keys of two tenants."""
    give_back_large_blocks()  # as in the bridge's own process
    state, model = directory / "state", directory / "model"
    for each in (state, model):
        each.mkdir()
    for name, content in _tokenizer_files().items():
        (model / name).write_bytes(content)
    settings = ["model.path=/models/tiny", "model.name=tiny", f"bridge.long_poll_s={_POLL_S}"]
    config = load_config(state_dir=str(state), environ={}, overrides=settings)
    keys = [Keys(StateLayout(state)).create(name) for name in ("ann", "ben")]
    with asyncio.Runner() as loop:
        loop.get_loop()

        async def make() -> Bridge:
            bus = AnsweringBus(model)
            bus.layout = StateLayout(state)
            return open_bridge(config, bus)

        bridge = loop.run(make())
        yield Service(bridge, loop), keys

        async def close() -> None:
            bridge.close()

        loop.run(close())


@cache
def _tokenizer_files() -> dict[str, bytes]:
    """Takes some seconds, once in a process."""
    with tempfile.TemporaryDirectory() as directory:
        _tokenizer().save_pretrained(directory, save_jinja_files=False)
        return {path.name: path.read_bytes() for path in Path(directory).iterdir()}
