"""How sockets are made, and what is the same for all of them.

Nothing is dropped at a high-water mark (they are off; the broker limits what it admits), and no frame
is longer than the limits allow. ipc is for this machine and this user: the kernel says who connects.
tcp is served with CURVE keys only, see `curve_sockets`. Closing a socket keeps unsent messages for `LINGER_MS` at most, so that no process hangs at its end.
"""

import contextlib
import os
import socket as posix
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import zmq

from .arrays import Buffer
from .config import LimitsConfig
from .errors import InvalidConfig, NotSupported

Frames = list[Buffer]
SocketT = TypeVar("SocketT", bound="zmq.Socket[Any]")
PlainContext = zmq.Context["zmq.Socket[bytes]"]
PlainSocket = zmq.Socket[bytes]

LINGER_MS = 2000
_IPC = "ipc://"
# Below this, copying a frame costs less than keeping zmq's own buffer alive for it.
_VIEW_FROM_BYTES = 65_536
# After so many messages the exception that says that there is no more is cheaper than asking again.
_ASKED = 3
# As plain numbers: what an enumeration's operators take is half of what asking takes.
_EVENTS, _READABLE, _NOBLOCK, _MORE = int(zmq.EVENTS), int(zmq.POLLIN), int(zmq.NOBLOCK), int(zmq.SNDMORE)


def new_context() -> PlainContext:
    """One per client or link: closing it flushes and ends all of its sockets."""
    return zmq.Context()


def bind_router(
    context: "zmq.Context[SocketT]", address: str, limits: LimitsConfig, *, handover: bool = False
) -> SocketT:
    """A ROUTER that says so (EHOSTUNREACH) when a peer is gone, instead of dropping silently.

    handover: a peer that comes back under the identity of an older connection takes its place, as
    a restarted actor does. Never for clients: one could take another's answers.
    """
    socket = prepared(context, zmq.ROUTER, limits)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.ROUTER_HANDOVER, int(handover))
    _bind_ipc(socket, address)
    return socket


def bind_publisher(context: "zmq.Context[SocketT]", address: str, limits: LimitsConfig) -> SocketT:
    socket = prepared(context, zmq.PUB, limits)
    _bind_ipc(socket, address)
    return socket


def connect_dealer(
    context: "zmq.Context[SocketT]", address: str, limits: LimitsConfig, *, identity: bytes = b""
) -> SocketT:
    """identity: empty for a client, which gets one of zmq's own; see `identities` for actors."""
    socket = prepared(context, zmq.DEALER, limits)
    if identity:
        socket.setsockopt(zmq.IDENTITY, identity)
    socket.connect(checked_address(address))
    return socket


def connect_subscriber(context: "zmq.Context[SocketT]", address: str, limits: LimitsConfig) -> SocketT:
    socket = prepared(context, zmq.SUB, limits)
    socket.setsockopt(zmq.SUBSCRIBE, b"")
    socket.connect(checked_address(address))
    return socket


def checked_address(address: str) -> str:
    """Return an address that can be served without keys.

    Raises:
        NotSupported: it is not an ipc address.
        InvalidConfig: its path is longer than the system allows for a socket (about 100 bytes).
    """
    scheme = address.partition("://")[0]
    if scheme == "tcp":
        raise NotSupported(f"{address}: tcp is served with CURVE keys only (`loractl keys curve`)")
    if not address.startswith(_IPC):
        raise NotSupported(f"{address}: only ipc addresses are served")
    length = len(address.removeprefix(_IPC).encode())
    if length > zmq.IPC_PATH_MAX_LEN:
        raise InvalidConfig(
            f"{address} is {length} bytes long and a socket's path has room for {zmq.IPC_PATH_MAX_LEN}: "
            "choose a shorter --state-dir"
        )
    return address


def someone_listens(address: str) -> bool:
    """Is a process behind this address? False for a missing path and for one that a dead process left.

    Asks the kernel only, so the answer comes at once, however busy that process is.

    Raises:
        InvalidConfig: the directory belongs to somebody else.
    """
    with posix.socket(posix.AF_UNIX, posix.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(checked_address(address).removeprefix(_IPC))
        except BlockingIOError:  # it listens, and its queue of connections is full
            return True
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            return False
        except PermissionError as error:
            raise InvalidConfig(f"{address} may not be opened: whose state directory is it?") from error
    return True


def receive_waiting(socket: "zmq.Socket[Any]") -> Iterator[Frames]:
    """Every message that has already arrived, without waiting."""
    # The hot path. Frame by frame, because pyzmq's recv_multipart takes twice as long.
    receive = socket.recv
    asked = 0
    while True:
        try:
            frame = receive(_NOBLOCK, copy=False)
        except zmq.Again:
            return
        frames = [buffer_of(frame)]
        while frame.more:
            frame = receive(_NOBLOCK, copy=False)
            frames.append(buffer_of(frame))
        yield frames
        if asked < _ASKED and not int(socket.getsockopt(_EVENTS)) & _READABLE:
            return
        asked += 1


def send(socket: "zmq.Socket[Any]", frames: Sequence[Buffer], *, copy: bool = True) -> None:
    """Send a message. Without `copy`, memoryviews are lent to zmq and must stay as they are.

    Raises:
        zmq.ZMQError: a ROUTER's peer, which the first frame names, is gone (EHOSTUNREACH).
    """
    # As above: send_multipart takes four times as long. What came as a long frame is a memoryview.
    give = socket.send
    for frame in frames[:-1]:
        give(frame, _MORE, copy=copy or not isinstance(frame, memoryview))
    frame = frames[-1]
    give(frame, 0, copy=copy or not isinstance(frame, memoryview))


def buffer_of(frame: zmq.Frame) -> Buffer:
    """A frame's bytes: a view for a long one, so that arrays are never copied on their way in."""
    return frame.bytes if len(frame) < _VIEW_FROM_BYTES else frame.buffer


def close(context: "zmq.Context[Any]", *sockets: "zmq.Socket[Any]") -> None:
    """Close everything that was made; waits up to `LINGER_MS` for what is still being sent.

    It does not wait for a peer that has left the address it was connected to.
    """
    for socket in sockets:
        with contextlib.suppress(zmq.ZMQError):
            listened = _still_listened(socket.getsockopt_string(zmq.LAST_ENDPOINT))
            socket.close(linger=LINGER_MS if listened else 0)
    context.term()


def prepared(context: "zmq.Context[SocketT]", kind: int, limits: LimitsConfig) -> SocketT:
    socket = context.socket(kind)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.LINGER, LINGER_MS)
    socket.setsockopt(zmq.MAXMSGSIZE, limits.frame_bytes)
    return socket


def _still_listened(endpoint: str) -> bool:
    return not endpoint.startswith(_IPC) or someone_listens(endpoint)


def _bind_ipc(socket: "zmq.Socket[Any]", address: str) -> None:
    """Serve this user's own processes: whoever else gets as far as the socket is hung up on.

    The directory keeps others out (see `daemon.instance`); this holds where it does not, as on systems
    that do not look at the rights of a socket's path. A libzmq without the filter leaves the directory.
    """
    checked_address(address)
    with contextlib.suppress(zmq.ZMQError):
        socket.setsockopt(zmq.IPC_FILTER_UID, os.getuid())
    socket.bind(address)
