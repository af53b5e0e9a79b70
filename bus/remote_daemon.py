"""A daemon on another machine, as a client knows it: its address, and keys of both sides."""

from dataclasses import dataclass, field
from pathlib import Path

from .config import Config, LimitsConfig
from .conversations import GONE_AFTER_S
from .curve import ClientKey, read_client_key
from .curve_sockets import connect_curve_dealer
from .errors import InvalidConfig
from .ids import TenantId
from .sockets import PlainContext, PlainSocket


@dataclass(frozen=True, slots=True)
class RemoteDaemon:
    """name: its address, tcp://HOST:PORT."""

    name: str
    key: ClientKey
    limits: LimitsConfig = field(default_factory=LimitsConfig)

    @property
    def tenant(self) -> TenantId:
        return TenantId(self.key.tenant)

    def check(self) -> None:
        """Connecting says whether it is there."""

    def connect(self, context: PlainContext) -> PlainSocket:
        """Raises AccessDenied, DaemonNotRunning, InvalidConfig: see `connect_curve_dealer`."""
        key = self.key
        return connect_curve_dealer(
            context, self.name, self.limits, server=key.server, public=key.public, secret=key.secret
        )

    def is_gone(self, silent_s: float) -> bool:
        """Whether it will not answer any more, after so long a silence. zmq reconnects by itself before."""
        return silent_s >= GONE_AFTER_S


def remote_daemon(config: Config) -> RemoteDaemon:
    """The daemon that client.connect names.

    Raises:
        InvalidConfig: there is no usable key file.
    """
    address, file = config.client.connect, config.client.curve_key
    if not file:
        raise InvalidConfig(
            f"{address} needs a key: --curve-key FILE, which `loractl keys curve` makes there"
        )
    return RemoteDaemon(address, read_client_key(Path(file).expanduser()), config.limits)
