"""An actor's end of the bus, plain: for a loop that owns its thread, such as the trainer's.

One thread uses a link. `AsyncActorLink` is the same for asyncio.
"""

from collections.abc import Callable, Sequence
from typing import Self

import structlog

from .codec import encode
from .config import Config
from .heartbeat import HeartbeatThread, end_own_group
from .identities import unsolicited, work_identity
from .mail import BadMail, listening_actor_socket, read_mail, ready_message
from .messages import ActorRole, Envelope, Message, VersionRecord
from .pulse import Pulse, Strand
from .sockets import close, connect_dealer, new_context, receive_waiting, send

log = structlog.get_logger()


class ActorLink:
    def __init__(
        self,
        config: Config,
        actor: str,
        role: ActorRole,
        *,
        on_orphaned: Callable[[], None] = end_own_group,
    ) -> None:
        """Connect to the daemon and begin to send heartbeats.

        actor: this process's name, such as "trainer" or "sampler-0". on_orphaned: what to do, in
        the heartbeat's thread, when the process that started this one is gone.

        Raises:
            DaemonNotRunning: nobody listens on the actors' socket.
        """
        self.actor, self._role, self._limits = actor, role, config.limits
        address = listening_actor_socket(config)
        self._pulse = Pulse()
        self._context = new_context()
        self._socket = connect_dealer(self._context, address, config.limits, identity=work_identity(actor))
        self._heartbeat = HeartbeatThread(self._context, config, actor, self._pulse, on_orphaned)
        self._heartbeat.start()

    def ready(self, details: str, versions: Sequence[VersionRecord] = (), adapters: int = 0) -> None:
        """Say that everything is loaded and requests may come."""
        self.report(ready_message(self.actor, self._role, details, versions, adapters))

    def receive(self, timeout_s: float) -> list[Envelope]:
        """Everything that waits; blocks up to `timeout_s` when nothing does.

        Requests, DropVersion and Drain. What cannot be read is answered or dropped here.
        """
        self._pulse.loop.rest()
        self._socket.poll(int(timeout_s * 1000))
        received = []
        for frames in receive_waiting(self._socket):
            mail = read_mail(frames, self._limits)
            if isinstance(mail, BadMail):
                self._refuse(mail)
            else:
                received.append(mail)
        self._pulse.loop.turn("")
        return received

    def reply(self, to: Envelope, body: Message, last: bool = True) -> None:
        """Answer a request; `last` False for a part of a streamed answer."""
        self._send(Envelope(request=to.request, tenant=to.tenant, body=body, last=last))

    def report(self, body: Message) -> None:
        """Tell the broker something that answers no request."""
        self._send(unsolicited(body))

    def turn(self, at: str | None = None) -> None:
        """Say that the loop gets on, between two steps of long work. at: with what, from here on."""
        self._pulse.loop.turn(at)

    def strand(self) -> Strand:
        """For work beside the loop, on a thread of its own."""
        return self._pulse.strand()

    def close(self) -> None:
        """Send what has been said, then let go. Waits at most about two seconds."""
        self._heartbeat.stop()
        close(self._context, self._socket)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _refuse(self, mail: BadMail) -> None:
        log.warning("message.refused", error=mail.error.message)
        if mail.answer is not None:
            self._send(mail.answer)

    def _send(self, envelope: Envelope) -> None:
        send(self._socket, encode(envelope))
