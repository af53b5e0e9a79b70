"""All that an actor said before it ended is taken in, however much that is."""

from dataclasses import replace
from pathlib import Path

import zmq
from loractl.bus.codec import encode
from loractl.bus.config import Config
from loractl.bus.identities import heartbeat_identity, unsolicited
from loractl.bus.ids import ActorId
from loractl.bus.layout import StateLayout
from loractl.bus.messages import Heartbeat
from loractl.daemon.broker import Broker
from loractl.daemon.loop import Loop
from loractl.daemon.status import Identity
from loractl.daemon.supervisor import Supervisor
from loractl.tests.bus.one_of_each import plain_example
from loractl.tests.daemon.office import LORA
from loractl.tests.daemon.real_daemon import PATIENCE_S

MANY = 2000


def heartbeat(number: int) -> Heartbeat:
    example = plain_example(Heartbeat, LORA)
    assert isinstance(example, Heartbeat)
    return replace(example, actor="trainer", rss_bytes=number)


def test_all_that_was_sent_is_heard_before_the_actor_counts_as_dead(config: Config) -> None:
    layout = StateLayout(Path(config.state_dir))
    layout.run.mkdir(parents=True)
    trainer = ActorId("trainer")
    broker = Broker(config, {trainer: "trainer"}, Identity(version="", pid=1, started=0.0))
    loop = Loop(config, broker, Supervisor(config, []))
    context = zmq.Context()
    try:
        actor = context.socket(zmq.DEALER)
        actor.set_hwm(0)
        actor.setsockopt(zmq.IDENTITY, heartbeat_identity("trainer"))
        actor.connect(layout.actor_socket)
        for number in range(1, MANY + 1):
            actor.send_multipart(encode(unsolicited(heartbeat(number))))
        assert loop._actors.poll(PATIENCE_S * 1000)  # it is connected

        loop._hear_last_words()

        assert broker.status(0.0).actors[0].rss_bytes == MANY
    finally:
        context.destroy(linger=0)
        loop._end()
