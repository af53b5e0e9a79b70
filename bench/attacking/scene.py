"""A daemon, somebody who owns one of everything on it, and somebody else with a key of their own."""

import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from loractl.bus import sockets
from loractl.bus.client import Client, LocalDaemon
from loractl.bus.codec import decode, encode
from loractl.bus.config import Config, load_config
from loractl.bus.curve import ClientKey, CurveKeys
from loractl.bus.ids import AdapterId, LaneId, RequestId, TenantId, new_request_id
from loractl.bus.keys import Keys
from loractl.bus.layout import StateLayout
from loractl.bus.messages import (
    AdapterCreated,
    CreateAdapter,
    Envelope,
    ForwardBackward,
    LoraSpec,
    Message,
    OptimStep,
    PublishAdapter,
    Receipt,
    SaveCheckpoint,
    Waiting,
)
from loractl.bus.remote_daemon import RemoteDaemon
from loractl.client.tiny_model import make_tiny_model
from loractl.daemon import launch

OWNER, ATTACKER = TenantId("owner"), TenantId("attacker")
MODEL = "tiny"
LORA = LoraSpec(rank=2, alpha=4.0, seed=7)
PATIENCE_S = 60.0
NOTHING = np.zeros(0, np.float32)


@dataclass(frozen=True)
class Scene:
    """A daemon that serves HTTP and tcp. curve: the attacker's key for tcp."""

    config: Config
    url: str
    keys: dict[TenantId, str]
    curve: ClientKey

    @property
    def logs(self) -> Path:
        return StateLayout(Path(self.config.state_dir)).logs

    def owner(self) -> Client:
        return Client(self.config, OWNER)

    def near(self) -> "Peer":
        """The attacker behind a server of the owner's own, which says who it speaks for."""
        layout = StateLayout(Path(self.config.state_dir))
        return Peer(LocalDaemon(layout, self.config.limits))

    def far(self) -> "Peer":
        """The attacker over tcp."""
        return Peer(RemoteDaemon(self.config.daemon.listen, self.curve))


class Peer:
    """Sends what it likes, and reads the answer as it comes: no client of ours is in the way."""

    def __init__(self, daemon: LocalDaemon | RemoteDaemon) -> None:
        self._context = sockets.new_context()
        self._socket = daemon.connect(self._context)
        self._limits = daemon.limits

    def ask(self, body: Message, tenant: TenantId = ATTACKER) -> Message:
        """The last part of the answer, a failure too."""
        asked = Envelope(request=new_request_id(), tenant=tenant, body=body)
        sockets.send(self._socket, encode(asked))
        while self._socket.poll(int(1000 * PATIENCE_S)):
            envelope = decode(self._socket.recv_multipart(), self._limits)
            if envelope.request == asked.request and envelope.last and not isinstance(envelope.body, Waiting):
                return envelope.body
        raise TimeoutError(f"no answer to {body.kind}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        sockets.close(self._context, self._socket)


@dataclass
class Things:
    """What a tenant has on the bus, or ids of what nobody has. request: of something asked before."""

    adapter: AdapterId
    lane: LaneId
    name: str
    checkpoint: str
    version: int
    request: RequestId
    next_seq: int = 1

    def seq(self) -> int:
        """Take the next number of the lane."""
        self.next_seq += 1
        return self.next_seq - 1

    def words(self) -> tuple[str, ...]:
        """What says that they exist."""
        return (self.adapter, self.lane, self.name, self.checkpoint, self.request)


def nobodys() -> Things:
    """Of the same form, and made by nobody."""
    return Things(
        adapter=AdapterId(f"ad-{secrets.token_hex(16)}"),
        lane=LaneId(f"ln-{secrets.token_hex(16)}"),
        name=fresh_name(),
        checkpoint=f"checkpoint-{secrets.token_hex(4)}",
        version=1,
        request=RequestId(secrets.token_hex(16)),
    )


def fresh_name() -> str:
    return f"name-{secrets.token_hex(4)}"


def made(config: Config, tenant: TenantId) -> Things:
    """A tenant's adapter that was trained, saved and published."""
    with Client(config, tenant) as client:
        return _made(client)


def _made(client: Client) -> Things:
    things = nobodys()
    created = client.request(CreateAdapter(name=things.name, lora=LORA), timeout_s=PATIENCE_S)
    assert isinstance(created, AdapterCreated)
    things = replace(things, adapter=created.details.adapter, lane=created.lane)
    client.request(batch(things, things.seq()), timeout_s=PATIENCE_S)
    place = {"adapter": things.adapter, "lane": things.lane}
    step = OptimStep(**place, seq=things.seq(), learning_rate=0.1)
    client.request(step, timeout_s=PATIENCE_S, request=things.request)
    client.request(SaveCheckpoint(**place, seq=things.seq(), name=things.checkpoint), timeout_s=PATIENCE_S)
    receipt = client.request(PublishAdapter(**place, seq=things.seq(), held=True), timeout_s=PATIENCE_S)
    assert isinstance(receipt, Receipt), receipt
    return things


def batch(things: Things, seq: int) -> ForwardBackward:
    tokens = np.arange(1, 9, dtype=np.int64)
    return ForwardBackward(
        adapter=things.adapter,
        lane=things.lane,
        seq=seq,
        lengths=np.array([8]),
        tokens=tokens,
        targets=tokens + 1,
        weights=np.ones(8, np.float32),
        old_logprobs=NOTHING,
        advantages=NOTHING,
        loss="cross_entropy",
    )


@contextmanager
def scene() -> Iterator[Scene]:
    """A daemon of its own, with the embedded engine, for the block."""
    root = Path(tempfile.mkdtemp(prefix="lo"))
    make_tiny_model(root / "model", steps=0)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        listen = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    settings = {
        "model.name": MODEL,
        "model.path": str(root / "model"),
        "daemon.http": "auto",
        "daemon.listen": listen,
        "trainer.threads": "1",
        "sampler.engine": "torch",
        "bridge.long_poll_s": "5",
        "log.level": "debug",
    }
    overrides = [f"{key}={value}" for key, value in settings.items()]
    config = load_config(state_dir=str(root / "s"), environ={}, overrides=overrides)
    layout = StateLayout(root / "s")
    keys = {tenant: Keys(layout).create(tenant) for tenant in (OWNER, ATTACKER)}
    curve = CurveKeys(layout).create(ATTACKER)
    status = launch.start_detached(config, 120.0)
    try:
        yield Scene(config, status.http, keys, curve)
    finally:
        launch.stop(config)
        shutil.rmtree(root, ignore_errors=True)
