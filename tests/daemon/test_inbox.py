"""Messages of clients come in the same way, from this machine or over tcp; chaos disturbs both."""

from collections.abc import Iterator

import zmq
from loractl.bus.codec import encode
from loractl.bus.config import LimitsConfig
from loractl.bus.errors import AccessDenied, LoractlError
from loractl.bus.ids import RequestId, TenantId
from loractl.bus.messages import Envelope, ListTenants
from loractl.bus.sockets import Frames
from loractl.daemon.chaos import Chaos
from loractl.daemon.inbox import Inbox

COUNT = 200
REVOKED = AccessDenied("this key was revoked")


def message(number: int) -> Frames:
    envelope = Envelope(request=RequestId(f"r{number}"), tenant=TenantId("alice"), body=ListTenants())
    return [b"ann", *encode(envelope)]


class FromAfar:
    """What came over tcp, every tenth by a client that may not."""

    socket = object()
    sources = (socket,)

    def answer_zap(self) -> None: ...

    def receive(self) -> Iterator[tuple[Frames, LoractlError | None]]:
        return ((message(each), None if each % 10 else REVOKED) for each in range(COUNT))


def test_chaos_disturbs_what_comes_over_tcp_and_refusals_stay():
    chaos = Chaos(1, LimitsConfig())
    with zmq.Context() as context, context.socket(zmq.ROUTER) as clients:
        inbox = Inbox(clients, FromAfar(), chaos)  # type: ignore[arg-type]

        came = [*inbox.take(FromAfar.socket)]

    assert inbox.sources == (clients, FromAfar.socket)
    assert [refusal for _, refusal in came if refusal is not None] == [REVOKED] * (COUNT // 10)
    assert all(chaos.counts[act] for act in ("dropped", "delayed", "duplicated", "reordered"))
    held = chaos.rest().asked
    assert len(came) + len(held) == COUNT - chaos.counts["dropped"] + chaos.counts["duplicated"]
