"""The daemon's side of a sampler, scripted: real sockets and the real codec, decisions by the test.

A `Desk` binds the actors' and the events' sockets, starts samplers as the supervisor does, and keeps
everything they say.
"""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
from loractl.bus.codec import decode, encode
from loractl.bus.config import Config, ModelConfig, SamplerConfig, subprocess_environment
from loractl.bus.identities import unsolicited
from loractl.bus.ids import AdapterId, RequestId, TenantId
from loractl.bus.layout import StateLayout
from loractl.bus.messages import (
    ActorReady,
    AdapterPublished,
    Envelope,
    GetVersions,
    Heartbeat,
    Message,
    Sample,
    VersionRecord,
    VersionRetired,
    VersionServed,
    VersionTable,
)
from loractl.bus.sockets import bind_publisher, bind_router, close, new_context, receive_waiting

LOCAL = TenantId("local")
START_S = 120.0
PROMPT = (5, 6, 7, 8, 9)
ANSWER_S = 120.0


class Desk:
    def __init__(self, config: Config) -> None:
        self.config = config
        self.layout = StateLayout(Path(config.state_dir))
        self.layout.run.mkdir(parents=True, mode=0o700)
        self.layout.config.write_text(config.to_json())
        self._context = new_context()
        self._router = bind_router(self._context, self.layout.actor_socket, config.limits, handover=True)
        self._events = bind_publisher(self._context, self.layout.event_socket, config.limits)
        self._numbers = itertools.count(1)
        self.last_event = 0
        self.table: dict[tuple[AdapterId, int], VersionRecord] = {}
        # Everything samplers said, but for heartbeats and questions for the table.
        self.heard: list[Envelope] = []

    def close(self) -> None:
        close(self._context, self._router, self._events)

    # --- talking ---------------------------------------------------------------------------------

    def send(self, body: Message, *, tenant: TenantId = LOCAL, actor: str = "sampler-0") -> RequestId:
        request = RequestId(f"r{next(self._numbers)}")
        self._send(actor, Envelope(request=request, tenant=tenant, body=body))
        return request

    def ask(self, body: Message, **where: str) -> Message:
        """Send a request and wait for its last answer."""
        return self.answer(self.send(body, **where))

    def answer(self, request: RequestId, timeout_s: float = ANSWER_S) -> Message:
        return self.wait(lambda e: e.request == request and e.last, timeout_s).body

    def parts(self, request: RequestId) -> list[Message]:
        """What of a streamed answer has come so far."""
        return [e.body for e in self.heard if e.request == request and not e.last]

    def tell(self, body: Message, actor: str = "sampler-0") -> None:
        self._send(actor, unsolicited(body))

    def publish(self, record: VersionRecord) -> None:
        self.table[record.adapter, record.number] = record
        self._publish(AdapterPublished(number=self._next_event(), record=record))

    def retire(self, record: VersionRecord) -> None:
        self.table.pop((record.adapter, record.number))
        self._publish(
            VersionRetired(number=self._next_event(), adapter=record.adapter, version=record.number)
        )

    # --- listening -------------------------------------------------------------------------------

    def report(self, kind: type[Message], timeout_s: float = ANSWER_S, **fields: object) -> Message:
        """The next report of this kind with these fields; each is returned once."""

        def fits(envelope: Envelope) -> bool:
            body = envelope.body
            return isinstance(body, kind) and all(getattr(body, k) == v for k, v in fields.items())

        found = self.wait(fits, timeout_s)
        self.heard.remove(found)
        return found.body

    def wait(self, fits: Callable[[Envelope], bool], timeout_s: float) -> Envelope:
        until = time.monotonic() + timeout_s
        while True:
            for envelope in self.heard:
                if fits(envelope):
                    return envelope
            left = until - time.monotonic()
            assert left > 0, f"nothing that fits within {timeout_s} s, but {self.heard}"
            self.listen(left)

    def until(self, happened: Callable[[], object], timeout_s: float) -> None:
        """Go on listening until something is true."""
        end = time.monotonic() + timeout_s
        while not happened():
            assert time.monotonic() < end, f"did not happen within {timeout_s} s"
            self.listen(0.05)

    def listen(self, timeout_s: float) -> None:
        """Take in what arrives within the time, and answer what the broker answers."""
        self._router.poll(int(timeout_s * 1000))
        for identity, *frames in receive_waiting(self._router):
            envelope = decode(frames, self.config.limits)
            match envelope.body:
                case GetVersions():
                    table = VersionTable(last_event=self.last_event, records=tuple(self.table.values()))
                    self._send(bytes(identity).decode(), replace(envelope, body=table))
                case Heartbeat():
                    pass
                case _:
                    self.heard.append(envelope)

    def _send(self, actor: str, envelope: Envelope) -> None:
        self._router.send_multipart([actor.encode(), *encode(envelope)])

    def _publish(self, event: Message) -> None:
        self._events.send_multipart(encode(unsolicited(event)))

    def _next_event(self) -> int:
        self.last_event += 1
        return self.last_event


class SamplerProcess:
    """A sampler started as the supervisor does: in a group of its own."""

    def __init__(self, desk: Desk) -> None:
        desk.layout.logs.mkdir(exist_ok=True)
        with (desk.layout.logs / "sampler-0.out").open("ab") as out:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "loractl.sampler_actor"),
                    *("--config", str(desk.layout.config)),
                    *("--actor", "sampler-0"),
                ],
                stdout=out,
                stderr=out,
                start_new_session=True,
                env=subprocess_environment({"PYTHONPATH": str(Path(__file__).parents[2] / ".pkg")}),
            )

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def engine_core(self) -> psutil.Process:
        """The process that vLLM computes in; the other child is Python's resource tracker."""
        return max(self.descendants(), key=lambda process: process.memory_info().rss)

    def end(self) -> None:
        """As the supervisor does with one that must go."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)


@contextmanager
def running_sampler(config: Config) -> Iterator[tuple[Desk, SamplerProcess, ActorReady]]:
    desk = Desk(config)
    sampler = SamplerProcess(desk)
    try:
        ready = desk.report(ActorReady, START_S)
        assert isinstance(ready, ActorReady)
        yield desk, sampler, ready
    finally:
        sampler.end()
        desk.close()


def config_for(state: Path, model: Path, **sampler: object) -> Config:
    return Config(
        state_dir=str(state),
        model=ModelConfig(name="tiny", path=str(model), device="cpu"),
        sampler=SamplerConfig(**{"kv_cache_bytes": 64 * 2**20, "max_batched_tokens": 256, **sampler}),
    )


def sample_of(record: VersionRecord | None = None, **changes: object) -> Sample:
    defaults = Sample(
        adapter=record.adapter if record else None,
        version=record.number if record else None,
        prompt=np.array(PROMPT),
        max_tokens=8,
        temperature=0.0,
        stop_tokens=(),
    )
    return replace(defaults, **changes)


def published(desk: Desk, record: VersionRecord) -> VersionRecord:
    if (record.adapter, record.number) not in desk.table:
        desk.publish(record)
        desk.report(VersionServed, adapter=record.adapter, version=record.number)
    return record


def other_number(record: VersionRecord, number: int, **changes: object) -> VersionRecord:
    """The same files under another version's number."""
    return replace(record, number=number, **changes)
