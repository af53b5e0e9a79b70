"""Whether the service is whole, from what the daemon says about itself. Pure."""

from dataclasses import dataclass

from ..bus.messages import DaemonStatus


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
    # Without details: anybody may ask, and they may name files.
    return Health(tuple(f"{each.actor} is {each.phase}" for each in trainers if each.phase != "ready"))
