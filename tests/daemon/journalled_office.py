"""A broker with a real journal, committed at once; a restart is a new broker on the same file."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loractl.bus.codec import decode
from loractl.bus.config import Config
from loractl.bus.messages import Message
from loractl.daemon.broker import Broker
from loractl.daemon.decisions import Decision, Forward, Relay, Reply, WriteDown
from loractl.daemon.journal.store import Store
from loractl.daemon.status import Identity
from loractl.tests.daemon.office import Office


@dataclass
class JournalledOffice(Office):
    file: Path = field(default_factory=Path)

    def __post_init__(self) -> None:
        self.store = Store(self.file)
        identity = Identity(version="1.2.3", pid=42, started=0.0)
        self.broker = Broker(self.config, self.roles, identity, self.store)

    def restarted(self) -> "JournalledOffice":
        self.store.close()
        return JournalledOffice(config=self.config, roles=self.roles, file=self.file)

    def settled(self, decisions: Sequence[Decision], *, refused: str = "") -> list[Decision]:
        """Commit what is to be written down, and what that leads to, until there is no more."""
        told: list[Decision] = []
        waiting = [*decisions]
        while waiting:
            decision = waiting.pop(0)
            if isinstance(decision, WriteDown):
                if not refused:
                    self.store.commit([decision.record])
                waiting = [*self.broker.written(decision.record, self.now, refused=refused), *waiting]
            else:
                told.append(decision)
        return told


def forwarded(decisions: Sequence[Decision]) -> list[Message]:
    return [decode(each.frames, Config().limits).body for each in decisions if isinstance(each, Forward)]


def told(decisions: Sequence[Decision]) -> list[Message]:
    """What clients hear."""
    heard: list[Message] = []
    for each in decisions:
        if isinstance(each, Reply):
            heard.append(each.envelope.body)
        elif isinstance(each, Relay):
            heard.append(decode(each.frames, Config().limits).body)
    return heard
