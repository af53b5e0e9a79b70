"""Both clients against a daemon that does what the test says: the same behaviour, waited for or awaited."""

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
from loractl.bus.async_client import AsyncClient
from loractl.bus.client import Client
from loractl.bus.codec import encode
from loractl.bus.config import Config, LimitsConfig
from loractl.bus.errors import (
    Aborted,
    AdapterNotFound,
    BadFrame,
    DaemonGone,
    DaemonNotRunning,
    InvalidData,
)
from loractl.bus.failures import failed
from loractl.bus.ids import RequestId
from loractl.bus.layout import StateLayout
from loractl.bus.messages import (
    Abort,
    Done,
    Echo,
    Echoed,
    Envelope,
    ListAdapters,
    Message,
    Ping,
    Pong,
    Sample,
    SampleChunk,
    SampleResult,
    Waiting,
)

Start = Callable[..., "ScriptedDaemon"]
NOTHING = np.zeros(0, np.float32)
SAMPLE = Sample(adapter=None, version=None, prompt=np.arange(3), max_tokens=2, stream=True)
RESULT = SampleResult(
    version=0,
    engine="torch",
    lengths=np.array([2]),
    tokens=np.array([7, 8]),
    logprobs=np.zeros(2, np.float32),
    texts=("hi",),
    stop_reasons=("length",),
    prompt_logprobs=NOTHING,
)


class ScriptedDaemon(Protocol):
    def wait_for(self, kind: type[Message], timeout_s: float = 60.0) -> tuple[bytes, Envelope]: ...
    def send(self, identity: bytes, *envelopes: Envelope) -> None: ...
    def send_frames(self, identity: bytes, frames: list[bytes]) -> None: ...
    def stop(self) -> None: ...


def answer(to: Envelope, body: Message, *, last: bool = True) -> Envelope:
    return Envelope(request=to.request, tenant=to.tenant, body=body, last=last)


def echoing(envelope: Envelope) -> Sequence[Envelope]:
    match envelope.body:
        case Echo(payload=payload):
            return [answer(envelope, Echoed(payload=payload))]
        case Ping():
            return [answer(envelope, Pong(daemon_version="1", uptime_s=1e6))]
        case _:
            return []


class Blocking:
    """The plain client behind the verbs that the tests use."""

    def __init__(self, config: Config, **options: object) -> None:
        self.client = Client(config, **options)
        self.pending = None

    def request(self, body: Message, **options: object) -> Message:
        return self.client.request(body, **options)

    def stream(self, body: Message, take: int = 100) -> list[Message]:
        stream = self.client.stream(body, timeout_s=60)
        taken = [part for _, part in zip(range(take), stream, strict=False)]
        stream.close()
        return taken

    def submit_and_meanwhile(self, body: Message, act: Callable[[], None]) -> Message:
        pending = self.client.submit(body)
        threading.Thread(target=act).start()
        return pending.result(30)

    def close(self) -> None:
        self.client.close()


class Awaiting:
    """The asyncio client behind the same verbs: one loop, run until each call is done."""

    def __init__(self, config: Config, **options: object) -> None:
        self.runner = asyncio.Runner()
        self.client = self.runner.run(self._make(config, options))

    async def _make(self, config: Config, options: dict[str, object]) -> AsyncClient:
        return AsyncClient(config, **options)

    def request(self, body: Message, **options: object) -> Message:
        return self.runner.run(self.client.request(body, **options))

    def stream(self, body: Message, take: int = 100) -> list[Message]:
        return self.runner.run(self._stream(body, take))

    async def _stream(self, body: Message, take: int) -> list[Message]:
        taken: list[Message] = []
        stream: AsyncIterator[Message] = self.client.stream(body, timeout_s=60)
        async for part in stream:
            taken.append(part)
            if len(taken) == take:
                break
        await stream.aclose()
        return taken

    def submit_and_meanwhile(self, body: Message, act: Callable[[], None]) -> Message:
        return self.runner.run(self._submit_and_meanwhile(body, act))

    async def _submit_and_meanwhile(self, body: Message, act: Callable[[], None]) -> Message:
        pending = self.client.submit(body)
        threading.Thread(target=act).start()
        return await pending.result(30)

    def close(self) -> None:
        async def close() -> None:
            self.client.close()

        self.runner.run(close())
        self.runner.close()


Make = Callable[..., Blocking | Awaiting]


@pytest.fixture(params=[Blocking, Awaiting], ids=["plain", "asyncio"])
def make(request: pytest.FixtureRequest, config: Config) -> Iterator[Make]:
    made: list[Blocking | Awaiting] = []

    def start(config: Config = config, **options: object) -> Blocking | Awaiting:
        made.append(request.param(config, **options))
        return made[-1]

    yield start
    for each in made:
        each.close()


def test_a_request_is_answered(make: Make, daemon: Start, layout: StateLayout) -> None:
    daemon(layout.client_socket, echoing)

    reply = make().request(Echo(payload=np.arange(5, dtype=np.uint8)), timeout_s=60)

    assert isinstance(reply, Echoed)
    assert reply.payload.tolist() == [0, 1, 2, 3, 4]


def test_without_a_daemon_it_says_how_to_start_one(make: Make, layout: StateLayout) -> None:
    started = time.monotonic()

    with pytest.raises(
        DaemonNotRunning, match=f"no daemon runs on {layout.root}: start one with `loractl daemon"
    ):
        make()

    assert time.monotonic() - started < 2


def test_a_socket_that_a_dead_daemon_left_counts_as_none(
    make: Make, daemon: Start, layout: StateLayout
) -> None:
    process = killable_daemon(layout)
    process.kill()
    process.wait()
    assert Path(layout.client_socket.removeprefix("ipc://")).exists()

    with pytest.raises(DaemonNotRunning):
        make()


def test_a_refusal_is_raised_as_the_error_it_was(make: Make, daemon: Start, layout: StateLayout) -> None:
    daemon(layout.client_socket, lambda e: [answer(e, failed(AdapterNotFound("no adapter named 'x'")))])

    with pytest.raises(AdapterNotFound, match="no adapter named 'x'"):
        make().request(ListAdapters(), timeout_s=60)


def test_a_stream_gives_its_parts_and_then_its_end(make: Make, daemon: Start, layout: StateLayout) -> None:
    chunk = SampleChunk(index=0, tokens=np.array([7]), text="h")
    daemon(
        layout.client_socket,
        lambda e: [answer(e, chunk, last=False), answer(e, chunk, last=False), answer(e, RESULT)],
    )

    parts = make().stream(SAMPLE)

    assert [type(part) for part in parts] == [SampleChunk, SampleChunk, SampleResult]


def test_a_stream_that_is_left_is_aborted(make: Make, daemon: Start, layout: StateLayout) -> None:
    chunk = SampleChunk(index=0, tokens=np.array([7]), text="h")
    server = daemon(
        layout.client_socket,
        lambda e: [answer(e, chunk, last=False)] if isinstance(e.body, Sample) else [],
    )

    make().stream(SAMPLE, take=1)

    _, sample = server.wait_for(Sample)
    _, abort = server.wait_for(Abort)
    assert abort.body.target == sample.request


def test_waiting_for_the_parts_of_a_request_leaves_them_out(
    make: Make, daemon: Start, layout: StateLayout
) -> None:
    chunk = SampleChunk(index=0, tokens=np.array([7]), text="h")
    daemon(layout.client_socket, lambda e: [answer(e, chunk, last=False), answer(e, RESULT)])

    assert isinstance(make().request(SAMPLE, timeout_s=60), SampleResult)


def test_the_reason_for_a_wait_is_told(make: Make, daemon: Start, layout: StateLayout) -> None:
    reasons: list[str] = []
    waiting = Waiting(reason="the trainer is restarting")
    daemon(layout.client_socket, lambda e: [answer(e, waiting, last=False), answer(e, Done())])

    make(on_waiting=reasons.append).request(ListAdapters(), timeout_s=60)

    assert reasons == ["the trainer is restarting"]


def test_no_answer_in_time_is_a_timeout_and_the_request_goes_on(
    make: Make, daemon: Start, layout: StateLayout
) -> None:
    server = daemon(layout.client_socket)
    client = make()

    with pytest.raises(TimeoutError):
        client.request(ListAdapters(), timeout_s=0.05, request=RequestId("mine"))

    identity, first = server.wait_for(ListAdapters)
    server.send(identity, answer(first, Done()))
    assert first.request == "mine"


def test_a_request_can_be_sent_again_under_its_id(make: Make, daemon: Start, layout: StateLayout) -> None:
    server = daemon(layout.client_socket, lambda e: [answer(e, Done())])
    client = make()

    for _ in range(2):
        client.request(ListAdapters(), request=RequestId("mine"), timeout_s=60)

    requests = [server.wait_for(ListAdapters)[1].request for _ in range(2)]
    assert requests == ["mine", "mine"]


def test_a_daemon_that_vanishes_during_a_wait_ends_it(make: Make, daemon: Start, layout: StateLayout) -> None:
    server = daemon(layout.client_socket)
    client = make()

    with pytest.raises(DaemonGone, match="stopped while a request was under way"):
        client.submit_and_meanwhile(ListAdapters(), server.stop)

    with pytest.raises(DaemonNotRunning):
        client.request(ListAdapters())


def test_a_killed_daemon_ends_the_wait_within_seconds(make: Make, layout: StateLayout) -> None:
    process = killable_daemon(layout)
    client = make()
    started = time.monotonic()

    with pytest.raises(DaemonGone):
        client.submit_and_meanwhile(ListAdapters(), process.kill)

    process.wait()
    assert time.monotonic() - started < 10


def test_a_daemon_that_was_replaced_during_a_wait_ends_it(
    make: Make, daemon: Start, layout: StateLayout
) -> None:
    def young(envelope: Envelope) -> Sequence[Envelope]:
        pong = Pong(daemon_version="1", uptime_s=0.01)
        return [answer(envelope, pong)] if isinstance(envelope.body, Ping) else []

    daemon(layout.client_socket, young)

    with pytest.raises(DaemonGone):
        make().request(ListAdapters(), timeout_s=60)


def test_a_wait_goes_on_while_the_daemon_answers_pings(
    make: Make, daemon: Start, layout: StateLayout
) -> None:
    server = daemon(layout.client_socket, echoing)
    client = make()

    def answer_after_two_pings() -> None:
        identity, asked = server.wait_for(ListAdapters)
        server.wait_for(Ping)
        server.wait_for(Ping)
        server.send(identity, answer(asked, Done()))

    assert client.submit_and_meanwhile(ListAdapters(), answer_after_two_pings) == Done()


def test_an_answer_that_cannot_be_read_ends_its_own_wait(
    make: Make, daemon: Start, layout: StateLayout
) -> None:
    server = daemon(layout.client_socket, echoing)
    client = make()

    def answer_with_a_stray_frame() -> None:
        identity, asked = server.wait_for(ListAdapters)
        server.send_frames(identity, [b"garbage"])
        server.send_frames(identity, [*encode(answer(asked, Done())), b"stray"])

    with pytest.raises(BadFrame):
        client.submit_and_meanwhile(ListAdapters(), answer_with_a_stray_frame)
    assert isinstance(client.request(Echo(payload=np.zeros(1, np.uint8)), timeout_s=60), Echoed)


def test_more_than_a_message_may_carry_is_refused_before_it_is_sent(
    make: Make, daemon: Start, config: Config, layout: StateLayout
) -> None:
    daemon(layout.client_socket, echoing)
    small = Config(state_dir=config.state_dir, limits=LimitsConfig(frame_bytes=1000))

    with pytest.raises(InvalidData, match="send less at one time"):
        make(small).request(Echo(payload=np.zeros(1001, np.uint8)))


def test_closing_the_asyncio_client_ends_its_waits(
    daemon: Start, config: Config, layout: StateLayout
) -> None:
    daemon(layout.client_socket)

    async def close_while_waiting() -> None:
        client = AsyncClient(config)
        waiting = asyncio.create_task(client.request(ListAdapters()))
        await asyncio.sleep(0)
        client.close()
        await waiting

    with pytest.raises(Aborted):
        asyncio.run(close_while_waiting())


def test_cancelling_a_task_aborts_its_sample(daemon: Start, config: Config, layout: StateLayout) -> None:
    server = daemon(layout.client_socket)

    async def cancel() -> None:
        async with AsyncClient(config) as client:
            waiting = asyncio.create_task(client.request(SAMPLE))
            await asyncio.to_thread(server.wait_for, Sample)
            waiting.cancel()
            await asyncio.to_thread(server.wait_for, Abort)

    asyncio.run(cancel())


def test_a_thousand_requests_at_once_are_all_answered(
    daemon: Start, config: Config, layout: StateLayout
) -> None:
    daemon(layout.client_socket, echoing)

    async def ask() -> list[Message]:
        async with AsyncClient(config) as client:
            asked = [client.submit(Echo(payload=np.full(9, i % 256, np.uint8))) for i in range(1000)]
            return [await pending.result(30) for pending in asked]

    answers = asyncio.run(ask())

    assert [reply.payload[0] for reply in answers] == [i % 256 for i in range(1000)]


def killable_daemon(layout: StateLayout) -> subprocess.Popen[str]:
    """A process that listens and never answers; ready when this returns."""
    layout.run.mkdir(parents=True, exist_ok=True)
    script = f"""
        import signal
        from loractl.bus import sockets
        from loractl.bus.config import LimitsConfig
        router = sockets.bind_router(sockets.new_context(), {layout.client_socket!r}, LimitsConfig())
        print("ready", flush=True)
        signal.pause()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process
