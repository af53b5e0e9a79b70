"""The actors as the broker sees them: phase, what each holds, and which one takes the next request.

Phases: starting -> ready -> restarting -> ready …, and from any of them stopping (the daemon drains)
or failed (given up). Only the supervisor starts and ends processes; it tells this table.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ..bus.config import DaemonConfig
from ..bus.errors import ActorUnavailable
from ..bus.ids import ActorId
from ..bus.messages import ActorPhase, ActorReady, ActorRole, ActorStatus, Heartbeat
from .decisions import Key
from .ledger import Ticket
from .routing import ROLES, Destination

# One that hangs is shown to do so once this part of the time after which it is ended has passed.
_OVERDUE = 0.25


@dataclass(slots=True, eq=False)
class Actor:
    """holds: requests handed to it and not answered. pid 0: nobody told, so any pid is believed. heard: when
    it last gave a sign of life, and what it was at then."""

    name: ActorId
    role: ActorRole
    phase: ActorPhase = "starting"
    pid: int = 0
    restarts: int = 0
    rss_bytes: int = 0
    details: str = ""
    holds: dict[Key, Ticket] = field(default_factory=dict)
    heard: float = 0.0
    busy_s: float = 0.0
    busy_at: str = ""

    def status(self, now: float, config: DaemonConfig) -> ActorStatus:
        silent_s = now - self.heard if self.phase == "ready" else 0.0
        stuck_s = self.busy_s + silent_s if self.phase == "ready" and self.busy_s else 0.0
        is_silent = silent_s > max(_OVERDUE * config.heartbeat_timeout_s, 2 * config.heartbeat_s)
        is_stuck = stuck_s > _OVERDUE * config.stuck_s > 0.0
        return ActorStatus(
            actor=self.name,
            role=self.role,
            phase=self.phase,
            pid=self.pid,
            restarts=self.restarts,
            rss_bytes=self.rss_bytes,
            waiting=len(self.holds),
            details=self.details,
            silent_s=silent_s if is_silent else 0.0,
            stuck_s=stuck_s if is_stuck else 0.0,
            stuck_at=self.busy_at if is_stuck else "",
        )


@dataclass(frozen=True, slots=True)
class Hold:
    """Nobody can take it now, but somebody will."""

    reason: str


class ActorTable:
    def __init__(self, actors: Mapping[ActorId, ActorRole]) -> None:
        self._actors = {name: Actor(name, role) for name, role in actors.items()}
        self._by_destination = {
            destination: [actor for role in roles for actor in self._actors.values() if actor.role == role]
            for destination, roles in ROLES.items()
        }

    def __iter__(self) -> Iterator[Actor]:
        return iter(self._actors.values())

    def get(self, name: ActorId) -> Actor | None:
        return self._actors.get(name)

    def __getitem__(self, name: ActorId) -> Actor:
        return self._actors[name]

    def choose(self, destination: Destination) -> Actor | Hold:
        """The ready actor of the preferred role that holds the fewest requests.

        Raises:
            ActorUnavailable: none is configured, or all of them were given up.
        """
        best: Actor | None = None
        coming: Actor | None = None
        for actor in self._by_destination[destination]:
            if actor.phase == "ready":
                if best is not None and actor.role != best.role:
                    break
                if best is None or len(actor.holds) < len(best.holds):
                    best = actor
            elif actor.phase != "failed":
                coming = coming or actor
        if best is not None:
            return best
        if coming is not None:
            return Hold(f"the {coming.role} is {coming.phase}")
        raise ActorUnavailable(_why_nobody(destination, self._by_destination[destination]))

    def given_up(self, destination: Destination) -> bool:
        """Whether nobody is left, or was ever there, who could serve this destination."""
        return all(actor.phase == "failed" for actor in self._by_destination[destination])

    def spawned(self, name: ActorId, *, pid: int, restarts: int) -> None:
        actor = self._actors[name]
        assert not actor.holds, "what a dead actor held was answered when it died"
        actor.pid, actor.restarts, actor.rss_bytes = pid, restarts, 0
        actor.phase = "restarting" if restarts else "starting"

    def ready(self, body: ActorReady, now: float) -> Actor | None:
        """Believe a READY that comes from the process we started; None for any other."""
        actor = self._actors.get(ActorId(body.actor))
        if actor is None or actor.pid not in (0, body.pid) or actor.phase in ("stopping", "failed"):
            return None
        actor.phase, actor.pid, actor.details = "ready", body.pid, body.details
        actor.heard, actor.busy_s, actor.busy_at = now, 0.0, ""
        return actor

    def lost(self, name: ActorId, *, for_good: bool, details: str) -> list[Ticket]:
        """The actor died. Returns what it held."""
        actor = self._actors[name]
        if actor.phase != "stopping":
            actor.phase = "failed" if for_good else "restarting"
        actor.pid, actor.rss_bytes, actor.details = 0, 0, details
        held, actor.holds = actor.holds, {}
        return [*held.values()]

    def beat(self, body: Heartbeat, now: float) -> None:
        if actor := self._actors.get(ActorId(body.actor)):
            actor.rss_bytes = body.rss_bytes
            actor.heard, actor.busy_s, actor.busy_at = now, body.busy_s, body.at

    def stopping(self) -> Iterable[Actor]:
        """Turn every live actor to stopping; returns those that can be told."""
        told = []
        for actor in self._actors.values():
            if actor.phase == "ready":
                told.append(actor)
            if actor.phase != "failed":
                actor.phase = "stopping"
        return told

    def of(self, destination: Destination) -> list[Actor]:
        return self._by_destination[destination]


def _why_nobody(destination: Destination, actors: list[Actor]) -> str:
    if not actors:  # only of samplers can there be none
        return f"this daemon runs without {destination.value}: start it again with --samplers 1 or more"
    gone = "; ".join(f"{actor.name}: {actor.details}" for actor in actors)
    return f"{destination.value} was given up ({gone}): see its log, mend the cause and restart the daemon"
