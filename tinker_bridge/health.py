"""Whether the service is whole, from what the daemon says about itself. Pure."""

from dataclasses import dataclass

from ..bus.messages import ActorStatus, DaemonStatus


@dataclass(frozen=True, slots=True)
class Health:
    """missing: what keeps requests from being served, in words; nothing when all is well."""

    missing: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.missing


def health_of(status: DaemonStatus) -> Health:
    """Training needs the trainer; a sampler that restarts holds up samples only, and they wait."""
    trainers = [actor for actor in status.actors if actor.role == "trainer"]
    if not trainers:
        return Health(("the daemon has no trainer",))
    return Health(tuple(_shown(actor) for actor in trainers if actor.phase != "ready"))


def _shown(actor: ActorStatus) -> str:
    details = f": {actor.details}" if actor.details else ""
    return f"{actor.actor} is {actor.phase}{details}"
