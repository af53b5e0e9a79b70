"""tcp: over real sockets, who is let in, as whom, and for how long."""

import signal
import socket as posix
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zmq
from loractl.bus import curve_sockets, sockets
from loractl.bus.client import Client
from loractl.bus.codec import decode, encode
from loractl.bus.config import Config, LimitsConfig, load_config
from loractl.bus.curve import ClientKey, CurveKeys, read_client_key
from loractl.bus.errors import AccessDenied, DaemonNotRunning, InvalidConfig, InvalidName, LoractlError
from loractl.bus.ids import LOCAL_TENANT, AdapterId, LaneId, RequestId, TenantId
from loractl.bus.layout import StateLayout
from loractl.bus.messages import (
    CreateAdapter,
    DaemonStatus,
    Echo,
    Echoed,
    Envelope,
    GetStatus,
    LoadCheckpoint,
    LoadVersion,
    LoraSpec,
    Message,
    OpenLane,
    Sample,
    Shutdown,
)
from loractl.bus.remote_daemon import RemoteDaemon, remote_daemon
from loractl.tests.daemon.conftest import settings_for, short_lived_directory
from loractl.tests.daemon.office import forward_backward
from loractl.tests.daemon.real_daemon import (
    PATIENCE_S,
    RealDaemon,
    actor_argv,
    ask,
    echo,
    free_address,
    until,
)

ALICE, BOB = TenantId("alice"), TenantId("bob")
VICTIM = AdapterId("ad-" + "1" * 32)
# How long a socket that nobody answers is listened to.
SILENCE_MS = 400


@pytest.fixture(scope="module")
def served() -> Iterator[RealDaemon]:
    """A daemon that listens over tcp, with an actor that echoes."""
    with short_lived_directory() as path:
        config = settings_for(path)
        CurveKeys(StateLayout(path)).ensure_server()
        config = replace(config, daemon=replace(config.daemon, listen=free_address()))
        actors = {"trainer": ("trainer", actor_argv(config, "echo_actor.py", "trainer"))}
        daemon = RealDaemon(config, actors)
        try:
            yield daemon.until(trainer="ready")
        finally:
            daemon.close()


@pytest.fixture(scope="module")
def keys(served: RealDaemon) -> CurveKeys:
    return CurveKeys(served.layout)


@pytest.fixture(scope="module")
def alice(keys: CurveKeys) -> ClientKey:
    return keys.create(ALICE)


def reach(served: RealDaemon, key: ClientKey) -> RemoteDaemon:
    return RemoteDaemon(served.config.daemon.listen, key)


def outcome(client: Client, body: Message, tenant: TenantId | None = None) -> str:
    """The code of a failure, or the kind of the answer."""
    try:
        return client.submit(body, tenant=tenant).result(PATIENCE_S).kind
    except LoractlError as error:
        return error.code


def test_a_client_with_a_key_is_served_as_its_tenant(served: RealDaemon, alice: ClientKey):
    with Client(reach(served, alice)) as client:
        assert echo(client, "hello from afar") == "hello from afar"
        assert isinstance(client.request(GetStatus(), timeout_s=PATIENCE_S), DaemonStatus)


def test_long_frames_come_and_go_over_tcp(served: RealDaemon, alice: ClientKey):
    payload = np.arange(3_000_000, dtype=np.int64).view(np.uint8)
    with Client(reach(served, alice)) as client:
        answer = client.request(Echo(payload=payload), timeout_s=PATIENCE_S)

    assert answer.payload.tobytes() == payload.tobytes()


def test_a_patient_client_goes_on_with_the_next_daemon_on_that_address():
    with short_lived_directory() as path:
        config = settings_for(path)
        alice = CurveKeys(StateLayout(path)).create(ALICE)
        config = replace(config, daemon=replace(config.daemon, listen=free_address()))
        actors = {"trainer": ("trainer", actor_argv(config, "echo_actor.py", "trainer"))}
        daemon = RealDaemon(config, actors).until(trainer="ready")
        try:
            with Client(reach(daemon, alice), patience_s=PATIENCE_S) as client:
                kept = client.submit(ask("keep"))
                assert until(lambda: in_hand(client) == 1)
                daemon.close()
                daemon = RealDaemon(config, actors).until(trainer="ready")
                assert until(lambda: in_hand(client) == 1)
                daemon.signal(signal.SIGTERM)  # its actor answers what it holds

                answer = kept.result(PATIENCE_S)
                assert isinstance(answer, Echoed)
                assert answer.payload.tobytes() == b"drained"
        finally:
            daemon.close()


def in_hand(client: Client) -> int:
    """How many requests the actor holds."""
    status = client.request(GetStatus(), timeout_s=PATIENCE_S)
    assert isinstance(status, DaemonStatus)
    return sum(actor.waiting for actor in status.actors)


def test_a_key_that_nobody_authorised_is_refused_by_name(served: RealDaemon, alice: ClientKey):
    public, secret = curve_sockets.new_curve_pair()
    stranger = replace(alice, public=public, secret=secret)

    with pytest.raises(AccessDenied, match="does not take this key"):
        Client(reach(served, stranger))


def test_a_known_public_key_without_its_secret_is_no_key(served: RealDaemon, alice: ClientKey):
    _, secret = curve_sockets.new_curve_pair()

    with pytest.raises((AccessDenied, DaemonNotRunning)):
        Client(reach(served, replace(alice, secret=secret)))


def test_a_daemon_with_another_key_than_the_client_expects_is_not_talked_to(
    served: RealDaemon, alice: ClientKey
):
    public, _ = curve_sockets.new_curve_pair()

    with pytest.raises(DaemonNotRunning, match="no daemon with the key"):
        Client(reach(served, replace(alice, server=public)))


def test_where_nobody_listens_a_client_is_told_so(alice: ClientKey, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(curve_sockets, "_KNOCK_S", 0.3)

    with pytest.raises(DaemonNotRunning, match="nobody listens"):
        Client(RemoteDaemon(free_address(), alice))


@pytest.mark.parametrize("mechanism", ["none", "plain"])
def test_a_peer_without_curve_gets_no_word_and_reaches_nobody(served: RealDaemon, mechanism: str):
    context = sockets.new_context()
    dealer = context.socket(zmq.DEALER)
    if mechanism == "plain":
        dealer.setsockopt(zmq.PLAIN_USERNAME, b"alice")
        dealer.setsockopt(zmq.PLAIN_PASSWORD, b"secret")
    dealer.connect(served.config.daemon.listen)

    asked = Envelope(request=RequestId("r"), tenant=ALICE, body=GetStatus())
    dealer.send_multipart([bytes(frame) for frame in encode(asked)])

    assert not dealer.poll(SILENCE_MS)
    dealer.close(linger=0)
    context.term()


def test_bytes_that_are_no_handshake_end_nothing(served: RealDaemon, alice: ClientKey):
    host, port = served.config.daemon.listen.removeprefix("tcp://").split(":")
    for noise in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 4096,
        b"\xff\0\0\0\0\0\0\0\1\x7f" + b"\xff" * 900,
        b"",
    ):
        with posix.create_connection((host, int(port))) as connection:
            connection.sendall(noise)

    with Client(reach(served, alice)) as client:
        assert echo(client, "still here") == "still here"


def test_the_tenant_of_a_message_is_that_of_its_key_whatever_it_says(served: RealDaemon, alice: ClientKey):
    with Client(reach(served, alice)) as client:
        for name in (BOB, LOCAL_TENANT, TenantId("")):
            asked = client.submit(ask("as somebody else"), tenant=name or TenantId("nobody"))
            with pytest.raises(AccessDenied, match="speaks for alice alone"):
                asked.result(PATIENCE_S)


@pytest.mark.parametrize(
    "body",
    [
        Sample(adapter=VICTIM, version=None, prompt=np.arange(3), max_tokens=1, owner=BOB),
        LoadCheckpoint(adapter=VICTIM, lane=LaneId("l"), seq=1, name="n", source=VICTIM, source_owner=BOB),
        LoadVersion(adapter=VICTIM, lane=LaneId("l"), seq=1, source=VICTIM, version=1, source_owner=BOB),
        Shutdown(),
        CreateAdapter(name="a", lora=LoraSpec(rank=1, alpha=1.0, seed=0), adapter=VICTIM),
        OpenLane(adapter=VICTIM, lane=LaneId("ln-chosen")),
        replace(forward_backward(), composition=np.ones(1, np.uint8)),
    ],
    ids=lambda body: body.kind,
)
def test_what_only_the_owner_or_the_broker_may_say_is_refused(
    served: RealDaemon, alice: ClientKey, body: Message
):
    with Client(reach(served, alice)) as client:
        assert outcome(client, body) == "access_denied"
        assert echo(client, "goes on") == "goes on"


def test_a_revoked_key_ends_a_connection_that_stands_and_lets_none_in(served: RealDaemon, keys: CurveKeys):
    key = keys.create("carol")
    with Client(reach(served, key)) as client:
        assert echo(client, "hello") == "hello"

        assert keys.revoke("carol") == 1

        assert outcome(client, ask("again")) == "access_denied"
    with pytest.raises(AccessDenied):
        Client(reach(served, key))


def test_an_expired_key_lets_nobody_in(served: RealDaemon, keys: CurveKeys):
    key = keys.create("dave", expires_unix_s=1.0)

    with pytest.raises(AccessDenied):
        Client(reach(served, key))


def test_a_peer_that_takes_a_local_clients_identity_gets_none_of_its_answers(
    served: RealDaemon, alice: ClientKey
):
    """Identities of the two sockets are apart: the same one on both is two clients."""
    context = sockets.new_context()
    local = sockets.connect_dealer(context, served.layout.client_socket, LimitsConfig(), identity=b"the same")
    remote = context.socket(zmq.DEALER)
    for option, value in (
        (zmq.IDENTITY, b"the same"),
        (zmq.CURVE_SERVERKEY, alice.server.encode()),
        (zmq.CURVE_PUBLICKEY, alice.public.encode()),
        (zmq.CURVE_SECRETKEY, alice.secret.encode()),
    ):
        remote.setsockopt(option, value)
    remote.connect(served.config.daemon.listen)

    for socket, tenant, text in ((local, LOCAL_TENANT, "near"), (remote, ALICE, "far")):
        asked = Envelope(request=RequestId(text), tenant=tenant, body=ask(text))
        socket.send_multipart([bytes(frame) for frame in encode(asked)])
    heard = []
    for socket in (local, remote):
        assert socket.poll(10_000)
        heard.append(decode(socket.recv_multipart(), LimitsConfig()).body.payload.tobytes())

    assert heard == [b"near", b"far"]
    sockets.close(context, local, remote)


def test_only_the_daemons_owner_stops_it_over_the_local_socket_too(served: RealDaemon):
    with served.client(tenant=BOB) as client:
        assert outcome(client, Shutdown()) == "access_denied"


def test_without_keys_a_tcp_address_is_refused_by_name(tmp_path: Path):
    config = settings_for(tmp_path)
    config = replace(config, daemon=replace(config.daemon, listen=free_address()))
    daemon = RealDaemon(config, {})

    assert daemon.wait() == 2
    assert "tcp needs CURVE keys: `loractl keys curve` makes them" in daemon.stderr()


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:7000", "tcp://", "tcp://*:7000", "tcp://127.0.0.1", "udp://127.0.0.1:1", "tcp://a;b:1"],
)
def test_an_address_of_another_form_is_refused_at_the_edge(address: str):
    with pytest.raises(InvalidConfig, match="no tcp address"):
        load_config(environ={}, overrides=[f"daemon.listen={address}"])


def test_the_servers_keys_are_its_owners_alone_and_stay(tmp_path: Path):
    layout = StateLayout(tmp_path)
    pair = CurveKeys(layout).ensure_server()
    made = CurveKeys(layout).create(ALICE)

    assert CurveKeys(layout).ensure_server() == pair
    assert made.server == pair.public
    assert stat.S_IMODE(layout.curve_key.stat().st_mode) == 0o600
    assert made.secret not in layout.curve_clients.read_text()


@pytest.mark.parametrize("name", ["local", "../a", ""])
def test_names_that_are_no_tenants_get_no_keys(tmp_path: Path, name: str):
    with pytest.raises(InvalidName):
        CurveKeys(StateLayout(tmp_path)).create(name)


@pytest.mark.parametrize(
    ("text", "mode", "reason"),
    [
        ("{", 0o600, "no key file"),
        ('{"tenant":"a","server":"s","public":"p","secret":"x"}', 0o600, "characters long"),
        ('{"tenant":"a","server":"s","public":"p","secret":"x"}', 0o644, "read by others"),
    ],
)
def test_a_key_file_that_cannot_be_used_says_why(tmp_path: Path, text: str, mode: int, reason: str):
    file = tmp_path / "key"
    file.write_text(text)
    file.chmod(mode)

    with pytest.raises(InvalidConfig, match=reason):
        read_client_key(file)


def test_an_address_without_a_key_file_says_which_option_is_missing():
    config: Config = load_config(environ={}, overrides=["client.connect=tcp://127.0.0.1:7000"])

    with pytest.raises(InvalidConfig, match="--curve-key FILE"):
        remote_daemon(config)
