"""Both actor links against a daemon that does what the test says."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import psutil
import pytest
from loractl.bus import codec
from loractl.bus.actor_link import ActorLink
from loractl.bus.async_actor_link import AsyncActorLink
from loractl.bus.config import Config
from loractl.bus.errors import DaemonNotRunning
from loractl.bus.identities import unsolicited
from loractl.bus.ids import LOCAL_TENANT, AdapterId, RequestId
from loractl.bus.layout import StateLayout
from loractl.bus.messages import (
    ActorReady,
    ActorRole,
    AdapterDeleted,
    Done,
    Drain,
    DropVersion,
    Echo,
    Envelope,
    Failed,
    GetVersions,
    Heartbeat,
    Message,
    VersionReleased,
    VersionTable,
)
from loractl.bus.pulse import Strand


class ScriptedDaemon(Protocol):
    script: Callable[[Envelope], list[Envelope]]

    def next(self, timeout_s: float = 10.0) -> tuple[bytes, Envelope]: ...
    def wait_for(self, kind: type[Message], timeout_s: float = 60.0) -> tuple[bytes, Envelope]: ...
    def send(self, identity: bytes, *envelopes: Envelope) -> None: ...
    def send_frames(self, identity: bytes, frames: list[bytes]) -> None: ...
    def publish(self, event: Message) -> None: ...


Start = Callable[..., ScriptedDaemon]


class Awaiting:
    """The asyncio link behind the plain one's verbs, its loop turning in a thread."""

    def __init__(self, config: Config, actor: str, role: ActorRole, **options: object) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

        async def make() -> AsyncActorLink:
            return AsyncActorLink(config, actor, role, **options)

        try:
            self.link = self._run(make())
        except BaseException:
            self._end_loop()
            raise

    def _run(self, coroutine: object) -> object:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)

    def _call(self, function: Callable[[], object]) -> None:
        async def call() -> None:
            function()

        self._run(call())

    def receive(self, timeout_s: float) -> list[Envelope]:
        return self._run(self.link.receive(timeout_s))

    def ready(self, *args: object) -> None:
        self._call(lambda: self.link.ready(*args))

    def reply(self, *args: object, **options: object) -> None:
        self._call(lambda: self.link.reply(*args, **options))

    def report(self, body: Message) -> None:
        self._call(lambda: self.link.report(body))

    def strand(self) -> Strand:
        return self.link.strand()

    def block_for(self, seconds: float) -> None:
        self._call(lambda: threading.Event().wait(seconds))

    def close(self) -> None:
        self._call(self.link.close)
        self._end_loop()

    def _end_loop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


class Blocking(ActorLink):
    def block_for(self, seconds: float) -> None:
        self.turn()
        threading.Event().wait(seconds)


Make = Callable[..., Blocking | Awaiting]


@pytest.fixture(params=[Blocking, Awaiting], ids=["plain", "asyncio"])
def make(request: pytest.FixtureRequest, config: Config) -> Iterator[Make]:
    made: list[Blocking | Awaiting] = []

    def start(actor: str = "trainer", role: ActorRole = "trainer", **options: object) -> Blocking | Awaiting:
        made.append(request.param(config, actor, role, **options))
        return made[-1]

    yield start
    for each in made:
        each.close()


@pytest.fixture
def server(daemon: Start, layout: StateLayout) -> ScriptedDaemon:
    return daemon(layout.actor_socket)


def request(body: Message, name: str = "r1") -> Envelope:
    return Envelope(request=RequestId(name), tenant=LOCAL_TENANT, body=body)


def test_without_a_daemon_there_is_no_link(make: Make) -> None:
    with pytest.raises(DaemonNotRunning, match="only it starts actors"):
        make()


def test_an_actor_says_who_it_is_and_that_it_is_ready(make: Make, server: ScriptedDaemon) -> None:
    make("sampler-0", "sampler").ready("vllm 0.32", (), 0)

    identity, envelope = server.wait_for(ActorReady)

    assert identity == b"sampler-0"
    assert envelope.body == ActorReady(
        actor="sampler-0", role="sampler", pid=os.getpid(), details="vllm 0.32", versions=(), adapters=0
    )
    assert (envelope.request, envelope.tenant) == ("", "")


def test_everything_that_waits_is_received_at_once(make: Make, server: ScriptedDaemon) -> None:
    link = make()
    drop = unsolicited(DropVersion(adapter=AdapterId("ad-1"), version=3))

    server.wait_for(Heartbeat)
    server.send(b"trainer", request(Echo(payload=np.zeros(1, np.uint8))), drop, unsolicited(Drain()))
    received: list[Envelope] = []
    while len(received) < 3:
        received += link.receive(5.0)

    assert [type(envelope.body) for envelope in received] == [Echo, DropVersion, Drain]


def test_nothing_waits_nothing_comes(make: Make, server: ScriptedDaemon) -> None:
    assert make().receive(0.01) == []


def test_a_reply_carries_whose_and_which_request_it_answers(make: Make, server: ScriptedDaemon) -> None:
    link = make()
    asked = request(Echo(payload=np.zeros(1, np.uint8)))

    link.reply(asked, Done(), last=False)
    link.reply(asked, Done())

    parts = [server.wait_for(Done)[1] for _ in range(2)]
    assert [(part.request, part.tenant, part.last) for part in parts] == [
        ("r1", LOCAL_TENANT, False),
        ("r1", LOCAL_TENANT, True),
    ]


def test_a_report_answers_nobody(make: Make, server: ScriptedDaemon) -> None:
    make().report(VersionReleased(actor="trainer", adapter=AdapterId("ad-1"), version=1))

    assert server.wait_for(VersionReleased)[1].request == ""


def test_a_request_that_cannot_be_read_is_answered_and_the_next_one_received(
    make: Make, server: ScriptedDaemon
) -> None:
    link = make()
    good = request(Echo(payload=np.zeros(1, np.uint8)), "good")
    bad = [*codec.encode(request(Echo(payload=np.zeros(1, np.uint8)), "bad")), b"stray"]

    server.wait_for(Heartbeat)
    server.send_frames(b"trainer", [b"garbage"])
    server.send_frames(b"trainer", bad)
    server.send(b"trainer", good)
    received: list[Envelope] = []
    while not received:
        received += link.receive(5.0)

    assert [envelope.request for envelope in received] == ["good"]
    _, refusal = server.wait_for(Failed)
    assert (refusal.request, refusal.body.code, refusal.body.fault) == ("bad", "bad_frame", "user")


def test_heartbeats_come_from_a_socket_of_their_own(make: Make, server: ScriptedDaemon) -> None:
    make()

    identity, beat = server.wait_for(Heartbeat)

    assert identity == b"trainer/heartbeat"
    assert beat.body.actor == "trainer"
    assert beat.body.rss_bytes > 2**20


def test_heartbeats_go_on_and_tell_how_long_the_loop_is_busy(make: Make, server: ScriptedDaemon) -> None:
    link = make()
    worker = threading.Thread(target=link.block_for, args=(1.0,))
    worker.start()

    while (beat := server.wait_for(Heartbeat)[1].body).busy_s < 0.5:
        pass

    assert beat.busy_s < 5.0
    worker.join()


def test_what_stands_still_beside_a_loop_that_turns_is_told(make: Make, server: ScriptedDaemon) -> None:
    link = make()
    disk = link.strand()
    disk.turn("a save on the disk")

    while (beat := server.wait_for(Heartbeat)[1].body).busy_s < 0.5:
        link.receive(0.01)
    disk.rest()
    while server.wait_for(Heartbeat)[1].body.busy_s > 0.3:
        link.receive(0.01)

    assert beat.at == "a save on the disk"


# --- orphans -------------------------------------------------------------------------------------


def test_an_actor_whose_parent_dies_takes_its_children_with_it(
    server: ScriptedDaemon, config: Config
) -> None:
    """A supervisor starts an actor, which starts a child that ignores SIGTERM; then it is killed."""
    child = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()"
    actor = f"""
        import subprocess, sys
        from loractl.bus.actor_link import ActorLink
        from loractl.bus.config import config_from_json
        subprocess.Popen([sys.executable, "-c", {child!r}])
        link = ActorLink(config_from_json({config.to_json()!r}), "trainer", "trainer")
        link.ready("here")
        while True:
            link.receive(1.0)
    """
    parent = f"""
        import signal, subprocess, sys
        subprocess.Popen([sys.executable, "-c", {textwrap.dedent(actor)!r}], start_new_session=True)
        signal.pause()
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    supervisor = subprocess.Popen([sys.executable, "-c", textwrap.dedent(parent)], env=environment)
    family = [psutil.Process(server.wait_for(ActorReady)[1].body.pid)]
    family += family[0].children()

    os.kill(supervisor.pid, signal.SIGKILL)
    supervisor.wait()

    assert len(family) == 2
    _, alive = psutil.wait_procs(family, timeout=60)
    assert alive == []


# --- events --------------------------------------------------------------------------------------


def event(number: int) -> AdapterDeleted:
    return AdapterDeleted(number=number, adapter=AdapterId(f"ad-{number}"))


def table(last_event: int) -> VersionTable:
    return VersionTable(last_event=last_event, records=())


class Truth:
    """The broker's table, as a script: answers GetVersions with the number of the newest event."""

    def __init__(self, last_event: int) -> None:
        self.last_event = last_event

    def __call__(self, envelope: Envelope) -> list[Envelope]:
        if not isinstance(envelope.body, GetVersions):
            return []
        return [Envelope(request=envelope.request, tenant=envelope.tenant, body=table(self.last_event))]


def test_events_begin_with_the_table_and_survive_a_loss(server: ScriptedDaemon, config: Config) -> None:
    truth = server.script = Truth(4)

    async def follow() -> list[Message]:
        seen: list[Message] = []
        async with AsyncActorLink(config, "sampler-0", "sampler") as link:
            async for news in link.events():
                seen.append(news)
                if isinstance(news, AdapterDeleted):
                    break
                if len(seen) == 1:
                    truth.last_event += 2  # two events that are lost on their way
                truth.last_event += 1
                server.publish(event(truth.last_event))
        return seen

    seen = asyncio.run(asyncio.wait_for(follow(), 60))

    numbers = [item.last_event for item in seen[:-1]] + [seen[-1].number]
    assert numbers[0] == 4
    assert 7 in numbers
    assert numbers[-1] == numbers[-2] + 1


def test_an_event_lost_before_the_subscription_began_is_found_without_a_later_one(
    server: ScriptedDaemon, config: Config
) -> None:
    truth = server.script = Truth(0)

    async def follow() -> list[Message]:
        seen: list[Message] = []
        async with AsyncActorLink(config, "sampler-0", "sampler") as link:
            async for news in link.events():
                seen.append(news)
                truth.last_event = 1  # and its event never arrives
                if len(seen) == 2:
                    return seen
        return seen

    started = time.monotonic()
    seen = asyncio.run(asyncio.wait_for(follow(), 60))

    assert seen == [table(0), table(1)]
    assert time.monotonic() - started < 10


def test_however_many_want_the_table_one_question_is_under_way_and_no_answer_is_taken_for_a_request(
    server: ScriptedDaemon, config: Config
) -> None:
    def late(first: Envelope) -> list[Envelope]:
        return [Envelope(request=RequestId("a question before"), tenant=first.tenant, body=table(1))]

    async def follow() -> list[Message]:
        seen: list[Message] = []
        async with AsyncActorLink(config, "sampler-0", "sampler") as link:
            events = link.events()
            following = asyncio.ensure_future(anext(events))
            identity, first = await asyncio.to_thread(server.wait_for, GetVersions)
            for _ in range(100):
                link.ask_for_table()
            server.send(identity, *late(first), *Truth(2)(first))
            seen += [await following, await anext(events)]
            _, second = await asyncio.to_thread(server.wait_for, GetVersions)
            server.send(identity, *Truth(3)(second))
            seen.append(await anext(events))
            assert await link.receive(0.0) == []
            await events.aclose()
        return seen

    seen = asyncio.run(asyncio.wait_for(follow(), 60))

    assert seen == [table(1), table(2), table(3)]
