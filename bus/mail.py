"""What both actor links do with frames from the broker before the actor sees them. No sockets."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .arrays import Buffer
from .codec import decode, peek
from .config import Config, LimitsConfig
from .errors import BadFrame, DaemonNotRunning
from .failures import failed
from .identities import NO_REQUEST
from .layout import StateLayout
from .messages import ActorReady, ActorRole, Envelope, VersionRecord
from .sockets import someone_listens


@dataclass(frozen=True, slots=True)
class BadMail:
    """Frames that are no message. answer: what its sender is told, None when nobody knows who it is."""

    error: BadFrame
    answer: Envelope | None


def read_mail(frames: Sequence[Buffer], limits: LimitsConfig) -> Envelope | BadMail:
    """Decode a message, or say what becomes of one that cannot be decoded."""
    try:
        return decode(frames, limits)
    except BadFrame as error:
        return BadMail(error, _answer(frames, limits, error))


def ready_message(
    actor: str, role: ActorRole, details: str, versions: Sequence[VersionRecord], adapters: int
) -> ActorReady:
    return ActorReady(
        actor=actor,
        role=role,
        pid=os.getpid(),
        details=details,
        versions=tuple(versions),
        adapters=adapters,
    )


def listening_actor_socket(config: Config) -> str:
    """The address that actors connect to.

    Raises:
        DaemonNotRunning: nobody listens there. Whoever started this actor has died since.
    """
    address = StateLayout(Path(config.state_dir)).actor_socket
    if not someone_listens(address):
        raise DaemonNotRunning(f"no daemon runs on {config.state_dir}: only it starts actors")
    return address


def _answer(frames: Sequence[Buffer], limits: LimitsConfig, error: BadFrame) -> Envelope | None:
    try:
        header = peek(frames[0], limits) if frames else None
    except BadFrame:
        return None
    if header is None or header.request == NO_REQUEST:
        return None
    return Envelope(request=header.request, tenant=header.tenant, body=failed(error))
