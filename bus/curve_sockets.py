"""Sockets over tcp. Both sides prove their keys by CURVE before the first message, and all is encrypted.

Whom the daemon knows is `curve`'s; how zmq asks for it is `zap`'s. Nothing is served over tcp without keys.
"""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from .config import LimitsConfig
from .errors import AccessDenied, DaemonNotRunning, InvalidConfig, StartFailed
from .sockets import Frames, SocketT, buffer_of, prepared

# A peer whose machine went away without a word is forgotten after this.
_TCP_SILENCE_MS = 60_000
_TCP_BEAT_MS = 15_000
_KNOCK_S = 10.0
# Where clients over tcp are asked for their keys; see `zap`.
ZAP_ADDRESS = "inproc://zeromq.zap.01"


def bind_curve_router(
    context: "zmq.Context[SocketT]", address: str, limits: LimitsConfig, *, secret: str
) -> SocketT:
    """A ROUTER over tcp for peers with a CURVE key that is known at `ZAP_ADDRESS`, which is bound before.

    secret: the server's. Messages carry their sender's public key, see `receive_from_known`.

    Raises:
        StartFailed: the address is in use or not ours.
        InvalidConfig: the key is none.
    """
    socket = prepared(context, zmq.ROUTER, limits)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    _set_curve_keys(socket, {zmq.CURVE_SECRETKEY: secret})
    _prepare_tcp(socket, address)
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        socket.close(linger=0)
        raise StartFailed(
            f"cannot listen on {address}: {error.strerror.lower()}; choose another daemon.listen"
        ) from error
    return socket


def bind_zap(context: "zmq.Context[SocketT]") -> SocketT:
    """Where zmq asks, for this context, whether a peer's key is known."""
    socket = context.socket(zmq.REP)
    socket.setsockopt(zmq.LINGER, 0)
    socket.bind(ZAP_ADDRESS)
    return socket


def connect_curve_dealer(
    context: "zmq.Context[SocketT]",
    address: str,
    limits: LimitsConfig,
    *,
    server: str,
    public: str,
    secret: str,
) -> SocketT:
    """A client's socket over tcp, once both sides have proved their keys.

    server: the daemon's public key; public, secret: the client's own.

    Raises:
        AccessDenied: the daemon does not take this key.
        DaemonNotRunning: nobody answers there, or somebody else than the owner of `server`.
        InvalidConfig: a key is none.
    """
    socket = prepared(context, zmq.DEALER, limits)
    keys = {zmq.CURVE_SERVERKEY: server, zmq.CURVE_PUBLICKEY: public, zmq.CURVE_SECRETKEY: secret}
    _set_curve_keys(socket, keys)
    _prepare_tcp(socket, address)
    monitor = socket.get_monitor_socket()
    try:
        socket.connect(address)
        _knock(monitor, address)
    except BaseException:
        monitor.close(linger=0)
        socket.close(linger=0)
        raise
    socket.disable_monitor()
    monitor.close(linger=0)
    return socket


def new_curve_pair() -> tuple[str, str]:
    """A public and a secret key, each 40 characters."""
    public, secret = zmq.curve_keypair()
    return public.decode("ascii"), secret.decode("ascii")


def z85_of(key: bytes) -> str:
    """A key of 32 bytes as text."""
    return z85.encode(key).decode("ascii")


def receive_from_known(socket: "zmq.Socket[Any]") -> Iterator[tuple[str, Frames]]:
    """As `receive_waiting`, with the public key of each message's sender."""
    while True:
        try:
            received: list[zmq.Frame] = socket.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return
        yield str(received[-1].get("User-Id")), [buffer_of(frame) for frame in received]


def _set_curve_keys(socket: "zmq.Socket[Any]", keys: Mapping[zmq.SocketOption, str]) -> None:
    try:
        for option, key in keys.items():
            socket.setsockopt(option, key.encode("ascii"))
    except (zmq.ZMQError, UnicodeEncodeError) as error:
        socket.close(linger=0)
        raise InvalidConfig("a CURVE key is 40 characters as `loractl keys curve` writes them") from error


def _prepare_tcp(socket: "zmq.Socket[Any]", address: str) -> None:
    socket.setsockopt(zmq.IPV6, int("[" in address))
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.HEARTBEAT_IVL, _TCP_BEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _TCP_SILENCE_MS)


def _knock(monitor: "zmq.Socket[Any]", address: str) -> None:
    """Wait until the handshake is over; the reasons are those of `connect_curve_dealer`."""
    deadline = time.monotonic() + _KNOCK_S
    met = False
    while (left_ms := int(1000 * (deadline - time.monotonic()))) > 0 and monitor.poll(left_ms):
        event = recv_monitor_message(monitor)["event"]
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            return
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            raise AccessDenied(
                f"{address} does not take this key: ask its owner for one (`loractl keys curve`)"
            )
        met = met or event == zmq.EVENT_CONNECTED
        if event == zmq.EVENT_DISCONNECTED or event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            raise DaemonNotRunning(f"{address} is no daemon with the key that this client knows it by")
    raise DaemonNotRunning(
        f"{address} does not shake hands: is it the daemon's daemon.listen?"
        if met
        else f"nobody listens on {address}"
    )
