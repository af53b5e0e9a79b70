"""The loop with real sockets: hostile bytes, many clients, publishing from end to end."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from loractl.bus.codec import PROTOCOL, decode, encode
from loractl.bus.config import Config
from loractl.bus.errors import BadFrame, InvalidRequest, VersionNotFound
from loractl.bus.ids import AdapterId, LaneId, RequestId, TenantId
from loractl.bus.messages import (
    Done,
    Echo,
    Envelope,
    Failed,
    GetVersions,
    Ping,
    Pong,
    PublishAdapter,
    Receipt,
    Sample,
    SampleResult,
    VersionTable,
)
from loractl.bus.sockets import connect_dealer, new_context
from loractl.tests.daemon.conftest import Start
from loractl.tests.daemon.real_daemon import PATIENCE_S, RealDaemon, ask, echo, until

ADAPTER = AdapterId("ad-1")
HOSTILE = [
    [b""],
    [b"\x00" * 100],
    [b"\xc1"],
    [b"\xdf\xff\xff\xff\xff"],
    [b"\x93" * 10_000],
    [b"", b"", b""],
    [b"GET / HTTP/1.1\r\n\r\n"],
]


class Dealer:
    """A client that sends whatever it likes."""

    def __init__(self, config: Config, address: str, identity: bytes = b"") -> None:
        self._config = config
        self._context = new_context()
        self.socket = connect_dealer(self._context, address, config.limits, identity=identity)

    def hear(self) -> Envelope:
        assert self.socket.poll(int(PATIENCE_S * 1000)), "no answer"
        return decode(self.socket.recv_multipart(), self._config.limits)

    def close(self) -> None:
        self.socket.close(0)
        self._context.term()


@pytest.fixture
def dealer(shared: RealDaemon) -> Iterator[Callable[..., Dealer]]:
    made: list[Dealer] = []

    def make(address: str, identity: bytes = b"") -> Dealer:
        made.append(Dealer(shared.config, address, identity))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_hostile_bytes_from_a_client_harm_nobody(shared: RealDaemon, dealer):
    hostile = dealer(shared.layout.client_socket)

    for frames in HOSTILE:
        hostile.socket.send_multipart(frames)
    hostile.socket.send_multipart(encode(Envelope(request=RequestId("p"), tenant=TenantId("t"), body=Ping())))

    assert isinstance(hostile.hear().body, Pong)
    assert shared.echo("hello") == "hello"


def test_hostile_bytes_from_an_actors_side_harm_nobody(shared: RealDaemon, dealer):
    for identity in (b"", b"trainer-2", b"\xff\xfe"):
        hostile = dealer(shared.layout.actor_socket, identity)
        for frames in HOSTILE:
            hostile.socket.send_multipart(frames)
        answer = Envelope(request=RequestId("r"), tenant=TenantId("t"), body=Done())
        hostile.socket.send_multipart(encode(answer))

    assert shared.echo("hello") == "hello"


def test_a_message_that_is_wrong_behind_its_header_is_answered_with_bad_frame(shared: RealDaemon, dealer):
    client = dealer(shared.layout.client_socket)
    sample = Sample(adapter=None, version=None, prompt=np.arange(3), max_tokens=1)
    frames = encode(Envelope(request=RequestId("r1"), tenant=TenantId("t"), body=sample))

    for broken in ([frames[0]], [*frames, b"more"], [frames[0], b"x" * 23], [frames[0], *[b""] * 100]):
        client.socket.send_multipart(broken)
        answer = client.hear()

        assert answer.request == "r1"
        assert isinstance(answer.body, Failed)
        assert answer.body.code == BadFrame.code


def test_a_message_of_an_unknown_kind_is_answered_with_bad_frame(shared: RealDaemon, dealer):
    client = dealer(shared.layout.client_socket)
    frames = encode(Envelope(request=RequestId("r1"), tenant=TenantId("t"), body=Ping()))
    assert PROTOCOL == 1

    client.socket.send_multipart([frames[0].replace(b"\xa4ping", b"\xa4pong")])

    assert client.hear().body.code == BadFrame.code


def test_large_payloads_come_back_whole(shared: RealDaemon):
    payload = np.arange(5_000_000, dtype=np.uint8)

    with shared.client() as client:
        answer = client.request(Echo(payload=payload), timeout_s=PATIENCE_S)

    assert np.array_equal(answer.payload, payload)


def test_many_clients_at_one_time_get_each_their_own_answers(shared: RealDaemon):
    wrong: list[str] = []

    def chat(name: int) -> None:
        with shared.client() as client:
            pending = [(f"{name}-{i}", client.submit(ask(f"{name}-{i}"))) for i in range(200)]
            for text, each in pending:
                if each.result(PATIENCE_S).payload.tobytes().decode() != text:
                    wrong.append(text)

    threads = [threading.Thread(target=chat, args=[name]) for name in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []


def test_a_resend_to_the_next_life_of_an_actor_runs_and_one_after_an_answer_does_not(start: Start):
    daemon = start().until(trainer="ready")
    with daemon.client() as client:
        first = client.request(ask("pid"), request=RequestId("mine"), timeout_s=PATIENCE_S)
        client.submit(ask("die"))
        daemon.until(trainer="restarting").until(trainer="ready")

        again = client.request(ask("pid"), request=RequestId("mine"), timeout_s=PATIENCE_S)

        assert again.payload.tobytes() == first.payload.tobytes() != echo(client, "pid").encode()


# --- publishing, with a real sampler that follows the events ---------------------------------------


def publish(client, seq: int) -> Receipt:
    request = PublishAdapter(adapter=ADAPTER, lane=LaneId("ln-1"), seq=seq)
    return client.request(request, timeout_s=PATIENCE_S)


def sample(adapter: AdapterId | None = ADAPTER, version: int | None = None) -> Sample:
    return Sample(adapter=adapter, version=version, prompt=np.arange(3), max_tokens=1)


def test_a_published_version_is_served_sampled_retired_and_deleted(publishing: RealDaemon, state_dir: Path):
    publishing.until(trainer="ready", sampler_0="ready")
    with publishing.client() as client:
        receipts = [publish(client, seq) for seq in range(1, 7)]
        result = client.request(sample(), timeout_s=PATIENCE_S)
        older = client.request(sample(version=4), timeout_s=PATIENCE_S)

        assert [r.record.number for r in receipts] == [1, 2, 3, 4, 5, 6]
        assert {r.sampler for r in receipts} == {"sampler-0"}
        assert isinstance(result, SampleResult)
        assert (result.version, older.version) == (6, 4)
        with pytest.raises(VersionNotFound, match="there is 3, 4, 5, 6"):
            client.request(sample(version=1), timeout_s=PATIENCE_S)
        with pytest.raises(InvalidRequest):
            client.request(sample(adapter=None, version=1), timeout_s=PATIENCE_S)
    files = state_dir / "versions" / ADAPTER
    assert until(lambda: sorted(path.name for path in files.iterdir()) == ["3", "4", "5", "6"])


def test_versions_survive_the_death_of_both_actors(publishing: RealDaemon):
    publishing.until(trainer="ready", sampler_0="ready")
    with publishing.client() as client:
        publish(client, 1)
        for process in publishing.family():
            process.kill()
        publishing.until(trainer="restarting", sampler_0="restarting")
        publishing.until(trainer="ready", sampler_0="ready")

        table = client.request(GetVersions(), timeout_s=PATIENCE_S)
        assert isinstance(table, VersionTable)
        assert [r.number for r in table.records] == [1]
        assert client.request(sample(), timeout_s=PATIENCE_S).version == 1
        assert publish(client, 2).record.number == 2


# --- what the daemon costs before it does anything ---------------------------------------------------


def test_the_daemon_never_imports_what_its_actors_need():
    code = "import sys, loractl.daemon.__main__; print(*{m.partition('.')[0] for m in sys.modules})"

    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()

    assert not {"torch", "vllm", "transformers", "megatron", "safetensors", "fastapi", "click"} & {*loaded}
