"""Clients over tcp: whom they are is proved by their keys, and never believed from what they write.

Owns the tcp socket and the socket where zmq asks for keys. Everything behind is the same as for local
clients; what only this machine's owner may do, or say of others, is refused here.
"""

import time
from collections.abc import Iterator

import structlog

from ..bus.codec import Buffer, Header, peek
from ..bus.config import Config
from ..bus.curve import CurveKeys, checked_server
from ..bus.curve_sockets import bind_curve_router, bind_zap, receive_from_known
from ..bus.errors import AccessDenied, LoractlError
from ..bus.ids import TenantId
from ..bus.layout import StateLayout
from ..bus.messages import CreateAdapter, OpenLane
from ..bus.sockets import Frames, PlainContext, PlainSocket, receive_waiting, send
from ..bus.zap import zap_answer
from .compositions import has_composition, without
from .now_and_then import NowAndThen

log = structlog.get_logger()

# Identities of peers over tcp get this before them, so that they are nobody's on the local socket.
_REMOTE = b"\xfftcp/"
# Fields that say whose an adapter is where it is not the sender's: the bridge's word for what is public.
_OWNERS = ("owner", "source_owner")
# What the broker alone fills in.
_MADE_HERE = {CreateAdapter.kind: ("adapter", "lane"), OpenLane.kind: ("lane",)}


class RemoteClients:
    def __init__(self, config: Config, context: PlainContext, layout: StateLayout) -> None:
        """Listen at daemon.listen.

        Raises:
            InvalidConfig: there are no CURVE keys.
            StartFailed: the address cannot be served.
        """
        self._limits = config.limits
        self._keys = CurveKeys(layout)
        pair = checked_server(layout, config.daemon.listen)
        self._zap: PlainSocket = bind_zap(context)
        self.socket: PlainSocket = bind_curve_router(
            context, config.daemon.listen, config.limits, secret=pair.secret
        )
        self.sources = (self._zap, self.socket)
        self._strangers = NowAndThen()
        log.info("remote.listening", address=config.daemon.listen)

    def answer_zap(self) -> None:
        """Say of those who knock whether they are known."""
        for frames in receive_waiting(self._zap):
            send(self._zap, zap_answer(frames, self._knows))

    def receive(self) -> Iterator[tuple[Frames, LoractlError | None]]:
        """What has arrived, the sender's identity first, and why it is refused, if it is."""
        for public, (identity, *frames) in receive_from_known(self.socket):
            yield [_REMOTE + bytes(identity), *frames], self._refusal(public, frames)

    def is_remote(self, client: Buffer) -> bool:
        """Whether an identity is one of ours."""
        return bytes(client[: len(_REMOTE)]) == _REMOTE

    def addressed(self, frames: Frames) -> Frames:
        """Frames for a remote client as its socket takes them."""
        identity, *message = frames
        return [bytes(identity)[len(_REMOTE) :], *without(message, self._limits)]

    def _knows(self, public: str) -> bool:
        try:
            known = self._keys.tenant_of(public) is not None
        except LoractlError as error:
            log.warning("remote.keys_unreadable", reason=error.message)
            return False
        if not known:
            self._note_stranger(public)
        return known

    def _note_stranger(self, public: str) -> None:
        if times := self._strangers.happened(time.monotonic()):
            log.warning("remote.refused", key=public, times=times)

    def _refusal(self, public: str, frames: Frames) -> LoractlError | None:
        try:
            tenant = self._keys.tenant_of(public)
            if frames:
                _check(peek(frames[0], self._limits), tenant)
        except LoractlError as error:
            return error
        return None


def _check(header: Header, tenant: TenantId | None) -> None:
    """Raises AccessDenied: the sender may not say this. BadFrame: it is no request at all."""
    if tenant is None:
        raise AccessDenied("this key was revoked or has expired: ask the daemon's owner for another")
    if header.tenant != tenant:
        raise AccessDenied(f"this key speaks for {tenant} alone")
    fields = header.fields
    if any(fields.get(name) not in (None, tenant) for name in _OWNERS):
        raise AccessDenied(f"this key speaks for {tenant} alone, and reads what is its own")
    if any(fields.get(name) for name in _MADE_HERE.get(header.kind, ())):
        raise AccessDenied("ids are made by the daemon: leave them empty")
    if has_composition(header):
        raise AccessDenied("compositions of passes come from the daemon's journal alone: leave it out")
