"""Where the service listens for HTTP, and where clients find it. Sockets of the system, no web framework."""

import contextlib
import ipaddress
import socket
from pathlib import Path
from urllib.parse import urlsplit

from .errors import InvalidConfig, StartFailed

_LOOPBACK = "127.0.0.1"
_BACKLOG = 1024


def http_address(text: str) -> tuple[str, int]:
    """Host and port of HOST:PORT.

    Raises:
        InvalidConfig: it has another form.
    """
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or "/" in host or not port.isdecimal() or int(port) > 65535:
        raise InvalidConfig(
            f"daemon.http is {text!r}: write HOST:PORT, such as 127.0.0.1:8000, or auto, or none"
        )
    return host, int(port)


def tcp_address(text: str) -> str:
    """An address of the bus over tcp.

    Raises:
        InvalidConfig: it has another form than tcp://HOST:PORT.
    """
    scheme, _, rest = text.partition("://")
    host, _, port = rest.rpartition(":")
    plain = host.removeprefix("[").removesuffix("]")
    # What zmq reads otherwise: "*" and interfaces, a source address behind ";", names with spaces.
    known = plain.isascii() and all(each.isalnum() or each in ".-:_" for each in plain)
    if scheme != "tcp" or not plain or not known or not port.isdecimal() or not 0 < int(port) <= 65535:
        raise InvalidConfig(
            f"{text[:80]!r} is no tcp address: write tcp://HOST:PORT, such as tcp://127.0.0.1:7000"
        )
    return text


def listen(http: str) -> socket.socket:
    """Open a listening socket at HOST:PORT; port 0 takes a free one.

    Raises:
        StartFailed: the address is in use or not ours.
        InvalidConfig: it has another form.
    """
    host, port = http_address(http)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio knows it for TCP and switches Nagle's algorithm off on what it
    # accepts; without, every answer of two writes waits 40 ms for the client's acknowledgement.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # A port that a bridge left a moment ago can be taken again; one that is being served cannot.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        reason = (error.strerror or str(error)).lower()
        raise StartFailed(
            f"cannot serve HTTP on {http}: {reason}; choose another --http HOST:PORT, or port 0 for a free one"
        ) from error
    listening.setblocking(False)
    return listening


def listen_as_before(remembered: Path) -> socket.socket:
    """Listen on this machine's loopback, on the port that the file names, or else on a free one.

    The file then names the port that was taken, so that clients find the service where they left it.

    Raises:
        StartFailed: there is no free port.
    """
    listening = _listen_on(_read_port(remembered))
    # On a full disk the port is not remembered, and is served all the same.
    with contextlib.suppress(OSError):
        remembered.write_text(f"{listening.getsockname()[1]}\n")
    return listening


def url_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def url_from_here(url: str) -> str:
    """The URL for clients on the same machine: nobody can connect to "all addresses"."""
    return url.replace("//0.0.0.0:", f"//{_LOOPBACK}:").replace("//[::]:", "//[::1]:")


def is_open_to_others(url: str) -> bool:
    """Whether other machines may reach this URL, as `url_of` gives it."""
    return not ipaddress.ip_address(urlsplit(url).hostname or _LOOPBACK).is_loopback


def _listen_on(port: int) -> socket.socket:
    if port:
        with contextlib.suppress(StartFailed):  # somebody else has it by now
            return listen(f"{_LOOPBACK}:{port}")
    return listen(f"{_LOOPBACK}:0")


def _read_port(remembered: Path) -> int:
    """0 where nothing sensible is remembered."""
    try:
        port = int(remembered.read_text(encoding="ascii", errors="replace"))
    except (OSError, ValueError):
        return 0
    return port if 0 < port <= 65535 else 0
